"""What lets a critic learn? Value functions fitted to the episodes of a fixed policy, measured on unseen rooms.

    python benchmarks/critic.py --seeds 0 1 2 --output runs/critic.jsonl

The policy is the SFT start of `benchmarks/credit.py --task sokoban`: one move a turn, return 1 for a solved room. It
plays `--batches` batches of 64 training rooms, and 512 rooms of the test split. Each row is a critic and the share of
the variance of returns that it explains, at every sampled token, on the batches it is fitted to and on the test rooms:

- `head, one pass`: PPO's critic at its default settings, a linear layer on the policy's last hidden state, one update
  a batch. `batches` says after how many. Other rows raise its learning rate or go over all past batches again (replay).
- `head, least squares`: the best linear layer that the training episodes allow (ridge regression).
- `mlp`: two layers on the same hidden states, with replay.
- `trunk`: a copy of the policy's transformer of its own with a linear layer, all of it trained, with replay. `from
  scratch`: the same, with random weights.
- `oracle`: the mean return by (moves that an optimal player still needs, turn), which the environment knows.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import ppo
from mrlm_train.advantages import explained_variance, turn_columns
from mrlm_train.episodes.record import Episode
from mrlm_train.ppo import PPOConfig, PPOTrainer
from mrlm_train.trl_hooks import Batch, loss_mask

BATCH = 64


@dataclass
class Played:
    """Episodes as a critic reads them; S are the states before the T completion tokens.

    Attributes:
        ids: prompt and completion, padded (B, L).
        attention: 1 at tokens that are not padding (B, L).
        hidden: the policy's last hidden states (B, S, H).
        returns: of the episode, at every token (B, S).
        mask: 1 where the policy sampled (B, S).
        keys: (cost to go, turn) of each turn, for each episode.
        turns: the turn of each token, else -1 (B, S).
    """

    ids: torch.Tensor
    attention: torch.Tensor
    hidden: torch.Tensor
    returns: torch.Tensor
    mask: torch.Tensor
    keys: list[list[tuple[Any, int]]]
    turns: torch.Tensor

    def explained(self, values: torch.Tensor) -> float:
        """Share of the variance of the returns that values (B, S) explain."""
        return explained_variance(values, self.returns, self.mask, lambda x: x).item()


def play(start: str, split: str, batches: int, seed: int) -> list[Played]:
    """Batches of episodes of the start, one a room."""
    settings = ppo.TASKS["sokoban"]
    entry = replace(settings["env"], split=split)
    with tempfile.TemporaryDirectory() as folder:
        values = {**ppo.RL, **settings["rl"], "seed": seed, "output_dir": folder, "max_steps": batches}
        trainer = PPOTrainer(start, entry, PPOConfig(**values))
        trainer.rollout.pool.privileged = ["cost_to_go"]
        dataset: Any = trainer.train_dataset
        model = trainer.model.eval()
        found = []
        for index in range(batches):
            trainer.state.global_step = index  # another draw of the sampler
            episodes = trainer.collect([dataset[index * BATCH + row] for row in range(BATCH)])
            batch = trainer.to_batch(episodes)
            mask = loss_mask(batch)
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
            attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
            rewards = torch.tensor([episode.reward for episode in episodes])
            keys = [[(cost, k) for k, cost in enumerate(episode.costs_to_go)] for episode in episodes]
            with torch.no_grad():
                hidden = states(model.base_model, ids, attention, mask.shape[1])
            returns = rewards[:, None].expand(mask.shape)
            found.append(Played(ids, attention, hidden, returns, mask, keys, turn_columns(mask, episodes)[1]))
    return found


def states(backbone: Any, ids: torch.Tensor, attention: torch.Tensor, tokens: int) -> torch.Tensor:
    """Hidden states (B, T, H) before each of the last `tokens` tokens."""
    places = (attention.cumsum(1) - 1).clamp(min=0)
    hidden = backbone(input_ids=ids, attention_mask=attention, position_ids=places).last_hidden_state
    return hidden[:, -tokens - 1 : -1].float()


class OwnTrunk(nn.Module):
    """A transformer and a linear layer."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = linear(backbone.config.hidden_size)

    def forward(self, played: Played) -> torch.Tensor:
        return self.head(states(self.backbone, played.ids, played.attention, played.mask.shape[1]))[..., 0]


