"""A generated encyclopedia: some three thousand pages about people, places, books and firms that do not exist.

The same bytes on every machine: all draws come from a hash, not from a generator that a library may change. Each page
states its own facts and names the pages it links to, so a fact several links away takes several look-ups.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

COUNTS = {
    "country": 40,
    "city": 440,
    "river": 90,
    "mountain": 120,
    "university": 120,
    "company": 420,
    "person": 1150,
    "book": 820,
}
"""Pages by kind: 3,200 in all."""


@dataclass
class Entity:
    """A page's subject.

    Attributes:
        kind: A key of `COUNTS`.
        name: Its title, unique in the encyclopedia.
        links: The entities it is linked to, by relation.
        facts: Its own facts, by name, as the page prints them.
    """

    kind: str
    name: str
    links: dict[str, "Entity"] = field(default_factory=dict, repr=False)
    facts: dict[str, str] = field(default_factory=dict)


class Dice:
    """Numbers from a hash of a key: the same everywhere and for ever."""

    def __init__(self, key: str) -> None:
        self._key, self._count = key.encode(), 0

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        self._count += 1
        digest = hashlib.blake2b(self._key + b"/%d" % self._count, digest_size=8).digest()
        return int.from_bytes(digest, "little") % n

    def between(self, low: int, high: int) -> int:
        """A number from low to high."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]


def _words(text: str) -> list[str]:
    return text.split()


_ONSETS = _words("b br c ch d dr f fl g gr h j k kl l m n p pr r s sk st t tr v w z")
_VOWELS = _words("a e i o u ai ea ia o a e")
_CODAS = ["", "", "l", "n", "r", "s", "m", "nd", "rt", "th"]
_CITY_ENDS = _words("burg ville stad mouth ford haven wick gate minster by")
_FIRST = _words(
    "Ada Alma Anton Basil Bela Carla Cyril Dana Edda Elias Emil Fiona Gustav Hanna Hugo Ida Igor Ines Jana Joel Karin "
    "Klara Lars Lena Leon Livia Marta Milo Nadia Nils Nora Oskar Paula Petra Rafael Rosa Ruben Sonja Stefan Tamar "
    "Theo Tilda Ulrich Vera Viktor Wanda Xenia Yann Yvonne Zora"
)
_TRADES = _words(
    "architect astronomer botanist chemist composer engineer geographer geologist historian linguist mathematician "
    "painter philosopher physician physicist poet sculptor surgeon zoologist novelist"
)
_GOODS = _words(
    "bicycles cables ceramics clocks compasses engines furniture glass instruments lamps lenses paper pumps textiles "
    "tiles toys turbines violins watches wire"
)
_ADJECTIVES = _words(
    "Amber Bitter Broken Burning Crooked Distant Empty Fallen Frozen Gilded Hidden Hollow Iron Last Little Lost Pale "
    "Quiet Restless Scarlet Second Silent Silver Sleeping Unfinished Velvet Wandering Winter"
)
_THINGS = _words(
    "Anchor Bridge Candle Carousel Compass Corridor Garden Harbour Harvest Island Key Ladder Lantern Letter Lighthouse "
    "Map Mirror Orchard Parade Promise Quarry River Room Season Shadow Station Tower Train Valley Window"
)
_MONEY = _words("crown mark thaler florin dinar penny shilling ducat guilder rial")


def _syllable(dice: Dice) -> str:
    return dice.pick(_ONSETS) + dice.pick(_VOWELS)


def _word(dice: Dice) -> str:
    return (_syllable(dice) + _syllable(dice) + dice.pick(_CODAS)).capitalize()


_NAMES: dict[str, Callable[[Dice], str]] = {
    "country": lambda dice: _word(dice) + dice.pick(["ia", "land", "mark", "stan"]),
    "city": lambda dice: (_syllable(dice) + dice.pick(_CODAS)).capitalize() + dice.pick(_CITY_ENDS),
    "river": lambda dice: f"{_word(dice)} River",
    "mountain": lambda dice: f"Mount {_word(dice)}",
    "university": lambda dice: f"{_word(dice)} University",
    "company": lambda dice: f"{_word(dice)} {dice.pick(['Works', 'Brothers', 'Company', 'Industries', 'and Sons'])}",
    "person": lambda dice: f"{dice.pick(_FIRST)} {_word(dice)}",
    "book": lambda dice: f"The {dice.pick(_ADJECTIVES)} {dice.pick(_THINGS)}",
}

