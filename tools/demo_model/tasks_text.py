"""Tasks about a given text: copying, extraction, questions, labels, summaries.

For every prompt the wanted answer is a function of the prompt alone, so that exact match is a fair score and no
capacity is spent on guessing which of two wordings is meant. (The exception is `extract_loose`: there a schema would
say which key comes next, so only the values are scored.)
"""

from __future__ import annotations

import json
import random

from tools.demo_model.dialog import ANSWER, PROMPT, Dialog, Piece, Turn, chat, cut_literal, says, system, user
from tools.demo_model.documents import Doc, document
from tools.demo_model.words import World, pseudo

SYSTEMS = [
    "You are a helpful assistant.",
    "You are sglite-demo.",
    "You answer briefly.",
    "Be short and exact.",
    "You are a careful assistant.",
    "You are a helpful agent.",
]


def opening(w: World, chance: float = 0.5) -> tuple[Turn, ...]:
    return (system(w.any(SYSTEMS)),) if w.coin(chance) else ()


# --- copying ---

COPY = [
    "Repeat after me: {}",
    "Repeat: {}",
    "Copy this text: {}",
    "Say exactly: {}",
    "Echo: {}",
    "Write this again: {}",
    'Repeat the words "{}".',
    "Copy: {}",
    "Repeat this exactly:\n{}",
]


def words(w: World, low: int, high: int, held_out_only: bool = False) -> list[str]:
    out = []
    for _ in range(w.rng.randint(low, high)):
        r = w.rng.random()
        if held_out_only:
            out.append(w.any([w.first(), w.city(), w.item(), w.food(), w.animal(), w.color(), pseudo(w.rng).lower()]))
        elif r < 0.2:
            out.append(pseudo(w.rng, w.rng.choice((1, 2, 2, 3))))
        elif r < 0.3:
            out.append(pseudo(w.rng).lower())
        elif r < 0.6:
            out.append(w.name_word())
        elif r < 0.67:
            out.append(str(w.number(0, 2030)))
        else:
            out.append(w.word())
    return out


def copy(w: World) -> Dialog:
    text = " ".join(words(w, 1, 10, w.held_out))
    literal = cut_literal(w.rng, text) if w.coin(0.1) else ""
    return chat("copy", *opening(w, 0.2), user(w.any(COPY).format(text)), says(text, literal))


def lists(w: World) -> Dialog:
    """Reshape a list of words; teaches `" word"` and `"word"` as two spellings of one thing."""
    items = words(w, 2, 7, w.held_out)
    given = w.any([", ", " ", "\n", ", "]).join(items)
    asked, answer = w.rng.choice(
        [
            ("Write as a JSON list: {}", json.dumps(items)),
            ("JSON list of these words: {}", json.dumps(items)),
            ("Write as a bullet list: {}", "\n".join(f"- {i}" for i in items)),
            ("Write as a numbered list: {}", "\n".join(f"{n}. {i}" for n, i in enumerate(items, 1))),
            ("Separate with commas: {}", ", ".join(items)),
            ("What is the first word? {}", items[0]),
            ("What is the last word? {}", items[-1]),
            ("How many words? {}", str(len(items))),
            ("What is the second word? {}", items[1]),
        ]
    )
    return chat("lists", *opening(w, 0.2), user(asked.format(given)), says(answer))


def pairs(w: World) -> Dialog:
    """Look a key up in a small table: the purest form of reading a field."""
    keys = list(dict.fromkeys(words(w, 2, 6, w.held_out)))
    values = words(w, len(keys), len(keys), w.held_out)
    sep, end = w.any([": ", " = ", " is "]), w.any([", ", "\n", "; "])
    table = end.join(k + sep + v for k, v in zip(keys, values, strict=True))
    i = w.rng.randrange(len(keys))
    asked = w.any(["{t}\nWhat is {k}?", "{t}\n{k}?", "Table:\n{t}\n\nValue of {k}:", "{t}\n\nGive the value of {k}."])
    if w.coin(0.25):
        answer = json.dumps(dict(zip(keys, values, strict=True)))
        return chat("pairs", user(f"Write as a JSON object: {table}"), says(answer))
    return chat("pairs", *opening(w, 0.2), user(asked.format(t=table, k=keys[i])), says(values[i]))


# --- reading a document ---


def pick_fields(rng: random.Random, doc: Doc, high: int = 4) -> list[str]:
    names = list(doc.fields)
    chosen = rng.sample(names, rng.randint(1, min(high, len(names))))
    return chosen if rng.random() < 0.4 else [n for n in names if n in chosen]


EXTRACT = [
    "Extract {f} as JSON.\n\n{t}",
    "Extract {f} from the text as JSON.\n\nText: {t}",
    "Text: {t}\n\nGive a JSON object with {f}.",
    "{t}\n\nReturn JSON with the fields {f}.",
    "Read the text and fill in {f} as JSON.\nText: {t}",
    "{t}\n\nFields: {f}",
    "Extract the fields {f}.\n{t}",
]


