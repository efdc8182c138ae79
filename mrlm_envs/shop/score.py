"""WebShop's score of a purchase (Yao et al., 2022, arXiv:2207.01206, section 3 and its `goal.py`).

    score = type · (attributes met + options met + [price within the limit]) / (attributes + options + 1)

One difference: WebShop compares the nouns of two titles as a tagger finds them; here every word of more than three
letters counts.
"""

import re
from collections.abc import Mapping

from rapidfuzz import fuzz

from mrlm_envs.shop.catalogue import Goal, Product

_ALIKE = 85  # of 100: how alike two phrases must be to count as one
_WORD = re.compile(r"[a-z]{4,}")


def score(product: Product, chosen: Mapping[str, str], goal: Goal) -> float:
    """How well a purchase meets a goal, 0 to 1.

    Args:
        product: What was bought.
        chosen: Names of options to the values chosen.
        goal: What was wanted.
    """
    attributes = sum(_has(product, attribute) for attribute in goal.attributes)
    options = sum(any(alike(value, own) for own in chosen.values()) for value in goal.options)
    met = attributes + options + (product.price <= goal.price_limit)
    return _type(product, goal.product) * met / (len(goal.attributes) + len(goal.options) + 1)


def _has(product: Product, attribute: str) -> bool:
    if any(alike(attribute, own) for own in product.attributes):
        return True
    text = " ".join((product.title, product.description, *product.features)).lower()
    return attribute.lower() in text


def alike(one: str, other: str) -> bool:
    """Whether two phrases count as one."""
    return fuzz.token_set_ratio(one, other) > _ALIKE


def _type(product: Product, wanted: Product) -> float:
    """1 for a product of the kind, less for one that has little in common with it."""
    if product is wanted:  # its title may hold no such word at all
        return 1.0
    ours, theirs = (set(_WORD.findall(p.title.lower())) for p in (product, wanted))
    common = len(ours & theirs) / max(1, len(theirs))
    if common < 0.1:
        return 0.1 if common else 0.0
    mine, wished = ({part.strip() for part in p.category.split("›")} for p in (product, wanted))
    return 1.0 if product.kind == wanted.kind or len(mine & wished) >= 2 or common > 0.2 else 0.5
