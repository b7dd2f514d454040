"""Constraints made to cost more than they say: deep, wide, counted, nested, ambiguous, endless. Over 200 kinds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Bomb = tuple[str, str, Any]
"""Its name; the sampling parameter of ``/generate`` that carries it; the value."""


def bombs() -> list[Bomb]:
    """All of them, in a fixed order."""
    found = [("schema " + name, "json_schema", json.dumps(value)) for name, value in _schemas()]
    found += [("regex " + name, "regex", value) for name, value in _regexes()]
    found += [("ebnf " + name, "ebnf", value) for name, value in _grammars()]
    found += [("tag " + name, "structural_tag", json.dumps(value)) for name, value in _tags()]
    found += [("choice " + name, "choice", value) for name, value in _choices()]
    found += [("stop " + name, "stop_regex", value) for name, value in _regexes() if len(value) < 1024]
    return found


# --- JSON schemas -------------------------------------------------------------------------------------------------


def _nested(levels: int, make: Any, inside: Any) -> Any:
    for _ in range(levels):
        inside = make(inside)
    return inside


def _doubling(levels: int, keyword: str) -> dict[str, Any]:
    """Definitions each of which uses the one before twice: 2 ** levels places."""
    defs: dict[str, Any] = {"d0": {"type": "integer"}}
    for i in range(1, levels + 1):
        ref = {"$ref": f"#/$defs/d{i - 1}"}
        if keyword == "properties":
            defs[f"d{i}"] = {"type": "object", "properties": {"a": ref, "b": ref}, "required": ["a", "b"]}
        elif keyword == "prefixItems":
            defs[f"d{i}"] = {"type": "array", "prefixItems": [ref, ref], "minItems": 2, "maxItems": 2}
        else:
            other = {"$ref": f"#/$defs/d{i - 1}", "title": "other"}
            defs[f"d{i}"] = {keyword: [ref, other]}
    return {"$defs": defs, "$ref": f"#/$defs/d{levels}"}


def _schemas() -> Iterator[tuple[str, Any]]:
    for kinds in (_deep, _wide, _counted, _references, _crossed):
        yield from kinds()


def _deep() -> Iterator[tuple[str, Any]]:
    for levels in (20, 40, 100):
        for keyword in ("properties", "prefixItems", "anyOf", "oneOf", "allOf"):
            yield f"doubling {keyword} {levels}", _doubling(levels, keyword)
    for levels in (40, 90):
        yield f"deep objects {levels}", _nested(levels, lambda i: {"type": "object", "properties": {"a": i}}, {})
        yield f"deep arrays {levels}", _nested(levels, lambda i: {"type": "array", "items": i}, {})
        yield f"deep anyOf {levels}", _nested(levels, lambda i: {"anyOf": [i, {"type": "null"}]}, {"type": "string"})
        yield f"deep not {levels}", _nested(levels, lambda i: {"not": i}, {"type": "string"})
        yield f"deep allOf {levels}", _nested(levels, lambda i: {"allOf": [i, {"maxLength": 9}]}, {"type": "string"})
        yield (
            f"deep if {levels}",
            _nested(levels, lambda i: {"if": i, "then": {"minLength": 1}, "else": True}, {"type": "string"}),
        )
        yield f"deep counted {levels}", _nested(levels, lambda i: {"type": "array", "items": i, "maxItems": 9}, {})


def _wide() -> Iterator[tuple[str, Any]]:
    for count in (1000, 20_000):
        names = [f"name{i}" for i in range(count)]
        yield f"wide optional {count}", {"properties": {name: {} for name in names}, "additionalProperties": False}
        yield f"wide required {count}", {"properties": {name: {} for name in names}, "required": names}
        yield f"enum {count}", {"enum": names}
        yield f"enum of numbers {count}", {"enum": list(range(count))}
        yield f"enum of long texts {count}", {"enum": ["x" * 100 + name for name in names[: count // 10]]}
        yield f"anyOf {count}", {"anyOf": [{"const": name} for name in names]}
        yield f"oneOf {count}", {"oneOf": [{"const": i} for i in range(count)]}
        yield f"prefixItems {count}", {"prefixItems": [{"type": "string"}] * count}
        yield f"wide definitions {count}", {"$defs": {name: {} for name in names}, "$ref": "#/$defs/name7"}


def _counted() -> Iterator[tuple[str, Any]]:
    for count in (1000, 10**6, 10**9, 10**18):
        yield f"minItems {count}", {"type": "array", "minItems": count}
        yield f"maxItems {count}", {"type": "array", "items": {"type": "integer"}, "maxItems": count}
        yield f"minLength {count}", {"type": "string", "minLength": count}
        yield f"maxLength {count}", {"type": "string", "maxLength": count}
        yield f"minProperties {count}", {"type": "object", "minProperties": count}
        yield f"maxProperties {count}", {"type": "object", "maxProperties": count}
        yield f"minContains {count}", {"contains": {"type": "integer"}, "minContains": count}
        yield f"counted pattern {count}", {"type": "string", "pattern": f"^(a{{1,{count}}}b){{1,{count}}}$"}
    yield "unique items", {"type": "array", "uniqueItems": True, "items": {"enum": list(range(200))}}
    yield "unique enums", {"type": "array", "uniqueItems": True, "items": {"enum": list(range(12))}, "minItems": 12}
    yield "range", {"type": "integer", "minimum": -(10**300), "maximum": 10**300}
    yield "range of numbers", {"type": "number", "exclusiveMinimum": 1e-300, "exclusiveMaximum": 1e300}
    yield "multiples", {"type": "integer", "multipleOf": 999_983}
    yield "multiples of little", {"type": "number", "multipleOf": 1e-300}
    yield "many multiples", {"allOf": [{"multipleOf": prime} for prime in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)]}


def _references() -> Iterator[tuple[str, Any]]:
    yield "itself", {"$ref": "#"}
    yield "itself in anyOf", {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}
    yield "itself in allOf", {"allOf": [{"$ref": "#"}, {"type": "object"}]}
    yield "itself in not", {"not": {"$ref": "#"}}
    yield "itself 20 times", {"type": "object", "properties": {str(i): {"$ref": "#"} for i in range(20)}}
    yield "itself required", {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    yield "a ring", {"$defs": {str(i): {"$ref": f"#/$defs/{(i + 1) % 50}"} for i in range(50)}, "$ref": "#/$defs/0"}
    yield "a long chain", {"$defs": {**{str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(5000)}, "5000": {}},
                           "$ref": "#/$defs/0"}  # fmt: skip
    yield "from elsewhere", {"$ref": "http://127.0.0.1:9/schema.json"}
    yield "a file", {"$ref": "file:///etc/passwd"}


def _crossed() -> Iterator[tuple[str, Any]]:
    yield "product of alternatives", {"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]}
                                                for i in range(25)]}  # fmt: skip
    yield "product of types", {"allOf": [{"anyOf": [{"type": "object", "properties": {f"p{i}": {"const": j}}}
                                                    for j in range(4)]} for i in range(20)]}  # fmt: skip
    yield "patternProperties", {"patternProperties": {f"^(a|b){{{i}}}": {"const": i} for i in range(60)}}
    yield "overlapping names", {"patternProperties": {f"a.*{chr(97 + i)}": {"minimum": i} for i in range(20)}}
    yield "dependentRequired", {"dependentRequired": {f"a{i}": [f"a{i + 1}"] for i in range(500)}}
    yield "dependentSchemas", {"dependentSchemas": {f"a{i}": {"required": [f"a{i + 1}"]} for i in range(40)}}
    yield "unevaluated", {"anyOf": [{"properties": {f"a{i}": True}} for i in range(40)],
                          "unevaluatedProperties": False}  # fmt: skip
    yield "long name", {"properties": {"x" * 200_000: {}}, "required": ["x" * 200_000]}
    yield "long const", {"const": "y" * 200_000}
    yield "big const", {"const": {str(i): [i] * 5 for i in range(5000)}}
    yield "intersection of patterns", {"allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(1, 12)], "type": "string"}
    yield "lookahead pattern", {"type": "string", "pattern": "^(?=.*a)(?=.*b)(?=.*c)(?=.*d)(?=.*e)(?=.*f).{8,64}$"}
    yield "formats", {"anyOf": [{"type": "string", "format": name} for name in ("date-time", "email", "uri", "uuid")]}
    yield "no value", {"type": "string", "enum": [1]}


# --- regular expressions ------------------------------------------------------------------------------------------


def _regexes() -> Iterator[tuple[str, str]]:
    yield from {
        "plus of plus": "(a+)+$", "star of star": "((a*)*)*b", "alternatives": "(a|a)*b", "overlap": "(a|ab|abc)*d",
        "classes": r"(\w*\d*\s*)*x", "ten stars": "(((((((((a*)*)*)*)*)*)*)*)*)*", "optional": "a?" * 40 + "a" * 40,
        "dots": ".*.*.*.*.*.*.*.*=.*", "count of count": "((a{1,100}){1,100}){1,100}", "counts": "(a{1000}){1000}",
        "huge count": "a{1000000000}", "huge range": "a{1,1000000000}", "nothing counted": "(){1000000}",
        "empty loop": "(a?){65536}", "subsets": "(a|b)*a(a|b){18}", "more subsets": "(a|b)*a(a|b){40}c",
        "subsets of all": r"[\s\S]*a[\s\S]{20}b", "words": r"(\w+\s?){500}", "long word": "x" * 100_000,
        "many alternatives": "|".join(f"word{i}" for i in range(10_000)), "deep": "(" * 200 + "a" + ")" * 200,
        "deeper": "(" * 20_000 + "a" + ")" * 20_000, "deep alternatives": "(a|" * 500 + "b" + ")" * 500,
        "deep counts": "(" * 30 + "a" + "){2}" * 30, "deep stars": "(" * 45 + "a" + ")*" * 45,
        "lookaheads": "(?=.*a)" * 20 + ".*", "ahead of ahead": "(?=(?=(?=(?=a*b)a*b)a*b)a*b)a*b",
        "ahead in loop": "((?=.*a).b)*", "negative": "(?!.*ab)" * 15 + "[abc]{10,}", "behind": "(?<=a.{30})b",
        "ahead counted": "(?=.{1000}a).*", "six aheads": "(?=.*[a-f])(?=.*[g-l])(?=.*[m-r])(?=.*[s-z])(?=.*[0-9]).{9}",
        "letters": r"\p{L}{100}", "not letters": r"\P{L}{1000}", "properties": r"[\p{Lu}\p{Ll}\p{Nd}\p{Sm}]{50,}",
        "all but": r"[^a]{5000}", "scripts": r"(\p{Script=Han}|\p{Script=Latin}|\p{Script=Greek}){200}",
        "astral": r"[\u{1F600}-\u{1F64F}]{1000}", "whole range": r"[\u0000-\u{10FFFF}]{3000}",
        "back reference": r"(a+)\1", "named reference": r"(?<x>a+)\k<x>", "atomic": "(?>a+)b", "recursion": "(?R)",
        "conditional": "(?(1)a|b)", "unbalanced": "((((", "bad class": "[z-a]", "bad count": "a{5,2}", "bare": "*",
        "bounds": r"(\b\w+\b\W*){200}", "anchors": "^$" * 2000, "anchored loop": "(^a|b$)*",
        "intersections": "(?=(a{2})*$)(?=(a{3})*$)(?=(a{5})*$)(?=(a{7})*$)(?=(a{11})*$)a*",
        "primes": "(?=(a{13})*$)(?=(a{17})*$)(?=(a{19})*$)(?=(a{23})*$)a+", "flags": "(?i)" + "a" * 1000,
        "nul": "\u0000*", "half a character": "a\\ud800", "quoted": r"\Q" + "a" * 1000 + r"\E",
    }.items()  # fmt: skip


# --- grammars -----------------------------------------------------------------------------------------------------


def _grammars() -> Iterator[tuple[str, str]]:
    doubling = "\n".join(["root ::= r30", *(f"r{i} ::= r{i - 1} r{i - 1}" for i in range(1, 31)), 'r0 ::= "a"'])
    either = "\n".join(["root ::= r60", *(f"r{i} ::= r{i - 1} | r{i - 1}" for i in range(1, 61)), 'r0 ::= "a"'])
    chain = "\n".join([*(f"{'root' if i == 0 else f'r{i}'} ::= r{i + 1}" for i in range(5000)), 'r5000 ::= "a"'])
    yield from {
        "doubling": doubling, "either": either, "chain": chain, "left": 'root ::= root "a" | "a"',
        "hidden left": 'root ::= n root "a" | "b"\nn ::= "" | "c"', "mutual left": "root ::= a\na ::= root\n",
        "left ring": 'root ::= a "x"\na ::= b "y"\nb ::= root "z" | "q"', "itself": "root ::= root",
        "ambiguous": 'root ::= root root | "a"', "more ambiguous": 'root ::= root root root | root root | "a" | ""',
        "expressions": 'root ::= root "+" root | root "*" root | [0-9]', "nullable loop": 'root ::= ("" | "")*',
        "nullable": 'root ::= a* b*\na ::= "" | "x"\nb ::= a a a', "nullable plus": "root ::= (([a]?)*)+ ",
        "both ends": 'root ::= "a" root "a" | "b" root "b" | ""', "palindromes": 'root ::= [a-z] root [a-z] | ""',
        "three": 'root ::= "a" root "b" root "c" | ""', "dangling": 'root ::= "i" root "e" root | "i" root | "x"',
        "huge count": 'root ::= "a"{1000000000}', "counts": 'root ::= (("a"{1,999}){1,999}){1,999}',
        "many counts": "root ::= " + " ".join('[a-z]{0,500}' for _ in range(100)),
        "long text": f'root ::= "{"a" * 100_000}"', "wide": "root ::= " + " | ".join(f'"w{i}"' for i in range(10_000)),
        "wide rules": "\n".join(["root ::= " + " | ".join(f"r{i}" for i in range(2000)),
                                 *(f'r{i} ::= "x{i}" root?' for i in range(2000))]),
        "deep": "root ::= " + "(" * 500 + '"a"' + ")" * 500,
        "deeper": "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000,
        "deep stars": "root ::= " + "(" * 40 + '"a"' + ")*" * 40, "unknown rule": "root ::= nowhere", "empty": "",
        "no root": 'a ::= "b"', "endless": 'root ::= "a" root', "endless two": 'root ::= a\na ::= "x" b\nb ::= "y" a',
        "unfinished": 'root ::= "a', "bad class": "root ::= [z-a]", "not": "root ::= [^a-z]{3000}",
        "all": "root ::= .*", "unicode": "root ::= [\\u4e00-\\u9fff]{500}",
        "alternated": 'root ::= ("a" | "aa" | "aaa")*',
        "suffixes": 'root ::= .* "a" ' + ". " * 25, "nothing": 'root ::= ""', "newlines": "root ::= " + "\n" * 5000,
        "comments": "# x\n" * 20_000 + 'root ::= "a"', "two roots": 'root ::= "a"\nroot ::= "b"',
        **_in_lark(),
        "intersecting": "root ::= " + " | ".join(f'"{"a" * i}" root' for i in range(1, 150)) + ' | ""',
    }.items()  # fmt: skip


def _in_lark() -> dict[str, str]:
    """In Lark's notation."""
    handed = "\n".join(f"_d{i}{{x}}: _d{i + 1}{{(x x)}} | x" for i in range(900))
    chain = "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(40))
    return {
        "handed on": f'start: _d0{{"a"}}\n{handed}\n_d900{{x}}: x',
        "doubling terminals": f'start: A0\n{chain}\nA40: "a"',
        "long templates": "start: " + " ".join(f'_a{{"{i}"}}' for i in range(1000)) + "\n_a{x}: " + "x " * 50_000,
        "template of itself": 'start: _a{"x"}\n_a{x}: _a{_b{x}}\n_b{x}: x x', "ring": "start: A\nA: B\nB: A",
        "much ignored": 'start: "a"+\n' + "%ignore /[a-z]+ ?/\n" * 3000,
        "counted terminals": 'start: A~0..999\nA: (("a"~1..999)~1..999)~1..999',
        "left in brackets": "start: " + "[" * 40 + 'start "a"' + "]" * 40, "lark's own": "start: " + '"x" | ' * 30_000,
        "letters of any case": 'start: "' + "ǆ" * 60_000 + '"i',
    }  # fmt: skip


