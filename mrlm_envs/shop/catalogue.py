"""What the shop sells: a generated catalogue, or WebShop's own product files."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mrlm_envs.search import FullText
from mrlm_envs.tasks import Tasks, packaged

SEARCH, PREVIOUS, NEXT, BUY = "back to search", "< prev", "next >", "buy now"
BUTTONS = (SEARCH, PREVIOUS, NEXT, "description", "features", BUY)  # of the pages; no option is called so
PRODUCTS = 4_000  # of the generated catalogue
_RESULTS = 50  # of a search, as in WebShop
_BRANDS = ["Arvo", "Belka", "Cedar", "Dorne", "Elmo", "Fjord", "Gable", "Halden", "Iris", "Jorvik", "Kestrel", "Lumo"]
_SYLLABLES = ["ba", "co", "di", "fa", "ge", "hu", "ka", "lo", "mi", "na", "po", "ra", "se", "ti", "va", "zo"]


@dataclass(frozen=True, eq=False)
class Product:
    """A product.

    Attributes:
        asin: Its number, in capitals.
        title: One line.
        kind: What was searched for where it was found (WebShop's `query`).
        category: Path of categories, divided by `›`.
        attributes: What a buyer may ask for.
        options: Names of options to their values.
        price: In dollars; the lowest, where it depends on options.
        description: Text of its page.
        features: Lines of its page.
        rating: Out of 5, "" when there is none.
    """

    asin: str
    title: str
    kind: str
    category: str
    attributes: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    price: float
    description: str = ""
    features: tuple[str, ...] = ()
    rating: str = ""


@dataclass(frozen=True, eq=False)
class Goal:
    """What the buyer wants.

    Attributes:
        instruction: In words, the price included.
        product: One that fits.
        attributes: Those asked for.
        options: Values asked for, each of another option.
        price_limit: In dollars.
    """

    instruction: str
    product: Product
    attributes: tuple[str, ...]
    options: tuple[str, ...]
    price_limit: float

    @property
    def task_id(self) -> str:
        """The instruction, never the product: a task id is in every `info`."""
        return self.instruction


@dataclass
class Catalogue:
    """Products, how to search them, and the goals that came with them (none: goals are generated)."""

    products: Sequence[Product]
    goals: Tasks[Goal] | None = None
    _index: FullText = field(init=False)

    def __post_init__(self) -> None:
        self.by_asin = {product.asin.lower(): product for product in self.products}
        self._index = FullText((product.title, _text(product)) for product in self.products)

    def search(self, query: str) -> list[Product]:
        """The best products for a query, best first, at most 50."""
        return [self.products[i] for i in self._index.search(query, _RESULTS) or ()]


def _text(product: Product) -> str:
    options = (value for values in product.options.values() for value in values)
    return " ".join((*product.attributes, product.description, *product.features, *options))


@functools.lru_cache(maxsize=1)
def generated(pid: int) -> Catalogue:
    """The generated catalogue, the same in every process.

    Args:
        pid: The process, as a forked one may not use its parent's index.
    """
    rng = np.random.default_rng(0)
    kinds = packaged(__file__, "catalogue.yaml")
    return Catalogue([_product(number, kinds, rng) for number in range(PRODUCTS)])


def _some(rng: np.random.Generator, items: Sequence[Any], count: int) -> tuple[str, ...]:
    """Several of the items, in their order."""
    return tuple(items[i] for i in sorted(rng.choice(len(items), size=count, replace=False).tolist()))


def _product(number: int, kinds: Mapping[str, Any], rng: np.random.Generator) -> Product:
    kind = list(kinds)[number % len(kinds)]
    attributes = _some(rng, kinds[kind]["attributes"], int(rng.integers(2, 5)))
    offers = kinds[kind]["options"].items()
    options = {name: _some(rng, values, int(rng.integers(2, len(values) + 1))) for name, values in offers}
    brand = _BRANDS[int(rng.integers(len(_BRANDS)))]
    model = "".join(_SYLLABLES[i] for i in rng.integers(len(_SYLLABLES), size=3)).capitalize()
    named, told = attributes[: len(attributes) // 2], attributes[len(attributes) // 2 :]
    return Product(
        asin=f"B{number:06d}",
        title=" ".join([brand, model, kind, *named]),
        kind=kind,
        category=f"everything › {kind}",
        attributes=attributes,
        options=options,
        price=round(float(rng.lognormal(3.4, 0.6)), 2),
        description=f"The {model} is a {kind} by {brand}.",
        features=tuple(told),
        rating=f"{rng.uniform(2.5, 5):.1f}",
    )


def draw_goal(catalogue: Catalogue, rng: np.random.Generator) -> Goal:
    """A goal that one of the products meets: some of its attributes, a value of each option, and a price."""
    product = catalogue.products[int(rng.integers(len(catalogue.products)))]
    attributes = _some(rng, product.attributes, int(rng.integers(1, min(3, len(product.attributes)) + 1)))
    named = [(name, values[int(rng.integers(len(values)))]) for name, values in product.options.items()]
    limit = float(np.ceil(product.price * rng.uniform(1.05, 1.6)))
    wanted = ", ".join([*attributes, *(f"{name} {value}" for name, value in named)])
    instruction = f"I want to buy {product.kind}: {wanted}, for at most {limit:.0f} dollars."
    return Goal(instruction, product, attributes, tuple(value for _, value in named), limit)


@functools.lru_cache(maxsize=4)
def from_webshop(products: str, attributes: str, goals: str | None, pid: int) -> Catalogue:
    """A catalogue from WebShop's own files (Yao et al., 2022, arXiv:2207.01206).

    Args:
        products: `items_shuffle.json` or `items_shuffle_1000.json`.
        attributes: `items_ins_v2.json` or its 1,000 rows: attributes and the synthetic instruction of each product.
        goals: `items_human_ins.json`, whose instructions are used in place of the synthetic ones.
        pid: As in `generated`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A product lacks a field, or no instruction fits a product.
    """
    known, written = _json(attributes), {} if goals is None else _json(goals)
    made: dict[str, Product] = {}
    wanted: list[Goal] = []
    for number, row in enumerate(_json(products), start=1):
        try:
            asin = row["asin"]
            if asin in made or asin == "nan" or len(asin) > 10:
                continue
            product = made[asin] = _webshop_product(row, tuple(known.get(asin, {}).get("attributes", ())))
        except (KeyError, TypeError) as error:
            raise ValueError(f"products {products}, row {number}: field {error} is missing or unfit") from None
        for told in written.get(asin, ()) if goals is not None else (known.get(asin, {}),):
            if told.get("instruction") and told.get("instruction_attributes"):
                wanted.append(_webshop_goal(product, told))
    if not wanted:
        raise ValueError(f"products {products}: no instruction of {goals or attributes} is about one of them")
    return Catalogue(list(made.values()), Tasks.of(wanted))


def _json(path: str) -> Any:
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"shop file {path}: no such file")
    return json.loads(file.read_text("utf-8"))


def _webshop_product(row: Mapping[str, Any], attributes: tuple[str, ...]) -> Product:
    prices = [float(price) for price in re.findall(r"\d+(?:\.\d+)?", str(row.get("pricing") or "").replace(",", ""))]
    offered = (row.get("customization_options") or {}).items()
    options = {name.lower(): tuple(_clickable(v["value"]) for v in values) for name, values in offered if values}
    bullets = row.get("small_description") or []
    return Product(
        asin=row["asin"].upper(),
        title=row["name"],
        kind=row["query"].lower().strip(),
        category=row["product_category"],
        attributes=attributes,
        options=options,
        price=prices[0] if prices else 100.0,
        description=str(row.get("full_description") or ""),
        features=tuple(bullets if isinstance(bullets, list) else [str(bullets)]),
        rating=str(row.get("average_rating") or ""),
    )


def _webshop_goal(product: Product, told: Mapping[str, Any]) -> Goal:
    given = told.get("instruction_options") or []
    options = tuple(_clickable(str(value)) for value in (given.values() if isinstance(given, Mapping) else given))
    limit = next(price for price in _PRICES if price > product.price)
    text = f"{told['instruction'].strip().rstrip('.')}, and price lower than {limit:.2f} dollars"
    return Goal(text, product, tuple(told["instruction_attributes"]), options, limit)


def _clickable(value: str) -> str:
    """The value of an option as WebShop writes it, without what `click[…]` and the separator cannot hold."""
    text = " ".join(re.sub(r"[\[\]]", " ", re.sub(r"[|/]+", " | ", value.lower())).split())
    return f"{text} (option)" if text in BUTTONS else text


_PRICES = [*(10.0 * i for i in range(1, 100)), 1e3, 2e3, 5e3, 1e4, 1e5, 1e6, float("inf")]
