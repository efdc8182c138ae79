"""A training run on served environments is the run on local ones, even when a server is killed under it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import pytest

torch = pytest.importorskip("torch")

from mrlm_envs.core import Reply  # noqa: E402
from mrlm_train.commands import demo  # noqa: E402
from mrlm_train.experiment import train as training  # noqa: E402
from mrlm_train.grpo import GRPOConfig, GRPOTrainer  # noqa: E402
from mrlm_train.rollout.environments import EnvEntry  # noqa: E402
from tests.support.guessing import GuessNumber  # noqa: E402
from tests.support.playing import TOKENIZER, tiny_model  # noqa: E402
from tests.support.serving import Spawned, free_port, spawned  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")

GUESS = "tests.support.guessing:tests/Guess-v0"
CLOCK = ("time", "second")  # what the clock says is not part of the curve


class FlakyGuess(GuessNumber):
    """Slow, and not replayable."""

    metadata: ClassVar[dict[str, Any]] = {**GuessNumber.metadata, "deterministic": False}

    def respond(self, action: str) -> Reply:
        time.sleep(0.1)
        return super().respond(action)


class Parrot(gymnasium.Env[str, str]):
    """A third party's environment, which has no splits."""

    observation_space = action_space = gymnasium.spaces.Text(100)

    def __init__(self, word: str = "a") -> None:
        self.word = word

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return f"say {self.word}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", float(action.count(self.word) > 0), True, False, {}


for name, env in {"tests/FlakyGuess-v0": FlakyGuess, "tests/Parrot-v0": Parrot}.items():
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=env)


