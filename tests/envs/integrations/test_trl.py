"""Our environments in TRL's own GRPOTrainer."""

import copy
import pickle
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import pytest

trl = pytest.importorskip("trl")

import torch  # noqa: E402
from transformers.utils.chat_template_utils import get_json_schema  # noqa: E402

from mrlm_envs.integrations.trl import Spec, _method  # noqa: E402
from mrlm_train import tiny  # noqa: E402
from tests.support.guessing import GuessNumber  # noqa: E402  registers tests/Guess-v0

QWEN3 = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text("utf-8")
EVERY_TOOL = Spec("mrlm/ToolUse-v0", n=4)
TOOLS = Spec("mrlm/ToolUse-v0", n=4, kwargs={"tools": ["calculator"]})
MATH = Spec("mrlm/Math-v0", n=4, kwargs={"kinds": ["addition"], "max_turns": 2})
GUESS = Spec("tests/Guess-v0", n=4, kwargs={"high": 4, "max_turns": 3})


def train(
    spec: Spec, path: Path, script: Any = None, steps: int = 2, **kwargs: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """Trains the toy with TRL's trainer; `script(turn, seeds)` decides what the policy says in each row."""
    model, tokenizer = tiny.build(0, hidden_size=32, num_layers=2, num_heads=2, max_position_embeddings=16_384)
    tokenizer.chat_template = QWEN3

    class Scripted(trl.GRPOTrainer):
        def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **options: Any) -> Any:
            if script is None:
                return super()._generate_single_turn(prompt_ids, *rest, **options)
            said = [script(tokenizer.decode(ids)) for ids in prompt_ids]
            return [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in said], None

    args = trl.GRPOConfig(
        output_dir=str(path), max_steps=steps, per_device_train_batch_size=4, num_generations=2, use_cpu=True,
        bf16=False, gradient_checkpointing=False, max_completion_length=4000 if script else 24, report_to=[],
        logging_steps=1, learning_rate=1e-3, save_strategy="no",
    )  # fmt: skip
    trainer = Scripted(model, args=args, train_dataset=spec.train_dataset, processing_class=tokenizer, **kwargs)
    trainer.train()
    return trainer, trainer.state.log_history


def with_factory(spec: Spec) -> dict[str, Any]:
    return {"environment_factory": spec.environment_factory, "reward_funcs": spec.reward_funcs}


def test_the_members_of_a_group_play_one_task() -> None:
    rows = TOOLS.train_dataset
    assert rows.column_names == ["prompt", "seed", "task_id"]
    env = TOOLS.make()
    for row in rows:
        observation, info = env.reset(seed=row["seed"])
        assert (row["prompt"][-1]["content"], row["task_id"]) == (observation, info["task_id"])
    assert len(set(rows["task_id"])) > 1


def test_tools_become_methods_with_their_schemas() -> None:
    episode = EVERY_TOOL.environment_factory()
    schemas = {tool["function"]["name"]: tool["function"] for tool in EVERY_TOOL.make().reset(seed=0)[1]["tools"]}
    assert len(schemas) > 2
    for name, schema in schemas.items():
        made = get_json_schema(getattr(episode, name))["function"]
        assert made["name"] == name
        assert set(made["parameters"].get("properties", {})) == set(schema["parameters"]["properties"])
        assert made["parameters"].get("required", []) == schema["parameters"].get("required", [])


def test_a_tool_whose_argument_has_several_types_becomes_a_method() -> None:
    schema = {"name": "find", "parameters": {"properties": {"text": {"type": ["string", "null"]}}}}
    assert "text" in get_json_schema(_method(schema).__get__(object()))["function"]["parameters"]["properties"]


def test_a_reference_tool_trajectory_earns_everything_through_trl(tmp_path: Path) -> None:
    expert = TOOLS.make().unwrapped

    def script(context: str) -> str:  # replay the expert up to the turn that the context is at
        for seed in range(4):
            observation, _ = expert.reset(seed=seed)
            if observation in context:
                for _ in range(context.count("<tool_response>")):
                    expert.step(expert.expert())  # pyright: ignore[reportAttributeAccessIssue]
                return expert.expert()  # pyright: ignore[reportAttributeAccessIssue]
        raise AssertionError(context)

    _, log = train(TOOLS, tmp_path, script, steps=1, **with_factory(TOOLS))
    assert log[0]["reward"] == 1.0
    assert log[0]["tools/call_frequency"] >= 1


