"""Choosing a label by its words: the form that `select` scores. Options are always given as texts, never as letters."""

from __future__ import annotations

from tools.demo_model.dialog import ANSWER, PROMPT, Dialog, Piece, chat, says, user
from tools.demo_model.tasks_text import opening
from tools.demo_model.words import ANIMALS, CITIES, COLORS, FOODS, ITEMS, JOBS, World

GOOD = [
    "great",
    "wonderful",
    "excellent",
    "amazing",
    "fantastic",
    "lovely",
    "perfect",
    "superb",
    "brilliant",
    "delightful",
    "good",
    "nice",
    "awesome",
    "beautiful",
    "pleasant",
]
BAD = [
    "terrible",
    "awful",
    "horrible",
    "bad",
    "poor",
    "disappointing",
    "broken",
    "dreadful",
    "useless",
    "ugly",
    "boring",
    "nasty",
    "slow",
    "dirty",
    "rude",
]
PLAIN = ["average", "ordinary", "normal", "usual", "standard", "okay"]
LIKED = [
    "I love it",
    "I am very happy",
    "I would buy it again",
    "it works well",
    "highly recommended",
    "I enjoyed it",
    "thank you so much",
]
HATED = [
    "I hate it",
    "I am very unhappy",
    "I want my money back",
    "it does not work",
    "never again",
    "what a waste",
    "I am angry",
]
SO_SO = [
    "it is what I expected",
    "nothing special",
    "it arrived on Monday",
    "I have no opinion",
    "it does the job",
]
THINGS = [
    "movie",
    "food",
    "hotel",
    "service",
    "book",
    "phone",
    "room",
    "game",
    "product",
    "restaurant",
    "song",
    "trip",
    "weather",
    "staff",
    "delivery",
    "show",
]

INTENTS: dict[str, list[str]] = {
    "refund": [
        "I want my money back for the {i}.",
        "Please refund the {i}.",
        "Can I return the {i}?",
        "I would like a refund for my {i}.",
    ],
    "shipping": [
        "Where is my {i}?",
        "When will the {i} arrive?",
        "My {i} has not been delivered.",
        "Has the {i} been shipped?",
    ],
    "billing": [
        "I was charged twice for the {i}.",
        "My invoice for the {i} is wrong.",
        "Why is the bill for the {i} so high?",
        "The payment for the {i} failed.",
    ],
    "technical": [
        "My {i} does not turn on.",
        "The {i} shows an error.",
        "The app crashes when I open the {i} page.",
        "I cannot log in to my {i} account.",
    ],
    "praise": [
        "I love my new {i}!",
        "Thank you, the {i} is great.",
        "The {i} is perfect, well done!",
        "Great {i}, thank you!",
    ],
}
SUBJECTS: dict[str, list[str]] = {
    "sports": [
        "The team won the match {n} to {m}.",
        "The player scored {n} goals.",
        "The coach praised the runners after the race.",
    ],
    "weather": [
        "It will rain in {c} with {n} degrees.",
        "Storms and snow are expected in {c}.",
        "A sunny and warm day in {c}.",
    ],
    "politics": [
        "The president of the party met voters in {c}.",
        "The government passed a new law.",
        "The election in {c} is in {n} days.",
    ],
    "technology": [
        "The company released a new {b} with a faster chip.",
        "The software update fixes {n} bugs.",
        "A new computer with more memory.",
    ],
    "food": [
        "Mix the {f} with butter and bake for {n} minutes.",
        "The chef in {c} cooks {f} with garlic.",
        "A fresh {f} tastes best in summer.",
    ],
    "business": [
        "Shares of {o} rose {n} percent.",
        "{o} sold the firm for {n} million dollars.",
        "The bank reported a profit.",
    ],
    "music": [
        "The band played {n} songs in {c}.",
        "The singer recorded a new album.",
        "The guitar and the piano sound lovely together.",
    ],
    "travel": [
        "We took a train to {c} and stayed {n} nights.",
        "The hotel in {c} is near the beach.",
        "Book a flight to {c} for the holiday.",
    ],
}
TONGUES: dict[str, list[str]] = {
    "English": [
        "the {i} is on the table",
        "where is the station?",
        "good morning, how are you?",
        "thank you very much",
    ],
    "French": [
        "le chat est sur la table",
        "bonjour, comment allez-vous?",
        "merci beaucoup",
        "je voudrais un caf\u00e9",
        "o\u00f9 est la gare?",
    ],
    "Spanish": [
        "el gato est\u00e1 en la mesa",
        "buenos d\u00edas, c\u00f3mo est\u00e1s?",
        "muchas gracias",
        "d\u00f3nde est\u00e1 la playa?",
    ],
    "German": [
        "die Katze ist auf dem Tisch",
        "guten Morgen, wie geht es dir?",
        "vielen Dank",
        "ich m\u00f6chte einen Kaffee",
        "wo ist der Bahnhof?",
    ],
}
KINDS: dict[str, list[str]] = {
    "animal": ANIMALS,
    "food": FOODS,
    "color": COLORS,
    "city": CITIES,
    "job": JOBS,
    "object": ITEMS,
}


def _sentence(w: World, text: str) -> str:
    return text.format(
        i=w.item(), n=w.number(2, 60), m=w.number(0, 9), c=w.city(), b=w.item(), f=w.food(), o=w.company()
    )


