"""`mrlm regrade`: stored actions judged by the environment as it is now.

An episode holds its seed and its actions, so it can be played again, turn by turn. What is reported is where the
rewards, the verdict or the observations differ. The stored episodes are never changed.
"""

import dataclasses
from collections import Counter
from itertools import zip_longest
from typing import Any

from mrlm_envs.checks.playing import Crash, Played, episode, follow
from mrlm_train.episodes.record import Episode, read
from mrlm_train.rollout.environments import EnvEntry
from mrlm_train.rollout.pool import fit


def run(path: str, env_id: str | None = None, kwargs: dict[str, Any] | None = None) -> int:
    """Replay the episodes of a file and print those that differ.

    Args:
        path: The JSONL file.
        env_id: The environment, instead of the one that each episode names.
        kwargs: Arguments of the environment, over those that each episode keeps.

    Returns:
        The exit status: 1 if an episode differs.
    """
    envs: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    for number, stored in enumerate(read(path), 1):
        entry = EnvEntry.of(env_id or stored.env_id)
        entry = dataclasses.replace(entry, kwargs={**stored.kwargs, **(kwargs or {})})
        if stored.agent is not None or not stored.valid:
            counts["left out (an agent of a game, or invalid)"] += 1
            continue
        key = f"{entry.id} {entry.kwargs}"
        if key not in envs:
            envs[key] = entry.build()
        found = judge(envs[key], stored)
        counts.update(["replayed", *found])
        if found:
            print(f"row {number}, {stored.env_id} seed {stored.seed}: {'; '.join(found.values())}")
    for env in envs.values():
        env.close()
    print(", ".join(f"{count} {name}" for name, count in counts.items()) or "no episodes")
    return int(any(counts[name] for name in ("flipped", "changed in reward", "diverged", "failed")))


def judge(env: Any, stored: Episode) -> dict[str, str]:
    """What differs when an episode's actions are played again: kind of difference to a sentence."""
    actions = [message["content"] for message in stored.messages if message["role"] == "assistant"]
    rewards_then = stored.turn_rewards
    if actions and stored.messages[-1]["role"] == "assistant":  # cut off by a budget: the environment never got it
        actions, rewards_then = actions[:-1], rewards_then[:-1]
    told = [message["content"] for message in stored.messages if message["role"] not in ("assistant", "system")]
    policy = follow(fit(env.action_space, action) for action in actions)
    try:
        played = Played(stored.seed, list(episode(env, policy, stored.seed, options=stored.options or None)))
    except Crash as crash:
        return {"failed": str(crash)}
    found: dict[str, str] = {}
    success = played.ended.get("success")
    if stored.success is not None and success is not None and success != stored.success:
        found["flipped"] = f"success {stored.success} is now {success}"
    rewards = [step.reward for step in played.trace[1:]]
    if [round(reward, 9) for reward in rewards] != [round(reward, 9) for reward in rewards_then]:
        found["changed in reward"] = f"rewards {rewards_then} are now {rewards}"
    heard = [step.observation for step in played.trace]
    for turn, (old, new) in enumerate(zip_longest(told, heard, fillvalue="the end")):
        if old != new:
            found["diverged"] = f"observation {turn} was {old[:80]!r} and is {new[:80]!r}"
            break
    return found