# --- structural tags and choices ----------------------------------------------------------------------------------


def _tag(begin: str, schema: Any, end: str) -> dict[str, Any]:
    return {"begin": begin, "content": {"type": "json_schema", "json_schema": schema}, "end": end}


def _triggered(tags: list[Any], triggers: list[str]) -> dict[str, Any]:
    return {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": triggers, "tags": tags}}


def _tags() -> Iterator[tuple[str, Any]]:
    yield "many", _triggered([_tag(f"<f{i}>", {}, f"</f{i}>") for i in range(2000)], ["<f"])
    yield "many triggers", _triggered([_tag(f"<{i}>", {}, "</>") for i in range(500)], [f"<{i}>" for i in range(500)])
    yield "one letter", _triggered([_tag("a", {}, "a")], ["a"])
    yield "same", _triggered([_tag("<f>", {}, "</f>")] * 100, ["<f>"])
    yield "prefixes", _triggered([_tag("<" + "a" * i, {}, ">") for i in range(1, 60)], ["<"])
    yield "no trigger", _triggered([_tag("<f>", {}, "</f>")], [])
    yield "empty trigger", _triggered([_tag("<f>", {}, "</f>")], [""])
    yield "long", _triggered([_tag("<" + "x" * 50_000, {}, "</f>")], ["<x"])
    yield "doubling", _triggered([_tag("<f>", _doubling(40, "properties"), "</f>")], ["<f>"])
    yield "itself", _triggered([_tag("<f>", {"$ref": "#"}, "</f>")], ["<f>"])
    nested: Any = {"type": "any_text"}
    for i in range(200):
        nested = {"type": "tag", "begin": f"<{i}>", "content": nested, "end": f"</{i}>"}
    yield "deep", {"type": "structural_tag", "format": nested}
    either = {"type": "const_string", "value": "a"}
    for _ in range(12):
        either = {"type": "or", "elements": [either, either]}
    yield "either", {"type": "structural_tag", "format": either}
    yield "sequence", {"type": "structural_tag", "format": {"type": "sequence", "elements": [nested] * 50}}
    yield "old shape", {"structures": [{"begin": "<f>", "schema": {}, "end": "</f>"}], "triggers": ["<f>"]}
    yield "unknown", {"type": "structural_tag", "format": {"type": "magic"}}


def _choices() -> Iterator[tuple[str, list[str]]]:
    yield "many", [f"choice {i}" for i in range(2000)]
    yield "long", ["x" * 30_000 + str(i) for i in range(5)]
    yield "prefixes", ["a" * i for i in range(1, 300)]
    yield "same", ["a"] * 1000
    yield "empty", [""]
    yield "none", []
