"""A trainer of another framework: REINFORCE in JAX and optax on a served environment.

    pip install jax optax "mrlm[serve]"
    mrlm serve --environments math --allow-kwargs kinds,difficulty
    python examples/jax_reinforce.py --address 127.0.0.1:25051

The policy is a small network that reads the two digits of "What is 4 + 6?" and chooses one of the nineteen possible
answers; it starts at one in nineteen and ends above nine in ten. Everything goes through `mrlm/Remote-v0`: one call
for each batch of episodes begun, one for each batch answered.
"""

import argparse
import re

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax

ANSWERS = 19  # 0 … 18
HIDDEN = 128


def read(observations: tuple[str, ...]) -> np.ndarray:
    """The digits of each question, each as a one-hot vector: shape (B, 20)."""
    digits = np.array([[int(number) for number in re.findall(r"\d+", text)[:2]] for text in observations])
    return np.eye(10, dtype=np.float32)[digits].reshape(len(digits), 20)


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Weights of two layers."""
    one, two = jax.random.split(key)
    return {
        "w1": jax.random.normal(one, (20, HIDDEN)) * 0.3,
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(two, (HIDDEN, ANSWERS)) * 0.05,
        "b2": jnp.zeros(ANSWERS),
    }


def logits(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Log-odds of the answers, shape (B, 19)."""
    return jax.nn.relu(x @ weights["w1"] + weights["b1"]) @ weights["w2"] + weights["b2"]


def loss(weights: dict[str, jax.Array], x: jax.Array, chosen: jax.Array, advantages: jax.Array) -> jax.Array:
    """REINFORCE with an entropy bonus, without which it settles on few answers."""
    log_probs = jax.nn.log_softmax(logits(weights, x))
    taken = jnp.take_along_axis(log_probs, chosen[:, None], axis=1)[:, 0]
    entropy = -(jnp.exp(log_probs) * log_probs).sum(axis=1)
    return -(advantages * taken + 0.15 * entropy).mean()


def main() -> None:
    """Train, and print the share of right answers as it grows."""
    parser = argparse.ArgumentParser(description="REINFORCE in JAX on a served environment.")
    parser.add_argument("--address", default="127.0.0.1:25051")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    envs = gymnasium.make_vec(
        "mrlm_envs:mrlm/Remote-v0",
        num_envs=args.batch,
        address=args.address,
        env_id="mrlm/Math-v0",
        kinds=["addition"],
        difficulty=[1, 1],
        split="all",
    )
    key = jax.random.PRNGKey(args.seed)
    weights = init(key)
    optimizer = optax.adam(5e-3)
    state = optimizer.init(weights)

    @jax.jit
    def update(weights, state, x, chosen, advantages):
        gradients = jax.grad(loss)(weights, x, chosen, advantages)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(weights, updates), state

    sample = jax.jit(lambda weights, x, key: jax.random.categorical(key, logits(weights, x)))
    for step in range(args.steps):
        observations, _ = envs.reset(seed=args.seed + step * args.batch)
        x = read(observations)
        key, now = jax.random.split(key)
        chosen = sample(weights, x, now)
        _, rewards, *_ = envs.step([f"\\boxed{{{answer}}}" for answer in np.asarray(chosen)])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        weights, state = update(weights, state, x, chosen, jnp.asarray(advantages, jnp.float32))
        if step % 50 == 0 or step == args.steps - 1:
            print(f"step {step:4d}  right {rewards.mean():.3f}")
    envs.close()


if __name__ == "__main__":
    main()
