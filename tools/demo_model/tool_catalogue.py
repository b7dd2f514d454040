"""The tools that training dialogs offer, under several names, with the sentences that call for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.demo_model.tasks_text import words
from tools.demo_model.words import World, pseudo

Value = str | int | float


@dataclass(frozen=True)
class Tool:
    """A tool family: names and descriptions it goes by, parameters, and sentences that call for it."""

    names: tuple[str, ...]
    about: str
    params: dict[
        str, tuple[str, ...]
    ]  # canonical parameter -> its spellings; a type suffix such as ":number" on the first
    asks: tuple[str, ...]
    fill: Callable[[World], dict[str, Value]]
    reply: Callable[[World, dict[str, Value]], tuple[Any, str]] | None = None


def _weather(w: World, a: dict[str, Value]) -> tuple[Any, str]:
    t, sky = w.number(-5, 38), w.any(["sunny", "cloudy", "rainy", "windy", "snowy", "clear"])
    value = w.rng.choice(
        [
            {"temperature": t, "condition": sky},
            f"{sky}, {t} degrees",
            {"city": a["city"], "temperature": t, "condition": sky},
        ]
    )
    return value, f"It is {sky} and {t} degrees in {a['city']}."


def _number_result(w: World, a: dict[str, Value]) -> tuple[Any, str]:
    n = w.number(2, 999)
    return w.rng.choice([n, {"result": n}, str(n)]), f"The result is {n}."


def _convert(w: World, a: dict[str, Value]) -> tuple[Any, str]:
    p = w.price()
    return w.rng.choice([{"result": float(p)}, float(p)]), f"{a['amount']} {a['from']} is {float(p)} {a['to']}."


def _said(template: str, value: Callable[[World], Any]) -> Callable[[World, dict[str, Value]], tuple[Any, str]]:
    def reply(w: World, a: dict[str, Value]) -> tuple[Any, str]:
        v = value(w)
        shown = next(iter(v.values())) if isinstance(v, dict) else v
        return v, template.format(v=shown, **{k.replace("from", "from_"): x for k, x in a.items()})

    return reply


def _expression(w: World) -> str:
    op = w.any([" + ", " - ", " * ", " / ", "+", "*", "-"])
    return op.join(str(w.number(1, 999)) for _ in range(w.rng.choice((2, 2, 3))))


def _query(w: World) -> str:
    return w.any(
        [
            f"{w.color()} {w.item()}",
            f"{w.city()} {w.any(['hotels', 'museums', 'history', 'restaurants', 'population'])}",
            f"{w.topic()} news",
            f"best {w.item()}",
            f"{w.person()}",
            f"{w.topic()} in {w.city()}",
            f"{w.food()} recipe",
            f"{w.company()} shares",
        ]
    )


def _text(w: World) -> str:
    return " ".join(words(w, 2, 5, True))


TOOLS: tuple[Tool, ...] = (
    Tool(
        ("get_weather", "weather", "current_weather", "get_current_weather", "lookup_weather"),
        "Get the weather in a city",
        {"city": ("city", "city", "location", "place")},
        (
            "What is the weather in {city}?",
            "How is the weather in {city} today?",
            "Is it raining in {city}?",
            "Weather in {city}, please.",
            "Do I need an umbrella in {city}?",
            "What's the weather like in {city}?",
            "Tell me the weather for {city}.",
            "Is it warm in {city}?",
        ),
        lambda w: {"city": w.city()},
        _weather,
    ),
    Tool(
        ("calculator", "calculate", "calc", "math"),
        "Evaluate an arithmetic expression",
        {"expression": ("expression", "expression", "expr")},
        (
            "What is {expression}?",
            "Calculate {expression}.",
            "Compute {expression}",
            "How much is {expression}?",
            "Please work out {expression}.",
        ),
        lambda w: {"expression": _expression(w)},
        _number_result,
    ),
    Tool(
        ("add", "add_numbers", "sum"),
        "Add two numbers",
        {"a": ("a:integer", "a", "x"), "b": ("b:integer", "b", "y")},
        ("Add {a} and {b}.", "What is {a} plus {b}?", "What is the sum of {a} and {b}?", "Add {a} to {b}"),
        lambda w: {"a": w.number(1, 999), "b": w.number(1, 999)},
        _number_result,
    ),
    Tool(
        ("multiply", "multiply_numbers"),
        "Multiply two numbers",
        {"a": ("a:integer", "a", "x"), "b": ("b:integer", "b", "y")},
        ("Multiply {a} by {b}.", "What is {a} times {b}?", "Multiply {a} and {b}"),
        lambda w: {"a": w.number(1, 99), "b": w.number(1, 99)},
        _number_result,
    ),
    Tool(
        ("search", "web_search", "search_web", "search_engine", "find"),
        "Search the web",
        {"query": ("query", "query", "q", "text")},
        (
            "Search for {query}.",
            "Search the web for {query}",
            "Find information about {query}.",
            "Look up {query}.",
            "Google {query}",
            "Can you search for {query}?",
        ),
        lambda w: {"query": _query(w)},
        _said("I found this: {v}", lambda w: " ".join(words(w, 3, 6))),
    ),
    Tool(
        ("convert_currency", "currency", "exchange"),
        "Convert money between currencies",
        {
            "amount": ("amount:number", "amount", "value"),
            "from": ("from", "from", "source", "from_currency"),
            "to": ("to", "to", "target", "to_currency"),
        },
        (
            "Convert {amount} {from} to {to}.",
            "How much is {amount} {from} in {to}?",
            "Change {amount} {from} into {to}",
            "What is {amount} {from} in {to}?",
        ),
        lambda w: {"amount": w.number(1, 999), "from": w.currency(), "to": w.currency()},
        _convert,
    ),
    Tool(
        ("get_time", "time", "current_time", "clock"),
        "Get the local time in a city",
        {"city": ("city", "city", "location")},
        ("What time is it in {city}?", "Tell me the time in {city}.", "What is the time in {city} now?"),
        lambda w: {"city": w.city()},
        _said("It is {v} in {city}.", lambda w: w.clock()),
    ),
    Tool(
        ("send_email", "email", "send_mail", "send_message"),
        "Send a message to a person",
        {"to": ("to", "to", "recipient"), "text": ("text", "text", "message", "body")},
        (
            "Send {to} the message: {text}",
            "Write to {to}: {text}",
            "Email {to} and say: {text}",
            "Tell {to} this: {text}",
        ),
        lambda w: {"to": w.first(), "text": _text(w)},
        _said("I sent the message to {to}.", lambda w: {"status": "sent"}),
    ),
    Tool(
        ("set_alarm", "alarm", "set_timer"),
        "Set an alarm",
        {"time": ("time", "time", "at")},
        ("Wake me at {time}.", "Set an alarm for {time}.", "Alarm at {time}, please."),
        lambda w: {"time": w.clock()},
        _said("The alarm is set for {time}.", lambda w: {"status": "ok"}),
    ),
    Tool(
        ("book_flight", "find_flights", "search_flights"),
        "Find flights between two cities",
        {
            "from": ("from", "from", "origin"),
            "to": ("to", "to", "destination"),
            "date": ("date", "date", "day"),
        },
        (
            "Book a flight from {from} to {to} on {date}.",
            "I want to fly from {from} to {to} on {date}.",
            "Find flights from {from} to {to} for {date}",
        ),
        lambda w: {"from": w.city(), "to": w.city(), "date": w.any([w.date(), w.day(), w.month_day()])},
        _said("I found flight {v} to {to}.", lambda w: {"flight": w.code()}),
    ),
    Tool(
        ("translate", "translate_text", "translator"),
        "Translate a text",
        {"text": ("text", "text"), "language": ("language", "language", "target", "to")},
        (
            "Translate '{text}' to {language}.",
            "How do you say '{text}' in {language}?",
            "Translate to {language}: {text}",
        ),
        lambda w: {"text": _text(w), "language": w.language()},
        _said("It means: {v}", lambda w: pseudo(w.rng)),
    ),
    Tool(
        ("get_price", "price", "check_price", "product_price"),
        "Get the price of a product",
        {"item": ("item", "item", "product", "name")},
        ("How much does the {item} cost?", "What is the price of the {item}?", "Price of a {item}?"),
        lambda w: {"item": f"{w.color()} {w.item()}" if w.coin(0.3) else w.item()},
        _said("The {item} costs ${v}.", lambda w: {"price": w.price()}),
    ),
    Tool(
        ("add_to_cart", "order", "buy", "order_item"),
        "Order an item",
        {
            "item": ("item", "item", "product"),
            "quantity": ("quantity:integer", "quantity", "count", "amount"),
        },
        (
            "Order {quantity} {item}s.",
            "Buy {quantity} {item}s, please.",
            "I need {quantity} {item}s.",
            "Add {quantity} {item}s to my cart.",
        ),
        lambda w: {"item": w.rng.choice([w.item, w.food])().rstrip("s"), "quantity": w.number(2, 60)},
        _said("I ordered {quantity} of the {item}.", lambda w: {"status": "ok"}),
    ),
    Tool(
        ("get_user", "find_person", "lookup_contact", "get_contact"),
        "Look up a person",
        {"name": ("name", "name", "person", "full_name")},
        (
            "Who is {name}?",
            "Find the contact {name}.",
            "Look up the person {name}.",
            "Give me the phone number of {name}.",
        ),
        lambda w: {"name": w.person()},
        _said("{name} can be reached at {v}.", lambda w: {"phone": w.phone()}),
    ),
    Tool(
        ("get_stock", "stock_price", "get_stock_price"),
        "Get the stock price of a company",
        {"company": ("company", "company", "symbol", "name")},
        ("What is the stock price of {company}?", "How is the {company} stock doing?", "Stock of {company}?"),
        lambda w: {"company": w.company()},
        _said("{company} is at ${v}.", lambda w: {"price": w.price()}),
    ),
    Tool(
        ("find_restaurant", "restaurants", "find_restaurants"),
        "Find a restaurant",
        {"food": ("food", "food", "cuisine", "dish"), "city": ("city", "city", "location")},
        (
            "Where can I eat {food} in {city}?",
            "Find a place with good {food} in {city}.",
            "I want {food} in {city}.",
        ),
        lambda w: {"food": w.food(), "city": w.city()},
        _said("Try {v} in {city}.", lambda w: {"name": w.last()}),
    ),
    Tool(
        ("create_event", "add_event", "schedule_meeting"),
        "Put a meeting in the calendar",
        {"name": ("name", "person", "with"), "date": ("date", "date", "day"), "time": ("time", "time")},
        (
            "Schedule a meeting with {name} on {date} at {time}.",
            "Plan a meeting on {date} at {time} with {name}.",
            "Meeting with {name}, {date}, {time}.",
        ),
        lambda w: {"name": w.first(), "date": w.any([w.date(), w.day()]), "time": w.clock()},
        _said("The meeting with {name} is on {date}.", lambda w: {"status": "ok"}),
    ),
    Tool(
        ("play_music", "play_song", "play"),
        "Play music",
        {"title": ("title", "title", "song", "name")},
        ("Play {title}.", "Put on {title}.", "I want to hear {title}."),
        lambda w: {"title": w.any([w.person(), f"{w.color()} {w.item()}", w.last()]).title()},
        _said("Now playing {title}.", lambda w: {"status": "ok"}),
    ),
)


def make_up(w: World) -> Tool:
    """A tool nobody has heard of, so that names and parameters are read from the list and not remembered."""
    verb, noun, param = (
        w.any(["get", "find", "open", "check", "start", "close", "show"]),
        pseudo(w.rng).lower(),
        w.any(["name", "id", "value", "key", "target", "item", "topic"]),
    )
    ask = w.any(
        [
            f"{verb.capitalize()} the {noun} {{{param}}}.",
            f"Please {verb} {noun} for {{{param}}}.",
            f"I need to {verb} the {noun} of {{{param}}}.",
        ]
    )
    return Tool(
        (f"{verb}_{noun}",),
        f"{verb.capitalize()} the {noun}",
        {param: (param,)},
        (ask,),
        lambda w: {param: w.any([w.item(), w.city(), w.code(), w.first()])},
        _said("Here it is: {v}", lambda w: {"result": w.item()}),
    )


@dataclass(frozen=True)
class Chosen:
    """A tool under one name and one spelling of its parameters."""

    tool: Tool
    name: str
    spelling: dict[str, str]

    def schema(self, w: World, wrapped: bool) -> dict[str, Any]:
        props: dict[str, Any] = {}
        for key, names in self.tool.params.items():
            kind = names[0].partition(":")[2] or "string"
            props[self.spelling[key]] = {"type": kind}
        body: dict[str, Any] = {
            "name": self.name,
            "description": self.tool.about,
            "parameters": {"type": "object", "properties": props, "required": list(props)},
        }
        return {"type": "function", "function": body} if wrapped else body


def choose(w: World, tool: Tool) -> Chosen:
    spelling = {k: w.any(v).partition(":")[0] for k, v in tool.params.items()}
    if len(set(spelling.values())) < len(spelling):
        spelling = {k: v[0].partition(":")[0] for k, v in tool.params.items()}
    return Chosen(tool, tool.names[0] if w.coin(0.4) else w.any(tool.names), spelling)
