"""Rollouts: token-exact episodes from any text environment, whatever policy, engine and environment do."""

import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import trl
from gymnasium.spaces import Text
from hypothesis import given, settings
from hypothesis import strategies as st

from mrlm_train import tiny
from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.record import Episode
from mrlm_train.inference.policy import Policy
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.environments import EnvEntry, entries
from mrlm_train.rollout.evaluation import summary
from mrlm_train.rollout.pool import EnvPool
from mrlm_train.rollout.runner import InvalidEpisodes, Request, Rollout, expert_episodes, training_tasks
from tests.support.guessing import GuessNumber
from tests.support.playing import CLOSE, SPEAK, TOKENIZER, Letters, Radio, say, scripted, tiny_policy

torch.set_num_threads(1)
PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="<"), max_size=20)
LARGE = Sampling(max_turn_tokens=1000, max_episode_tokens=4000)


def play(policy: Any, envs: Any, sampling: Sampling = LARGE, requests: list[Request] | None = None) -> list[Episode]:
    with Rollout(policy, envs, sampling, threads=4, max_invalid_share=1.0) as rollout:
        return rollout.run([Request(0, 0)] if requests is None else requests)


def radio(*lines: str, **kwargs: Any) -> EnvEntry:
    return EnvEntry("Radio", {"lines": list(lines), **kwargs}, make=Radio)