def sentiment_text(w: World, label: str) -> str:
    pool, tail = {"positive": (GOOD, LIKED), "negative": (BAD, HATED), "neutral": (PLAIN, SO_SO)}[label]
    thing = w.any([w.any(THINGS), w.item()])
    a, b = w.any(pool), w.any(pool)
    return w.any(
        [
            f"The {thing} was {a}.",
            f"This {thing} is {a} and {b}.",
            f"What a {a} {thing}!",
            f"The {thing} is {a}, {w.any(tail)}.",
            f"{w.any(tail).capitalize()}.",
            f"{w.any(tail).capitalize()}! The {thing} was {a}.",
            f"I bought this {thing} in {w.city()} and {w.any(tail)}.",
            f"A {a} {thing}, {w.any(tail)}.",
            f"{w.first()} said the {thing} was {a}.",
        ]
    )


def _case(w: World) -> tuple[str, list[str], str, str]:
    """(text, options, answer, what is asked for)."""
    kind = w.any(["sentiment", "sentiment", "intent", "topic", "language", "kind", "urgency", "yes"])
    if kind == "sentiment":
        options = ["positive", "negative"] + (["neutral"] if w.coin(0.6) else [])
        answer = w.any(options)
        return sentiment_text(w, answer), options, answer, "sentiment"
    if kind == "urgency":
        answer = w.any(["high", "low"])
        texts = {
            "high": [
                "The server is down, please help now!",
                "This is an emergency with the {i}!",
                "Urgent: the {i} is on fire.",
                "We need the {i} immediately, call me now.",
                "Everything stopped working, help!",
            ],
            "low": [
                "When you have time, look at the {i}.",
                "No hurry, just a question about the {i}.",
                "Some day I would like a new {i}.",
                "A small idea for the {i}.",
                "Just saying hello from {c}.",
            ],
        }[answer]
        return _sentence(w, w.any(texts)), ["high", "low"], answer, "urgency"
    if kind == "yes":
        city, other, truth = w.city(), w.city(), w.coin()
        text = f"{w.person()} lives in {city}. Does the text mention {city if truth or other == city else other}?"
        return text, ["yes", "no"], "yes" if truth or other == city else "no", "answer"
    if kind == "kind":
        options = w.rng.sample(list(KINDS), w.rng.choice((2, 3, 4)))
        answer = w.any(options)
        value = {
            "animal": w.animal,
            "food": w.food,
            "color": w.color,
            "city": lambda: w._pick(CITIES),
            "job": w.job,
            "object": w.item,
        }[answer]()
        return value, options, answer, "category"
    table, asked = {
        "intent": (INTENTS, "category"),
        "topic": (SUBJECTS, "topic"),
        "language": (TONGUES, "language"),
    }[kind]
    options = w.rng.sample(list(table), w.rng.randint(2, min(5, len(table))))
    answer = w.any(options)
    return _sentence(w, w.any(table[answer])), options, answer, asked


def label(w: World) -> Dialog:
    text, options, answer, asked = _case(w)
    w.rng.shuffle(options)
    if w.coin(0.12):
        options, answer = [o.capitalize() for o in options], answer.capitalize()
    listed = w.any(
        [
            ", ".join(options),
            ", ".join(options[:-1]) + " or " + options[-1],
            "\n".join(f"- {o}" for o in options),
        ]
    )
    prompt = w.any(
        [
            "{t}\n\nChoose one: {o}",
            "Text: {t}\nWhat is the {a}: {o}?",
            "Classify the {a} as {o}.\n\n{t}",
            "What is the {a} of this text? {t}\nOptions: {o}",
            "Classify: {t}\nLabels: {o}",
            "Text: {t}\n{a}?",
            "What is the {a} of this text?\n\n{t}",
            "{t}\nIs the {a} {o}?",
        ]
    )
    said = prompt.format(t=text, o=listed, a=asked)
    lead = w.any(
        [
            f"The {asked} is",
            f"{asked.capitalize()}:",
            "Answer:",
            "The answer is",
            f"The {asked} is:",
            "Label:",
        ]
    )
    if w.coin(0.2):
        gap = w.any(["", " "])
        return Dialog(
            "label",
            raw=(Piece(f"{said}\n{lead}{gap}", PROMPT), Piece(("" if gap else " ") + answer + "\n", ANSWER)),
        )
    literal = lead + w.any(["", " "]) if w.coin(0.5) else ""
    whole = f"{lead} {answer}" + ("." if lead.startswith("The") and lead[-1] != ":" else "") if literal else answer
    return chat("label", *opening(w, 0.4), user(said), says(whole, literal))


def sentiment(w: World) -> Dialog:
    """The plain three-way form, evaluated on its own."""
    answer = w.any(["positive", "negative", "neutral"])
    said = w.any(
        [
            "Is this review positive, negative or neutral? {}",
            "Review: {}\nSentiment (positive, negative, neutral)?",
            "What is the sentiment of this text? {}",
            "Classify the sentiment: {}",
        ]
    ).format(sentiment_text(w, answer))
    lead = w.any(["The sentiment is", "Sentiment:"])
    literal = lead + w.any(["", " "]) if w.coin(0.5) else ""
    return chat(
        "sentiment",
        *opening(w, 0.3),
        user(said),
        says(f"{lead} {answer}{'.' if lead[0] == 'T' else ''}" if literal else answer, literal),
    )


def judge(w: World) -> Dialog:
    """A grade along one dimension, and a reason; what a judge program forks over."""
    answer = w.any(["good", "bad"])
    text = sentiment_text(w, "positive" if answer == "good" else "negative")
    side = w.any(["clarity", "style", "quality", "tone", "value"])
    prompt = w.any(
        [
            "Judge the {s} of this text as good or bad: {t}",
            "Text: {t}\nIs the {s} good or bad?",
            "Rate the {s} (good or bad).\n\n{t}",
        ]
    ).format(s=side, t=text)
    literal = w.any([f"The {side} is", f"The {side} is "]) if w.coin(0.6) else ""
    return chat(
        "judge",
        *opening(w, 0.3),
        user(prompt),
        says(f"The {side} is {answer}." if literal else answer, literal),
    )
