"""The command line of the server: every field is a flag, and what cannot be is one line and exit code 2."""

from __future__ import annotations

import socket
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sglite.cli import main
from sglite.cli_serve import read_values, serve_parser
from sglite.runtime.config import ConfigError, EngineArgs
from sglite.runtime.serve.flag_advice import _INSTEAD, ACCEPTED, NOTES
from sglite.runtime.serve.flag_table import ALIASES, AT_LOAD, COMMON, HELP, OFF, SECRET
from sglite.runtime.serve.flag_values import Settled, describe
from sglite.runtime.serve.flags import serve_flags
from sglite.runtime.serve.options import ServeOptions


def settled(*argv: str) -> Settled:
    parser = serve_parser()
    return read_values(parser, parser.read(argv), argv)[0]


def read(*argv: str) -> tuple[EngineArgs, ServeOptions]:
    found = settled(*argv)
    return found.args, found.options


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SGLITE_API_KEY", "SGLITE_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


SAMPLES: dict[str, Any] = {
    "max_total_tokens": 512, "mem_fraction_static": 0.25, "log_level": "info", "dtype": "float32", "host": "::1",
    "port": 0, "parent": 7, "api_key": "k", "admin_key": "a", "cors_origins": ("http://a", "http://b"),
    "served_model_name": ("x", "y"), "tool_call_parser": "none", "reasoning_parser": "none", "drain_s": 1.5,
    "heartbeat_timeout_s": 2.0, "keep_alive_s": 3.0, "metrics_prefix": "sglang", "log_format": "json",
    "otlp_traces_endpoint": "http://c:4318/v1/traces", "context_length": 64, "num_threads": 2, "page_size": 32,
    "chunked_prefill_size": 8, "max_running_requests": 3, "max_queued_requests": 4, "max_prefill_tokens": 5,
    "pin_budget": 0.1, "schedule_policy": "lpm", "random_seed": 9, "grammar_backend": "reference",
    "cpu_kernels": "torch", "grammar_timeout_s": 1.0, "device": "cuda", "attention_backend": "triton",
    "cascade_attention": "512",
    "cuda_graph_max_bs": 8,
    "load_format": "dummy", "model_path": "m", "tokenizer_path": "t", "chat_template": "c",
    "revision": "r", "download_dir": "d", "show_progress": True,
    "max_mamba_cache_size": 6, "quantization": "awq_marlin", "kv_cache_dtype": "bfloat16",
}  # fmt: skip
REFUSED = {"tp_size": 2, "dp_size": 2, "pp_size": 2, "ep_size": 2}
REFUSED_SWITCHES = ("trust_remote_code", "skip_tokenizer_init")


def words(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}={one}" for one in (value if isinstance(value, tuple) else [value])]


def test_no_flags_are_the_defaults() -> None:
    assert read() == (EngineArgs(), ServeOptions())


@pytest.mark.parametrize("item", [*fields(EngineArgs), *fields(ServeOptions)], ids=lambda item: item.name)
def test_every_field_is_a_flag(item: Any) -> None:
    value = not item.default if isinstance(item.default, bool) else SAMPLES.get(item.name, REFUSED.get(item.name))
    if value is None:
        value = item.default
    if item.name in REFUSED_SWITCHES or (item.name in REFUSED and value != item.default):
        with pytest.raises(ConfigError, match=item.name.replace("_", ".")):
            read(*words(item.name, value))
        return
    assert value is not None, "give it a sample above"
    found = settled(*words(item.name, value))
    assert found.value(item.name) == value and found.origins == {item.name: "flag"}


def test_every_flag_is_said_something_about_and_the_tables_name_fields() -> None:
    names = {flag.field for flag in serve_flags()}
    assert [flag.field for flag in serve_flags() if not flag.help] == []
    assert {*HELP, *ALIASES, *OFF.values(), *AT_LOAD, *COMMON, *SECRET} <= names
    assert len(COMMON) + 2 <= 15


