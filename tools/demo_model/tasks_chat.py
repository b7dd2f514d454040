"""Small talk, a handful of facts, small sums and lists of tips: what makes a demo read sensibly."""

from __future__ import annotations

from tools.demo_model.dialog import ANSWER, PROMPT, Dialog, Piece, Turn, chat, cut_literal, says, user
from tools.demo_model.facts import CAPITALS, CHAT, COLORS_OF, FACTS, NUMBERS, OPPOSITES, SIGHTS, SOUNDS, TIPS
from tools.demo_model.tasks_text import opening
from tools.demo_model.words import DAYS, MONTHS, World


def _reply(
    w: World, task: str, asked: str, answer: str, leads: tuple[str, ...] = ("The answer is", "Answer:")
) -> Dialog:
    """A short answer: bare, begun by the program, or as plain `Q: A:` lines."""
    r = w.rng.random()
    lead = w.any(leads)
    if r < 0.25:
        q, a = w.any(["Q:|A:", "Question:|Answer:", "Q:|A:"]).split("|")
        gap = w.any(["", " "])
        return Dialog(
            task,
            raw=(
                Piece(f"{q} {asked}\n{a}{gap}", PROMPT),
                Piece(("" if gap else " ") + answer + "\n", ANSWER),
            ),
        )
    literal = lead + w.any(["", " "]) if r < 0.5 else ""
    whole = f"{lead} {answer}{'' if lead[-1] == ':' else '.'}" if literal else answer
    return chat(task, *opening(w, 0.4), user(asked), says(whole, literal))


def fact(w: World) -> Dialog:
    kind = w.rng.randrange(8)
    if kind <= 1:
        country = w.any(list(CAPITALS))
        return _reply(
            w,
            "fact",
            w.any(
                [
                    f"What is the capital of {country}?",
                    f"Name the capital of {country}.",
                    f"Capital of {country}?",
                ]
            ),
            CAPITALS[country],
            ("The answer is", "Answer:", f"The capital of {country} is"),
        )
    if kind == 2:
        word = w.any(list(OPPOSITES))
        return _reply(w, "fact", w.any([f"What is the opposite of {word}?", f"Opposite of {word}?"]), OPPOSITES[word])
    if kind == 3:
        i, back = w.rng.randrange(7), w.coin()
        return _reply(
            w,
            "fact",
            f"Which day comes {'before' if back else 'after'} {DAYS[i]}?",
            DAYS[(i - 1 if back else i + 1) % 7],
        )
    if kind == 4:
        i, back = w.rng.randrange(12), w.coin()
        return _reply(
            w,
            "fact",
            f"Which month comes {'before' if back else 'after'} {MONTHS[i]}?",
            MONTHS[(i - 1 if back else i + 1) % 12],
        )
    if kind == 5:
        thing = w.any(list(COLORS_OF))
        return _reply(
            w,
            "fact",
            w.any([f"What color is the {thing}?", f"What is the color of the {thing}?"]),
            COLORS_OF[thing],
            ("The answer is", "The color is"),
        )
    if kind == 6:
        animal = w.any(list(SOUNDS))
        return _reply(w, "fact", f"What does a {animal} do?", f"It {SOUNDS[animal]}", ("Answer:",))
    asked = w.any(list(FACTS))
    return _reply(w, "fact", asked, FACTS[asked])


def arithmetic(w: World) -> Dialog:
    kind = w.rng.randrange(5)
    a, b = w.number(0, 49), w.number(0, 49)
    if kind == 2:
        a, b = max(a, b), min(a, b)
        return _reply(
            w,
            "arithmetic",
            w.any([f"What is {a} - {b}?", f"What is {a} minus {b}?", f"{a} - {b} ="]),
            str(a - b),
        )
    if kind == 3:
        a, b = w.number(0, 10), w.number(0, 10)
        return _reply(
            w,
            "arithmetic",
            w.any([f"What is {a} * {b}?", f"What is {a} times {b}?", f"{a} * {b} =", f"What is {a} x {b}?"]),
            str(a * b),
        )
    if kind == 4 and a != b:
        more = w.coin()
        return _reply(
            w,
            "arithmetic",
            f"Which is {'larger' if more else 'smaller'}, {a} or {b}?",
            str(max(a, b) if more else min(a, b)),
        )
    return _reply(
        w,
        "arithmetic",
        w.any([f"What is {a} + {b}?", f"What is {a} plus {b}?", f"{a} + {b} =", f"Add {a} and {b}."]),
        str(a + b),
    )


def small_talk(w: World) -> Dialog:
    turns: list[Turn] = list(opening(w, 0.4))
    for said, answer in w.rng.sample(CHAT, w.rng.choice((1, 1, 2))):
        literal = cut_literal(w.rng, answer) if w.coin(0.1) else ""
        turns += [user(w.any(said)), says(answer, literal)]
    return chat("small_talk", *turns)


def capital_tour(w: World) -> Dialog:
    """The two-turn form of the classic example: a capital, then its sights."""
    country = w.any([c for c, city in CAPITALS.items() if city in SIGHTS])
    city = CAPITALS[country]
    one, two = SIGHTS[city]
    second = w.any(
        [
            "List two local attractions.",
            "Name two sights there.",
            "What can I see there?",
            f"What can I see in {city}?",
        ]
    )
    first = (
        (user(f"What is the capital of {country}?"), says(city))
        if w.coin(0.7)
        else (user(f"I am going to {city}."), says(f"Enjoy {city}!"))
    )
    return chat("capital_tour", *opening(w, 0.5), *first, user(second), says(f"1. {one}\n2. {two}"))


def tips(w: World) -> Dialog:
    """Lists of tips, then one of them in full: as a chat or as the plain text that a program begins."""
    topic = w.any(list(TIPS))
    all_tips = TIPS[topic]
    count = w.rng.choice((1, 2, 2, 3, 3))
    shown = "\n".join(f"{n}. {t}." for n, (t, _) in enumerate(all_tips[:count], 1))
    n = w.rng.randint(1, count)
    title, body = all_tips[n - 1]
    expand = w.any(
        [
            f"Expand tip {n}.",
            f"Expand tip {n} into a paragraph.",
            f"Now, expand tip {n} into a paragraph:",
            f"Explain tip {n}.",
            f"Tell me more about tip {n}.",
        ]
    )
    if w.coin(0.3):
        head = w.any([f"Here are {NUMBERS[count]} tips for {topic}:\n", f"Tips for {topic}:\n"])
        if w.coin():
            return Dialog(
                "tips",
                raw=(
                    Piece(head, PROMPT),
                    Piece(shown + "\n\n", ANSWER),
                    Piece(expand + "\n", PROMPT),
                    Piece(body + "\n", ANSWER),
                ),
            )
        return Dialog("tips", raw=(Piece(head + shown + "\n\n" + expand + "\n", PROMPT), Piece(body + "\n", ANSWER)))
    if w.coin(0.2):
        return chat(
            "tips",
            *opening(w, 0.3),
            user(w.any([f"Explain this tip: {title}.", f"Expand this tip for {topic}: {title}"])),
            says(body),
        )
    plural = "tip" if count == 1 else "tips"
    asked = w.any(
        [
            f"Give me {NUMBERS[count]} {plural} for {topic}.",
            f"List {count} {plural} for {topic}.",
            f"Write {NUMBERS[count]} {plural} for {topic}.",
        ]
    )
    literal = cut_literal(w.rng, shown) if w.coin(0.15) else ""
    turns = [user(asked), says(shown, literal)]
    if w.coin():
        turns += [user(expand), says(body)]
    return chat("tips", *opening(w, 0.3), *turns)
