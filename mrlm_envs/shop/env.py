"""WebShop: find a product that fits an instruction, choose its options and buy it, on a web site of text pages.

| | |
| --- | --- |
| id | `mrlm/WebShop-v0` |
| observation | the instruction and the first page; then the page, what was executed or refused, and the actions left |
| action | `<answer>search[red shoes]</answer>`, `<answer>click[b000123] || click[red] || click[buy now]</answer>` |
| reward | 1.0 for a purchase that meets the instruction in full, else 0.0; with "grl" WebShop's score, 0 to 1 |
| terminated | bought, or after `max_turns` replies or `max_actions` actions |
| task id | the instruction |
| expert | always: it searches for the goal's product by its title, chooses the options and buys |

The pages are those of WebShop (Yao et al., 2022, arXiv:2207.01206): search; results, ten to a page, with "next >" and
"< prev"; a product with its options, "description", "features" and "buy now". All but the first have "back to search".
The score is in `mrlm_envs.shop.score`. The generated catalogue has 4,000 products of sixteen kinds, the same for all;
goals are drawn from it and split by content. With `products` and `attributes` (and `human_goals`) WebShop's own files
are used instead: their goals are a finite source, used whole whatever the split.

`state_key()` is the page with what was chosen. `cost_to_go()` counts the clicks and searches that lead to some product
with a full score, None where the catalogue has more than 20,000 products; nothing is lost before a purchase. A goal of
the generated catalogue takes five or six actions: with a smaller budget it cannot be reached.

Parameters: `reward`, `products`, `attributes`, `human_goals`; `max_actions_per_turn` (10), `max_actions` (30),
`format_penalty` and `separator` of `mrlm_envs.actions.Actions`; `max_turns` (11), `split`, `max_length`,
`system_prompt` and `render_mode` of every environment. Budgets are GRL's (lmgame-org). Needs `mrlm[shop]`.

Version history: v0, first release.
"""

import functools
import importlib.util
import os
import re
from typing import Any, ClassVar

from mrlm_envs.actions import Actions
from mrlm_envs.core import Opening, Options, Reply, TextEnv
from mrlm_envs.shop import catalogue
from mrlm_envs.shop.catalogue import BUY, PREVIOUS, SEARCH, Goal
from mrlm_envs.shop.pages import Visit
from mrlm_envs.vector import TextVectorEnv

_ACTION = re.compile(r"\s*(search|click)\s*\[([^\[\]]{0,300})\]\s*", re.IGNORECASE)


class WebShopEnv(TextEnv):
    """Buy what an instruction asks for.

    Args:
        reward: "success" or "grl" (WebShop's score).
        products: WebShop's product file in place of the generated catalogue.
        attributes: WebShop's attribute file; goes with `products`.
        human_goals: WebShop's file of people's instructions, in place of the synthetic ones.
        max_turns: Replies an episode.
        max_actions_per_turn: Actions a reply.
        max_actions: Actions an episode.
        format_penalty: Added for a reply that cannot be read; see `Actions`.
        separator: Between actions.
        **kwargs: `split`, `max_length`, `system_prompt`, `render_mode` of `TextEnv`.

    Raises:
        ModuleNotFoundError: The extra is not installed.
        FileNotFoundError: No such file.
        ValueError: On a value out of range, or a row that does not fit.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": "always", "deterministic": True}

    def __init__(
        self,
        reward: str = "success",
        products: str | None = None,
        attributes: str | None = None,
        human_goals: str | None = None,
        max_turns: int = 11,
        max_actions_per_turn: int = 10,
        max_actions: int = 30,
        format_penalty: float | None = None,
        separator: str = "||",
        **kwargs: Any,
    ) -> None:
        super().__init__(max_turns=max_turns, **kwargs)
        if importlib.util.find_spec("rapidfuzz") is None:
            raise ModuleNotFoundError('mrlm/WebShop-v0 needs rapidfuzz; pip install "mrlm[shop]"', name="rapidfuzz")
        if (products is None) != (attributes is None):
            raise ValueError("products and attributes go together: WebShop's items_shuffle and items_ins_v2 files")
        if not separator.strip():
            raise ValueError(f"separator must not be blank, as searches contain spaces, got {separator!r}")
        self._files = None if products is None or attributes is None else (products, attributes, human_goals)
        self.actions = Actions(
            reward=reward,
            max_actions_per_turn=max_actions_per_turn,
            max_actions=max_actions,
            format_penalty=format_penalty,
            separator=separator,
        )
        if kwargs.get("system_prompt") is None:
            self.system_prompt = (
                "Shop as instructed. An action is search[words] or click[something on the page]. "
                "Choose the options that are asked for before you buy. "
                + self.actions.rules(max_turns, ["click[b000001]", "click[red]"])
            )
        self.num_tasks = None if self.shop.goals is None else len(self.shop.goals)
        self.goal: Goal

    @property
    def shop(self) -> catalogue.Catalogue:
        """The catalogue of this process."""
        if self._files is None:
            return catalogue.generated(os.getpid())
        return catalogue.from_webshop(*self._files, os.getpid())

    def begin(self, options: Options) -> Opening:
        self.tasks = self.shop.goals
        self.goal = self.picked(options) or catalogue.draw_goal(self.shop, self.rng)
        self.visit = Visit(self.shop, self.goal)
        self.actions.reset()
        text = f"Instruction: {self.goal.instruction}\n{self.visit.view()}"
        return Opening(self.actions.opening(text), task_id=self.goal.task_id)

    def respond(self, action: str) -> Reply:
        return self.actions.play(action, self.read, self.visit.act, self.visit.view)

    def read(self, text: str) -> tuple[str, str] | None:
        """The verb and the words of an action."""
        found = _ACTION.fullmatch(text)
        return None if found is None else (found[1].lower(), " ".join(found[2].lower().split()))

    def expert(self) -> str:
        """The rest of the way to the goal's product, as many actions as fit in a reply."""
        visit, product, steps = self.visit, self.goal.product, list[str]()
        if visit.product is not product:
            if visit.product is not None or product not in visit.shown():
                steps += [f"click[{SEARCH}]"] * bool(visit.query or visit.product) + [f"search[{visit.title()}]"]
            steps.append(f"click[{product.asin.lower()}]")
        elif visit.tab:
            steps.append(f"click[{PREVIOUS}]")
        chosen = visit.chosen if visit.product is product else {}
        steps += [f"click[{value}]" for value in visit.wanted(product, chosen)]
        return self.actions.write([*steps, f"click[{BUY}]"][: self.actions.max_actions_per_turn])

    def state_key(self) -> str:
        """The page with what was chosen."""
        return self.visit.key()

    def cost_to_go(self) -> float | None:
        """Actions that an optimal buyer still needs, None in a catalogue of more than 20,000 products."""
        return self.visit.cost_to_go()


make_vec = functools.partial(TextVectorEnv, WebShopEnv)
