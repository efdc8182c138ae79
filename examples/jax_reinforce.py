"""A trainer of another framework: REINFORCE in JAX and optax on a served environment.

    pip install jax optax "mrlm[serve]"
    mrlm serve --environments math --allow-kwargs kinds,difficulty
    python examples/jax_reinforce.py --address 127.0.0.1:25051

A small network reads the digits of "What is 4 + 6?" and chooses one of nineteen answers: right once in nineteen times
at first, about nine times in ten at the end. Each batch is two calls to `mrlm/Remote-v0`: reset and step.
"""

import re

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

SUMS = {"env_id": "mrlm/Math-v0", "kinds": ["addition"], "difficulty": [1, 1], "split": "all"}
ANSWERS, HIDDEN = 19, 128  # answers 0 … 18


def read(observations):  # two digits each, as one-hot vectors of shape (B, 20)
    digits = np.array([[int(number) for number in re.findall(r"\d+", text)[:2]] for text in observations])
    return np.eye(10, dtype=np.float32)[digits].reshape(len(digits), 20)


def logits(weights, x):
    return jax.nn.relu(x @ weights[0]) @ weights[1]


def loss(weights, x, chosen, advantages):
    log_probs = jax.nn.log_softmax(logits(weights, x))
    taken = jnp.take_along_axis(log_probs, chosen[:, None], axis=1)[:, 0]
    entropy = -(jnp.exp(log_probs) * log_probs).sum(axis=1)  # without a bonus for it, few answers are ever tried
    return -(advantages * taken + 0.15 * entropy).mean()


def main(address: str = "127.0.0.1:25051", batch: int = 256, steps: int = 500, seed: int = 0):
    envs = gymnasium.make_vec("mrlm_envs:mrlm/Remote-v0", num_envs=batch, address=address, **SUMS)
    key, one, two = jax.random.split(jax.random.PRNGKey(seed), 3)
    weights = (jax.random.normal(one, (20, HIDDEN)) * 0.3, jax.random.normal(two, (HIDDEN, ANSWERS)) * 0.05)
    adam = optax.adam(5e-3)
    state = adam.init(weights)
    sample = jax.jit(lambda weights, x, key: jax.random.categorical(key, logits(weights, x)))
    gradient = jax.jit(jax.grad(loss))
    for step in range(steps):
        x = read(envs.reset(seed=seed + step * batch)[0])
        chosen = sample(weights, x, jax.random.fold_in(key, step))
        _, rewards, *_ = envs.step([f"\\boxed{{{answer}}}" for answer in np.asarray(chosen)])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        updates, state = adam.update(gradient(weights, x, chosen, advantages.astype(np.float32)), state)
        weights = optax.apply_updates(weights, updates)
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4d}  right {rewards.mean():.3f}")


if __name__ == "__main__":
    tyro.cli(main)
