"""`mrlm/ToolUse-v0` as its users meet it, and a policy that meets it through its chat template."""

import hashlib
import itertools
import json
import re
from fractions import Fraction

import gymnasium
import pytest

from mrlm_envs.checker import check_text_env
from mrlm_envs.core import EnvFault
from mrlm_envs.tools import Call, Toolset, render, tool
from mrlm_envs.tools.corpus import entities, pages
from mrlm_envs.tools.env import ToolUseEnv
from mrlm_envs.tools.task import is_right
from mrlm_envs.tools.tasks import KINDS
from tests.support.paths import ROOT

TOY = {
    "kinds": ["calculator"],
    "difficulty": [1, 1],
    "call_format": "pythonic",
    "max_turns": 3,
    "system_prompt": "",
    "show_tools": False,
}
ROWS = [
    {
        "id": "sum",
        "question": "Add up numbers.txt.",
        "answer": 1234,
        "files": {"numbers.txt": "1000\n234"},
        "calls": [{"name": "read_file", "arguments": {"path": "numbers.txt"}}],
    },
    {"id": "hi", "question": "Write hello into a.txt.", "files": {"b.txt": ""}, "files_after": {"a.txt": "hello"}},
]


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        TOY,
        {"kinds": ["lookup"], "difficulty": [1, 5], "call_format": "llama"},
        {"kinds": ["files"], "difficulty": [1, 5], "call_format": "react", "max_calls_per_turn": 1, "max_turns": 30},
        {"kinds": ["python"], "difficulty": [3, 5], "call_format": "hermes"},
        {"kinds": ["mixed"], "difficulty": [1, 5], "extra_call_cost": 0.1, "split": "test"},
        {"tasks": ROWS},
    ],
    ids=["default", "toy", "lookup", "files", "python", "mixed", "rows"],
)
def test_it_keeps_the_contract(kwargs):
    check_text_env(gymnasium.make("mrlm_envs:mrlm/ToolUse-v0", **kwargs))


