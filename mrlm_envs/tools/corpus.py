"""A generated encyclopedia: some three thousand pages about people, places, books and firms that do not exist.

The same bytes on every machine: all draws come from a hash, not from a generator that a library may change. Each page
states its own facts and names the pages it links to, so a fact several links away takes several look-ups. The words,
kinds and sentences are in `encyclopedia.yaml`.
"""

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mrlm_envs.tasks import packaged

T = TypeVar("T")

_BLANK = re.compile(r"\{(\w+)(?:-(\d+))?(,?)\}")


@dataclass
class Entity:
    """A page's subject.

    Attributes:
        kind: A key of `kinds()`.
        name: Its title, unique in the encyclopedia.
        links: The entities it is linked to, by relation.
        facts: Its own facts, by name, as the page prints them.
    """

    kind: str
    name: str
    links: dict[str, "Entity"] = field(default_factory=dict, repr=False)
    facts: dict[str, str] = field(default_factory=dict)


class Dice:
    """Numbers from a hash of a key: the same on every machine."""

    def __init__(self, key: str) -> None:
        self._key, self._count = key.encode(), 0

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        self._count += 1
        digest = hashlib.blake2b(self._key + b"/%d" % self._count, digest_size=8).digest()
        return int.from_bytes(digest, "little") % n

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def fill(self, template: str) -> str:
        """A name or a fact: the blanks of a template of `encyclopedia.yaml`, drawn from left to right."""
        return _BLANK.sub(self._blank, template)

    def _blank(self, blank: re.Match[str]) -> str:
        name, high, comma = blank.groups()
        if high is not None:
            number = int(name) + self.below(int(high) - int(name) + 1)
            return f"{number:,}" if comma else str(number)
        if name == "word":
            return (self._syllable() + self._syllable() + self.pick(_words()["codas"])).capitalize()
        if name == "stem":
            return (self._syllable() + self.pick(_words()["codas"])).capitalize()
        return self.pick(_words()[name])

    def _syllable(self) -> str:
        return self.pick(_words()["onsets"]) + self.pick(_words()["vowels"])


@functools.cache
def _words() -> dict[str, list[str]]:
    words = packaged(__file__, "encyclopedia.yaml")["words"]
    return {name: listed.split() if isinstance(listed, str) else listed for name, listed in words.items()}


def kinds() -> dict[str, dict[str, Any]]:
    """What there is of each kind of page: `count`, `name`, `links`, `facts`, `sum` and `text`."""
    return packaged(__file__, "encyclopedia.yaml")["kinds"]


@functools.cache
def entities() -> dict[str, list[Entity]]:
    """Every entity by kind; made once in a process."""
    taken: set[str] = set()
    made: dict[str, list[Entity]] = {}
    for kind, its in kinds().items():
        dice = Dice(f"mrlm encyclopedia v0/{kind}")
        made[kind] = []
        while len(made[kind]) < its["count"]:
            name = dice.fill(its["name"])
            if name not in taken:
                taken.add(name)
                facts = {fact: dice.fill(about["draw"]) for fact, about in its["facts"].items()}
                made[kind].append(Entity(kind, name, facts=facts))
    for kind, members in made.items():
        dice = Dice(f"mrlm encyclopedia v0/links of {kind}")
        for member in members:
            for relation, about in kinds()[kind]["links"].items():
                linked = dice.pick(made[about["to"]])
                while linked is member:
                    linked = dice.pick(made[about["to"]])
                member.links[relation] = linked
    cities = list(made["city"])
    for country in made["country"]:  # a capital lies in its country, and in no other
        capital = cities.pop(cities.index(country.links["capital"]) if country.links["capital"] in cities else 0)
        country.links["capital"], capital.links["country"] = capital, country
    return made


@functools.cache
def pages() -> tuple[tuple[str, str], ...]:
    """Every page as (title, text), in a fixed order."""
    return tuple((entity.name, _text(entity)) for members in entities().values() for entity in members)


def _text(entity: Entity) -> str:
    values = {relation: linked.name for relation, linked in entity.links.items()} | entity.facts
    return kinds()[entity.kind]["text"].format(name=entity.name, **values)