# What every entity of a kind is linked to: relation, kind of the target.
LINKS: dict[str, tuple[tuple[str, str], ...]] = {
    "country": (("capital", "city"),),
    "city": (("country", "country"), ("river", "river"), ("mayor", "person"), ("twin", "city")),
    "river": (("mountain", "mountain"),),
    "mountain": (("country", "country"), ("climber", "person")),
    "university": (("city", "city"), ("rector", "person")),
    "company": (("city", "city"), ("founder", "person")),
    "person": (("birthplace", "city"), ("university", "university"), ("employer", "company"), ("teacher", "person")),
    "book": (("author", "person"), ("publisher", "company")),
}


def _grouped(number: int) -> str:
    return f"{number:,}"


_FACTS: dict[str, Callable[[Dice], dict[str, str]]] = {
    "country": lambda dice: {
        "population": _grouped(dice.between(1_100_000, 98_000_000)),
        "area": _grouped(dice.between(12_000, 1_900_000)),
        "currency": f"{_word(dice)} {dice.pick(_MONEY)}",
    },
    "city": lambda dice: {
        "population": _grouped(dice.between(11_000, 2_900_000)),
        "founded": str(dice.between(803, 1897)),
    },
    "river": lambda dice: {"length": _grouped(dice.between(104, 3980))},
    "mountain": lambda dice: {"height": _grouped(dice.between(1210, 7990)), "climbed": str(dice.between(1786, 1962))},
    "university": lambda dice: {
        "students": _grouped(dice.between(1200, 64_000)),
        "founded": str(dice.between(1211, 1968)),
    },
    "company": lambda dice: {
        "employees": _grouped(dice.between(112, 88_000)),
        "founded": str(dice.between(1802, 1991)),
        "goods": dice.pick(_GOODS),
    },
    "person": lambda dice: {"born": str(dice.between(1848, 1979)), "trade": dice.pick(_TRADES)},
    "book": lambda dice: {"pages": str(dice.between(118, 960)), "year": str(dice.between(1880, 2019))},
}


@functools.cache
def entities() -> dict[str, list[Entity]]:
    """Every entity by kind; made once in a process."""
    taken: set[str] = set()
    made: dict[str, list[Entity]] = {}
    for kind, count in COUNTS.items():
        dice = Dice(f"mrlm encyclopedia v0/{kind}")
        made[kind] = []
        while len(made[kind]) < count:
            name = _NAMES[kind](dice)
            if name not in taken:
                taken.add(name)
                made[kind].append(Entity(kind, name, facts=_FACTS[kind](dice)))
    for kind, members in made.items():
        dice = Dice(f"mrlm encyclopedia v0/links of {kind}")
        for member in members:
            for relation, target in LINKS[kind]:
                choices = made[target]
                linked = dice.pick(choices)
                while linked is member:
                    linked = dice.pick(choices)
                member.links[relation] = linked
    cities = list(made["city"])
    for country in made["country"]:  # a capital lies in its country, and in no other
        capital = cities.pop(cities.index(country.links["capital"]) if country.links["capital"] in cities else 0)
        country.links["capital"], capital.links["country"] = capital, country
    return made


def page(entity: Entity) -> str:
    """The text of an entity's page."""
    values = {name: linked.name for name, linked in entity.links.items()} | entity.facts
    return _PAGES[entity.kind].format(name=entity.name, **values)


_PAGES = {
    "country": (
        "{name} is a country with a population of {population} on {area} square kilometres. Its capital is {capital}, "
        "and it pays in the {currency}."
    ),
    "city": (
        "{name} is a city in {country}, on the {river}. It was founded in {founded} and has {population} inhabitants. "
        "The mayor is {mayor}. Its twin city is {twin}."
    ),
    "river": "The {name} rises on {mountain} and is {length} kilometres long.",
    "mountain": (
        "{name} is a mountain in {country}, {height} metres high. It was first climbed in {climbed}, by {climber}."
    ),
    "university": (
        "{name} is a university in {city}. It was founded in {founded} and has {students} students. Its rector is "
        "{rector}."
    ),
    "company": (
        "{name} makes {goods}. It was founded in {founded} by {founder}, has its headquarters in {city} and employs "
        "{employees} people."
    ),
    "person": (
        "{name}, born in {birthplace} in {born}, is known as a {trade}. {name} studied at {university} under {teacher} "
        "and worked for {employer}."
    ),
    "book": "{name} is a book of {pages} pages by {author}, published in {year} by {publisher}.",
}


@functools.cache
def pages() -> tuple[tuple[str, str], ...]:
    """Every page as (title, text), in a fixed order."""
    return tuple((entity.name, page(entity)) for members in entities().values() for entity in members)
