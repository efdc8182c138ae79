"""The command line and other people's tools: `export openenv`, `serve --openenv`, `eval --export-inspect`."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from mrlm_train import cli
from tests.support.paths import ROOT

OPENENV = ROOT / "build" / "peers" / "openenv" / "bin" / "python"  # made by `make test-peers`


def test_export_writes_a_folder_that_openenv_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "openenv", "math", str(tmp_path / "space"), "--env-arg", "kinds=[addition]"]) == 0
    assert "mrlm/Math-v0 written to" in capsys.readouterr().out
    assert '"kinds": ["addition"]' in (tmp_path / "space" / "server" / "app.py").read_text()
    assert "openenv_ws" in (tmp_path / "space" / "openenv.yaml").read_text()


def test_export_writes_a_package_for_verifiers(tmp_path: Path) -> None:
    assert cli.main(["export", "verifiers", "math", str(tmp_path), "--env-arg", "kinds=[addition]"]) == 0
    package = (tmp_path / "mrlm_math" / "__init__.py").read_text()
    assert 'env_id = "mrlm/Math-v0"' in package and '{"kinds": ["addition"]}' in package
    assert 'name = "mrlm-math"' in (tmp_path / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", ["Versioned-v0", "Plain", "mine/Named"])
def test_an_environment_without_a_namespace_or_a_version_is_exported_as_a_package_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exported_envs.py").write_text(
        "import gymnasium\nfrom tests.support.guessing import GuessNumber\n"
        'for name in ("Versioned-v0", "Plain", "mine/Named"):\n    gymnasium.register(name, GuessNumber)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["export", "verifiers", f"exported_envs:{name}", str(tmp_path / "out")]) == 0
    [package] = (tmp_path / "out").glob("mrlm_*")
    assert package.name in ("mrlm_versioned", "mrlm_plain", "mrlm_named")


def test_a_game_of_several_agents_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pettingzoo")
    assert cli.main(["export", "verifiers", "mrlm_envs.debate:env", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "several agents" in told and "mrlm/Debate-v0" in told and told.count("\n") == 1


def test_serve_openenv_answers_over_http() -> None:
    pytest.importorskip("uvicorn")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mrlm_train.cli",
        "serve",
        "--openenv",
        "--environments",
        "math",
        "--port",
        str(port),
    ]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _await(f"http://127.0.0.1:{port}", server)
    finally:
        server.kill()
        server.wait(30)


def _await(address: str, server: "subprocess.Popen[bytes]") -> None:
    """Wait until a server of OpenEnv's protocol answers."""
    deadline = time.monotonic() + 120
    while True:
        assert server.poll() is None and time.monotonic() < deadline
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=10) as reply:
                assert json.load(reply)["status"] == "healthy"
            return
        except OSError:
            time.sleep(0.1)


def test_an_evaluation_is_exported_to_inspect_or_the_install_line_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.eval"
    command = ["eval", "--model", "tiny", "--environment", "math", "--num-episodes", "2", "--max-turn-tokens", "4"]
    code = cli.main([*command, "--export-inspect", str(path)])
    try:
        import inspect_ai  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        assert code == 1 and 'pip install "mrlm[inspect]"' in capsys.readouterr().err
    else:
        assert code == 0 and path.is_file()


@pytest.mark.skipif(not OPENENV.exists(), reason="needs OpenEnv in an environment of its own: make test-peers")
def test_two_steps_train_against_openenvs_own_scaffold(tmp_path: Path) -> None:
    from mrlm_train.grpo import GRPOConfig, GRPOTrainer
    from tests.support.playing import TOKENIZER, tiny_model

    subprocess.run([OPENENV, "-m", "openenv.cli", "init", "toy_env"], cwd=tmp_path, check=True, timeout=120)
    code = tmp_path / "toy_env" / "server" / "app.py"
    one, many = "max_concurrent_envs=1", "max_concurrent_envs=16"  # the scaffold's comment says to raise it
    assert one in code.read_text()
    code.write_text(code.read_text().replace(one, many))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    command = [OPENENV, "-m", "uvicorn", "toy_env.server.app:app", "--port", address.rpartition(":")[2]]
    server = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        _await(address, server)
        settings = {"per_device_train_batch_size": 4, "num_generations": 2, "max_steps": 2, "max_turn_tokens": 4}
        quiet = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "logging_steps": 1}
        args = GRPOConfig(str(tmp_path / "run"), max_completion_length=80, **settings, **quiet)
        envs = [{"id": "mrlm/OpenEnv-v0", "kwargs": {"address": address, "max_turns": 2}}]
        trainer = GRPOTrainer(tiny_model(), envs, args, processing_class=TOKENIZER)
        trainer.train()
    finally:
        server.kill()
        server.wait(30)
    rows = trainer.state.log_history[:2]
    assert trainer.state.global_step == 2 and all(row["invalid"] == 0.0 for row in rows)
    assert all(row["reward"] > 0 and row["turns"] == 2 for row in rows)  # it pays 0.1 for a character that it echoes