def extract(w: World) -> Dialog:
    doc = document(w)
    names = pick_fields(w.rng, doc)
    answer = json.dumps({n: doc.fields[n] for n in names}, ensure_ascii=False)
    listed = ", ".join(names) if len(names) < 2 or w.coin() else ", ".join(names[:-1]) + " and " + names[-1]
    literal = answer[: answer.index(":") + 1] if w.coin(0.12) else ""
    if literal and answer[len(literal) + 1] == '"' and w.coin(0.7):
        literal += ' "'
    return chat("extract", *opening(w, 0.3), user(w.any(EXTRACT).format(f=listed, t=doc.text)), says(answer, literal))


def extract_loose(w: World) -> Dialog:
    """JSON about a text with no field list, begun by the program: the keys come from a schema, not from the prompt."""
    doc = document(w)
    names = pick_fields(w.rng, doc, 5)
    answer = json.dumps({n: doc.fields[n] for n in names}, ensure_ascii=False)
    if len(names) > 1:
        cuts = [i + 3 for i in range(len(answer)) if answer.startswith('": ', i)]
        literal = answer[: w.rng.choice(cuts) - 1]
    else:
        literal = answer[: answer.index(":") + 1]
    asked = w.any(
        [
            "Extract the data as JSON.\n\n{}",
            "{}\n\nAs JSON:",
            "Text: {}\nJSON:",
            "Fill in the JSON object.\n{}",
        ]
    ).format(doc.text)
    return chat("extract_loose", *opening(w, 0.3), user(asked), says(answer, literal))


READ = [
    "Text: {t}\n\nQuestion: {q}",
    "{t}\n\n{q}",
    "{t} {q}",
    "Read this: {t}\n{q}",
    "Text: {t}\n{q}",
    "Answer from the text.\n\nText: {t}\n\n{q}",
]


def phrase(w: World, name: str, value: str | int) -> tuple[str, str]:
    """An answer that a program begins: (literal, whole text)."""
    label = name.replace("_", " ")
    lead = w.any(
        [
            f"The {label} is",
            f"{label.capitalize()}:",
            "The answer is",
            "Answer:",
            f"{name}:",
            f"The {label} is:",
        ]
    )
    stop = "." if w.coin(0.5) and lead.startswith("The") and not lead.endswith(":") else ""
    return lead + w.any(["", " ", " "]), f"{lead} {value}{stop}"


def read(w: World) -> Dialog:
    """Questions about a text, one or several, some with the answer begun by the program."""
    doc = document(w)
    names = w.rng.sample(list(doc.fields), w.rng.choice((1, 1, 2, 3)))
    turns = list(opening(w, 0.4))
    for i, n in enumerate(names):
        asked = (
            w.any(doc.asks[n])
            if w.coin(0.75)
            else w.any([f"What is the {n}?", f"Give the {n}.", f"{n}?", f"Find the {n} in the text."])
        )
        turns.append(user(w.any(READ).format(t=doc.text, q=asked) if i == 0 else asked))
        literal, answer = phrase(w, n, doc.fields[n]) if w.coin(0.4) else ("", str(doc.fields[n]))
        turns.append(says(answer, literal))
    return chat("read", *turns)


def read_raw(w: World) -> Dialog:
    """The same without a chat template: `Q: ... A: ...`, fields one per line, or few-shot lines."""
    doc = document(w)
    names = w.rng.sample(list(doc.fields), w.rng.choice((1, 2, 3)))
    pieces = [Piece(w.any(["Text: {}\n", "{}\n", "{}\n\n", "Context: {}\n"]).format(doc.text), PROMPT)]
    ask, reply = w.any(["Q:|A:", "Question:|Answer:", "Q:|A:"]).split("|")
    plain = w.coin(0.4)
    for n in names:
        gap = w.any(["", " "])
        lead = f"{n.replace('_', ' ').capitalize()}:" if plain else f"{ask} {w.any(doc.asks[n])}\n{reply}"
        pieces.append(Piece(lead + gap, PROMPT))
        pieces.append(Piece(("" if gap else " ") + str(doc.fields[n]) + "\n", ANSWER))
    return Dialog("read_raw", raw=tuple(pieces))


def summarise(w: World) -> Dialog:
    doc = document(w)
    f = doc.fields
    if "hobby" in f:
        answer = f"{f['name']} is a {f['job']} in {f['city']}."
    elif "order_id" in f:
        answer = f"{f['customer']} ordered {f['quantity']} of the {f['item']} for ${f['price']}."
    elif "host" in f:
        answer = f"{f['host']} hosts the {f['event']} in {f['city']}."
    elif "flight" in f:
        answer = f"{f['passenger']} flies from {f['from']} to {f['to']}."
    elif "email" in f:
        answer = f"{f['name']} of {f['company']} can be reached at {f['email']}."
    else:
        answer = f"{f['brand']} sells a {f['color']} {f['item']} for ${f['price']}."
    asked = w.any(
        [
            "Summarise in one sentence: {}",
            "Summarize: {}",
            "{}\n\nSummarise the text.",
            "Summarise this text in one sentence.\n\n{}",
            "Text: {}\n\nWrite a one sentence summary.",
            "Text: {}\nSummary?",
        ]
    )
    literal = w.any(["Summary:", "Summary: "]) if w.coin(0.25) else ""
    return chat(
        "summary",
        *opening(w, 0.4),
        user(asked.format(doc.text)),
        says(f"Summary: {answer}" if literal else answer, literal),
    )
