"""Turns that are no gold: broken calls, calls in unusual spelling, text that only looks like a call."""

from __future__ import annotations

import pytest
from parse_turns import TOOLS, Read, read_every_way

from sglite.runtime.parse.registry import tool_format

A = '{"a": 1}'
WHOLE = [("f", None, A, True)]
DS = "<｜tool▁call▁begin｜>"
SEP, DS_END = "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

# format, turn, content, calls
CASES: list[tuple[str, str, str, list[tuple[str, str | None, str, bool]]]] = [
    # white space: none next to marks, all of it elsewhere
    ("hermes", f'  \n<tool_call>\n{{"name": "f", "arguments": {A}}}\n</tool_call>\n\n', "", WHOLE),
    ("hermes", f' a \n<tool_call>{{"name":"f","arguments":{A}}}</tool_call>\n b ', " a\n b ", WHOLE),
    ("hermes", f'<tool_call>{{"name":"f","arguments":{A}}}</tool_call>\n b ', "b ", WHOLE),
    ("hermes", " \n ", " \n ", []),
    # what begins like a call and is none
    ("hermes", "The <tool_call> tag", "The <tool_call> tag", []),
    ("hermes", '<tool_call>\n{"city": "Oslo"}\n</tool_call> x', '<tool_call>\n{"city": "Oslo"}\n</tool_call> x', []),
    ("hermes", "a </tool_call> b <tool_cal", "a </tool_call> b <tool_cal", []),
    ("hermes", '<tool_call>[{"name": "f"}] x', '<tool_call>[{"name": "f"}] x', []),
    # unusual spellings
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "id": "7", "name": "f"}</tool_call>', "", [("f", "7", A, True)]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", None, "{}", True)]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", None, "{}", True)]),
    ("hermes", '<tool_call>{"name": "f", "arguments": ""}</tool_call>', "", [("f", None, "{}", True)]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", WHOLE),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "it \\"is\\""}</tool_call>',
        "",
        [("f", None, '"it \\"is\\""', True)],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\\\n\\ud83d\\ude00\\"}"}</tool_call>',
        "",
        [("f", None, '{"a": "\\n😀"}', True)],
    ),
    ("hermes", f'<tool_call>{{"name": "f", "arguments": {A}, "why": [1, {{}}]}}</tool_call>', "", WHOLE),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "1\n2\\d"}}</tool_call>',
        "",
        [("f", None, '{"a": "1\\n2\\\\d"}', True)],
    ),
    # broken calls: no end; what was written is handed on
    ("hermes", f'<tool_call>{{"name": "f", "arguments": {A}\n</tool_call> x', "x", WHOLE),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": True}}\n</tool_call>x',
        "x",
        [("f", None, '{"a": True}}\n', False)],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>x', "x", [("f", None, "[1]}", False)]),
    ("hermes", '<tool_call>{"name": "f", "arg', "", [("f", None, "", False)]),
    ("hermes", '<tool_call>{"na', "", []),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": [1}}</tool_call>', "", [("f", None, '{"a": [1}}', False)]),
    ("kimi_k2", "<|tool_call_begin|>a:b<|tool_call_argument_begin|>{}", "", [("a:b", "a:b", "{}", True)]),
    ("pythonic", "[f(a='\\1012')]", "", [("f", None, '{"a": "A2"}', True)]),
    # DeepSeek, Kimi: framing marks are dropped wherever they stand
    ("deepseekv3", f"{DS}function{SEP}f\n```json\n{A}\n```{DS_END} x", "x", WHOLE),
    ("deepseekv3", f"{DS}function{SEP}f\n{A}{DS_END}", "", WHOLE),
    ("deepseekv31", f"a{DS_END}b{DS}f{SEP}{A}{DS_END}", "ab", WHOLE),
    ("deepseekv31", f"{DS}f{SEP}{DS_END}", "", [("f", None, "{}", True)]),
    ("deepseekv31", f"{DS}f{DS_END}x", "fx", []),
    ("deepseekv31", f"{DS}f{SEP}{{a}}{DS_END}x", "x", [("f", None, "{a}", False)]),
    ("deepseekv31", f"{DS}f", "", []),
    ("kimi_k2", f"<|tool_call_begin|>f<|tool_call_argument_begin|>{A}<|tool_call_end|>", "", [("f", "f", A, True)]),
    (
        "kimi_k2",
        f"<|tool_call_begin|>functions.a:b:3<|tool_call_argument_begin|>{A}",
        "",
        [("a:b", "functions.a:b:3", A, True)],
    ),
    # Mistral: one array, or a mark for each
    ("mistral", f'[TOOL_CALLS][{{"name": "f", "arguments": {A}, "id": "abc"}}] x', "x", WHOLE),
    ("mistral", f"a [TOOL_CALLS]f{A}", "a", WHOLE),
    ("mistral", f"[TOOL_CALLS]f[ARGS]{A}[TOOL_CALLS]g[ARGS]{{}}", "", [*WHOLE, ("g", None, "{}", True)]),
    ("mistral", "[TOOL_CALLS] hm [1]", "hm [1]", []),
    ("mistral", "see [1] and [TOOL", "see [1] and [TOOL", []),
    # Llama: bare objects only where they name a tool and stand at the beginning
    ("llama3", f' {{"name": "f", "parameters": {A}}} ; {{"name": "f", "arguments": {A}}}', "", WHOLE * 2),
    ("llama3", f'{{"type": "function", "name": "f", "parameters": {A}}}', "", WHOLE),
    ("llama3", f'{{"name": "f", "parameters": {A}}}\nDone.', "Done.", WHOLE),
    ("llama3", f'{{"name": "nobody", "parameters": {A}}}', f'{{"name": "nobody", "parameters": {A}}}', []),
    ("llama3", '{"name": "f", "age": 3}', '{"name": "f", "age": 3}', []),
    ("llama3", '{"city": "Oslo"} ', '{"city": "Oslo"} ', []),
    ("llama3", '{"name": "f", "par', '{"name": "f", "par', []),
    ("llama3", f'Call {{"name": "f", "parameters": {A}}}', f'Call {{"name": "f", "parameters": {A}}}', []),
    ("llama3", f'Hm <|python_tag|>{{"name": "f", "parameters": {A}}}', "Hm", WHOLE),
    ("llama3", "<|python_tag|>print(1)", "print(1)", []),
    ("llama3", f'<|python_start|>Hm<|python_end|>{{"name": "f", "parameters": {A}}}', "Hm", WHOLE),
    # pythonic: Python's literals as JSON
    (
        "pythonic",
        "[f(a=1, b='it\\'s \"x\"\\n', c=[True, None, (1.50, -2,),], d={'k': {}, 2: 0x10}, e=\"\"), get-b.c()]",
        "",
        [
            (
                "f",
                None,
                '{"a": 1, "b": "it\'s \\"x\\"\\n", "c": [true, null, [1.5, -2]], "d": {"k": {}, "2": 16}, "e": ""}',
                True,
            ),
            ("get-b.c", None, "{}", True),
        ],
    ),
    (
        "pythonic",
        "[f(a=\"\\u00e9\\x41\\U0001F600\\/\\d\\101\", b='''x\"\n''',)]",
        "",
        [("f", None, '{"a": "éA😀/\\\\dA", "b": "x\\"\\n"}', True)],
    ),
    ("pythonic", "<|python_start|>[nobody(a=null)]<|python_end|> x", "x", [("nobody", None, '{"a": null}', True)]),
    ("pythonic", "[nobody(a=1)]", "[nobody(a=1)]", []),
    ("pythonic", "[1] says [f(a=1)]", "[1] says [f(a=1)]", []),
    ("pythonic", "[f] is a tool", "[f] is a tool", []),
    ("pythonic", "[f(a=1), see below", "see below", [("f", None, A, True)]),
    ("pythonic", "[f(a=g(1))]", "", [("f", None, '{"a": g(1))]', False)]),
    ("pythonic", "[f(1)]", "", [("f", None, "1)]", False)]),
    ("pythonic", "[f(a='cut", "", [("f", None, '{"a": "cut', False)]),
]


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES, ids=lambda value: str(value)[:40])
def test_a_turn_is_read_so(form: str, text: str, content: str, calls: list[tuple[str, str | None, str, bool]]) -> None:
    found = read_every_way(lambda: tool_format(form).parser(TOOLS), text)
    assert found == Read(content, "", calls)


