"""The command line of the server: every engine argument is a flag, and what cannot be is one line and exit code 2."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from sglite.cli import main
from sglite.runtime.config import ConfigError, EngineArgs
from sglite.runtime.serve.flags import KEY_VARIABLE, add_flags, read_flags
from sglite.runtime.serve.options import ServeOptions


def read(*argv: str) -> tuple[EngineArgs, ServeOptions]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_flags(parser.parse_args(argv))


SAMPLES: dict[str, Any] = {
    "max_total_tokens": 512,
    "mem_fraction_static": 0.25,
    "log_level": "info",
    "dtype": "float32",
}


def test_no_flags_are_the_defaults() -> None:
    assert read() == (EngineArgs(), ServeOptions())


@pytest.mark.parametrize("item", fields(EngineArgs), ids=lambda item: item.name)
def test_every_engine_argument_is_a_flag(item: Any) -> None:
    name, flag = item.name, "--" + item.name.replace("_", "-")
    if isinstance(item.default, bool):
        value: Any = not item.default
        argv = [flag if value else "--no-" + flag[2:]]
    else:
        value = SAMPLES.get(name, item.default if item.default is not None else None)
        argv = [] if value is None else [f"{flag}={value}"]
    if name in ("trust_remote_code", "skip_tokenizer_init"):
        with pytest.raises(ConfigError, match=name.replace("_", ".")):
            read(*argv)
    else:
        assert read(*argv)[0] == EngineArgs(**({} if value is None else {name: value}))


def test_the_model_may_be_named_first_or_by_flag_but_not_twice() -> None:
    assert read("m")[0] == read("--model-path", "m")[0] == read("--model", "m")[0] == EngineArgs(model_path="m")
    with pytest.raises(ConfigError, match="two models"):
        read("m", "--model-path", "n")


def test_the_key_comes_from_the_flag_or_the_environment(monkeypatch: Any) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    assert read()[1].api_key == "secret" and read("--api-key", "mine")[1].api_key == "mine"
    with pytest.raises(ConfigError, match="empty"):
        read("--api-key", "")


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--port", "70000"], "70000"),
        (["--page-size", "many"], "many"),
        (["--schedule-policy", "odd"], "odd"),
        (["--max-running-requests", "0"], "max_running_requests"),
        (["--no-such-flag"], "--no-such-flag"),
        (["/no/such/model"], "/no/such/model"),
    ],
)
def test_mistakes_are_said_and_end_with_code_2(argv: list[str], said: str, capfd: Any) -> None:
    try:
        code = main(["serve", "--offline", *argv])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2 and said in capfd.readouterr().err


def test_a_port_in_use_is_known_before_the_model_is_loaded(capfd: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "/no/such/model", "--port", str(port)]) == 2
    assert capfd.readouterr().err.startswith(f"sglite serve: cannot listen on 127.0.0.1 port {port}")


def test_help_needs_neither_torch_nor_a_server() -> None:
    code = (
        "import sys; from sglite.cli import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: print({'torch', 'fastapi', 'httpx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("set()\n") and "--max-total-tokens INT" in done.stdout
