"""The pages of the shop: what they show, what can be clicked, where a click leads."""

import math
import re

from mrlm_envs.actions import Outcome
from mrlm_envs.shop.catalogue import BUTTONS, BUY, NEXT, PREVIOUS, SEARCH, Catalogue, Goal, Product

_PER_PAGE = 10
_MAX_PRODUCTS = 20_000  # of a catalogue whose products are all scored for `cost_to_go`
FULL = 1 - 1e-9  # a full score, up to rounding


class Visit:
    """One buyer in the shop, from the search page to a purchase.

    Args:
        shop: What is sold.
        goal: What the purchase is scored against.

    Attributes:
        product: The product whose page is open, None on the search page and on results.
        chosen: Names of its options to the values chosen.
        score: Of the purchase, None before it.
    """

    def __init__(self, shop: Catalogue, goal: Goal) -> None:
        self.shop, self.goal = shop, goal
        self.query, self.results, self.page = "", list[Product](), 0
        self.product: Product | None = None
        self.tab, self.chosen = "", dict[str, str]()
        self.score: float | None = None
        self._fits: set[Product] | None = None  # made when `cost_to_go` is first asked

    def act(self, action: tuple[str, str]) -> Outcome:
        """Execute an action."""
        verb, what = action
        if verb == "search":
            if self.query or self.product:
                return Outcome(refused="the search bar is on the first page; click[back to search]")
            if not what:
                return Outcome(refused="no words to search for")
            self.query, self.results, self.page = what, self.shop.search(what), 0
            return Outcome()
        if what not in self.clickable():
            return Outcome(refused="not on this page")
        return self._click(what)

    def _click(self, what: str) -> Outcome:
        if what == SEARCH:
            self.query, self.results, self.product = "", [], None
        elif self.product is None:
            if what in (NEXT, PREVIOUS):
                self.page += 1 if what == NEXT else -1
            else:
                self.product, self.tab, self.chosen = self.shop.by_asin[what], "", {}
        elif what == PREVIOUS:
            self.product, self.tab = (self.product, "") if self.tab else (None, "")
        elif what in ("description", "features"):
            self.tab = what
        elif what == BUY:
            from mrlm_envs.shop.score import score

            self.score = score(self.product, self.chosen, self.goal)
            return Outcome({"score": self.score}, done=True, success=self.score > FULL)
        else:
            names = [name for name, values in self.product.options.items() if what in values]
            self.chosen[next((name for name in names if name not in self.chosen), names[0])] = what
        return Outcome()

    def shown(self) -> list[Product]:
        """The products on the current page of results."""
        return self.results[self.page * _PER_PAGE : (self.page + 1) * _PER_PAGE]

    def clickable(self) -> list[str]:
        """What can be clicked on the current page."""
        if self.product is not None:
            if self.tab:
                return [SEARCH, PREVIOUS]
            values = [value for values in self.product.options.values() for value in values]
            return [SEARCH, PREVIOUS, "description", "features", BUY, *values]
        if not self.query:
            return []
        turns = [PREVIOUS] * (self.page > 0) + [NEXT] * ((self.page + 1) * _PER_PAGE < len(self.results))
        return [SEARCH, *turns, *(product.asin.lower() for product in self.shown())]

    def view(self) -> str:
        """The current page."""
        if self.score is not None and self.product is not None:
            return f"You bought {self.product.title}. Score: {self.score:.2f} of 1."
        if self.product is None and not self.query:
            return "Page: search. Action: search[words]."
        if self.product is None:
            pages = max(1, -(-len(self.results) // _PER_PAGE))
            lines = [f"Page {self.page + 1} of {pages}, {len(self.results)} results."]
            lines += [f"[{product.asin.lower()}] {product.title}, ${product.price:.2f}" for product in self.shown()]
        elif self.tab:
            lines = [self.product.description] if self.tab == "description" else list(self.product.features)
        else:
            price, rating = f"${self.product.price:.2f}", self.product.rating or "N.A."
            lines = [self.product.title, f"Price: {price}", f"Rating: {rating}"]
            for name, values in self.product.options.items():
                mark = f" (chosen: {self.chosen[name]})" if name in self.chosen else ""
                lines.append(f"{name}: {', '.join(f'[{value}]' for value in values)}{mark}")
        buttons = [name for name in self.clickable() if name in BUTTONS]
        return "\n".join([*lines, "Click: " + ", ".join(f"[{name}]" for name in buttons)])

    def title(self) -> str:
        """The goal's title as a query, without characters that end an action."""
        return " ".join(re.sub(r"[\[\]|<>]", " ", self.goal.product.title).split())[:300]

    def wanted(self, product: Product, chosen: dict[str, str]) -> list[str]:
        """Values of a product's options that the goal asks for and that are not chosen yet, shared ones last."""
        missing = set(self.goal.options) - set(chosen.values())
        offered = [value for values in product.options.values() for value in values if value in missing]
        return sorted(dict.fromkeys(offered), key=offered.count)

    def key(self) -> str:
        """The page with what was chosen, and after a purchase its score."""
        if self.score is not None:
            return f"bought for {self.score}"
        if self.product is None:
            return f"results {self.page} of {self.query}" if self.query else "search"
        chosen = ", ".join(f"{name}={value}" for name, value in sorted(self.chosen.items()))
        return f"{self.product.asin} {self.tab} {chosen} from {self.page} of {self.query}"

    def cost_to_go(self) -> float | None:
        """Actions that an optimal buyer still needs, None in a catalogue of more than 20,000 products."""
        if len(self.shop.products) > _MAX_PRODUCTS:
            return None
        if self.score is not None:
            return 0.0 if self.score > FULL else math.inf
        fitting = self._fitting()
        options = len(self.goal.options)
        ways = [2.0 + options + 1 + bool(self.query or self.product)]  # by a new search for the goal's title
        if self.product is not None and self.product in fitting:
            ways.append(bool(self.tab) + len(self.wanted(self.product, self.chosen)) + 1)
        back = 0 if self.product is None else 1 + bool(self.tab)
        for place, product in enumerate(self.results):
            if product in fitting:
                ways.append(back + abs(place // _PER_PAGE - self.page) + 1 + options + 1)
        return min(ways)

    def _fitting(self) -> set[Product]:
        """The products with which a full score can be had."""
        from mrlm_envs.shop.score import score

        if self._fits is None:
            wanted = self.goal.options
            bought = {value: value for value in wanted}
            offers = [p for p in self.shop.products if all(any(o in v for v in p.options.values()) for o in wanted)]
            self._fits = {product for product in offers if score(product, bought, self.goal) > FULL}
        return self._fits