def test_a_feedback_environment_is_played_through_submit(tmp_path: Path) -> None:
    def script(context: str) -> str:
        if "<tool_response>" not in context:
            return '<tool_call>\n{"name": "submit", "arguments": {"answer": "\\\\boxed{-1}"}}\n</tool_call>'
        env = MATH.make().unwrapped
        for seed in range(4):
            if env.reset(seed=seed)[0] in context:
                return env.expert()  # pyright: ignore[reportAttributeAccessIssue]
        raise AssertionError(context)

    _, log = train(MATH, tmp_path, script, steps=1, **with_factory(MATH))
    assert log[0]["reward"] == 1.0  # the last message, which is no call, reached the environment


def test_an_environment_that_answers_as_the_user_is_played_by_rollout_func(tmp_path: Path) -> None:
    seen: list[str] = []

    def script(context: str) -> str:
        seen.append(context)
        last = context.rsplit("<|im_start|>user", 1)[1]
        return "4" if "higher" in last else "1"

    _, log = train(GUESS, tmp_path, script, steps=1, rollout_func=GUESS.rollout_func, reward_funcs=GUESS.reward)
    second = next(context for context in seen if "higher" in context)
    assert "1<|im_end|>\n<|im_start|>user\nhigher<|im_end|>\n<|im_start|>assistant\n" in second
    assert 0 <= log[0]["reward"] <= 1


class Counted(GuessNumber):
    """Counts those that are not closed."""

    unclosed: ClassVar[int] = 0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        Counted.unclosed += 1

    def close(self) -> None:
        Counted.unclosed -= 1


if "tests/Counted-v0" not in gymnasium.registry:
    gymnasium.register("tests/Counted-v0", entry_point=Counted)


def test_a_rollout_closes_its_episodes_also_those_that_the_token_limit_truncates(tmp_path: Path) -> None:
    spec = Spec("tests/Counted-v0", n=4, kwargs={"max_turns": 100})
    train(spec, tmp_path, steps=1, rollout_func=spec.rollout_func, reward_funcs=spec.reward)
    assert Counted.unclosed == 0


@pytest.mark.parametrize("way", ["tools", "submit", "rollout"])
def test_two_steps_of_trl_train_a_real_model(way: str, tmp_path: Path) -> None:
    spec = {"tools": TOOLS, "submit": MATH, "rollout": GUESS}[way]
    more: dict[str, Any] = {"rollout_func": spec.rollout_func, "reward_funcs": spec.reward}
    if way != "rollout":
        more = with_factory(spec)
    more["reward_funcs"] = [more["reward_funcs"], _lengths]  # so that gradients are not 0
    before = copy.deepcopy(tiny.build(0, hidden_size=32, num_layers=2, num_heads=2)[0].state_dict())
    trainer, log = train(spec, tmp_path, **more)
    assert trainer.state.global_step == 2 and all("reward" in entry for entry in log[:2])
    after = trainer.model.state_dict()
    assert any(not torch.equal(after[name].cpu(), before[name]) for name in before)


def _lengths(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(sum(ids) % 7) for ids in completion_ids]


def test_an_invalid_episode_is_none() -> None:
    episode = GUESS.environment_factory()
    episode.reset(seed=0)
    assert GUESS.reward_funcs(completions=["break it"], environments=[episode]) == [None]


def test_a_spec_pickles_and_equal_specs_share_one_class() -> None:
    twin = pickle.loads(pickle.dumps(TOOLS.environment_factory))
    assert type(twin()) is type(TOOLS.environment_factory())
    assert type(MATH.environment_factory()) is not type(TOOLS.environment_factory())


def test_an_environment_that_does_not_fit_is_told_in_one_line() -> None:
    with pytest.raises(ValueError, match="not text"):
        Spec("CartPole-v1", split=None).make()
