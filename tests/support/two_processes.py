"""A script for two processes: GRPO through TRL's vLLM path without vLLM, and PPO whose processes see different KLs.

TRL's own `VLLMGeneration` gathers the prompts, broadcasts and slices the completions; only its client is replaced. The
client's answer is a function of the prompt, so that a process that gets another's completions notices.
"""

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from mrlm_train import GRPOConfig, GRPOTrainer, PPOConfig, PPOTrainer
from mrlm_train.experiment.distributed import leave
from mrlm_train.rollout.environments import EnvEntry
from tests.support.playing import CLOSE, TOKENIZER, Radio, tiny_model


def answer(prompt: list[int]) -> list[int]:
    """What the server says to a prompt."""
    return [*TOKENIZER.encode(str(sum(prompt) % 10_000)), CLOSE]


class Client:
    """In place of `trl vllm-serve`."""

    temperatures: ClassVar[set[float]] = set()

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def generate(self, prompts: list[list[int]], temperature: float, **settings: Any) -> dict[str, Any]:
        self.temperatures.add(temperature)
        said = [answer(prompt) for prompt in prompts]
        return {"prompt_ids": prompts, "completion_ids": said, "logprobs": [[[-1.0]] * len(ids) for ids in said]}


class Generation(VLLMGeneration):
    """TRL's, without a vLLM to talk to."""

    def _init_vllm(self) -> None:
        self.vllm_client = Client()

    def sync_weights(self) -> None:
        pass


class Uneven(Radio):
    """Two turns, or four: the processes' conversations end at different times."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.lines = [str(seed), "go on"] * (1 + (seed or 0) % 2)
        return super().reset(seed=seed)


def vllm(folder: Path) -> dict[str, Any]:
    """Trains and evaluates; fails where a completion does not belong to its prompt."""
    grpo_trainer.VLLMGeneration = Generation  # type: ignore[misc]
    args = GRPOConfig(
        str(folder),
        use_vllm=True,
        vllm_mode="server",
        use_cpu=True,
        ddp_backend="gloo",
        per_device_train_batch_size=4,
        num_generations=4,
        num_minibatches=1,
        max_steps=2,
        max_completion_length=200,
        eval_temperature=0.25,
        eval_episodes=5,
        report_to=[],
        save_strategy="no",
    )
    trainer = GRPOTrainer(tiny_model(), EnvEntry("Uneven", make=Uneven), args, processing_class=TOKENIZER)
    trainer.train()
    played = trainer.episodes
    for episode in played:
        ids, start = list(episode.prompt_ids or []), 0
        for end in episode.turn_ends:
            completion = episode.completion_ids or []
            mask = episode.action_mask or []
            while not mask[start]:
                ids.append(completion[start])
                start += 1
            assert completion[start : end + 1] == answer(ids), (trainer.accelerator.process_index, episode.seed)
            ids += completion[start : end + 1]
            start = end + 1
    evaluated = trainer.evaluate()
    return {
        "processes": trainer.accelerator.num_processes,
        "turns": [len(episode.turn_ends) for episode in played],
        "evaluated": evaluated["eval_n"],
        "temperatures": sorted(Client.temperatures),
    }


class FarAway(PPOTrainer):
    """The second process sees a policy that has moved far, the first one that has not."""

    def loss(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        loss = super().loss(model, batch)
        self.trust_region._log_probs_BT -= float(self.accelerator.process_index)
        return loss


def trust(folder: Path) -> dict[str, Any]:
    """How many updates were undone, and whether the policy has moved."""
    args = PPOConfig(
        str(folder),
        use_cpu=True,
        ddp_backend="gloo",
        per_device_train_batch_size=4,
        max_steps=2,
        max_completion_length=60,
        max_turn_tokens=4,
        target_kl=0.03,  # the mean of 0 and e - 2 is more than ten times that
        logging_steps=1,
        report_to=[],
        save_strategy="no",
    )
    trainer = FarAway(tiny_model(), EnvEntry("Radio", make=Radio), args, processing_class=TOKENIZER)
    before = [parameter.detach().clone() for parameter in trainer.model.model.parameters()]
    trainer.train()
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.model.model.parameters(), strict=True)]
    rejected = [row["rejected_updates"] for row in trainer.state.log_history if "rejected_updates" in row]
    return {"rejected": rejected, "moved": any(moved)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    report = {"vllm": vllm(folder), "trust": trust(folder)}
    rank = torch.distributed.get_rank()
    (folder / f"rank-{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