@pytest.mark.parametrize("call_format", ["hermes", "llama", "pythonic", "react"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_reference_trajectory_earns_full_reward_over_hundreds_of_seeds(kind, call_format):
    env = ToolUseEnv(kinds=[kind], difficulty=(1, 5), call_format=call_format, extra_call_cost=0.5)
    for seed in range(15 if kind == "python" else 75):  # times four formats
        question, _ = env.reset(seed=seed)
        total, over, turns = 0.0, False, 0
        while not over:
            observation, reward, over, _, info = env.step(env.expert())
            total, turns = total + reward, turns + 1
            assert info["action_valid"] and not observation.startswith("error"), (seed, question, observation)
        assert (total, info["success"]) == (1.0, True), (seed, question)
        assert turns >= 2, "a task that needs no tool"
    env.close()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_answer_is_neither_in_the_question_nor_in_any_info_before_the_end(kind):
    env = ToolUseEnv(kinds=[kind], difficulty=(1, 5))
    for seed in range(30):
        question, info = env.reset(seed=seed)
        if env.task.answer is not None:
            assert env.task.answer not in question
            assert f'"{env.task.answer}"' not in json.dumps(info)
        *_, info = env.step("")
        assert "solved" not in info["rewards"] and set(info) <= {
            "task_id", "seed", "turn", "role", "action_valid", "rewards", "calls",
        }  # fmt: skip
    env.close()


def test_arithmetic_answers_are_what_python_computes_from_the_question():
    env = ToolUseEnv(kinds=["calculator"], difficulty=(1, 3), split="all")
    for seed in range(300):
        question, _ = env.reset(seed=seed)
        text = question.removeprefix("What is ").removesuffix("?").replace("% of ", " * Fraction(1, 100) * ")
        assert Fraction(env.task.answer or "") == eval(text), question  # noqa: S307


def _recomputed(question: str) -> int:
    """The answer to a computation, from the words of its question, by other means than the reference's."""
    n = [int(number) for number in re.findall(r"\d+", question)]
    if "prime" in question:
        return sum(p for p in range(n[0], n[1] + 1) if p % 10 == n[2] and all(p % d for d in range(2, p)))
    if "digits of" in question and "^" in question:
        total, power = 0, n[0] ** n[1]
        while power:
            power, digit = divmod(power, 10)
            total += digit
        return total
    if question.startswith("A sequence"):
        start, factor, step, modulus, count = n
        terms = list(itertools.accumulate(range(count - 1), lambda x, _: (factor * x + step) % modulus, initial=start))
        return sum(x for x in terms if x * count > sum(terms)) if "average" in question else terms[-1]
    if "divisible by" in question:
        low, high, divisor, digit_sum = n
        numbers = range(low, high + 1)
        return sum(x for x in numbers if not x % divisor and not sum(x // 10**k % 10 for k in range(6)) % digit_sum)
    if question.startswith("Sort"):
        modulus, place, *numbers = n
        keyed = sorted((x % modulus, x) for x in numbers)
        return sum(x for _, x in keyed[:place])
    start, steps, extra = n
    cubes = itertools.accumulate(
        range(steps), lambda x, _: sum((x // 10**k % 10) ** 3 for k in range(6)) + extra, initial=start
    )
    seen = list(cubes)[1:]
    return sum(set(seen)) if "different" in question else seen[-1]


def test_computed_answers_are_what_another_program_makes_of_the_question():
    env = ToolUseEnv(kinds=["python"], difficulty=(1, 5), split="all")
    families = set()
    for seed in range(150):
        question, info = env.reset(seed=seed)
        assert env.task.answer == str(_recomputed(question)), question
        families.add(info["task_id"].split("/")[1])
    assert len(families) == 6


def test_a_chain_of_lookups_is_what_its_pages_say():
    env = ToolUseEnv(kinds=["lookup"], difficulty=(1, 5), split="all")
    texts = {title: text.replace(",", "") for title, text in pages()}
    lengths = set()
    for seed in range(200):
        question, _ = env.reset(seed=seed)
        way = [str(call.arguments["title"]) for turn in env.task.turns for call in turn if call.name == "read_page"]
        answer = env.task.answer or ""
        assert way[0] in question and all(title not in question for title in way[1:])
        assert all(after in texts[before] for before, after in itertools.pairwise(way)), way
        assert answer in texts[way[-1]], (way, answer)
        assert len(answer) < 5 or all(answer not in texts[title] for title in way[:-1])
        lengths.add(len(way))
    assert lengths == {2, 3, 4, 5, 6}


def test_the_encyclopedia_is_the_same_bytes_everywhere_and_consistent():
    digest = hashlib.sha256("\n".join(f"{title}\t{text}" for title, text in pages()).encode()).hexdigest()
    assert digest == "cda6a27a7aa522297a7fad9590bc6f27b0571253b7c8a373abd36ba90e664a3d"
    assert len(pages()) == len(dict(pages())) == 3200
    assert all(country.links["capital"].links["country"] is country for country in entities()["country"])


def test_train_and_test_tasks_are_kept_apart_by_what_they_ask():
    for kind in KINDS:
        ids = {}
        for split in ("train", "test"):
            env = ToolUseEnv(kinds=[kind], difficulty=(1, 2), split=split)
            ids[split] = {env.reset(seed=seed)[1]["task_id"] for seed in range(120)}
            env.close()
        assert len(ids["test"]) > 60 and not ids["train"] & ids["test"], kind


def test_swapped_factors_are_the_same_task():
    env = ToolUseEnv(kinds=["calculator"], difficulty=(1, 1), split="all")
    by_id: dict[str, set[str]] = {}
    for seed in range(20_000):
        question, info = env.reset(seed=seed)
        by_id.setdefault(info["task_id"], set()).add(question)
    assert any(len(questions) > 1 for questions in by_id.values())
    assert all(len({eval(q[8:-1]) for q in questions}) == 1 for questions in by_id.values())  # noqa: S307


def _call(name: str, **arguments: object) -> str:
    return render([Call(name, arguments)], "hermes")


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("<tool_call>{name: calculator}</tool_call>", "malformed JSON"),
        (_call("calculater", expression="1"), "there is no tool 'calculater'; the tools are: calculator"),
        (_call("calculator", expression=3), "3 is not of type 'string'"),
        (_call("calculator"), "'expression' is a required property. Usage: calculator(expression: string)"),
        ("\n".join([_call("calculator", expression="1")] * 50), "50 calls in one reply, and none was made; at most 4"),
        (f"```\n{_call('calculator', expression='1')}\n```", "code fence"),
        (f"<think>{_call('calculator', expression='1')}</think>", "neither a call nor an answer"),
        ("Let me think about it.", "neither a call nor an answer. To call a tool, write <tool_call>"),
        ("", "neither a call nor an answer"),
    ],
    ids=["JSON", "unknown", "type", "missing", "fifty", "fence", "thought", "prose", "silence"],
)
def test_a_failed_call_is_answered_by_how_to_call_and_the_episode_goes_on(action, says):
    env = ToolUseEnv(kinds=["calculator"])
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(action)
    assert says in observation
    assert (reward, terminated, truncated, info["action_valid"]) == (0.0, False, False, False)
    assert env.step(f"<think>so</think>{_call('calculator', expression='6 * 7')}")[0] == "42"
    assert env.step(f"<answer>{env.task.answer}</answer>")[1] == 1.0


def test_several_calls_in_a_reply_are_answered_in_order_and_a_mistake_among_them_stops_no_other():
    env = ToolUseEnv(kinds=["calculator"])
    env.reset(seed=0)
    calls = [_call("calculator", expression="1 + 1"), "<tool_call>{</tool_call>", _call("calculator", expression="2^5")]
    observation, *_, info = env.step("\n".join(calls))
    first, second, third = observation.split("\n")
    assert (first, third) == ("[1] 2", "[3] 32") and "malformed JSON" in second
    assert (info["role"], info["action_valid"], info["calls"]) == ("tool", False, 2)


def test_an_answer_ends_the_episode_right_or_wrong_and_one_beside_a_call_does_not_count():
    env = ToolUseEnv(kinds=["calculator"])
    env.reset(seed=0)
    answer = env.task.answer
    _, reward, terminated, *_ = env.step(f"{_call('calculator', expression='1')}<answer>{answer}</answer>")
    assert (reward, terminated) == (0.0, False)
    _, reward, terminated, _, info = env.step("<answer>-1</answer>")
    assert (reward, terminated, info["success"], info["stop_reason"]) == (0.0, True, False, "failure")
    env.reset(seed=0)
    assert env.step(f"The answer is {int(answer or 0):,}.")[1] == 1.0


def test_calls_beyond_the_reference_cost_only_when_asked():
    for cost, reward in ((0.0, 1.0), (0.1, 0.8)):
        env = ToolUseEnv(kinds=["calculator"], extra_call_cost=cost)
        env.reset(seed=0)
        for _ in range(3):
            env.step(_call("calculator", expression="1"))
        assert env.step(f"<answer>{env.task.answer}</answer>")[1] == pytest.approx(reward)


def test_files_count_by_their_end_state_and_nothing_else():
    env = ToolUseEnv(kinds=["files"], difficulty=(1, 1))
    env.reset(seed=3)
    assert env.step("<answer>done</answer>")[1] == 0.0
    env.reset(seed=3)
    for _ in env._reference():
        env.step(env.expert())
    env.step(_call("write_file", path="litter.txt", content="x"))
    assert env.step("<answer>done</answer>")[1] == 0.0
    env.reset(seed=3)
    assert dict(env.files.files) == dict(env.task.files), "an episode began with the files of the one before"


def test_an_interpreter_of_one_episode_is_not_that_of_the_next():
    env = ToolUseEnv(kinds=["python"])
    env.reset(seed=0)
    env.step(_call("python", code="x = 1"))
    assert env.step(_call("python", code="x"))[0] == "1"
    env.reset(seed=0)
    assert "NameError" in env.step(_call("python", code="x"))[0]
    env.close()


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("<answer>The  Sugate</answer>", "Sugate", False),
        ("<answer>sugate.</answer>", "Sugate", True),
        ("Sugate", "Sugate", True),
        ("<answer>Sugate or Pemby</answer>", "Sugate", False),
        ("<think>Sugate</think> I do not know", "Sugate", False),
        ("<answer>1,234</answer>", "1234", True),
        ("<answer>1234.0</answer>", "1234", True),
        ("1233 or 1234", "1234", False),
    ],
)
def test_an_answer_is_right_by_value_or_word_for_word(reply, answer, right):
    assert is_right(reply, answer) is right


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kinds": ["calculater"]}, "did you mean 'calculator'"),
        ({"kinds": []}, "kinds must be a list"),
        ({"difficulty": [0, 3]}, "difficulty"),
        ({"difficulty": [2, 6]}, "difficulty"),
        ({"tools": ["calculater"]}, "tools: unknown tool 'calculater'; did you mean 'calculator'"),
        ({"tools": ["files", "pyhton"], "kinds": ["files"]}, "did you mean 'python'"),
        ({"tools": ["nothing"], "tasks": [{"question": "x", "answer": "y"}]}, "choose from calculator, knowledge"),
        ({"tools": "calculator"}, "tools must be a list"),
        ({"tools": []}, "no kind of generated task"),
        ({"tools": ["files", "calculator", "nowhere.at_all:f"]}, "'nowhere.at_all:f' cannot be imported"),
        ({"kinds": ["mixed"], "tools": ["calculator"]}, "'mixed' needs the tools calculator, knowledge, files"),
        ({"tools": ["knowledge", {"mpc": {}}]}, "expected {'mcp'"),
        ({"call_format": "xml"}, "call_format must be one of"),
        ({"max_calls_per_turn": 0}, "max_calls_per_turn"),
        ({"max_calls_per_turn": 100}, "max_calls_per_turn must be below 64, got 100"),
        ({"extra_call_cost": float("nan")}, "extra_call_cost must be a number of at least 0, got nan"),
        ({"corpus": [{"title": "a", "text": "b"}]}, "corpus goes with tasks of your own"),
        ({"tasks": [{"answer": "x"}]}, r"row 1: field 'question' is missing \(found: answer\)"),
        ({"tasks": ROWS, "tools": ["calculator"]}, 'tasks with files_after take the tool "files"'),
        ({"tasks": [{"question": "x"}]}, "field 'answer' is missing, and so is 'files_after'"),
        ({"tasks": [{"question": "x", "answer": "y", "calls": ["f"]}]}, "field 'calls' must be a list"),
        ({"tasks": [{"question": "x", "answer": "y", "files": {"a": 1}}]}, "field 'files' must be an object of texts"),
        ({"tasks": [{"question": "x", "answer": "y", "files": {"../a": ""}}]}, r"row 1: field 'files': .*'\.\./a'"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        ToolUseEnv(**kwargs)
    assert "\n" not in str(error.value)


def test_too_few_turns_for_any_task_is_said_at_reset():
    env = ToolUseEnv(kinds=["lookup"], difficulty=(5, 5), max_turns=3)
    with pytest.raises(ValueError, match="max_turns=3 is too few"):
        env.reset(seed=0)


def test_the_reference_of_a_row_changes_only_the_files_that_differ():
    files = {f"f{i}.txt": "old" for i in range(20)}
    env = ToolUseEnv(tasks=[{"question": "Edit.", "files": files, "files_after": {**files, "f7.txt": "new"}}])
    env.reset(seed=0)
    env.step(env.expert())
    assert env.step(env.expert())[1] == 1.0


def test_tools_and_pages_of_your_own_serve_tasks_of_your_own():
    rows = [{"id": "a", "question": "How long is the inlet?", "answer": "12 km"}]
    corpus = [{"title": "Fjord", "text": "The inlet is 12 km long."}]
    env = ToolUseEnv(tasks=rows, corpus=corpus, tools=["knowledge", "tests.envs.tools.test_tools_env:double"])
    _, info = env.reset(seed=0)
    assert [tool["function"]["name"] for tool in info["tools"]] == ["search", "read_page", "double"]
    assert env.step(_call("search", query="inlet"))[0] == "Fjord: The inlet is 12 km long."
    assert env.step(_call("double", n=21))[0] == "42"
    assert env.step("<answer>12 km</answer>")[1] == 1.0


def test_a_task_may_be_called_task_and_its_answer_expected_answer():
    env = ToolUseEnv(tasks=[{"id": "a", "task": "Say 7.", "required_tools": ["calculator"], "expected_answer": 7}])
    assert env.reset(seed=0)[0] == "Say 7." and env.step("<answer>7</answer>")[1] == 1.0


def double(n: int) -> int:
    """Twice a number."""
    return 2 * n


def test_many_members_of_a_vector_equal_single_environments():
    vector = gymnasium.make_vec("mrlm_envs:mrlm/ToolUse-v0", num_envs=3, kinds=["calculator", "lookup"])
    observations, infos = vector.reset(seed=5)
    for i in range(3):
        assert (
            gymnasium.make("mrlm_envs:mrlm/ToolUse-v0", kinds=["calculator", "lookup"]).reset(seed=5 + i)[0]
            == (observations[i])
        )
    assert infos["tools"][0][0]["function"]["name"] == "calculator"
    vector.close()


def test_the_examples_of_the_guide_work_as_they_stand(tmp_path, monkeypatch):
    guide = (ROOT / "docs" / "your_own.md").read_text("utf-8")
    (tmp_path / "my_pkg").mkdir()
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    for block in blocks:
        if named := re.match(r"# (my_pkg/\w+\.py)\n", block):
            (tmp_path / named[1]).write_text(block)
        elif "class Basket" in block:
            (tmp_path / "my_pkg" / "basket.py").write_text(block)
    rows = re.findall(r"^\{.*\"question\".*\}$", guide, re.MULTILINE)
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    monkeypatch.syspath_prepend(tmp_path)
    assert check_text_env(gymnasium.make("my_pkg.countdown:my/Countdown-v0")) == {}
    corpus = [{"title": "Fjord", "text": "The inlet is 12 km long."}]
    tools = ["knowledge", "files", "my_pkg.tools:convert", "my_pkg.basket:Basket"]
    env = ToolUseEnv(tasks=str(tmp_path / "tasks.jsonl"), corpus=corpus, tools=tools)
    assert env.num_tasks == len(rows) == 3
    for seed in range(3):
        env.reset(seed=seed)
        assert env.step(_call("convert", amount=5, to="USD"))[0] == "5.50 USD"
        assert env.step(_call("convert", amount=-5, to="USD"))[0] == "error: the amount must be above 0"
        assert env.step(_call("add", item="tea"))[0] == "1 items", "the basket of an earlier episode"
        env.reset(seed=seed)
        over = False
        while not over:
            _, reward, over, *_ = env.step(env.expert())
        assert reward == 1.0


# Through a chat template: what the policy is given, what it said, and who is trained on which


@pytest.fixture
def chat():
    tiny = pytest.importorskip("mrlm_train.tiny")
    from mrlm_train.episodes.chat import Chat

    return Chat(tiny.build_tokenizer())


def test_a_rollout_masks_the_tools_words_and_gives_them_their_own_role(chat):
    from mrlm_train.inference.sampling import Sampling
    from mrlm_train.rollout.runner import Request, Rollout
    from tests.support.playing import CLOSE, TOKENIZER, say, scripted

    env = ToolUseEnv(**TOY)
    env.reset(seed=4)
    answer = env.task.answer
    policy = scripted(say(env.expert(), f"<answer>{answer}</answer>"))
    with Rollout(policy, [{"id": "mrlm/ToolUse-v0", "kwargs": TOY}], Sampling()) as rollout:
        (episode,) = rollout.run([Request(0, 4)])
    assert episode.success and episode.reward == 1.0
    assert [message["role"] for message in episode.messages] == ["user", "assistant", "tool", "assistant", "user"]
    ids, mask = episode.completion_ids or [], episode.action_mask or []
    said = TOKENIZER.decode([token for token, own in zip(ids, mask) if own])
    heard = TOKENIZER.decode([token for token, own in zip(ids, mask) if not own])
    assert said == f"{env.expert()}<|im_end|><answer>{answer}</answer><|im_end|>"
    assert heard == f"\n<|im_start|>tool\n{answer}<|im_end|>\n<|im_start|>assistant\n"
    assert episode.turn_rewards == [0.0, 1.0]
    assert [ids[end] for end in episode.turn_ends] == [CLOSE, CLOSE]
    assert len(episode.prompt_ids or []) < 60


def test_experts_and_rollouts_make_the_same_ids_and_the_schemas_reach_the_template(chat):
    from mrlm_train.rollout.runner import expert_episodes

    kwargs = {"kinds": ["lookup", "calculator"], "difficulty": [1, 2]}
    for episode in expert_episodes({"id": "mrlm/ToolUse-v0", "kwargs": kwargs}, 4, chat=chat):
        text = chat.tokenizer.decode(episode.prompt_ids)
        assert '"name": "read_page"' in text and "Solve the task with the tools." in text
        said = [message["content"] for message in episode.messages if message["role"] == "assistant"]
        own = [token for token, mine in zip(episode.completion_ids or [], episode.action_mask or []) if mine]
        assert chat.tokenizer.decode(own) == "".join(f"{turn}<|im_end|>" for turn in said)


class Service(Toolset):
    """A service that is down, and whether it is closed."""

    is_closed = False

    def close(self) -> None:
        self.is_closed = True

    @tool
    def ask(self) -> str:
        """Asks the service."""
        raise EnvFault("the service is down")


def test_an_episode_that_a_lost_service_ends_releases_its_tools():
    service = Service()
    env = ToolUseEnv(tasks=ROWS, tools=["files", service])
    env.reset(seed=0)
    assert env.step(render([Call("ask", {})]))[4]["valid"] is False
    assert service.is_closed