def train(folder: Path, env: EnvEntry, steps: int = 4, callback: Any = None, **settings: Any) -> tuple[Any, Any]:
    """A few steps of GRPO; returns what it logged, without the clock, and the weights."""
    torch.manual_seed(0)
    args = GRPOConfig(
        str(folder),
        per_device_train_batch_size=16,
        num_generations=4,
        max_steps=steps,
        max_completion_length=80,
        max_turn_tokens=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    trained = GRPOTrainer(
        tiny_model(), env, args, None, processing_class=TOKENIZER, callbacks=[callback] if callback else None
    )
    trained.train()
    logged = [
        {key: value for key, value in row.items() if not any(word in key for word in CLOCK)}
        for row in trained.state.log_history
    ]
    return logged, {name: value.detach().clone() for name, value in trained.model.named_parameters()}


def same(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    assert len(one[0]) == len(other[0])
    for mine, theirs in zip(one[0], other[0]):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert value == pytest.approx(theirs[key], rel=1e-5, abs=1e-7, nan_ok=True), key
    for name, value in one[1].items():
        assert torch.allclose(value, other[1][name], atol=1e-6), name


def test_grpo_through_two_servers_gives_the_curve_of_the_local_run(tmp_path: Path) -> None:
    local = train(tmp_path / "local", EnvEntry(GUESS, {"high": 9}))
    with spawned(2, "--allow-kwargs", "high", environments=GUESS) as servers:
        address = ",".join(address for _, address in servers)
        served = train(tmp_path / "served", EnvEntry("tests/Guess-v0", {"high": 9}, address=address))
    same(local, served)


def test_a_served_environment_without_splits_trains(tmp_path: Path) -> None:
    with spawned(
        1, "--allow-kwargs", "word", environments="tests.train.test_serving_training:tests/Parrot-v0"
    ) as servers:
        entry = EnvEntry("tests/Parrot-v0", {"word": "b"}, address=servers[0][1])
        logged, _ = train(tmp_path, entry, steps=1)
        guess = EnvEntry("tests/Parrot-v0", {"ward": "b"}, address=servers[0][1])
        with pytest.raises((TypeError, ValueError), match="ward"):
            guess.on_split("train").build()
    assert 0 < logged[0]["reward"] < 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_through_two_servers_gives_its_curve(tmp_path: Path) -> None:
    steps = ("stages.0.training.max_steps=200", "stages.1.training.max_steps=15", "training.eval_steps=1000")

    def curve(folder: Path, *overrides: str) -> list[float]:
        demo.prepare(folder, 0)
        training.run(demo.load(folder, 0, (*steps, *overrides)))
        rows = [json.loads(line) for line in (folder / "stage-2-grpo" / "metrics.jsonl").read_text().splitlines()]
        return [row["reward"] for row in rows if "reward" in row]

    local = curve(tmp_path / "local")
    with spawned(2, "--allow-kwargs", "*", environments="math") as servers:
        address = ",".join(address for _, address in servers)
        served = curve(tmp_path / "served", f"envs.0.address={address}")
    assert len(local) == 15 and local[-1] > 0.02
    assert served == pytest.approx(local, abs=1e-6)


@pytest.mark.slow
def test_grpo_with_a_server_killed_under_it_gives_the_same_curve(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    local = train(tmp_path / "local", EnvEntry(GUESS, {"high": 9}), steps=6)
    with spawned(2, "--allow-kwargs", "high", environments=GUESS) as servers:

        class Kill(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == 3:
                    threading.Timer(0.02, servers[0][0].process.kill).start()

        address = ",".join(address for _, address in servers)
        served = train(tmp_path / "served", EnvEntry("tests/Guess-v0", {"high": 9}, address=address), 6, Kill())
        assert servers[0][0].process.wait(5) == -signal.SIGKILL
    same(local, served)


@contextlib.contextmanager
def nginx(folder: Path, addresses: list[str]) -> Iterator[list[str]]:
    """nginx in front of servers, a port for each: a session must stay with its server."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    ports = [free_port() for _ in addresses]
    servers = "".join(
        f"server {{ listen 127.0.0.1:{port} http2; client_max_body_size 0; keepalive_requests 1000000; "
        f"location / {{ grpc_pass grpc://{address}; grpc_read_timeout 60s; }} }}\n"
        for port, address in zip(ports, addresses)
    )
    temporary = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    settings = f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
    (folder / "nginx.conf").write_text(f"{settings}http {{ access_log off; {temporary}\n{servers}}}")
    process = subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        yield [f"127.0.0.1:{port}" for port in ports]
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.slow
def test_grpo_behind_nginx_with_a_rolling_restart_of_both_workers_gives_the_same_curve(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    local = train(tmp_path / "local", EnvEntry(GUESS, {"high": 9}), steps=8)
    server = Spawned("--workers", "2", "--allow-kwargs", "high", "--grace", "10", environments=GUESS)
    try:
        addresses = server.addresses(2)
        restarted: list[str] = []
        rolling: list[threading.Thread] = []
        workers = server.workers()
        with nginx(tmp_path, addresses) as fronts:

            class Roll(TrainerCallback):
                def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                    if state.global_step in (2, 5):
                        for thread in rolling:
                            thread.join(60)  # the first has come back
                        rolling.append(threading.Thread(target=self.restart, args=(workers[len(rolling)],)))
                        rolling[-1].start()

                def restart(self, pid: int) -> None:
                    os.kill(pid, signal.SIGTERM)
                    restarted.append(server.addresses()[0])  # its successor listens

            served = train(
                tmp_path / "served", EnvEntry("tests/Guess-v0", {"high": 9}, address=",".join(fronts)), 8, Roll()
            )
            for thread in rolling:
                thread.join(60)
    finally:
        server.end()
    assert sorted(restarted) == sorted(addresses)
    same(local, served)


@pytest.mark.slow
def test_episodes_that_cannot_be_brought_back_are_masked(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    module = "tests.train.test_serving_training:tests/FlakyGuess-v0"
    with spawned(2, "--allow-kwargs", "high", environments=module) as servers:

        class Kill(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == 1:
                    threading.Thread(target=self.kill).start()

            def kill(self) -> None:
                time.sleep(0.2)
                servers[0][0].process.kill()

        address = ",".join(address for _, address in servers)
        entry = EnvEntry("tests/FlakyGuess-v0", {"high": 9}, address=address)
        logged, weights = train(tmp_path, entry, 4, Kill(), max_invalid_share=1.0)
        assert servers[0][0].process.wait(5) == -signal.SIGKILL
    assert [row["invalid"] > 0 for row in logged if "loss" in row] == [False, True, False, False]
    assert all(torch.isfinite(value).all() for value in weights.values())
