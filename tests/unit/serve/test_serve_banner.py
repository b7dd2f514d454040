"""What the server says when it is ready."""

from __future__ import annotations

import json
import re
import shlex
from types import SimpleNamespace
from typing import Any

import sglite as sgl
from sglite.runtime.parse.detect import Formats
from sglite.runtime.serve.banner import READY_LINE, EngineFacts, banner
from sglite.runtime.serve.options import ServeOptions

URL = "http://127.0.0.1:30000"
FACTS = EngineFacts("org/model", 2048, 65536, "cpu", "bfloat16", "native", "avx2 kernels")


def told(formats: Any = None, **options: Any) -> dict[str, str]:
    lines = banner(FACTS, ServeOptions(**options), URL, formats or Formats()).split("\n")
    assert lines[0] == READY_LINE + URL
    return {line[2:].split("  ")[0]: line.strip() for line in lines[1:]}


def test_it_has_everything_one_asks_first() -> None:
    found = SimpleNamespace(tools=SimpleNamespace(name="qwen25"), reasoning=SimpleNamespace(name="qwen3"))
    rows = told(found)
    assert "org/model" in rows["model"] and "2,048" in rows["context"] and "65,536" in rows["context"]
    assert "cpu, bfloat16" in rows["runs on"] and "native" in rows["runs on"]
    assert "avx2 kernels" in rows["kernels"]
    assert "qwen25" in rows["formats"] and "qwen3" in rows["formats"]
    assert "anybody may call" in rows["keys"] and "admin routes are closed" in rows["keys"]
    assert (
        f"{URL}/docs" in rows["see"]
        and "playground" in rows["see"]
        and "playground" not in told(playground=False)["see"]
    )


def test_no_key_is_shown() -> None:
    rows = told(api_key="s3cret", admin_key="t0psecret")
    assert "API key set" in rows["keys"] and "admin key set" in rows["keys"] and "$SGLITE_API_KEY" in rows["try"]
    assert not re.search("s3cret|t0psecret", " ".join(rows.values()))


def test_the_curl_line_is_one_that_a_shell_runs() -> None:
    words = shlex.split(told(served_model_name=("it's", "b"))["try"].removeprefix("try").strip())
    assert words[:2] == ["curl", f"{URL}/v1/chat/completions"]
    assert json.loads(words[words.index("-d") + 1])["model"] == "it's"


def test_facts_come_from_an_engine(engine: sgl.Engine) -> None:
    facts = EngineFacts.of(engine.model_path, engine.config)
    assert (facts.model, facts.context, facts.kv_tokens) == ("sglite-demo", 2048, 16_384)
    assert (facts.device, facts.dtype) == ("cpu", "float32")
