"""Collecting: what is kept, that a killed run goes on where it was, and the command."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import gymnasium
import pytest
import torch
from pyarrow import parquet

from mrlm_train.cli import main
from mrlm_train.commands.collect import collect, collect_experts
from mrlm_train.episodes.chat import Chat
from mrlm_train.episodes.preferences import is_preference_file, pairs, read_preferences
from mrlm_train.episodes.record import Episode, read
from mrlm_train.inference.sampling import Sampling
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.rollout.runner import InvalidEpisodes
from tests.support.guessing import GuessNumber
from tests.support.paths import ROOT
from tests.support.playing import TOKENIZER, Letters, Radio, say, scripted, tiny_model, tiny_policy

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
SAMPLING = Sampling(max_turn_tokens=4, max_episode_tokens=60)
GUESS = EnvEntry("Guess", {"low": 1, "high": 5}, make=GuessNumber)


def in_two_steps(env: Any) -> Any:
    return gymnasium.wrappers.TimeLimit(env, 2)


class Stop(Exception):
    """The run is killed here."""


def test_episodes_keep_tokens_log_probs_and_masks_in_the_order_they_were_drawn(tmp_path: Path) -> None:
    found = collect(tiny_policy(rows=4), GUESS, 12, tmp_path / "e.jsonl", SAMPLING, group_size=3)
    kept = list(read(tmp_path / "e.jsonl"))
    assert (found.played, found.written, found.resumed, found.invalid) == (12, 12, 0, 0)
    assert [episode.sampling["draw"] for episode in kept] == list(range(12))
    for start in range(0, 12, 3):
        assert len({(e.group_id, e.seed, e.task_id) for e in kept[start : start + 3]}) == 1
    for episode in kept:
        assert episode.completion_ids and episode.action_mask and episode.logprobs
        assert len(episode.completion_ids) == len(episode.action_mask) == len(episode.logprobs)
        assert [p is None for p in episode.logprobs] == [not bit for bit in episode.action_mask]
    assert not list(tmp_path.glob(".*"))


def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_file(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    collect(tiny_policy(rows=4), GUESS, 12, whole, SAMPLING)
    seen: list[Episode] = []

    def stop(episode: Episode) -> None:
        seen.append(episode)
        if len(seen) == 5:
            raise Stop

    with pytest.raises(Stop):
        collect(tiny_policy(rows=4), GUESS, 12, broken, SAMPLING, progress=stop)
    assert not broken.exists()
    partial = tmp_path / ".broken.jsonl.partial"
    with partial.open("ab") as file:
        file.write(b'{"env_id": "Gue')  # the machine went down in mid-line
    progress: list[Episode] = []
    found = collect(tiny_policy(rows=4), GUESS, 12, broken, SAMPLING, progress=progress.append)
    assert found.resumed == 5 and len(progress) == 12
    assert not partial.exists()
    for resumed, once in zip(read(broken), read(whole), strict=True):
        assert resumed.logprobs and once.logprobs  # a batch of another shape rounds its sums otherwise
        assert [p or 0.0 for p in resumed.logprobs] == pytest.approx([p or 0.0 for p in once.logprobs], abs=1e-4)
        resumed.logprobs = once.logprobs = None
        assert resumed == once


def test_what_failed_is_played_again_by_the_next_run(tmp_path: Path) -> None:
    broken: list[int | None] = [1]

    def made() -> Radio:
        return Radio(break_at=broken[0])

    with pytest.raises(InvalidEpisodes, match="static"):
        collect(tiny_policy(), made, 2, tmp_path / "e.jsonl", SAMPLING, threads=1)
    broken[0] = None
    found = collect(tiny_policy(), made, 2, tmp_path / "e.jsonl", SAMPLING, threads=1)
    assert (found.written, found.resumed, found.invalid) == (2, 0, 0)


def test_a_partial_file_of_other_settings_is_not_mixed_in(tmp_path: Path) -> None:
    def stop(episode: Episode) -> None:
        raise Stop

    with pytest.raises(Stop):
        collect(tiny_policy(), GUESS, 4, tmp_path / "e.jsonl", SAMPLING, progress=stop)
    with pytest.raises(ValueError, match="collection with other settings; remove it to start anew"):
        collect(tiny_policy(), GUESS, 6, tmp_path / "e.jsonl", SAMPLING)


@pytest.mark.parametrize(
    "change", [{"reward": "tests.support.guessing:share_of_digits"}, {"wrappers": (in_two_steps,)}]
)
def test_a_partial_file_of_another_reward_or_wrapper_is_not_mixed_in(change: dict[str, Any], tmp_path: Path) -> None:
    def stop(episode: Episode) -> None:
        raise Stop

    with pytest.raises(Stop):
        collect(tiny_policy(), GUESS, 4, tmp_path / "e.jsonl", SAMPLING, progress=stop)
    with pytest.raises(ValueError, match="of a collection with other settings"):
        collect(tiny_policy(), replace(GUESS, **change), 4, tmp_path / "e.jsonl", SAMPLING)


def test_the_filter_keeps_good_episodes_and_invalid_ones_never_enter(tmp_path: Path) -> None:
    policy, path = tiny_policy(), tmp_path / "e.jsonl"
    everything = collect(policy, Radio, 30, path, SAMPLING)
    rewards = [episode.reward for episode in read(path)]
    bar = sorted(rewards)[20]
    found = collect(policy, Radio, 30, path, SAMPLING, filter_reward=bar)
    assert [episode.reward for episode in read(path)] == [reward for reward in rewards if reward >= bar]
    assert found.played == everything.played == 30 and found.written < 30
    with pytest.raises(InvalidEpisodes, match="static"):
        collect(policy, EnvEntry("Radio", {"break_at": 1}, make=Radio), 4, path, SAMPLING)


def test_several_environments_are_drawn_by_weight(tmp_path: Path) -> None:
    envs = [EnvEntry("A", {"high": 9}, make=GuessNumber, weight=3), EnvEntry("B", make=Letters)]
    collect(tiny_policy(), envs, 40, tmp_path / "e.jsonl", SAMPLING)
    names = [episode.env_id for episode in read(tmp_path / "e.jsonl")]
    assert names.count("A") > 20 and names.count("B") > 3


def test_experts_solve_their_tasks_and_get_ids_when_asked(tmp_path: Path) -> None:
    found = collect_experts(GUESS, 5, tmp_path / "e.jsonl", chat=Chat(TOKENIZER))
    assert found.success == 1.0 and found.written == 5
    assert all(episode.completion_ids and episode.policy == "expert" for episode in read(tmp_path / "e.jsonl"))
    assert collect_experts(GUESS, 5, tmp_path / "e.jsonl", filter_reward=1.5).written == 0
    with pytest.raises(ValueError, match="has no expert"):
        collect_experts(Radio, 1, tmp_path / "e.jsonl")


def test_a_number_that_is_no_whole_number_of_groups_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="10 episodes are not a whole number of groups of 4"):
        collect(tiny_policy(), GUESS, 10, tmp_path / "e.jsonl", SAMPLING, group_size=4)


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def arguments(model: str, output: Path, *more: str) -> list[str]:
    limits = ["--max-turn-tokens", "8", "--max-episode-tokens", "8", "--env-arg", "kinds=[addition]"]
    return ["collect", "--model", model, "--environment", "math", "-o", str(output), *limits, *more]


def test_the_command_writes_groups_that_dpo_can_pair(model: str, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "e.jsonl"
    assert main(arguments(model, output, "-n", "8", "--group-size", "4")) == 0
    assert f"8 written to {output}" in capsys.readouterr().out
    kept = list(read(output))
    assert {episode.kwargs["split"] for episode in kept} == {"train"} and len({e.group_id for e in kept}) == 2
    kept[1].turn_rewards = [1.0]
    assert len(list(pairs(kept))) == 1
    assert main(["collect", "--expert", "--environment", "math", "-n", "3", "-o", str(output)]) == 0
    assert {episode.reward for episode in read(output)} == {1.0}
    assert main(["collect", "--environment", "math", "-n", "3", "-o", str(output)]) == 1
    assert capsys.readouterr().err.strip().endswith("give either --model PATH or --expert")


def test_experts_are_collected_without_torch(tmp_path: Path) -> None:
    command = ["collect", "--expert", "--environment", "math", "-n", "3", "-o", str(tmp_path / "e.jsonl")]
    code = (
        "import sys; from mrlm_train.cli import main\n"
        f"print(main({command!r}), [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert said.stdout.splitlines()[-1] == "0 []", said.stderr
    assert [episode.reward for episode in read(tmp_path / "e.jsonl")] == [1.0] * 3


def test_rows_have_the_return_and_parquet_holds_the_same(model: str, tmp_path: Path, capsys: Any) -> None:
    rows, table = tmp_path / "e.jsonl", tmp_path / "e.parquet"
    assert main(arguments(model, rows, "-n", "4")) == 0 and main(arguments(model, table, "-n", "4")) == 0
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["reward"] for row in written] == [episode.reward for episode in read(rows)]
    kept = datasets.load_dataset("parquet", data_files=str(table), cache_dir=str(tmp_path / "cache"))["train"]
    for row, line in zip(kept, written, strict=True):
        assert {key: row[key] for key in ("messages", "completion_ids", "reward", "success")} == {
            key: line[key] for key in ("messages", "completion_ids", "reward", "success")
        }
        assert json.loads(row["info"]) == line["info"]
    assert not [path for path in tmp_path.glob(".*") if path.name != ".cache"]


def test_preference_pairs_are_what_dpo_reads(tmp_path: Path) -> None:
    output, chosen = tmp_path / "e.jsonl", tmp_path / "pairs.jsonl"
    letters = EnvEntry("Letters", {"letters": "a"}, make=Letters)
    starts = iter("ab" * 4)

    def alternate(turn: int) -> list[int]:
        return say(next(starts))(turn)

    found = collect(scripted(alternate), letters, 8, output, SAMPLING, group_size=2, threads=1, preferences=chosen)
    rows = [json.loads(line) for line in chosen.read_text().splitlines()]
    assert found.pairs == len(rows) == 4
    assert rows[0]["chosen"][0]["content"] == "a" and rows[0]["rejected"][0]["content"] == "b"
    assert (rows[0]["chosen_reward"], rows[0]["rejected_reward"]) == (1.0, 0.0)
    assert len(list(read_preferences(chosen, Chat(TOKENIZER)))) == 4


def test_a_parquet_file_of_nothing_has_the_columns(tmp_path: Path) -> None:
    collect_experts("math", 2, tmp_path / "some.parquet")
    assert collect_experts("math", 2, tmp_path / "none.parquet", filter_reward=99.0).written == 0
    some, none = (parquet.read_table(tmp_path / name) for name in ("some.parquet", "none.parquet"))
    assert (none.num_rows, none.column_names) == (0, some.column_names)


def test_a_parquet_file_in_place_of_json_lines_is_named(tmp_path: Path) -> None:
    collect_experts("math", 2, tmp_path / "e.parquet")
    assert not is_preference_file(tmp_path / "e.parquet")
    with pytest.raises(
        ValueError, match=r"episodes .*e\.parquet: not JSON lines \(a Parquet file is for other tools\)"
    ):
        list(read(tmp_path / "e.parquet"))


def test_a_preference_row_begins_with_the_prompt_that_was_played(tmp_path: Path) -> None:
    class Alternating(gymnasium.Wrapper):
        def step(self, action: str) -> Any:
            observation, _, _, _, info = self.env.step(action)
            return observation, float(action == "a"), True, False, info

    words, output, chosen = iter("ab"), tmp_path / "e.jsonl", tmp_path / "pairs.jsonl"
    actor = scripted(lambda turn: say(next(words))(turn))
    tools = EnvEntry("mrlm/ToolUse-v0", {"tools": ["calculator"]}, wrappers=[Alternating])
    collect(actor, tools, 2, output, replace(SAMPLING, max_context=10**6), group_size=2, preferences=chosen)
    [row] = read_preferences(chosen, Chat(TOKENIZER))
    assert row["prompt_ids"] == next(read(output)).prompt_ids


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--expert", "--address", "localhost:1"], "servers do not give away reference solutions"),
        (["--model", "tiny", "--preferences", "p.jsonl"], "give --group-size 2 or more"),
        (["--expert", "--group-size", "4", "--preferences", "p.jsonl"], "--group-size and --preferences need --model"),
    ],
)
def test_what_collect_cannot_do_is_one_line(flags: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["collect", "--environment", "math", "-n", "2", "-o", str(tmp_path / "e.jsonl"), *flags]) == 1
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_a_process_killed_outright_leaves_what_it_had_and_the_next_one_goes_on(
    model: str, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "e.jsonl"
    partial = tmp_path / ".e.jsonl.partial"
    command = arguments(model, output, "-n", "400", "--rows", "4")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mrlm_train.cli", *command], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not (partial.is_file() and partial.read_bytes().count(b"\n") > 20):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not output.exists()
    lines = [line for line in partial.read_bytes().split(b"\n")[1:-1] if line]
    head = json.loads(partial.read_bytes().split(b"\n")[0])
    assert len(lines) >= 20 and json.loads(head["settings"])["n"] == 400
    assert len({json.loads(line)["sampling"]["draw"] for line in lines}) == len(lines)
    assert main(command) == 0
    assert f"400 episodes ({len(lines)} from before)" in capsys.readouterr().out