def test_no_flag_is_both_ours_and_advised_against() -> None:
    ours = {spelling for flag in serve_flags() for spelling in (flag.name, *flag.aliases)}
    assert not ours & {*_INSTEAD, *ACCEPTED} and set(NOTES) <= ours
    for said in [*_INSTEAD.values(), *ACCEPTED.values()]:
        for word in said.replace(",", " ").replace(";", " ").split():
            assert not word.startswith("--") or word in ours, f"{word} is advised and is no flag"


@pytest.mark.parametrize("switch", ACCEPTED)
def test_switches_for_what_is_always_so_change_nothing(switch: str) -> None:
    assert read(switch) == (EngineArgs(), ServeOptions())


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        ("--max-model-len 16K", "context_length", 16384),
        ("--max_num_seqs 3", "max_running_requests", 3),
        ("--threads 2", "num_threads", 2),
        ("--max-num-batched-tokens=2k", "max_prefill_tokens", 2000),
        ("--gpu-memory-utilization .5", "mem_fraction_static", 0.5),
        ("--mem-fraction .5", "mem_fraction_static", 0.5),
        ("-tp 1", "tp_size", 1),
        ("--admin-api-key x", "admin_key", "x"),
        ('--allowed-origins ["http://a","http://b"]', "cors_origins", ("http://a", "http://b")),
        ("--served-model-name a,b --served-model-name c", "served_model_name", ("a", "b", "c")),
        ("--no-enable-prefix-caching", "disable_radix_cache", True),
        ("--drain 3", "drain_s", 3.0),
        ("--enable-auto-tool-choice --enforce-eager", "disable_cuda_graph", True),
    ],
)
def test_spellings_of_peers(argv: str, field: str, value: Any) -> None:
    assert settled(*argv.split()).value(field) == value


def test_the_model_may_be_named_first_or_by_flag_but_not_twice() -> None:
    assert read("m")[0] == read("--model-path", "m")[0] == read("--model", "m")[0] == EngineArgs(model_path="m")
    with pytest.raises(ConfigError, match="two models"):
        read("m", "--model-path", "n")


