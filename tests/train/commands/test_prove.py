"""`mrlm prove` on runs of two steps, and the sentence on made-up figures."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mrlm_train import tiny
from mrlm_train.cli import main
from mrlm_train.commands import prove
from mrlm_train.episodes.record import Episode
from mrlm_train.experiment.config import RunConfig
from mrlm_train.experiment.sections import ModelSection
from mrlm_train.experiment.train import Interrupted
from mrlm_train.grpo import GRPOConfig, GRPOTrainer
from mrlm_train.rollout.environments import EnvEntry
from tests.support.guessing import GuessNumber
from tests.support.playing import TOKENIZER, Radio, tiny_model

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
SUMS = {"id": "mrlm/Math-v0", "kwargs": {"kinds": ["addition"], "difficulty": [1, 1], "system_prompt": ""}}


def test_a_training_is_run_beside_its_controls_and_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    config = {
        "model": {"model_name_or_path": str(tmp_path / "model")},
        "envs": [SUMS],
        "training": {"batch_size": 8, "max_steps": 2, "save_strategy": "no", "use_cpu": True},
        "rollout": {"max_completion_length": 16},
        "stages": [
            {"training": {"algorithm": "sft"}},
            {"training": {"algorithm": "grpo"}, "grpo": {"num_generations": 4}},
        ],
    }
    (tmp_path / "my.yaml").write_text(json.dumps(config))
    command = ["prove", "--config", str(tmp_path / "my.yaml"), "--output", str(tmp_path / "out"), "--problems", "4"]
    assert main([*command, "--seeds", "1"]) == 0
    found = json.loads((tmp_path / "out" / "prove.json").read_text())
    assert list(found["runs"]) == ["untrained", "trained", "random rewards", "shuffled rewards", "more SFT"]
    assert all(result[0]["n"] == 4 for result in found["runs"].values())
    assert (tmp_path / "out" / "prove.png").read_bytes().startswith(b"\x89PNG")
    models = [Path(result[0]["model"]) for result in found["runs"].values()]
    written = [model.stat().st_mtime_ns for model in models]
    assert main([*command, "--seeds", "1"]) == 0
    assert [model.stat().st_mtime_ns for model in models] == written


def test_results_of_another_configuration_or_fewer_problems_are_not_taken_for_these(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "model": "tiny",
        "envs": [SUMS],
        "training": {"algorithm": "sft", "batch_size": 4, "max_steps": 1, "save_strategy": "no", "use_cpu": True},
        "rollout": {"max_completion_length": 8},
        "sft": {"num_episodes": 4},
    }

    def run(problems: int, **changes: Any) -> int:
        (tmp_path / "my.yaml").write_text(json.dumps({**config, **changes}))
        command = ["prove", "--config", str(tmp_path / "my.yaml"), "--output", str(tmp_path / "out"), "--seeds", "1"]
        return main([*command, "--problems", str(problems)])

    assert run(2) == 0
    before = (tmp_path / "out" / "prove.json").read_text()
    capsys.readouterr()
    assert run(4) == 1
    assert "problems was 2 and is 4" in capsys.readouterr().err
    assert run(2, sft={"num_episodes": 8}) == 1
    assert "sft.num_episodes was 4 and is 8" in capsys.readouterr().err
    assert run(2) == 0 and (tmp_path / "out" / "prove.json").read_text() == before


def test_the_cpu_seconds_of_an_interrupted_training_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([True, False])

    def train(*given: Any) -> Path:
        begin = time.process_time()
        while time.process_time() < begin + 0.3:
            pass
        if next(runs):
            raise Interrupted("interrupted at step 1; go on")
        return tmp_path / "final"

    monkeypatch.setattr(prove, "_resumed", train)
    monkeypatch.setattr(prove, "_evaluate", lambda *given: {"metric": "reward", "value": 1.0, "half": 0.1, "n": 2})
    load = lambda seed, folder: RunConfig("", "sft", model=ModelSection("m"), output_dir=folder)
    with pytest.raises(Interrupted):
        prove._one_seed(load, 0, tmp_path / "seed-0", 2)
    assert prove._one_seed(load, 0, tmp_path / "seed-0", 2)["trained"]["cpu_seconds"] >= 0.6


def test_a_training_of_one_stage_is_proved_from_the_toy_policy_too(tmp_path: Path) -> None:
    config = {
        "model": "tiny",
        "envs": [SUMS],
        "training": {"batch_size": 4, "max_steps": 1, "save_strategy": "no", "use_cpu": True},
        "rollout": {"max_completion_length": 8},
        "stages": [{"training": {"algorithm": "sft"}, "sft": {"num_episodes": 4}}],
    }
    (tmp_path / "my.yaml").write_text(json.dumps(config))
    command = ["prove", "--config", str(tmp_path / "my.yaml"), "--output", str(tmp_path / "out"), "--problems", "2"]
    assert main([*command, "--seeds", "1"]) == 0
    assert list(json.loads((tmp_path / "out" / "prove.json").read_text())["runs"]) == ["untrained", "trained"]


def test_the_runs_are_evaluated_with_the_system_prompt_and_the_template_of_the_training(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    tokenizer = tiny.build_tokenizer()
    (tmp_path / "my.jinja").write_text(str(tokenizer.chat_template))
    tokenizer.chat_template = None  # as of a base model
    tokenizer.save_pretrained(tmp_path / "base")
    heard: list[Any] = []
    spy = EnvEntry("Radio", make=Radio, reward=lambda messages, reward, info: heard.append(messages[0]) or 1.0)
    settings = {"system_prompt": "Be brief.", "max_turn_tokens": 2, "max_completion_length": 40}
    model = ModelSection(str(tmp_path / "base"), chat_template=str(tmp_path / "my.jinja"))
    config = RunConfig("", "grpo", model=model, envs=(spy,), arguments=settings)
    prove._evaluate(config, str(tmp_path / "base"), 2)
    assert {(message["role"], message["content"]) for message in heard} == {("system", "Be brief.")}


class Closer(GuessNumber):
    """Every turn brings it closer to the solution, says its solver."""

    def cost_to_go(self) -> float:
        return 100.0 - self.turn


@pytest.mark.parametrize("credit", ["turn", "branch", "solver"])
def test_a_policy_learns_nothing_where_all_rewards_are_taken_away(credit: str, tmp_path: Path) -> None:
    words = EnvEntry("Guess", make=Closer, reward=lambda messages, reward, info: len(messages[-2]["content"]))
    args = GRPOConfig(
        str(tmp_path),
        **{"credit": credit, "per_device_train_batch_size": 4, "num_generations": 4, "max_steps": 1, "target_kl": None},
        **{"max_completion_length": 80, "max_turn_tokens": 4, "save_strategy": "no", "report_to": [], "use_cpu": True},
    )
    trainer = GRPOTrainer(tiny_model(), words, args, processing_class=TOKENIZER)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    with prove.rewards(lambda episodes, rng: prove._pay(episodes, [0.0] * len(episodes))):
        trainer.train()
    assert max(len(episode.turn_ends) for episode in trainer.episodes) > 1
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


def result(value: float, n: int = 200) -> dict[str, Any]:
    half = 1.96 * (value * (1 - value) / n) ** 0.5
    return {"metric": "success", "value": value, "half": half, "n": n, "cpu_seconds": 1}


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ({"untrained": 0.4, "trained": 0.9, "random rewards": 0.4}, "is not explained by random rewards"),
        ({"untrained": 0.4, "trained": 0.9, "more SFT": 0.91}, "is explained, as far as these runs can tell, by more"),
        ({"untrained": 0.4, "trained": 0.42, "random rewards": 0.4}, "there is no lift to explain over untrained"),
    ],
)
def test_the_sentence_follows_from_the_runs(shares: dict[str, float], sentence: str) -> None:
    assert sentence in prove.conclusion({name: [result(value)] for name, value in shares.items()})
    by_seed = {name: [result(value + noise) for noise in (-0.01, 0, 0.01)] for name, value in shares.items()}
    if "no lift" not in sentence:
        assert sentence in prove.conclusion(by_seed)


def test_few_seeds_that_disagree_prove_nothing() -> None:
    runs = {"untrained": [result(0.4), result(0.4)], "trained": [result(0.9), result(0.5)]}
    assert "there is no lift to explain" in prove.conclusion(runs)


def test_shuffled_rewards_are_the_batchs_own_and_random_ones_are_not() -> None:
    episodes = [Episode("x", turn_rewards=[0.0, float(i)]) for i in range(20)]
    prove.shuffled(episodes, np.random.default_rng(0))
    returns = [episode.reward for episode in episodes]
    assert sorted(returns) == [float(i) for i in range(20)] != returns
    prove.randomly(episodes, np.random.default_rng(0))
    assert {episode.reward for episode in episodes} == {0.0, 1.0}
