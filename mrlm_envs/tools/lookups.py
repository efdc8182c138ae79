"""Generated questions about the encyclopedia: chains of look-ups, and chains that end in a calculation and a file."""

import functools
from dataclasses import dataclass

import numpy as np

from mrlm_envs.tools import corpus
from mrlm_envs.tools.calculator import calculate
from mrlm_envs.tools.calls import Call
from mrlm_envs.tools.corpus import LINKS, Entity
from mrlm_envs.tools.task import Task

# How a link is said in a question.
_PHRASES = {
    ("country", "capital"): "the capital of {}",
    ("city", "country"): "the country in which {} lies",
    ("city", "river"): "the river on which {} lies",
    ("city", "mayor"): "the mayor of {}",
    ("city", "twin"): "the twin city of {}",
    ("river", "mountain"): "the mountain on which {} rises",
    ("mountain", "country"): "the country in which {} lies",
    ("mountain", "climber"): "the first climber of {}",
    ("university", "city"): "the city of {}",
    ("university", "rector"): "the rector of {}",
    ("company", "city"): "the headquarters city of {}",
    ("company", "founder"): "the founder of {}",
    ("person", "birthplace"): "the birthplace of {}",
    ("person", "university"): "the university where {} studied",
    ("person", "employer"): "the employer of {}",
    ("person", "teacher"): "the teacher of {}",
    ("book", "author"): 'the author of "{}"',
    ("book", "publisher"): 'the publisher of "{}"',
}
_QUESTIONS = {
    ("country", "population"): "What is the population of {}?",
    ("country", "area"): "How many square kilometres is {} in area?",
    ("country", "currency"): "What is the currency of {}?",
    ("city", "population"): "How many inhabitants has {}?",
    ("city", "founded"): "In which year was {} founded?",
    ("river", "length"): "How many kilometres long is {}?",
    ("mountain", "height"): "How many metres high is {}?",
    ("university", "students"): "How many students has {}?",
    ("company", "employees"): "How many people work for {}?",
    ("person", "born"): "In which year was {} born?",
    ("book", "pages"): "How many pages has {}?",
}
# Facts that can be added up, and how they are said.
_SUMMABLE = {
    "country": ("population", "the population of {}"),
    "city": ("population", "the number of inhabitants of {}"),
    "river": ("length", "the length in kilometres of {}"),
    "mountain": ("height", "the height in metres of {}"),
    "university": ("students", "the number of students of {}"),
    "company": ("employees", "the number of employees of {}"),
}


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
        way, phrase, content = [entity], _named(entity), entity.name
        for _ in range(hops):
            relations = LINKS[way[-1].kind]
            relation = relations[int(rng.integers(len(relations)))][0]
            phrase = _PHRASES[way[-1].kind, relation].format(phrase)
            content += f"/{relation}"
            way.append(way[-1].links[relation])
        if way[-1].kind in ends and len({page.name for page in way}) == len(way):
            return Chain(tuple(way), phrase, content)


@functools.cache
def _all() -> tuple[Entity, ...]:
    return tuple(entity for members in corpus.entities().values() for entity in members)


def _named(entity: Entity) -> str:
    return f"the {entity.name}" if entity.kind == "river" else entity.name


_ASKED = frozenset(kind for kind, _ in _QUESTIONS)


def lookup_task(rng: np.random.Generator, level: int) -> Task:
    """A question about the page `level` links away from the one it names."""
    chain = _chain(rng, level, _ASKED)
    last = chain.way[-1]
    asked = [fact for kind, fact in _QUESTIONS if kind == last.kind]
    fact = asked[int(rng.integers(len(asked)))]
    question = _QUESTIONS[last.kind, fact].format(chain.phrase)
    answer = last.facts[fact].replace(",", "")
    return Task(f"lookup/{chain.content}/{fact}", question, answer, chain.calls())


def mixed_task(rng: np.random.Generator, level: int) -> Task:
    """Two chains of look-ups, a calculation with what they end in, and, from level 3, a file with the result."""
    summable = frozenset(_SUMMABLE)
    first = _chain(rng, (level + 1) // 2, summable)
    second = _chain(rng, max(1, level // 2), summable)
    values = [_value(chain) for chain in (first, second)]
    factor = int(rng.integers(12, 100))
    expression = f"{factor} * {values[0]} + {values[1]}"
    result = calculate(expression)
    asked = [_SUMMABLE[chain.way[-1].kind][1].format(chain.phrase) for chain in (first, second)]
    sentence = f"Add {asked[1]} to {factor} times {asked[0]}"
    content = f"mixed/{factor}/{first.content}/{second.content}"
    turns = (*_both(first, second), (Call("calculator", {"expression": expression}),))
    if level < 3:
        return Task(content, f"{sentence}. What is the result?", result, turns)
    write = Call("write_file", {"path": "result.txt", "content": result})
    question = f"{sentence} and write the result, the number alone, into the file result.txt. What is it?"
    return Task(f"{content}/file", question, result, (*turns, (write,)), {}, {"result.txt": result})


def _both(first: Chain, second: Chain) -> tuple[tuple[Call, ...], ...]:
    """The calls of two chains side by side: each turn makes a call of either, as long as both have some."""
    a, b = first.calls(), second.calls()
    return tuple((a[i] if i < len(a) else ()) + (b[i] if i < len(b) else ()) for i in range(max(len(a), len(b))))


def _value(chain: Chain) -> int:
    last = chain.way[-1]
    return int(last.facts[_SUMMABLE[last.kind][0]].replace(",", ""))