HARMONY = [
    ("<|channel|>final<|message|>Hi \n<|return|>", Read("Hi \n", "", [])),
    ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hi", Read("Hi", "hm", [])),
    (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>Wait.<|end|><|start|>"
        "assistant<|channel|>analysis<|message|>b<|end|><|start|>assistant to=functions.f<|channel|>commentary json"
        f"<|message|>{A}<|call|>",
        Read("Wait.", "a\nb", WHOLE),
    ),
    (f" to=functions.f<|channel|>analysis code<|message|>{A}<|call|>", Read("", "", WHOLE)),
    ("<|channel|>commentary to=f<|message|><|call|>", Read("", "", [("f", None, "{}", True)])),
    ("<|channel|>commentary to=python<|message|>x = 1<|call|>", Read("", "", [("python", None, "x = 1", False)])),
    ("Hi <|end|>", Read("Hi ", "", [])),
    ("<|channel|>analysis<|message|>hm<|channel|>final<|message|>Hi", Read("Hi", "hm", [])),
    ("<|channel|>comm", Read("", "", [])),
]


@pytest.mark.parametrize(("text", "expected"), HARMONY)
def test_harmony_is_read_so(text: str, expected: Read) -> None:
    assert read_every_way(lambda: tool_format("gpt-oss").parser(TOOLS), text) == expected
