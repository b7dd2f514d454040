"""Structural tags whose schema is written in tags: what is enforced, in which order, and what is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.json_schema.kinds import TYPES, Kinds
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec, Order
from sglite.constrained.vocab import Vocabulary
from sglite.runtime.parse.base import Call, Tool, ToolFormat
from sglite.runtime.parse.deepseek_v32 import DeepSeekV32, DeepSeekV41
from sglite.runtime.parse.glm45 import Glm45
from sglite.runtime.parse.qwen3_coder import Qwen3Coder

DSML, END = 256, 257
VOCAB = Vocabulary(
    [*(bytes([i]) for i in range(256)), None, None],
    [END],
    lambda text: list(text.encode()),
    special_ids={"｜DSML｜": DSML},
)
FORMATS: list[ToolFormat] = [Qwen3Coder(), Glm45(), DeepSeekV32(), DeepSeekV41()]
NAMED = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
TEXT, WHOLE = {"type": "string"}, {"type": "integer"}


ENGINE = "native" if shutil.which("g++") else "reference"


@pytest.fixture(scope="module")
def compiler() -> Iterator[ConstraintCompiler]:
    compiler = ConstraintCompiler(VOCAB, engine=ENGINE)
    yield compiler
    compiler.close()


def of(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


def spec(form: Any, order: Order = "schema") -> ConstraintSpec:
    return ConstraintSpec.structural_tag({"type": "structural_tag", "format": form}, order=order)


def styled(schema: Any, style: Any, order: Order = "schema") -> ConstraintSpec:
    return spec({"type": "json_schema", "json_schema": schema, "style": style}, order)


def accepts(compiler: ConstraintCompiler, wanted: ConstraintSpec, *parts: str | int) -> bool:
    matcher = compiler.compile(wanted).matcher()
    ids = [i for part in parts for i in ([part] if isinstance(part, int) else part.encode())]
    return matcher.accept_run(ids) == len(ids) and matcher.accepting


def qwen(**values: str) -> str:
    return "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())


@pytest.mark.parametrize("engine", [ENGINE, "reference"])
def test_the_three_styles_write_the_same_object(engine: str) -> None:
    compiler = ConstraintCompiler(VOCAB, engine=engine)
    schema = of({"s": TEXT, "i": WHOLE}, "s", additionalProperties=False)
    assert accepts(compiler, styled(schema, "qwen_xml"), qwen(s="a\n<b>", i="-3"))
    glm = "<arg_key>s</arg_key>{0}<arg_value>a\n<b></arg_value>{0}<arg_key>i</arg_key>{0}<arg_value>-3</arg_value>{0}"
    assert accepts(compiler, styled(schema, "glm_xml"), glm.format("\n"))
    assert accepts(compiler, styled(schema, "glm_xml"), glm.format(""))
    dsml = (
        '<｜DSML｜parameter name="s" string="true">a\n<b></｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="i" string="false">-3</｜DSML｜parameter>\n'
    )
    assert accepts(compiler, styled(schema, "deepseek_xml"), dsml)
    tokens = [part for piece in dsml.split("｜DSML｜") for part in (piece, DSML)][:-1]
    assert accepts(compiler, styled(schema, "deepseek_xml"), *tokens)
    assert not accepts(compiler, styled(schema, "deepseek_xml"), dsml.replace("false", "true"))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (TEXT, ["", "\n", " x ", "</parameter", "5"], ["</parameter>", "a</parameter>b"]),
        ({"type": "string", "minLength": 1, "maxLength": 2}, ["a", "\n\n", "é中"], ["", "abc"]),
        ({"type": "string", "pattern": "^a.c$"}, ["abc", "a<c"], ["ac", "abcd"]),
        ({"enum": ["a", 1, None]}, ["a", "1", "null"], ["b", "2", '"a"', "true"]),
        ({"const": "12"}, ["12"], ["1", '"12"']),
        (WHOLE, ["12", "-1"], ["", "1.5", "x", " 1"]),
        ({"type": ["string", "integer"]}, ["12", "x", "true", "1 2"], ["1.5", "1e3", "12 "]),
        ({"anyOf": [TEXT, {"type": "null"}]}, ["null", "nul", "12", "[]"], ["null ", " null"]),
        ({"anyOf": [TEXT, {"type": "array", "items": WHOLE}]}, ["[1, 2]", "[x", "{}"], ['["x"]', "[draft]"]),
        ({}, ["x", "1", "[1]", "{", '"x"'], ["[1,]", "{x}", "tru\n</parameter>"]),
    ],
    ids=str,
)
def test_a_value_is_enforced_as_it_will_be_read(
    compiler: ConstraintCompiler, schema: Any, good: list[str], bad: list[str]
) -> None:
    wanted = styled(of({"v": schema}, "v", additionalProperties=False), "qwen_xml")
    for value in good:
        assert accepts(compiler, wanted, qwen(v=value)), value
    for value in bad:
        assert not accepts(compiler, wanted, qwen(v=value)), value


def test_required_ones_are_there_and_others_may_be_left_out(compiler: ConstraintCompiler) -> None:
    wanted = styled(of({"a": WHOLE, "b": WHOLE, "c": WHOLE}, "b", additionalProperties=False), "qwen_xml")
    for keys, right in {"b": True, "ab": True, "abc": True, "bc": True, "a": False, "": False, "bb": False}.items():
        text = "".join(qwen(**{key: "1"}) for key in keys)
        assert accepts(compiler, wanted, text) is right, keys


def test_order_any_takes_the_parameters_as_they_come(compiler: ConstraintCompiler) -> None:
    schema = of({"a": WHOLE, "b": WHOLE}, "a", additionalProperties=False)
    text = qwen(b="1", a="2")
    assert not accepts(compiler, styled(schema, "qwen_xml"), text)
    assert accepts(compiler, styled(schema, "qwen_xml", "any"), text)
    assert not accepts(compiler, styled(schema, "qwen_xml", "any"), qwen(b="1"))


def test_undeclared_names_are_written_where_the_schema_is_open(compiler: ConstraintCompiler) -> None:
    wanted = styled(of({"a": WHOLE}, "a", additionalProperties=TEXT), "qwen_xml")
    assert accepts(compiler, wanted, qwen(a="1", b="12", some_name="x"))
    assert not accepts(compiler, wanted, qwen(b="12"))
    assert not accepts(compiler, wanted, qwen(a="1", **{"b>": "12"}))


def test_counts_are_kept(compiler: ConstraintCompiler) -> None:
    schema = of({"a": WHOLE, "b": WHOLE, "c": WHOLE}, additionalProperties=False, minProperties=2, maxProperties=2)
    for keys, right in {"ab": True, "ca": True, "a": False, "abc": False, "": False}.items():
        text = "".join(qwen(**{key: "1"}) for key in keys)
        assert accepts(compiler, styled(schema, "qwen_xml"), text) is right, keys


def test_a_long_string_is_counted_when_it_ends(compiler: ConstraintCompiler) -> None:
    if ENGINE == "reference":
        pytest.skip("thousands of characters")
    wanted = styled(of({"v": {"type": "string", "maxLength": 2000}}, "v"), "qwen_xml")
    assert accepts(compiler, wanted, qwen(v='"' * 2000))
    assert not accepts(compiler, wanted, qwen(v="a" * 2001))


@pytest.mark.parametrize(
    ("schema", "pointer", "what"),
    [
        ({"type": "object", "const": {"a": 1}}, "", "one by one"),
        (of({"a": WHOLE}, additionalProperties=WHOLE, maxProperties=2), "/maxProperties", "counted"),
        (of({"a>": WHOLE}), "/properties", "'a>'"),
        (of({"a": {"type": "string", "pattern": "(a*)*(?<=b)\\1"}}), "/properties/a/pattern", "enforced"),
    ],
    ids=str,
)
def test_what_cannot_be_said_of_single_values_is_refused(
    compiler: ConstraintCompiler, schema: Any, pointer: str, what: str
) -> None:
    with pytest.raises(ConstraintRefused, match=what) as error:
        compiler.compile(styled(schema, "qwen_xml"))
    assert error.value.pointer == f"/format/json_schema{pointer}"


@pytest.mark.parametrize("style", ["minimax_xml", 5, ["qwen_xml"], None])
def test_an_unknown_style_is_refused(compiler: ConstraintCompiler, style: Any) -> None:
    with pytest.raises((ConstraintRefused, ConstraintError), match="style"):
        compiler.compile(styled({}, style))


@NAMED
@pytest.mark.parametrize("several", [False, True])
def test_calls_and_free_text_are_as_write_writes_them(
    compiler: ConstraintCompiler, form: ToolFormat, several: bool
) -> None:
    tools = [Tool("get", of({"s": TEXT}, "s")), Tool("get_all", of({})), Tool("x", of({"n": WHOLE}))]
    one, two = [Call("get", {"s": "a < b"})], [Call("get", {"s": ""}), Call("get_all"), Call("x", {"n": 1})]
    calls, free = (spec(made(tools, several=several)) for made in (form.calls, form.free))
    assert accepts(compiler, calls, form.write("", one))
    assert accepts(compiler, calls, form.write("", two)) is several
    assert not accepts(compiler, calls, "Hm. " + form.write("", one))
    assert not accepts(compiler, calls, form.write("", [Call("gets", {"s": ""})]))
    assert not accepts(compiler, calls, form.write("", [Call("x", {"n": "1 x"})]))
    assert accepts(compiler, free, "no call at all, just < text")
    assert accepts(compiler, free, form.write("Hm. <b>", one))
    assert accepts(compiler, free, form.write("Hm.", two)) is several
    assert not accepts(compiler, free, form.write("Hm.", [Call("get", {"t": ""})]))


# which types a value may have

ALL = {"null", "boolean", "integer", "number", "string", "array", "object"}
DEFS = {"$defs": {"t": TEXT, "loop": {"anyOf": [{"$ref": "#/$defs/loop"}, WHOLE]}, "x/y": {"enum": [1.5, "a"]}}}


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        (of({"v": TEXT}), {"string"}),
        (of({"v": {"type": "number"}}), {"number", "integer"}),
        (of({"v": {"type": ["null", "array"]}}), {"null", "array"}),
        (of({"v": {"enum": ["a", 1, 2.0, True]}}), {"string", "integer", "boolean"}),
        (of({"v": {"enum": ["a", 1], "type": "string"}}), {"string"}),
        (of({"v": {"const": None}}), {"null"}),
        (of({"v": {"$ref": "#/$defs/t"}}, **DEFS), {"string"}),
        (of({"v": {"$ref": "#/$defs/x~1y"}}, **DEFS), {"number", "integer", "string"}),
        (of({"v": {"$ref": "#/$defs/loop"}}, **DEFS), ALL),
        (of({"v": {"$ref": "http://else.where/t"}}), ALL),
        (of({"v": {"anyOf": [TEXT, {"$ref": "#/$defs/t"}]}}, **DEFS), {"string"}),
        (of({"v": {"oneOf": [TEXT, {"type": "null"}]}}), {"string", "null"}),
        (of({"v": {"allOf": [{"type": ["string", "integer"]}, {"type": ["integer", "null"]}]}}), {"integer"}),
        (of({"v": {}}), ALL),
        (of({"v": {"type": "nonsense"}}), ALL),
        (of({}, additionalProperties=WHOLE), {"integer"}),
        (of({}, additionalProperties=WHOLE, patternProperties={"v": TEXT}), ALL),
        ({"anyOf": [of({"v": TEXT}), of({"v": WHOLE})]}, {"string", "integer"}),
        ({"$ref": "#/$defs/o", "$defs": {"o": of({"v": TEXT})}}, {"string"}),
        ({"properties": {"v": {"enum": [float("nan"), float("inf")]}}}, {"number", "integer"}),
        ({"properties": 5, "allOf": 7, "anyOf": [3]}, ALL),
        (True, ALL),
    ],
    ids=str,
)
def test_kinds_of_a_property(schema: Any, kinds: set[str]) -> None:
    assert Kinds(schema).of("v") == kinds
    assert TYPES == ALL
