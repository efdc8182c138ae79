"""WebShop: the expert buys what was asked for, pages lead where they say, and the score is WebShop's."""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rapidfuzz")

from mrlm_envs.checker import check_text_env
from mrlm_envs.search import FullText
from mrlm_envs.shop import catalogue
from mrlm_envs.shop.catalogue import Goal, Product
from mrlm_envs.shop.env import WebShopEnv
from mrlm_envs.shop.score import alike, score


def opened(seed: int = 0, **kwargs: Any) -> WebShopEnv:
    env = WebShopEnv(**kwargs)
    env.reset(seed=seed)
    return env


def act(env: WebShopEnv, *actions: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
    return env.step(f"<answer>{' || '.join(actions)}</answer>")


def test_the_checker_finds_nothing() -> None:
    assert check_text_env(gymnasium.make("mrlm_envs:mrlm/WebShop-v0")) == {}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_expert_buys_the_right_product_on_every_task(split: str) -> None:
    env = WebShopEnv(split=split)
    for seed in range(300):
        env.reset(seed=seed)
        _, reward, terminated, _, info = env.step(env.expert())
        assert (reward, terminated, info["success"]) == (1.0, True, True), env.goal


def test_the_expert_finds_its_way_from_any_page_one_action_a_turn() -> None:
    for seed in range(60):
        env = opened(seed, max_actions_per_turn=1, max_turns=30)
        detour = [
            "search[red]",
            "click[next >]",
            f"click[{env.shop.search('red')[12].asin.lower()}]",
            "click[features]",
        ]
        for action in detour[: seed % 5]:
            act(env, action)
        left = env.cost_to_go()
        assert left is not None and left < math.inf
        done, steps, reward = False, 0, 0.0
        while not done:
            _, reward, done, _, _ = env.step(env.expert())
            steps += 1
        assert reward == 1.0
        assert steps >= left  # another product may fit and be nearer


def test_the_cost_to_go_falls_by_at_most_one_an_action_and_some_action_makes_it_fall() -> None:
    for seed in range(15):
        env = opened(seed, max_actions=30)
        while (left := env.cost_to_go()) and left > 1:
            best = min(_after(env, action) for action in _moves(env))
            assert best == left - 1, (seed, left, best)
            _go(env, next(action for action in _moves(env) if _after(env, action) == best))


def _moves(env: WebShopEnv) -> list[tuple[str, str]]:
    if not env.visit.query and env.visit.product is None:
        return [("search", env.visit.title().lower())]
    return [("click", what) for what in env.visit.clickable() if what != "buy now"]


def _go(env: WebShopEnv, action: tuple[str, str]) -> None:
    assert not env.visit.act(action).refused, action


def _after(env: WebShopEnv, action: tuple[str, str]) -> float:
    kept = dict(vars(env.visit)) | {"chosen": dict(env.visit.chosen)}
    _go(env, action)
    left = env.cost_to_go()
    vars(env.visit).update(kept)
    assert left is not None
    return left


def test_pages_show_what_can_be_clicked_and_refuse_the_rest() -> None:
    env = opened()
    text = act(env, "click[buy now]", "search[]", "search[rain jacket]", "search[again]")[0]
    assert "click[buy now] (not on this page)" in text
    assert "no words to search for" in text
    assert "click[back to search]" in text
    assert "Page 1 of 5, 50 results." in text and "[next >]" in text and "[< prev]" not in text
    text = act(env, "click[next >]")[0]
    assert "Page 2 of 5" in text and "[< prev]" in text
    product = env.visit.shown()[0]
    text = act(env, f"click[{product.asin}]")[0]
    assert product.title in text and "[buy now]" in text
    value = next(iter(product.options.values()))[0]
    assert f"(chosen: {value})" in act(env, f"click[{value.upper()}]")[0]
    assert product.description in act(env, "click[description]")[0]
    assert product.title in act(env, "click[< prev]")[0]
    assert "Page 2 of 5" in act(env, "click[< prev]")[0]
    assert "Page: search" in act(env, "click[back to search]")[0]


def test_a_wrong_option_costs_success_and_part_of_the_score() -> None:
    rewards = []
    for kwargs in ({}, {"reward": "grl"}):
        env = opened(3, **kwargs)
        asin = env.goal.product.asin.lower()
        *_, info = act(env, f"search[{env.visit.title()}]", f"click[{asin}]", "click[buy now]")
        rewards.append(info["rewards"].get("solved", info["rewards"].get("score")))
        assert not info["success"]
    wanted = len(env.goal.attributes) + len(env.goal.options) + 1
    assert rewards == [0.0, pytest.approx((wanted - len(env.goal.options)) / wanted)]


def product(**changes: Any) -> Product:
    plain = {
        "asin": "B1", "title": "Fjord running shoes waterproof", "kind": "running shoes", "category": "a › shoes",
        "attributes": ("waterproof",), "options": {"color": ("red", "blue")}, "price": 50.0,
    }  # fmt: skip
    return Product(**{**plain, **changes})


def test_the_score_is_the_formula_of_webshop() -> None:
    goal = Goal("…", product(), ("waterproof", "vegan"), ("red",), 60.0)
    assert score(product(), {"color": "red"}, goal) == pytest.approx(3 / 4)
    assert score(product(attributes=("waterproof", "vegan")), {"color": "red"}, goal) == 1.0
    assert score(product(features=("Vegan leather",)), {"color": "blue"}, goal) == pytest.approx(3 / 4)
    assert score(product(price=61.0), {"color": "red"}, goal) == pytest.approx(2 / 4)
    assert score(product(title="Table lamp", kind="lamp", category="b"), {"color": "red"}, goal) == 0.0
    near = product(title="Fjord anchor poster frame", kind="poster", category="b")
    wide = Goal("…", product(title="Fjord " + " ".join(f"word{'x' * i}" for i in range(6))), (), (), 60.0)
    assert score(near, {}, wide) == pytest.approx(0.5)


def test_no_two_values_or_attributes_of_a_kind_count_as_one() -> None:
    seen = set()
    for made in catalogue.generated(0).products:
        for values in made.options.values():
            seen |= {frozenset(pair) for pair in combinations(values, 2)}
        every = [value for values in made.options.values() for value in values]
        assert len(set(every)) == len(every)
        seen |= {frozenset(pair) for pair in combinations(made.attributes, 2)}
    assert [pair for pair in seen if alike(*pair)] == []


def test_lazy_purchases_seldom_succeed() -> None:
    wins = 0
    for seed in range(200):
        env = opened(seed)
        act(env, f"search[{env.goal.instruction[:200]}]")
        wins += act(env, f"click[{env.visit.shown()[0].asin}]", "click[buy now]")[4].get("success", False)
    assert wins == 0  # every goal asks for options


STRANGE = ["", "buy", "<answer></answer>", "\ud800", "search[" + "x" * 2_000_000, "click[🙂]", "search[a\x00b]"]


@pytest.mark.parametrize("action", [*STRANGE, 'search[" OR *]', "<answer>search[NEAR(a b)]</answer>"], ids=range(9))
def test_any_text_is_an_action(action: str) -> None:
    env = opened()
    _, reward, terminated, truncated, _ = env.step(action)
    assert (reward, terminated, truncated) == (0.0, False, False)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_any_query_is_words_and_never_syntax(query: str) -> None:
    found = FullText([("red shoes", "a b"), ("blue hat", "c")]).search(query, 5)
    assert found is None or set(found) <= {0, 1}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Three products in the layout of WebShop's files."""
    option = [{"value": "Red/Black", "image": None, "asin": None}, {"value": "blue", "image": None}]
    rows = [
        {
            "asin": f"B00000000{number}",
            "name": f"Acme shoe number {word}",
            "query": "Shoes ",
            "product_category": "Clothing › Shoes",
            "full_description": "Soft.",
            "small_description": ["Rubber sole"],
            "pricing": price,
            "average_rating": 4.5,
            "customization_options": {"Color": option} if number else {},
        }
        for number, (word, price) in enumerate([("one", "$12.99$15.99"), ("two", ""), ("three", "$1,250.00")])
    ]
    comfortable = {
        "attributes": ["rubber sole", "comfortable"],
        "instruction": "Find me comfortable shoes with red | black color.",
        "instruction_attributes": ["comfortable"],
        "instruction_options": ["red | black"],
    }
    synthetic = {"B000000000": {"attributes": ["rubber sole"], "instruction": None}, "B000000001": comfortable}
    wish = {"instruction": "i want three", "instruction_attributes": ["rubber sole"], "instruction_options": ["blue"]}
    paths = {}
    for name, data in {"products": rows, "attributes": synthetic, "human_goals": {"B000000002": [wish]}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
        paths[name] = str(tmp_path / f"{name}.json")
    return paths


def test_the_files_of_webshop_are_shopped_in(files: dict[str, str]) -> None:
    human = files.pop("human_goals")
    env = opened(**files)
    assert env.num_tasks == 1
    assert "comfortable shoes with red | black color, and price lower than 110.00 dollars" in env._messages[0][1]
    assert env.step(env.expert())[1] == 1.0
    env = opened(**files, human_goals=human)
    assert env.goal.product.price == 1250.0 and env.goal.price_limit == 2000.0
    assert env.step(env.expert())[1] == 1.0


def test_a_bad_file_is_told_in_one_line(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="go together"):
        WebShopEnv(products=files["products"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        WebShopEnv(products=str(tmp_path / "nothing.json"), attributes=files["attributes"])
    (tmp_path / "bad.json").write_text('[{"asin": "B1"}]')
    with pytest.raises(ValueError, match=r"row 1: field 'name'|row 1: field 'query'"):
        WebShopEnv(products=str(tmp_path / "bad.json"), attributes=files["attributes"])


def test_the_product_is_in_no_info_and_equal_instructions_are_equal_tasks() -> None:
    env = WebShopEnv()
    for seed in range(20):
        observation, info = env.reset(seed=seed)
        assert env.goal.product.asin not in str(info)
        assert info["task_id"] in observation


def test_after_a_purchase_nothing_is_left_to_do_or_all_is_lost() -> None:
    env = opened(3)
    opening = env.state_key()
    env.step(env.expert())
    assert env.cost_to_go() == 0 and env.state_key() != opening
    env.reset(seed=3)
    act(env, "search[tent]", f"click[{env.shop.search('tent')[0].asin.lower()}]")
    before = env.state_key()
    act(env, "click[buy now]")
    assert env.cost_to_go() == math.inf and env.state_key() != before


def test_a_product_file_may_begin_with_a_tilde(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    env = opened(products="~/products.json", attributes="~/attributes.json")
    assert env.step(env.expert())[1] == 1.0


def test_a_product_with_a_title_of_short_words_or_another_script_can_be_bought(tmp_path: Path) -> None:
    row = {"asin": "B0AAAAAAA1", "query": "shoes", "product_category": "a › b", "pricing": "$10.0"}
    goal = {"instruction": "a shoe", "instruction_attributes": ["red"], "instruction_options": []}
    (tmp_path / "attributes.json").write_text(json.dumps({"B0AAAAAAA1": {"attributes": ["red"], **goal}}))
    for number, name in enumerate(["鞋子 红色", "Hat TX 9"]):
        (tmp_path / f"{number}.json").write_text(json.dumps([{**row, "name": name}]))
        env = opened(products=str(tmp_path / f"{number}.json"), attributes=str(tmp_path / "attributes.json"))
        assert env.step(env.expert())[1] == 1.0


def test_every_option_of_a_product_file_can_be_clicked(tmp_path: Path) -> None:
    values = ["8  Wide", "9 [UK]", "Green//Grey", "red/blue", " a || b "]
    options = {f"option {number}": [{"value": value}, {"value": "other"}] for number, value in enumerate(values)}
    row = {"asin": "B0AAAAAAA1", "name": "Red shoe", "query": "shoes", "product_category": "a › b", "pricing": "$10.0"}
    goal = {"instruction": "a shoe", "instruction_attributes": ["red"], "instruction_options": values}
    (tmp_path / "items.json").write_text(json.dumps([row | {"customization_options": options}]))
    (tmp_path / "attributes.json").write_text(json.dumps({"B0AAAAAAA1": {"attributes": ["red"], **goal}}))
    env = opened(products=str(tmp_path / "items.json"), attributes=str(tmp_path / "attributes.json"))
    assert env.step(env.expert())[1] == 1.0


@pytest.mark.parametrize(
    ("offered", "wanted"),
    [
        ({"frame": ["black", "white"], "seat": ["black", "white"]}, ["white", "black"]),
        ({"frame": ["other", "oak"], "seat": ["other", "leather"]}, ["oak", "other"]),
        ({"shade": ["Description", "blue"]}, ["Description"]),
    ],
)
def test_a_value_of_two_options_or_named_like_a_button_can_be_chosen(
    tmp_path: Path, offered: dict[str, list[str]], wanted: list[str]
) -> None:
    options = {name: [{"value": value} for value in values] for name, values in offered.items()}
    row = {"asin": "B0AAAAAAA1", "name": "Red seat", "query": "chairs", "product_category": "a › b", "pricing": "$9"}
    goal = {"instruction": "a chair", "instruction_attributes": ["red"], "instruction_options": wanted}
    (tmp_path / "items.json").write_text(json.dumps([row | {"customization_options": options}]))
    (tmp_path / "attributes.json").write_text(json.dumps({"B0AAAAAAA1": {"attributes": ["red"], **goal}}))
    env = opened(products=str(tmp_path / "items.json"), attributes=str(tmp_path / "attributes.json"))
    assert env.step(env.expert())[1] == 1.0