class OnPolicy(nn.Module):
    """Layers on the policy's hidden states."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, played: Played) -> torch.Tensor:
        return self.layers(played.hidden)[..., 0]


class OwnTrunkPPO(PPOTrainer):
    """PPO whose critic is an `OwnTrunk`, fitted to each batch and to one of the last 32 again."""

    def use(self, critic: OwnTrunk) -> None:
        """Take a critic; before training."""
        self.critic, self.past = critic, list[Played]()
        self.critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3, weight_decay=0.0)

    def score(self, episodes: Sequence[Episode], batch: Batch, values_BS: torch.Tensor) -> Batch:
        """GAE on its values; then it learns."""
        mask = loss_mask(batch)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        returns = torch.tensor([episode.reward for episode in episodes])[:, None].expand(mask.shape)
        played = Played(ids, attention, mask, returns, mask, [], mask)  # it reads neither hidden states nor turns
        with torch.no_grad():
            scored = super().score(episodes, batch, nn.functional.pad(self.critic(played), (0, 1)))
        self.past = [*self.past, played][-32:]
        with torch.enable_grad():
            for again in (played, random.choice(self.past)):
                update(self.critic, self.critic_optimizer, again)
        return scored


def warm(start: str, seed: int, path: Path) -> OwnTrunk:
    """A trunk fitted to 28 batches of the start's own episodes, with 4 replays; made once."""
    critic = OwnTrunk(ppo.policy.load_model(start, device="cpu").base_model)
    if path.is_file():
        critic.load_state_dict(torch.load(path))
        return critic
    for _ in fit(critic, play(start, "train", 28, seed + 2000), 1e-3, 4, seed):
        pass
    torch.save(critic.state_dict(), path)
    return critic


