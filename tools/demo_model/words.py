"""Entities: the values that the model must copy out of a text.

Every pool is split once: one word in seven is *held out*. Held-out words appear in training only in plain word
lists to be repeated (so their embeddings exist), never as the name, city or item of any other task; the
evaluation uses them alone. A quarter of the names and places are pseudo-words made fresh from syllables, which
keeps the model from memorising who lives where.
"""

# ruff: noqa: SIM905 (a string to split reads better than a hundred quoted words)

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

FIRST = """Alice Bob Carol David Emma Frank Grace Henry Irene Jack Kate Leo Maria Nina Oscar Paul Rosa Sam
Tina Victor Anna Ben Clara Daniel Ella Felix Hannah Ivan Julia Karl Laura Mark Nora Peter Ruth Sarah Tom Zoe
Adam Amy Andrew Beth Chris Diana Eric Eva George Helen James Jane John Linda Lucy Luke Martin Mary Michael
Mike Nick Olga Omar Priya Rachel Robert Simon Sofia Susan Theo Wendy William Yuki Ahmed Aisha Chen Fatima
Hugo Ingrid Jorge Kenji Lars Mei Pablo Ravi Sven Tara Noah Liam Mia Ethan Harry Ron""".split()
LAST = """Smith Jones Brown Taylor Wilson Davis Clark Hall Young King Wright Green Baker Adams Nelson Hill
Moore Scott Turner Parker Evans Cook Bell Reed Ward Cox Gray Price Wood Stone Fox Lopez Garcia Silva Rossi
Weber Novak Kim Lee Wang Li Patel Khan Singh Tanaka Sato Meyer Fischer Larsen Dubois Potter Murphy Kelly
Ryan Walsh Chang Costa""".split()
CITIES = """Paris London Berlin Rome Madrid Tokyo Oslo Vienna Lisbon Dublin Athens Prague Warsaw Cairo Lima
Delhi Sydney Boston Chicago Denver Seattle Austin Dallas Miami Toronto Montreal Geneva Zurich Munich Hamburg
Milan Naples Venice Porto Seville Barcelona Lyon Nice Brussels Bergen Helsinki Stockholm Copenhagen Riga
Moscow Istanbul Mumbai Bangkok Seoul Beijing Shanghai Osaka Kyoto Manila Nairobi Lagos Tunis Havana Quito
Santiago Amsterdam Budapest Krakow Oxford Cambridge York Glasgow Houston Phoenix Portland Atlanta""".split()
JOBS = """teacher doctor nurse engineer lawyer baker farmer pilot chef painter writer singer actor driver
plumber dentist scientist programmer designer carpenter architect journalist librarian photographer gardener
waiter manager accountant musician mechanic""".split()
ITEMS = """lamp table chair book phone laptop camera guitar bicycle jacket shirt hat bag watch clock mirror
pillow blanket umbrella bottle cup knife plate pan kettle keyboard mouse printer monitor speaker desk sofa
shelf carpet candle notebook pen pencil backpack tent ball racket helmet wallet scarf coat dress sweater
drum piano radio toaster vase basket""".split()
FOODS = """apple banana orange lemon pear grape mango peach cherry tomato potato carrot onion pepper cheese
bread butter rice pasta soup salad pizza honey coffee tea milk egg cake fish chicken sugar garlic""".split()
ANIMALS = """dog cat horse cow sheep goat pig duck rabbit lion tiger bear wolf fox eagle owl frog snake
whale dolphin monkey elephant giraffe zebra parrot mouse turtle camel penguin bee""".split()
COLORS = "red blue green yellow black white orange purple brown gray pink silver gold".split()
TOPICS = """history music science sports cooking travel art technology health gardening politics economics
education fashion nature space medicine photography weather movies books""".split()
COMPANIES = """Acme Globex Initech Umbrella Vertex Nimbus Orion Apex Delta Summit Pioneer Horizon Atlas
Zenith Quantum Stellar Cobalt Lumen Falcon Harbor Maple Cedar Granite Beacon Meridian""".split()
SUFFIXES = "Ltd Inc Labs Group Bank Foods Motors Systems Media Energy".split()
MONTHS = """January February March April May June July August September October November December""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
CURRENCIES = "USD EUR GBP JPY CHF CAD AUD INR CNY SEK NOK BRL".split()
LANGUAGES = """French Spanish German Italian Portuguese Dutch Japanese Chinese Arabic Russian Korean Greek
Polish""".split()
VERBS = """open close read write send move copy find delete print check clean start stop watch buy sell
build fix call""".split()
ADJECTIVES = """small big old new quiet bright dark fast slow heavy light warm cold soft strong happy clever
gentle""".split()

_ONSETS = "b br c d dr f fl g gr h j k l m n p pl r s st t tr v w z".split()
_NUCLEI = "a e i o u ar en il on or al an".split()
_CODAS = ["", "", "n", "r", "l", "x", "m", "th", "sk", "d"]


_POOLS = (FIRST, LAST, CITIES, JOBS, ITEMS, FOODS, ANIMALS, COLORS, TOPICS, COMPANIES, CURRENCIES, LANGUAGES)
_HELD_OUT = frozenset(word for pool in _POOLS for word in pool[3::7])


def is_held_out(word: str) -> bool:
    """True for the words that training tasks never use as a value."""
    return word in _HELD_OUT


def pseudo(rng: random.Random, syllables: int = 2) -> str:
    """A fresh capitalised word, such as `Drenox`."""
    parts = [rng.choice(_ONSETS) + rng.choice(_NUCLEI) for _ in range(syllables)]
    return ("".join(parts) + rng.choice(_CODAS)).capitalize()


class World:
    """A source of values. `held_out=True` draws only words that training never used as values."""

    def __init__(self, rng: random.Random, held_out: bool = False, pseudo_rate: float = 0.22) -> None:
        self.rng, self.held_out, self.pseudo_rate = rng, held_out, pseudo_rate

    def _pick(self, pool: Sequence[str]) -> str:
        side = [w for w in pool if is_held_out(w) == self.held_out]
        return self.rng.choice(side or list(pool))

    def _proper(self, pool: Sequence[str]) -> str:
        return pseudo(self.rng) if self.rng.random() < self.pseudo_rate else self._pick(pool)

    def coin(self, chance: float = 0.5) -> bool:
        return self.rng.random() < chance

    def any(self, options: Sequence[T]) -> T:
        """One of a fixed list that is not split (wordings, labels)."""
        return self.rng.choice(options)

    def first(self) -> str:
        return self._proper(FIRST)

    def last(self) -> str:
        return self._proper(LAST)

    def person(self) -> str:
        return f"{self.first()} {self.last()}"

    def city(self) -> str:
        return self._proper(CITIES)

    def job(self) -> str:
        return self._pick(JOBS)

    def item(self) -> str:
        return self._pick(ITEMS)

    def food(self) -> str:
        return self._pick(FOODS)

    def animal(self) -> str:
        return self._pick(ANIMALS)

    def color(self) -> str:
        return self._pick(COLORS)

    def topic(self) -> str:
        return self._pick(TOPICS)

    def company(self) -> str:
        return f"{self._proper(COMPANIES)} {self.any(SUFFIXES)}" if self.coin(0.6) else self._proper(COMPANIES)

    def day(self) -> str:
        return self.any(DAYS)

    def currency(self) -> str:
        return self._pick(CURRENCIES)

    def language(self) -> str:
        return self._pick(LANGUAGES)

    def number(self, low: int = 2, high: int = 99) -> int:
        return self.rng.randint(low, high)

    def price(self) -> str:
        whole = self.rng.randint(1, 99) if self.coin(0.7) else self.rng.randint(100, 999)
        return f"{whole}.{self.any(['00', '50', '99', '25', '75', '49', '95', '20'])}"

    def date(self) -> str:
        return f"{self.rng.randint(1990, 2029)}-{self.rng.randint(1, 12):02d}-{self.rng.randint(1, 28):02d}"

    def month_day(self) -> str:
        return f"{self.any(MONTHS)} {self.rng.randint(1, 28)}"

    def clock(self) -> str:
        return f"{self.rng.randint(6, 23):02d}:{self.any(['00', '15', '30', '45'])}"

    def email(self, first: str) -> str:
        host = self.any(["mail", "example", "post", "web", "inbox", "office"])
        return f"{first.lower()}@{host}.{self.any(['com', 'org', 'net'])}"

    def phone(self) -> str:
        return f"555-{self.rng.randint(1000, 9999)}"

    def code(self) -> str:
        return f"{self.any('ABCDEFGHKLMNPRST')}{self.any('ABCDEFGHKLMNPRST')}-{self.rng.randint(100, 999)}"

    def ip(self) -> str:
        return ".".join(str(self.rng.randint(1, 254)) for _ in range(4))

    def word(self) -> str:
        """Any lower-case everyday word, held out or not: only for lists to be repeated."""
        return self.any(self.any([ITEMS, FOODS, ANIMALS, COLORS, JOBS, TOPICS, VERBS, ADJECTIVES]))

    def name_word(self) -> str:
        """Any proper name, held out or not: only for lists to be repeated."""
        return self.any(self.any([FIRST, LAST, CITIES, COMPANIES]))
