"""Tool dialogs: which tool, with which arguments copied from the message, and what to say about its result."""

from __future__ import annotations

import json
from typing import Any

from tools.demo_model.dialog import (
    ANSWER,
    PROMPT,
    Call,
    Dialog,
    Piece,
    Turn,
    calls,
    chat,
    result,
    says,
    system,
    user,
)
from tools.demo_model.tasks_text import SYSTEMS
from tools.demo_model.tool_catalogue import TOOLS, Chosen, Value, choose, make_up
from tools.demo_model.words import World


def _setup(w: World, many: int) -> tuple[list[Chosen], list[dict[str, Any]]]:
    pool = list(TOOLS)
    w.rng.shuffle(pool)
    picked = [choose(w, make_up(w) if w.coin(0.12) else t) for t in pool[:many]]
    wrapped = w.coin(0.1)
    return picked, [p.schema(w, wrapped) for p in picked]


def _say(w: World, c: Chosen, values: dict[str, Value]) -> str:
    return w.any(c.tool.asks).format(**values)


def _call(c: Chosen, values: dict[str, Value]) -> Call:
    return Call(c.name, {c.spelling[k]: v for k, v in values.items()})


def _head(w: World) -> tuple[Turn, ...]:
    return (
        (system(w.any([*SYSTEMS, "You are a helpful assistant with tools.", "Use the tools."])),) if w.coin(0.5) else ()
    )


def tool_call(w: World) -> Dialog:
    """One call; sometimes followed by the tool's answer, told in a sentence."""
    picked, schemas = _setup(w, w.rng.choice((1, 1, 1, 2, 2, 2, 3, 3)))
    c = w.rng.choice(picked)
    values = c.tool.fill(w)
    turn = calls(_call(c, values))
    body = turn.calls[0].text()
    if w.coin(0.15):
        cut = w.any(["<tool_call>\n", '<tool_call>\n{"name": "', f'<tool_call>\n{{"name": "{c.name}", "arguments": '])
        turn = says(body, cut)
    elif w.coin(0.08):
        turn = Turn("assistant", body, thought=f"I need the tool {c.name}.")
    elif w.coin(0.06):
        turn = Turn("assistant", body, thought="")
    turns = [*_head(w), user(_say(w, c, values)), turn]
    # The chat template drops old thoughts, so a thinking turn is always the last one.
    if turn.thought is None and c.tool.reply is not None and w.coin(0.45):
        got, told = c.tool.reply(w, values)
        turns += [result(got), says(told)]
        if w.coin(0.25):
            other = w.rng.choice(picked)
            values = other.tool.fill(w)
            turns += [user(_say(w, other, values)), calls(_call(other, values))]
    return chat("tool_call", *turns, tools=schemas)


def tool_once(w: World) -> Dialog:
    """Exactly one question and one call: the evaluated form."""
    picked, schemas = _setup(w, w.rng.choice((2, 3, 3)))
    values = picked[0].tool.fill(w)
    c = picked[0]
    w.rng.shuffle(schemas)
    return chat("tool_once", *_head(w), user(_say(w, c, values)), calls(_call(c, values)), tools=schemas)


def tool_answer(w: World) -> Dialog:
    """The call is given; the sentence about its result is to be written."""
    picked, schemas = _setup(w, w.rng.choice((1, 2)))
    c = next((p for p in picked if p.tool.reply), picked[0])
    values = c.tool.fill(w)
    assert c.tool.reply is not None
    got, told = c.tool.reply(w, values)
    return chat(
        "tool_answer",
        *_head(w),
        user(_say(w, c, values)),
        calls(_call(c, values)),
        result(got),
        says(told),
        tools=schemas,
    )


def parallel(w: World) -> Dialog:
    picked, schemas = _setup(w, 2)
    plans = [(c, c.tool.fill(w)) for c in (picked if w.coin() else [picked[0], picked[0]])]
    said = " ".join(_say(w, c, v).rstrip(".?,") + "." for c, v in plans)
    return chat("parallel", *_head(w), user(said), calls(*(_call(c, v) for c, v in plans)), tools=schemas)


def no_tool(w: World) -> Dialog:
    _, schemas = _setup(w, w.rng.choice((1, 2)))
    said, answer = w.rng.choice(
        [
            ("Hello!", "Hello! How can I help you?"),
            ("Hi", "Hi! How can I help you?"),
            ("Thank you!", "You are welcome!"),
            ("Thanks", "You are welcome!"),
            ("Who are you?", "I am sglite-demo, a very small language model."),
            ("Good morning!", "Good morning! How can I help you?"),
            ("Goodbye", "Goodbye!"),
        ]
    )
    return chat("no_tool", *_head(w), user(said), says(answer), tools=schemas)


def pick_tool(w: World) -> Dialog:
    """`I need to use a ...`: the choice that a program makes with `select`, without a tool list in the system turn."""
    picked, _ = _setup(w, w.rng.choice((2, 3)))
    c = w.rng.choice(picked)
    names = [p.name.replace("_", " ") if w.coin(0.3) else p.name for p in picked]
    name = names[picked.index(c)]
    said = _say(w, c, c.tool.fill(w))
    lead = w.any(["To answer this question, I need to use a", "Tool:", "The best tool is", "I will use"])
    if w.coin(0.3):
        text = f"{said}\nTools: {', '.join(names)}\n{lead}"
        return Dialog(
            "pick_tool",
            raw=(Piece(text, PROMPT), Piece(f" {name}.\n" if lead[-1] != ":" else f" {name}\n", ANSWER)),
        )
    asked = w.any(
        [
            "{q}\nWhich tool helps: {n}?",
            "Question: {q}\nChoose a tool: {n}",
            "Tools: {n}\nQuestion: {q}\nWhich tool?",
        ]
    ).format(q=said, n=", ".join(names))
    literal = lead + w.any(["", " "]) if w.coin() else ""
    answer = f"{lead} {name}{'' if lead[-1] == ':' else '.'}" if literal else name
    return chat("pick_tool", *_head(w), user(asked), says(answer, literal))


def react(w: World) -> Dialog:
    """Thought, Action, Observation, Answer as plain lines."""
    picked, _ = _setup(w, 2)
    c = picked[0]
    assert c.tool.reply is not None
    values = c.tool.fill(w)
    got, told = c.tool.reply(w, values)
    given = ", ".join(str(v) for v in values.values())
    shown = got if isinstance(got, str) else json.dumps(got)
    return Dialog(
        "react",
        raw=(
            Piece(
                f"Tools: {', '.join(p.name for p in picked)}\nQuestion: {_say(w, c, values)}\nThought:",
                PROMPT,
            ),
            Piece(f" I need the tool {c.name}.\n", ANSWER),
            Piece("Action:", PROMPT),
            Piece(f" {c.name}[{given}]\n", ANSWER),
            Piece(f"Observation: {shown}\nAnswer:", PROMPT),
            Piece(f" {told}\n", ANSWER),
        ),
    )