def linear(size: int) -> nn.Linear:
    """A layer that says 0 of everything, as PPO's value head begins."""
    layer = nn.Linear(size, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def fit(critic: nn.Module, train: list[Played], rate: float, replays: int, seed: int) -> Iterator[int]:
    """One update with each new batch and `replays` with batches drawn from it and the past; yields the batches seen."""
    optimizer = torch.optim.AdamW(critic.parameters(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for index in range(len(train)):
        drawn = torch.randint(index + 1, (replays,), generator=generator).tolist()
        for played in [train[index], *(train[i] for i in drawn)]:
            update(critic, optimizer, played)
        yield index + 1


def update(critic: nn.Module, optimizer: torch.optim.Optimizer, played: Played) -> None:
    """One step on the squared error."""
    loss = ((critic(played) - played.returns).square() * played.mask).sum() / played.mask.sum()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
    optimizer.step()


def least_squares(train: list[Played], size: int) -> OnPolicy:
    """The linear layer of least squared error, with a little ridge."""
    features = torch.cat([played.hidden[played.mask.bool()] for played in train]).double()
    returns = torch.cat([played.returns[played.mask.bool()] for played in train]).double()
    mean = features.mean(0)
    centred = features - mean
    gram = centred.T @ centred + 1e-3 * len(features) * torch.eye(size, dtype=torch.double)
    weight = torch.linalg.solve(gram, centred.T @ (returns - returns.mean()))
    layer = linear(size)
    with torch.no_grad():
        layer.weight.copy_(weight[None])
        layer.bias.fill_((returns.mean() - mean @ weight).item())
    return OnPolicy(layer)


def oracle(train: list[Played], test: list[Played]) -> tuple[float, float]:
    """What a table by (cost to go, turn) explains of both."""
    sums: dict[Any, list[float]] = {}
    for played in train:
        for row, keys in enumerate(played.keys):
            for key in keys:
                entry = sums.setdefault(key, [0.0, 0.0])
                entry[0] += played.returns[row, 0].item()
                entry[1] += 1
    means = {key: total / count for key, (total, count) in sums.items()}

    def values(played: Played) -> torch.Tensor:
        table = torch.zeros(played.mask.shape)
        for row, keys in enumerate(played.keys):
            for turn, key in enumerate(keys):
                table[row, played.turns[row] == turn] = means.get(key, 0.0)
        return table

    return share(train, values), share(test, values)


def share(batches: list[Played], critic: Any) -> float:
    """Explained variance over several batches."""
    with torch.no_grad():
        values = torch.cat([critic(played)[played.mask.bool()] for played in batches])
    returns = torch.cat([played.returns[played.mask.bool()] for played in batches])
    return explained_variance(values, returns, torch.ones_like(returns), lambda x: x).item()


def study(seed: int, folder: Path, batches: int, critics: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a seed; `critics` names those that are fitted, none means all."""
    start = str(ppo.start("sokoban", seed, folder))
    train, test = play(start, "train", batches, seed + 1000), play(start, "test", 8, seed)
    solved = sum(played.returns[:, 0].sum().item() for played in test) / (BATCH * len(test))
    backbone = ppo.policy.load_model(start, device="cpu").base_model
    size = backbone.config.hidden_size
    seen, unseen = oracle(train, test)
    common = {"seed": seed, "success": solved}
    yield {**common, "critic": "oracle", "batches": batches, "seen": seen, "unseen": unseen, "cpu_seconds": 0.0}
    best = least_squares(train, size)
    figures = {"seen": share(train, best), "unseen": share(test, best), "cpu_seconds": 0.0}
    yield {**common, "critic": "head, least squares", "batches": batches, **figures}
    torch.manual_seed(seed)
    scratch = type(backbone)(backbone.config)
    variants: list[tuple[str, nn.Module, float, int]] = [
        ("head, one pass", OnPolicy(linear(size)), 1e-3, 0),
        ("head, one pass, rate 1e-2", OnPolicy(linear(size)), 1e-2, 0),
        ("head, 8 replays, rate 1e-2", OnPolicy(linear(size)), 1e-2, 8),
        ("mlp, 8 replays", OnPolicy(nn.Sequential(nn.Linear(size, 128), nn.GELU(), linear(128))), 2e-3, 8),
        ("trunk, one pass", OwnTrunk(copy.deepcopy(backbone)), 1e-3, 0),
        ("trunk, 4 replays", OwnTrunk(copy.deepcopy(backbone)), 1e-3, 4),
        ("trunk, 4 replays, rate 3e-3", OwnTrunk(copy.deepcopy(backbone)), 3e-3, 4),
        ("trunk, 12 replays", OwnTrunk(copy.deepcopy(backbone)), 1e-3, 12),
        ("trunk from scratch, 4 replays", OwnTrunk(scratch), 1e-3, 4),
    ]
    for name, critic, rate, replays in variants:
        if critics and name not in critics:
            continue
        begun = time.process_time()
        for count in fit(critic, train, rate, replays, seed):
            if count in (8, 28, batches):
                spent = time.process_time() - begun
                figures = {"seen": share(train[:count], critic), "unseen": share(test, critic)}
                yield {**common, "critic": name, "batches": count, **figures, "cpu_seconds": round(spent, 1)}


def main() -> None:
    """All rows of the seeds, one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--batches", type=int, default=56, help="of 64 training episodes")
    parser.add_argument("--critics", nargs="+", default=[], help="only these, by name")
    parser.add_argument("--folder", default="runs/benchmark-ppo", help="where the starts are kept")
    parser.add_argument("--output", default="runs/critic.jsonl", help="JSONL file to append to")
    given = parser.parse_args()
    torch.set_num_threads(1)
    Path(given.output).parent.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for row in study(seed, Path(given.folder), given.batches, given.critics):
            print(json.dumps(row), flush=True)
            with open(given.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