def test_a_flag_counts_before_the_environment_before_the_file(monkeypatch: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("api-key: from-file\nmax-num-seqs: 5\nport: 1\nserved_model_name: [a, b]\njump_forward: false\n")
    given = ("--config", str(file), "--port", "2")
    found = settled(*given)
    assert (found.options.api_key, found.options.port, found.args.max_running_requests) == ("from-file", 2, 5)
    assert found.options.served_model_name == ("a", "b") and not found.args.jump_forward
    monkeypatch.setenv("SGLITE_API_KEY", "from-environment")
    found = settled(*given)
    assert found.options.api_key == "from-environment"
    assert found.origins["api_key"] == "environment SGLITE_API_KEY" and found.origins["port"] == "flag"
    assert found.origins["max_running_requests"] == f"file {file}" and "host" not in found.origins
    assert settled(*given, "--api-key", "mine").options.api_key == "mine"


@pytest.mark.parametrize("name", ["c.yaml", "c.json"])
def test_what_is_printed_is_a_file_that_gives_the_same(name: str, tmp_path: Path, capsys: Any) -> None:
    values = {name: value for name, value in SAMPLES.items() if name not in (*SECRET, "mem_fraction_static")}
    first = settled(*(word for key, value in values.items() for word in words(key, value)), "--api-key", "s3cret")
    text = describe(first)
    assert "s3cret" not in text
    if name.endswith("json"):
        import json

        import yaml

        text = json.dumps(yaml.safe_load(text))
    (tmp_path / name).write_text(text)
    again = settled("--config", str(tmp_path / name), "--api-key", "s3cret")
    assert (again.args, again.options) == (first.args, first.options)


def test_print_config_shows_origins_and_serves_nothing(capsys: Any) -> None:
    assert main(["serve", "m", "--print-config", "--api-key", "s3cret"]) == 0
    out = capsys.readouterr().out
    lines = {line.partition(":")[0].strip("# "): line for line in out.splitlines() if ":" in line}
    assert lines["port"].split() == ["port:", "30000", "#", "default"] and lines["model-path"].endswith("# flag")
    assert "decided at load, from the model" in lines["context-length"] and "s3cret" not in out
    assert "not shown" in lines["api-key"] and lines["api-key"].endswith("# flag")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "must be keys with values"),
        ("prot: 1\n", "did you mean --port?"),
        ("ssl-keyfile: x\n", "speaks TLS"),
        ("port: yes\n", "must be a value, not true or false"),
        ("port: seven\n", "'seven' is no port"),
        ("api-key: 0123\n", "write it in quotes"),
        ("jump-forward: 1\n", "must be true or false"),
        ("port: [1, 2]\n", "takes one value"),
        ("a: [\n", "is no YAML"),
        ("!!python/object/apply:os.system ['true']\n", "is no YAML"),
        ("model-path: ''\n", "is empty"),
    ],
)
def test_a_file_that_cannot_be_is_one_line(text: str, said: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert main(["serve", "--config", str(tmp_path / "c.yaml"), "--print-config"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sglite serve: --config ") and said in line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--port", "70000"], "argument --port: '70000' is no port; give 0 to 65535"),
        (["--page-size", "many"], "argument --page-size: 'many' is no whole number"),
        (["--drain-s", "-1"], "less than no time"),
        (["--mem-fraction-static", "nan"], "no finite number"),
        (["--schedule-policy", "odd"], "'odd'"),
        (["--max-running-requests", "0"], "max_running_requests must be a positive integer, got 0"),
        (["--no-such-flag"], "there is no flag --no-such-flag"),
        (["--prot", "1"], "there is no flag --prot; did you mean --port?"),
        (["--max-total-token", "1"], "did you mean --max-total-tokens?"),
        (["--ssl-keyfile=x"], "--ssl-keyfile is not supported: sglite speaks plain HTTP"),
        (["--guided-decoding-backend", "x"], "use --grammar-backend"),
        (["--speculative-algorithm", "EAGLE"], "speculative decoding is not supported yet"),
        (["--tp", "2"], "tp_size=2"),
        (["--api-key", ""], "is empty"),
        (["--metrics-prefix", "a b"], "'a b'"),
        (["a", "b"], "'b' is one argument too many"),
        (["--help", "nothing"], "there is no such group"),
        (["--config", "/no/such/file"], "/no/such/file cannot be read: No such file"),
        (["/no/such/model"], "/no/such/model"),
    ],
)
def test_mistakes_are_one_line_and_end_with_code_2(argv: list[str], said: str, capfd: Any) -> None:
    assert main(["serve", "--offline", "--port=0", *argv]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("sglite serve: ") and said in line


def test_an_empty_key_in_the_environment_is_no_key(monkeypatch: Any) -> None:
    monkeypatch.setenv("SGLITE_ADMIN_KEY", "")
    with pytest.raises(ConfigError, match="SGLITE_ADMIN_KEY is empty"):
        settled()


def test_what_changes_nothing_is_said(capfd: Any) -> None:
    assert (
        main(
            [
                "serve",
                "/no/such/model",
                "--offline",
                "--port=0",
                "--enable-auto-tool-choice",
                "--gpu-memory-utilization=.5",
            ]
        )
        == 2
    )
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("sglite serve: note: --enable-auto-tool-choice: ") and len(lines) == 3
    assert lines[1].startswith("sglite serve: note: --gpu-memory-utilization is --mem-fraction-static")


def test_a_port_in_use_is_known_before_the_model_is_loaded(capfd: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "/no/such/model", "--port", str(port)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.lower().startswith(f"sglite serve: cannot listen on 127.0.0.1 port {port}: address already in use")
