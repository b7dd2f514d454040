"""Short texts with known fields: people, orders, events, flights, contacts, products."""

from __future__ import annotations

from dataclasses import dataclass

from tools.demo_model.words import World


@dataclass(frozen=True)
class Doc:
    """A text and what it says, with a question for every field."""

    text: str
    fields: dict[str, str | int]
    asks: dict[str, list[str]]


def biography(w: World) -> Doc:
    name = w.person()
    f: dict[str, str | int] = {
        "name": name,
        "age": w.number(18, 80),
        "city": w.city(),
        "job": w.job(),
        "company": w.company(),
        "hobby": w.topic(),
    }
    text = w.any(
        [
            "{name} is a {age} year old {job} from {city}. {first} works at {company} and likes {hobby}.",
            "{name}, {age}, lives in {city} and works as a {job} at {company}. {first} enjoys {hobby}.",
            "My name is {name}. I am {age} years old and I live in {city}. "
            "I am a {job} at {company} and I love {hobby}.",
            "Meet {name}, a {job} at {company}. {first} is {age}, lives in {city} and is fond of {hobby}.",
            "At {company} in {city} there is a {job} called {name}, aged {age}, who likes {hobby}.",
        ]
    ).format(**f, first=name.split()[0])
    asks = {
        "name": ["What is the name of the person?", "Who is this about?", "What is the person's name?"],
        "age": ["How old is the person?", f"How old is {name}?", "What is the age?"],
        "city": [
            f"Where does {name} live?",
            "Which city is mentioned?",
            "What city does the person live in?",
        ],
        "job": [f"What is {name}'s job?", "What is the job?", f"What does {name} do?"],
        "company": ["Which company is mentioned?", f"Where does {name} work?", "What is the company?"],
        "hobby": [f"What does {name} like?", "What is the hobby?"],
    }
    return Doc(text, f, asks)


def order(w: World) -> Doc:
    f: dict[str, str | int] = {
        "customer": w.person(),
        "item": w.item(),
        "quantity": w.number(2, 40),
        "price": w.price(),
        "date": w.date(),
        "order_id": w.code(),
    }
    text = w.any(
        [
            "Order {order_id}: {customer} bought {quantity} {item}s for ${price} on {date}.",
            "On {date}, {customer} ordered {quantity} units of the {item} at ${price}. The order number is {order_id}.",
            "{customer} paid ${price} for {quantity} {item}s. Date: {date}. Order: {order_id}.",
            "Hello, I am {customer}. I ordered {quantity} {item}s ({order_id}) on {date} and paid {price} dollars.",
        ]
    ).format(**f)
    if f"{f['item']}s" in text and str(f["item"]).endswith("s"):
        text = text.replace(f"{f['item']}s", str(f["item"]))
    asks = {
        "customer": ["Who is the customer?", "Who ordered?"],
        "item": ["What was bought?", "What is the item?"],
        "quantity": ["How many were bought?", "What is the quantity?"],
        "price": ["What is the price?", "How much was paid?"],
        "date": ["What is the date?", "When was the order made?"],
        "order_id": ["What is the order number?", "What is the order id?"],
    }
    return Doc(text, f, asks)


def event(w: World) -> Doc:
    f: dict[str, str | int] = {
        "event": f"{w.topic()} {w.any(['meeting', 'concert', 'workshop', 'fair', 'class', 'show'])}",
        "city": w.city(),
        "date": w.date(),
        "time": w.clock(),
        "host": w.person(),
        "guests": w.number(5, 400),
    }
    text = w.any(
        [
            "The {event} takes place in {city} on {date} at {time}. {host} will welcome {guests} guests.",
            "{host} invites you to the {event} in {city}. It starts at {time} on {date}. We expect {guests} guests.",
            "Reminder: {event}, {date}, {time}, {city}. Host: {host}. Guests: {guests}.",
            "Join us on {date} at {time} for the {event} in {city}, hosted by {host}, with {guests} guests.",
        ]
    ).format(**f)
    asks = {
        "event": ["What is the event?", "What kind of event is it?"],
        "city": ["Where is it?", "Which city is mentioned?", "In which city is the event?"],
        "date": ["What is the date?", "When is the event?", "On which date is it?"],
        "time": ["At what time does it start?", "What is the time?"],
        "host": ["Who is the host?", "Who hosts the event?"],
        "guests": ["How many guests are expected?", "How many guests?"],
    }
    return Doc(text, f, asks)


def flight(w: World) -> Doc:
    f: dict[str, str | int] = {
        "passenger": w.person(),
        "from": w.city(),
        "to": w.city(),
        "date": w.any([w.date(), w.month_day()]),
        "flight": w.code(),
        "time": w.clock(),
    }
    text = w.any(
        [
            "{passenger} flies from {from} to {to} on {date} with flight {flight} at {time}.",
            "Flight {flight} from {from} to {to} leaves at {time} on {date}. Passenger: {passenger}.",
            "Ticket for {passenger}: {from} to {to}, {date}, {time}, flight {flight}.",
        ]
    ).format(**f)
    asks = {
        "passenger": ["Who is the passenger?", "Who is flying?"],
        "from": ["Where does the flight start?", "From which city?"],
        "to": ["Where does the flight go?", "To which city?", "What is the destination?"],
        "date": ["What is the date?", "When is the flight?"],
        "flight": ["What is the flight number?"],
        "time": ["What is the time?", "At what time does it leave?"],
    }
    return Doc(text, f, asks)


def contact(w: World) -> Doc:
    name = w.person()
    f: dict[str, str | int] = {
        "name": name,
        "email": w.email(name.split()[0]),
        "phone": w.phone(),
        "city": w.city(),
        "company": w.company(),
        "ip": w.ip(),
    }
    text = w.any(
        [
            "You can reach {name} of {company} at {email} or {phone}. Office: {city}. Server: {ip}.",
            "Contact: {name}, {company}, {city}. Phone {phone}, mail {email}, address {ip}.",
            "{name} works for {company} in {city}. Mail: {email}. Phone: {phone}. IP: {ip}.",
        ]
    ).format(**f)
    asks = {
        "name": ["Who is the contact?", "What is the name?"],
        "email": ["What is the email?", "What is the email address?"],
        "phone": ["What is the phone number?", "What is the phone?"],
        "city": ["Which city is mentioned?", "In which city is the office?"],
        "company": ["Which company is mentioned?", "What is the company?"],
        "ip": ["What is the IP address?"],
    }
    return Doc(text, f, asks)


def product(w: World) -> Doc:
    f: dict[str, str | int] = {
        "item": w.item(),
        "color": w.color(),
        "price": w.price(),
        "rating": w.number(1, 5),
        "brand": w.company(),
        "seller": w.city(),
    }
    text = w.any(
        [
            "The {color} {item} by {brand} costs ${price} and is rated {rating} out of 5. It ships from {seller}.",
            "For sale in {seller}: a {color} {item} from {brand}. Price: ${price}. Rating: {rating} stars.",
            "{brand} sells a {color} {item} for ${price}. Buyers from {seller} give it {rating} stars.",
        ]
    ).format(**f)
    asks = {
        "item": ["What is the item?", "What product is it?"],
        "color": ["What color is it?", "What is the color?"],
        "price": ["What is the price?", "How much does it cost?"],
        "rating": ["What is the rating?", "How many stars?"],
        "brand": ["What is the brand?", "Who makes it?"],
        "seller": ["Which city is mentioned?"],
    }
    return Doc(text, f, asks)


def document(w: World) -> Doc:
    return w.rng.choice([biography, biography, order, event, flight, contact, product])(w)
