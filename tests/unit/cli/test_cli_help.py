"""Help is quick, short and says what there is; mistakes are one line."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

from sglite.cli import COMMANDS, main
from sglite.cli_bench import TASKS
from sglite.cli_parser import Parser, UsageError, dashed

HEAVY = {
    "torch", "numpy", "transformers", "tokenizers", "fastapi", "starlette", "uvicorn", "httpx", "rich", "pydantic",
    "msgspec", "yaml", "asyncio", "xgrammar", "huggingface_hub",
}  # fmt: skip
EVERY = [["--help"], *([name, "--help"] for name in COMMANDS), *(["bench", task, "--help"] for task in TASKS)]


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("argv", EVERY, ids=" ".join)
def test_help_imports_nothing_of_weight_and_is_quick(argv: list[str]) -> None:
    """Below 0.3 s on a quiet machine; the bound is for loaded ones."""
    code = (
        "import json, sys, time; start = time.perf_counter(); from sglite.cli import main\n"
        f"try: main({argv!r})\n"
        "except SystemExit: pass\n"
        "roots = sorted({name.partition('.')[0] for name in sys.modules})\n"
        "print(json.dumps([time.perf_counter() - start, roots]), file=sys.stderr)"
    )
    done = run("-c", code)
    seconds, roots = json.loads(done.stderr.splitlines()[-1])
    assert done.stdout.startswith("usage: sglite") and not HEAVY & set(roots)
    assert statistics.median([seconds, *(json.loads(run("-c", code).stderr)[0] for _ in range(2))]) < 1.5


def test_common_flags_come_first_and_the_rest_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for argv in (["--help"], ["--help", "all"], ["--help-all"], ["--help=memory"]):
        assert main(["serve", *argv]) == 0
        text = capsys.readouterr().out
        shown[argv[-1]] = [line for line in text.splitlines() if line.startswith(("  --", "  -h"))]
    assert 10 <= len(shown["--help"]) <= 16 and len(shown["all"]) > 45 and shown["--help-all"] == shown["all"]
    assert {line.split()[0] for line in shown["--help=memory"]} >= {"--max-total-tokens", "--page-size"}
    assert not any("--log-level" in line for line in shown["--help=memory"])


def test_a_command_that_is_not_there_is_told_from_its_neighbour(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in ((["srve"], "did you mean serve?"), (["xyzzy"], "there are serve,"), ([], "give a command")):
        assert main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("sglite: ") and said in line


@pytest.mark.parametrize("command", ["chat", "doctor", "version", "graph", "run", "bench"])
def test_unknown_flags_are_one_line_everywhere(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [command, *({"bench": ["serve"], "graph": ["x.py"], "run": ["x.py"]}.get(command, [])), "--jsn"]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sglite {command}: ") and "--jsn" in line


def test_a_flag_is_not_shortened_and_underscores_are_dashes() -> None:
    parser = Parser(prog="p")
    parser.add_argument("--max-tokens", type=int)
    assert parser.read(["--max_tokens=3"]).max_tokens == 3
    with pytest.raises(UsageError, match="did you mean --max-tokens"):
        parser.read(["--max-token", "3"])
    assert dashed(["--a_b=c_d", "e_f", "--", "--g_h"]) == ["--a-b=c_d", "e_f", "--", "--g_h"]


def test_version_tells_what_is_installed_without_importing_it(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; from sglite.cli import main; main(['version', '--json']); print('torch' in sys.modules)"
    first, last = run("-c", code).stdout.splitlines()
    found = json.loads(first)
    assert last == "False" and found["protocol_version"] == 1 and found["packages"]["torch"]
    assert main(["version"]) == 0 and f"sglite {found['version']}" in capsys.readouterr().out


def test_sglang_users_start_it_their_way() -> None:
    done = run("-m", "sglite.launch_server", "--model-path", "m", "--port", "1234", "--tp", "1", "--print-config")
    assert done.returncode == 0 and "port: 1234" in done.stdout and 'model-path: "m"' in done.stdout
    wrong = run("-m", "sglite.launch_server", "--model-path", "m", "--enable-lora")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and "adapters" in wrong.stderr