def reference(messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Ids and mask by rendering every prefix of the conversation anew."""
    ids: list[int] = []
    mask: list[int] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = TOKENIZER.apply_chat_template(messages[:i], add_generation_prompt=True, return_dict=False)
        after = TOKENIZER.apply_chat_template(messages[: i + 1], return_dict=False)
        assert after[: len(before)] == before
        ends = len(after) - 1  # the newline after the closing token belongs to the next message
        mask += [0] * (len(before) - len(mask)) + [1] * (ends - len(before))
        ids = after[:ends]
    return ids, mask


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=4))
def test_masks_and_ids_equal_a_token_by_token_reference(dialogue: list[tuple[str, str]]) -> None:
    heard, said = zip(*dialogue, strict=True)
    [episode] = play(scripted(say(*said)), radio(*heard))
    ids, mask = reference(episode.messages)
    assert episode.prompt_ids is not None and episode.completion_ids is not None and episode.action_mask is not None
    assert episode.prompt_ids + episode.completion_ids == ids
    assert [0] * len(episode.prompt_ids) + episode.action_mask == mask
    assert [episode.completion_ids[end] for end in episode.turn_ends] == [CLOSE] * len(said)
    assert episode.terminated and not episode.truncated and episode.valid


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, len(TOKENIZER) - 1), min_size=1, max_size=8), min_size=1, max_size=4),
    st.lists(st.text(max_size=12), min_size=4, max_size=4),
    st.integers(1, 8),
    st.integers(1, 80),
)
def test_sampled_ids_stay_as_sampled_and_contexts_only_grow(
    replies: list[list[int]], lines: list[str], turn_limit: int, episode_limit: int
) -> None:
    contexts: list[list[int]] = []
    policy = scripted(lambda turn: replies[min(turn, len(replies) - 1)], contexts)
    sampling = Sampling(max_turn_tokens=turn_limit, max_episode_tokens=episode_limit)
    # markers in what the policy says would confuse the script's count of turns, not the rollout
    replies[:] = [[token for token in reply if token != SPEAK] or [CLOSE] for reply in replies]
    [episode] = play(policy, radio(*lines), sampling)
    ids, mask = episode.completion_ids or [], episode.action_mask or []
    whole = (episode.prompt_ids or []) + ids
    for context in contexts:
        assert context == whole[: len(context)]
    starts = [0, *[end + 1 for end in episode.turn_ends]]
    for turn, (start, end) in enumerate(zip(starts, episode.turn_ends, strict=False)):
        sampled = [token for token, bit in zip(ids[start : end + 1], mask[start : end + 1], strict=True) if bit]
        assert sampled == replies[min(turn, len(replies) - 1)][: len(sampled)]
    assert len(ids) == len(mask) == len(episode.logprobs or []) <= episode_limit
    assert [value is not None for value in episode.logprobs or []] == [bool(bit) for bit in mask]
    assert all(mask[end] for end in episode.turn_ends)
    assert len(episode.turn_ends) == len(episode.turn_rewards)
    assert episode.terminated != episode.truncated


def test_log_probs_equal_an_uncached_forward_pass() -> None:
    policy = tiny_policy()
    sampling = Sampling(temperature=0.7, max_turn_tokens=6, max_episode_tokens=100)
    episodes = play(policy, radio("one", "two", "three"), sampling, [Request(0, s, draw=s) for s in range(8)])
    for episode in episodes:
        ids = torch.tensor([(episode.prompt_ids or []) + (episode.completion_ids or [])])
        with torch.no_grad():
            log_probs = torch.log_softmax(policy.model(ids).logits[0, :-1] / 0.7, -1)
        expected = log_probs.gather(-1, ids[0, 1:, None])[len(episode.prompt_ids or []) - 1 :, 0]
        real = [(i, value) for i, value in enumerate(episode.logprobs or []) if value is not None]
        assert len(real) == episode.sampled_tokens > 6
        assert max(abs(expected[i].item() - value) for i, value in real) < 1e-4


def test_an_entry_is_the_same_from_yaml_and_from_python() -> None:
    entry = EnvEntry.of({"id": "math", "address": ["a:1", "b:2"], "wrappers": "module:Wrapper"})
    assert entry == EnvEntry("mrlm/Math-v0", address="a:1,b:2", wrappers=("module:Wrapper",))
    assert EnvEntry("math", make=GuessNumber).id == "math"  # the name of a factory stays


def test_group_members_share_the_task_and_differ_in_what_they_say() -> None:
    requests = [Request(0, seed, draw=draw) for seed in (5, 6) for draw in range(4)]
    episodes = play(tiny_policy(), GuessNumber, Sampling(max_turn_tokens=5, max_episode_tokens=100), requests)
    first, second = episodes[:4], episodes[4:]
    assert len({e.task_id for e in first}) == len({e.group_id for e in first}) == 1
    assert first[0].group_id != second[0].group_id and first[0].task_id != second[0].task_id
    assert len({tuple(e.completion_ids or []) for e in episodes}) == 8
    assert len({tuple(e.prompt_ids or []) for e in first}) == 1


def test_an_episode_does_not_depend_on_its_neighbours() -> None:
    requests = [Request(0, seed, draw=seed) for seed in range(12)]
    sampling = Sampling(max_turn_tokens=5, max_episode_tokens=60)
    runs = []
    for rows, order in ((12, 1), (5, 1), (12, -1), (1, 1)):
        episodes = play(tiny_policy(rows=rows), radio("a", "bc", "d"), sampling, requests[::order])[::order]
        runs.append([e.completion_ids for e in episodes])
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert len({tuple(ids or []) for ids in runs[0]}) > 1


def test_a_turn_cut_by_its_limit_is_heard_as_it_stands_and_closed_at_mask_0() -> None:
    contexts: list[list[int]] = []
    policy = scripted(say("abcdefgh"), contexts)
    with Rollout(policy, radio("one", "two"), Sampling(max_turn_tokens=3, max_episode_tokens=500)) as rollout:
        [episode] = rollout.run([Request(0, 0)])
    assert [m["content"] for m in episode.messages if m["role"] == "assistant"] == ["abc", "abc"]
    assert episode.turn_rewards == [3.0, 3.0] and episode.info["cut_turns"] == 2
    ids, mask = episode.completion_ids or [], episode.action_mask or []
    assert (ids[3], mask[3]) == (CLOSE, 0) and mask[:3] == [1, 1, 1]
    assert episode.terminated


@pytest.mark.parametrize(
    ("sampling", "reason", "turns"),
    [
        (Sampling(max_turn_tokens=9, max_episode_tokens=4), "token_limit", 1),  # within the first turn
        (Sampling(max_turn_tokens=9, max_episode_tokens=8), "token_limit", 1),  # no room for the observation
        (Sampling(max_turn_tokens=9, max_episode_tokens=500, max_turns=2), "turn_limit", 2),
        (Sampling(max_turn_tokens=9, max_episode_tokens=500, max_context=20), "context_limit", 1),
    ],
)
def test_each_budget_ends_the_episode_with_its_own_reason(sampling: Sampling, reason: str, turns: int) -> None:
    [episode] = play(scripted(say("abcdef")), radio("one", "two", "three"), sampling)
    assert (episode.stop_reason, episode.truncated, episode.terminated) == (reason, True, False)
    assert len(episode.turn_ends) == turns and episode.valid


def test_a_prompt_longer_than_the_context_is_warned_of_and_stops_a_run_of_nothing_else() -> None:
    short = Sampling(max_turn_tokens=9, max_context=20)
    envs = [radio("one"), radio("one" * 30)]
    with Rollout(scripted(say("ab")), envs, short) as rollout:
        with pytest.raises(InvalidEpisodes, match=r"2 of 2 prompts leave no room in the context of 20.*Radio seed 3"):
            rollout.run([Request(1, 3), Request(1, 4)])
        with pytest.warns(UserWarning, match=r"1 of 2 prompts leave no room"):
            sound, cut = rollout.run([Request(0, 0), Request(1, 0)])
        assert sound.terminated and (cut.stop_reason, cut.turn_rewards, cut.valid) == ("context_limit", [], True)
        with pytest.warns(UserWarning, match=r"1 of 1 prompts leave no room"):
            rollout.run([Request(1, 5)])  # episodes have been played: one batch of long prompts is no reason to stop


class Hanging(Radio):
    """Hangs in a step that hears "hang", and in every reset when told so."""

    def __init__(self, in_reset: bool = False) -> None:
        super().__init__(["one", "two", "three"])
        self.in_reset = in_reset

    def reset(self, **kwargs: Any) -> Any:
        if self.in_reset:
            threading.Event().wait()
        return super().reset(**kwargs)

    def step(self, action: str) -> Any:
        if action == "hang":
            threading.Event().wait()
        return super().step(action)


def test_a_step_that_passes_its_deadline_is_the_action_s_failure_and_no_other_episode_s() -> None:
    envs = [EnvEntry("Hanging", make=Hanging), radio("one", "two", "three")]
    with (
        Rollout(scripted(say("hi", "hang")), envs, LARGE, threads=2, step_timeout=1.0) as rollout,
        pytest.warns(UserWarning, match=r"longer than step_timeout=1 seconds"),
    ):
        # more hanging steps than threads: each loses its thread, and another takes its place
        episodes = rollout.run([Request(i % 2, i) for i in range(8)])
    for hung, sound in zip(episodes[::2], episodes[1::2], strict=True):
        assert (hung.stop_reason, hung.terminated, hung.truncated, hung.valid) == ("step_timeout", True, False, True)
        assert hung.turn_rewards == [2.0, 0.0] and hung.messages[-2]["content"] == "hang"
        assert sound.valid and sound.stop_reason == "terminated" and len(sound.turn_rewards) == 3
    assert summary(episodes)["stop_reasons"] == {"step_timeout": 4, "terminated": 4}


@pytest.mark.filterwarnings("ignore:an environment took longer")
def test_a_reset_that_hangs_is_the_environment_s_failure() -> None:
    envs = [EnvEntry("Hanging", {"in_reset": True}, make=Hanging)]
    with Rollout(scripted(say("hi")), envs, LARGE, max_invalid_share=1.0, step_timeout=1.0) as rollout:
        [episode] = rollout.run([Request(0, 0)])
    assert not episode.valid and "longer than 1 seconds" in episode.info["error"]


def test_a_step_that_hangs_does_not_hold_the_exit() -> None:
    code = (
        "from tests.train.rollout.test_runner import *\n"
        "with Rollout(scripted(say('hang')), Hanging, LARGE, step_timeout=1.0) as rollout:\n"
        "    print(rollout.run([Request(0, 0)])[0].stop_reason)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "step_timeout"), done.stderr


def test_an_observation_that_cannot_be_rendered_makes_its_own_episode_invalid() -> None:
    policy = scripted(say("hi"))
    template = TOKENIZER.chat_template
    shouts = "{%- if messages[-1].content == 'two' %}{{ raise_exception('no') }}{% endif %}"
    policy.chat.tokenizer.chat_template = shouts + template.replace("message.content or ''", "message.content | trim")
    try:
        envs = [radio("one", "two"), radio("one", "three")]
        broken, sound = play(
            Policy(policy.model, Chat(TOKENIZER), turn=policy.turn), envs, LARGE, [Request(0, 0), Request(1, 0)]
        )
    finally:
        policy.chat.tokenizer.chat_template = template
    assert not broken.valid and broken.stop_reason == "render_error" and "no" in broken.info["error"]
    assert sound.valid and sound.terminated


def test_a_turn_the_episode_budget_cuts_never_reaches_the_environment() -> None:
    [episode] = play(scripted(say("abcdef")), radio("one"), Sampling(max_turn_tokens=9, max_episode_tokens=4))
    assert episode.turn_rewards == [0.0] and episode.messages[-1]["role"] == "assistant"


@pytest.mark.parametrize(("where", "turns"), [(0, 0), (1, 1), (2, 2)])
def test_an_environment_that_raises_makes_its_episode_invalid_and_no_other(where: int, turns: int) -> None:
    envs = [radio("one", "two", "three"), radio("one", "two", "three", break_at=where)]
    episodes = play(scripted(say("hi")), envs, requests=[Request(i % 2, i) for i in range(6)])
    assert [e.valid for e in episodes] == [True, False] * 3
    broken = episodes[1]
    assert (broken.truncated, broken.terminated, broken.stop_reason) == (True, False, "env_error")
    assert broken.info["error"] == "RuntimeError: static" and len(broken.turn_ends) == turns


def test_an_env_fault_is_not_the_policy_s_failure() -> None:
    [episode] = play(scripted(say("break it")), GuessNumber)
    assert (episode.valid, episode.truncated, episode.stop_reason) == (False, True, "env_fault")


def test_too_many_invalid_episodes_stop_the_run_and_name_the_first() -> None:
    envs = [radio("one"), radio("one", break_at=1)]
    with Rollout(scripted(say("hi")), envs, LARGE, max_invalid_share=0.3) as rollout:
        rollout.run([Request(int(i == 3), i) for i in range(4)])
        with pytest.raises(InvalidEpisodes, match=r"2 of 4 episodes invalid.*Radio seed 1: RuntimeError: static"):
            rollout.run([Request(i % 2, i) for i in range(4)])


def test_instances_are_reused_and_broken_ones_thrown_away() -> None:
    Radio.made = 0
    with Rollout(scripted(say("hi")), radio("one", "two"), LARGE, threads=2) as rollout:
        for _ in range(3):
            rollout.run([Request(0, seed) for seed in range(4)])
    assert Radio.made <= 4
    Radio.made = 0
    one_by_one = scripted(say("hi"))
    one_by_one.rows = 1
    play(one_by_one, radio("one", break_at=1), requests=[Request(0, seed) for seed in range(4)])
    assert Radio.made == 4


class Gate(Radio):
    """Its steps wait until the gate is opened."""

    opened = threading.Event()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if not Gate.opened.wait(30):
            raise TimeoutError("nobody opened the gate")
        return super().step(action)


def test_a_slow_environment_does_not_keep_others_from_decoding() -> None:
    Gate.opened.clear()
    envs = [EnvEntry("Gate", {"lines": ["one"]}, make=Gate), radio("one", "two", "three")]

    def on_end(episode: Episode) -> None:
        if episode.env_id == "Radio":  # three turns were decoded while the first environment still waits
            Gate.opened.set()

    with Rollout(scripted(say("hi")), envs, LARGE, threads=4) as rollout:
        episodes = rollout.run([Request(0, 0), Request(1, 0)], progress=on_end)
    assert [e.valid for e in episodes] == [True, True]


@pytest.mark.parametrize(("said", "admitted"), [("a-b c!" + "d" * 30, "abc" + "d" * 9), ("", "00"), ("!x", "x0")])
def test_what_a_narrow_text_space_does_not_admit_never_reaches_the_environment(said: str, admitted: str) -> None:
    heard: list[str] = []

    class Strict(Radio):
        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            heard.append(action)
            assert action in self.action_space
            return super().step(action)

    def make(**kwargs: Any) -> gymnasium.Env:
        env = Strict(**kwargs)
        env.action_space = Text(12, min_length=2)
        return env

    [episode] = play(scripted(say(said)), EnvEntry("Strict", {"lines": ["one"]}, make=make))
    assert episode.valid and heard == [admitted]
    assert episode.messages[1]["content"] == said


@pytest.mark.parametrize(
    ("envs", "error", "words"),
    [
        (Radio(), TypeError, "an instance cannot be copied"),
        ("CartPole-v1", TypeError, "CartPole-v1.*not text"),
        ("No/Such-v0", ValueError, "No/Such-v0"),
        ({"id": "mrlm/Math-v0", "kwargs": {"difficlty": [1, 2]}}, TypeError, "difficlty.*did you mean 'difficulty'"),
        ({"id": "mrlm/Math-v0", "wieght": 2}, ValueError, "unknown key 'wieght'"),
        ([], ValueError, "envs is empty"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused_before_the_run(envs: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        EnvPool(entries(envs))
    assert "\n" not in str(caught.value)


def test_split_is_passed_to_environments_that_know_it_and_to_no_others() -> None:
    assert EnvEntry("mrlm/Math-v0").on_split("test").split == "test"
    assert EnvEntry("mrlm/Math-v0", split="all").on_split("test").split == "all"
    assert EnvEntry("Guess", make=GuessNumber).on_split("test").build().unwrapped.split == "test"  # type: ignore[attr-defined]
    assert EnvEntry("Radio", make=Radio).on_split("test").split is None
    assert EnvEntry("tests/Guess-v0").on_split("test").split == "test"
    assert EnvEntry("tests.support.guessing:tests/Guess-v0").on_split("test").split == "test"
    assert EnvEntry("no_such_package:My/Env-v0").on_split("test").split is None
    spec = gymnasium.spec("tests/Guess-v0")
    assert EnvEntry.of(spec).on_split("test").build().unwrapped.split == "test"  # type: ignore[attr-defined]


def test_a_reward_function_and_wrappers_of_the_entry_are_used() -> None:
    entry = EnvEntry(
        "Radio",
        {"lines": ["one", "two"]},
        make=Radio,
        reward=lambda messages, reward, info: 10 * reward + len(messages),
        wrappers=(lambda env: gymnasium.wrappers.TimeLimit(env, 1),),
    )
    [episode] = play(scripted(say("hi")), entry)
    assert episode.turn_rewards == [23.0]
    assert (episode.truncated, episode.stop_reason, episode.success) == (True, "time_limit", None)


def test_a_table_of_tasks_is_kept_in_an_episode_by_its_digest_only() -> None:
    lines = [f"line {i}" for i in range(1000)]
    [one] = play(scripted(say("hi")), radio(*lines), Sampling(max_turns=1))
    [other] = play(scripted(say("hi")), radio(*lines, "more"), Sampling(max_turns=1))
    assert len(one.to_json()) < 2000 and one.kwargs != other.kwargs and one.group_id != other.group_id


def test_entries_that_differ_only_in_reward_or_wrapper_share_no_group() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"reward": "tests.support.guessing:share_of_digits"},
        {"reward": len},
        {"wrappers": gymnasium.wrappers.TimeLimit.__name__},
    ]
    made = [[EnvEntry("mrlm/Math-v0", **change).group_id(1, {}) for change in changes] for _ in range(2)]
    assert made[0] == made[1] and len(set(made[0])) == len(changes)
    assert made[0][0] == "mrlm/Math-v0/1"  # as in older files


def test_training_tasks_pass_over_finite_sources_and_never_repeat_endless_ones() -> None:
    finite = EnvEntry("Finite", make=lambda: _with_tasks(5))
    pool = EnvPool([finite, EnvEntry("Radio", weight=3.0, make=Radio)], threads=1)
    picks, seeds = training_tasks(pool, 400, seed=1)
    known = [seed for pick, seed in zip(picks, seeds, strict=True) if pick == 0]
    endless = [seed for pick, seed in zip(picks, seeds, strict=True) if pick == 1]
    assert 60 < len(known) < 140
    for start in range(0, len(known) - 5, 5):
        assert {seed % 5 for seed in known[start : start + 5]} == set(range(5))
    assert len(set(known)) == len(known) and len(set(endless)) == len(endless) and min(endless) >= 2**24
    assert training_tasks(pool, 100, seed=1)[1] == seeds[:100]
    assert training_tasks(pool, 400, seed=2)[1] != seeds
    pool.close()


def _with_tasks(n: int) -> gymnasium.Env:
    env = Radio()
    env.num_tasks = n  # type: ignore[attr-defined]
    return env


def test_expert_episodes_get_the_ids_the_same_words_get_in_a_rollout() -> None:
    chat = Chat(TOKENIZER)
    experts = expert_episodes(GuessNumber, 5, seed=3, chat=chat)
    assert all(e.success and e.reward == 1.0 for e in experts)
    assert len({e.seed for e in experts}) == 5
    for expert in experts:
        words = [m["content"] for m in expert.messages if m["role"] == "assistant"]
        [played] = play(scripted(say(*words)), GuessNumber, requests=[Request(0, expert.seed)])
        for name in (
            "messages",
            "prompt_ids",
            "completion_ids",
            "action_mask",
            "turn_ends",
            "turn_rewards",
            "group_id",
        ):
            assert getattr(played, name) == getattr(expert, name), name


def test_an_environment_without_an_expert_is_named() -> None:
    with pytest.raises(ValueError, match=r"Letters has no expert\(\)"):
        expert_episodes(Letters, 1)


def test_a_tokenizer_without_a_chat_template_is_refused_with_what_to_do() -> None:
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"has no chat template; use an instruct model, or set"):
        Chat(tokenizer)


TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def _template(name: str) -> Any:
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    tokenizer.bos_token = "<|pad|>"
    return tokenizer


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}])
def test_a_template_that_drops_thoughts_is_noticed_at_start_up(kwargs: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="rewrites earlier turns"):
        chat = Chat(_template("qwen3"), kwargs)
    thought = "\n<think>\n\n</think>\n\n" if kwargs else "\n"
    ids = chat.reply_ids("no", "user", last_id=0)
    assert TOKENIZER.decode(ids) == f"<|im_end|>\n<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant{thought}"


def test_a_template_that_needs_lists_of_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="drops earlier messages"), warnings.catch_warnings(action="ignore"):
        Chat(_template("smolvlm"))


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "llama3_1", "gemma", "phi3", "cohere2"])
@settings(max_examples=8, deadline=None)
@given(question=PLAIN, answer=PLAIN, heard=PLAIN)
def test_every_template_s_own_rendering_is_met(name: str, question: str, answer: str, heard: str) -> None:
    answer, question = f"a{answer}b", f"a{question}b"  # some templates trim
    tokenizer = _template(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chat = Chat(tokenizer)
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": heard},
    ]
    ids = [*chat.prompt_ids(messages[:1]), *tokenizer.encode(answer), *chat.reply_ids(heard, "user", last_id=-1)]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_a_template_without_system_messages_or_tools_still_shows_both() -> None:
    chat = Chat(_template("gemma"))
    opening = chat.opening("hi", {"system": "Be brief."})
    tools = [{"type": "function", "function": {"name": "add"}}]
    text = TOKENIZER.decode(chat.prompt_ids(opening, tools))
    assert "Be brief." in text and '"name": "add"' in text and text.index("Be brief.") < text.index("hi")


def test_the_rollout_s_system_prompt_replaces_the_environment_s() -> None:
    [episode] = play(scripted(say("1"), system_prompt="Mine."), GuessNumber)
    assert episode.messages[0] == {"role": "system", "content": "Mine."}


def test_a_draw_changes_the_tokens_and_nothing_else() -> None:
    seeds = np.random.default_rng(0).integers(0, 2**31, 3).tolist()
    one = play(tiny_policy(), radio("a", "b"), Sampling(max_turn_tokens=4), [Request(0, s, draw=1) for s in seeds])
    same = play(tiny_policy(), radio("a", "b"), Sampling(max_turn_tokens=4), [Request(0, s, draw=1) for s in seeds])
    other = play(tiny_policy(), radio("a", "b"), Sampling(max_turn_tokens=4), [Request(0, s, draw=2) for s in seeds])
    assert [e.completion_ids for e in one] == [e.completion_ids for e in same]
    assert all(a.completion_ids != b.completion_ids for a, b in zip(one, other, strict=True))
