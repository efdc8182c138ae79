"""Generated questions about the encyclopedia: chains of look-ups, and chains that end in a calculation and a file."""

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from mrlm_envs.tools import corpus
from mrlm_envs.tools.calculator import calculate
from mrlm_envs.tools.calls import Call
from mrlm_envs.tools.corpus import Entity, kinds
from mrlm_envs.tools.task import Task


@dataclass(frozen=True)
class Chain:
    """A way through the encyclopedia.

    Attributes:
        way: The pages on it, from the one that is named to the one that is asked about.
        phrase: How the last one is named by the first: "the capital of the country in which X lies".
        content: Canonical: the first page and the relations.
    """

    way: tuple[Entity, ...]
    phrase: str
    content: str

    def calls(self) -> tuple[tuple[Call, ...], ...]:
        """Find the first page, then read them all in order."""
        search = Call("search", {"query": self.way[0].name})
        return ((search,), *((Call("read_page", {"title": entity.name}),) for entity in self.way))


def _chain(rng: np.random.Generator, hops: int, ends: frozenset[str]) -> Chain:
    """A chain of `hops` links that meets no page twice and ends at a page of one of the kinds."""
    everyone = _all()
    while True:
        entity = everyone[int(rng.integers(len(everyone)))]
        way, content = [entity], entity.name
        phrase = f"the {entity.name}" if entity.kind == "river" else entity.name
        for _ in range(hops):
            links = kinds()[way[-1].kind]["links"]
            relation = list(links)[int(rng.integers(len(links)))]
            phrase = links[relation]["phrase"].format(phrase)
            content += f"/{relation}"
            way.append(way[-1].links[relation])
        if way[-1].kind in ends and len({page.name for page in way}) == len(way):
            return Chain(tuple(way), phrase, content)


@functools.cache
def _all() -> tuple[Entity, ...]:
    return tuple(entity for members in corpus.entities().values() for entity in members)


def lookup_task(rng: np.random.Generator, level: int) -> Task:
    """A question about the page `level` links away from the one it names."""
    chain = _chain(rng, level, frozenset(kinds()))
    last = chain.way[-1]
    asked = {fact: about["question"] for fact, about in kinds()[last.kind]["facts"].items() if "question" in about}
    fact = list(asked)[int(rng.integers(len(asked)))]
    question = asked[fact].format(chain.phrase)
    answer = last.facts[fact].replace(",", "")
    return Task(f"lookup/{chain.content}/{fact}", question, answer, chain.calls())


def mixed_task(rng: np.random.Generator, level: int) -> Task:
    """Two chains of look-ups, a calculation with what they end in, and, from level 3, a file with the result."""
    summable = frozenset(kind for kind, its in kinds().items() if "sum" in its)
    first = _chain(rng, (level + 1) // 2, summable)
    second = _chain(rng, max(1, level // 2), summable)
    values = [_value(chain) for chain in (first, second)]
    factor = int(rng.integers(12, 100))
    expression = f"{factor} * {values[0]} + {values[1]}"
    result = calculate(expression)
    asked = [kinds()[chain.way[-1].kind]["sum"]["phrase"].format(chain.phrase) for chain in (first, second)]
    sentence = f"Add {asked[1]} to {factor} times {asked[0]}"
    content = f"mixed/{factor}/{first.content}/{second.content}"
    # The look-ups of both chains side by side: a turn makes a call of either, as long as both have some.
    both = itertools.zip_longest(first.calls(), second.calls(), fillvalue=())
    turns = (*(one + other for one, other in both), (Call("calculator", {"expression": expression}),))
    if level < 3:
        return Task(content, f"{sentence}. What is the result?", result, turns)
    write = Call("write_file", {"path": "result.txt", "content": result})
    question = f"{sentence} and write the result, the number alone, into the file result.txt. What is it?"
    return Task(f"{content}/file", question, result, (*turns, (write,)), {}, {"result.txt": result})


def _value(chain: Chain) -> int:
    last = chain.way[-1]
    return int(last.facts[kinds()[last.kind]["sum"]["fact"]].replace(",", ""))
