"""Two CPU processes (gloo): what they train together is what one trains alone."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from mrlm_train.episodes import read
from mrlm_train.policy import load_model
from tests.processes import ALL_FOUR, metrics, train, write_config

STAGES = ("stage-1-sft", "stage-2-grpo", "stage-3-ppo", "stage-4-dpo")
SHARDED = [pytest.param(name, marks=pytest.mark.slow) for name in ("fsdp", "deepspeed")]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config") / "all_four.yaml", ALL_FOUR)


@pytest.fixture(scope="module")
def one(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four algorithms in one process."""
    folder = tmp_path_factory.mktemp("one")
    code, said = train(config, folder, "distributed.num_processes=1")
    assert code == 0, said
    assert "distributed.strategy ddp: one process, so it changes nothing" in said
    return folder


@pytest.fixture(scope="module", params=["ddp", *SHARDED])
def two(request: pytest.FixtureRequest, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four algorithms in two processes that `mrlm train` has started."""
    folder = tmp_path_factory.mktemp(request.param)
    code, said = train(config, folder, f"distributed.strategy={request.param}")
    assert code == 0, said
    assert f"2 processes, {request.param}: each holds" in said
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_what_one_trains_on_the_same_global_batch(one: Path, two: Path, stage: str) -> None:
    for alone, shared in zip(metrics(one / stage), metrics(two / stage), strict=True):
        assert alone.keys() == shared.keys()
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-6), alone["step"]
    alone, shared = (load_model(str(folder / stage / "final"), device="cpu").state_dict() for folder in (one, two))
    assert alone.keys() == shared.keys()
    for name, weight in alone.items():
        assert (weight - shared[name]).abs().max() < 1e-6, name
    if stage == "stage-3-ppo":
        alone, shared = (load_file(folder / stage / "final" / "value_head.safetensors") for folder in (one, two))
        assert alone["weight"].abs().max() > 1e-4
        assert (alone["weight"] - shared["weight"]).abs().max() < 1e-6


def test_each_process_plays_its_own_share_of_the_tasks_in_whole_groups(one: Path, two: Path) -> None:
    alone, first = (list(read(folder / "stage-2-grpo" / "episodes" / "step-000001.jsonl")) for folder in (one, two))
    assert (len(alone), len(first)) == (16, 8)  # the first process writes its own
    assert [e.completion_ids for e in first] == [e.completion_ids for e in alone[:8]]
    assert [[e.group_id for e in alone].count(e.group_id) for e in alone] == [4] * 16
    assert not {e.seed for e in alone[:8]} & {e.seed for e in alone[8:]}
