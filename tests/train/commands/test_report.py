"""`mrlm report`: one page from what is on disk, whatever is on disk; looked at by a browser where there is one."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mrlm_train.cli import main
from mrlm_train.episodes.record import Episode, read, write
from mrlm_train.ppo import PPOConfig, PPOTrainer
from mrlm_train.token_figures import annotate, texts
from tests.support.guessing import GuessNumber
from tests.support.playing import TOKENIZER, tiny_model

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> \u2028 é"


def run_directory(folder: Path, rows: list[dict[str, Any]], **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def sampled(text: str, **changes: Any) -> Episode:
    ids = TOKENIZER.encode(text)
    messages = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": text}]
    episode = Episode("E", messages=messages, completion_ids=ids, action_mask=[1] * len(ids), **changes)
    episode.turn_rewards, episode.turn_ends, episode.logprobs = [1.0], [len(ids) - 1], [-0.5] * len(ids)
    annotate([episode], {"advantages": torch.tensor([0.25])}, TOKENIZER)
    return episode


def page(*runs: Path) -> tuple[str, dict[str, Any]]:
    output = runs[0].parent / "report.html"
    assert main(["report", *map(str, runs), "-o", str(output)]) == 0
    text = output.read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return text, json.loads(found[1])


def shown(html: Path, tmp_path: Path) -> str:
    """The page's document after its script has run, as Chromium has it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=3000 --dump-dom"
    command = [chromium, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", html.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_page_holds_curves_tables_settings_and_episodes_and_loads_nothing(tmp_path: Path) -> None:
    rows = [{"step": s, "reward": s / 10, "reward/E": s / 10, "eval_E_success": s / 20} for s in range(1, 11)]
    run = run_directory(tmp_path / "a", rows, training={"learning_rate": 0.1})
    write(run / "episodes" / "step-000010.jsonl", [sampled("four", success=True)])
    text, data = page(run)
    assert not re.search(r"""(src|href)=["']|url\(|@import|fetch\(""", text)
    [found] = data["runs"]
    assert found["series"]["reward"][-1] == [10, 1.0]
    assert found["environments"] == [
        {"name": "E", "training reward": 0.55, "training success": None, "test": 0.5, "at step": 10, "best test": 0.5}
    ]
    [episode] = found["samples"][0]["episodes"]
    assert "".join(episode["tokens"]["text"]) == "four" and set(episode["tokens"]["advantage"]) == {0.25}


def test_what_an_episode_says_cannot_become_markup(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "a<b>", [{"step": 1, HOSTILE: 1.0, f"reward/{HOSTILE}": 1.0}], note=HOSTILE)
    hostile = Episode(HOSTILE, messages=[{"role": "assistant", "content": HOSTILE}], turn_rewards=[0.0])
    write(run / "episodes" / "step-000001.jsonl", [sampled(HOSTILE), hostile])
    text, data = page(run)
    assert "onerror" in text and "<img" not in text
    assert data["runs"][0]["samples"][0]["episodes"][1]["messages"][0]["content"] == HOSTILE
    document = shown(tmp_path / "report.html", tmp_path)
    assert "<title>MRLM report</title>" in document and "<img" not in document and "&lt;img src=x" in document


def test_a_run_that_is_still_written_and_numbers_that_are_none(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "a", [{"step": 1, "reward": float("nan"), "kl": float("inf")}, {"step": 2, "kl": 1}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    _, data = page(run)
    assert data["runs"][0]["series"]["kl"] == [[1, None], [2, 1]] and data["runs"][0]["samples"] == []
    assert "Episodes" in shown(tmp_path / "report.html", tmp_path)


def test_the_tenth_stage_comes_after_the_second(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        run_directory(tmp_path / "run" / f"stage-{number}-sft", [{"step": 1, "loss": 1.0}])
    names = [run["name"] for run in page(tmp_path / "run")[1]["runs"]]
    assert names == ["run/stage-1-sft", "run/stage-2-sft", "run/stage-10-sft"]


def test_stages_are_runs_and_long_ones_are_thinned_out(tmp_path: Path) -> None:
    rows = [{"step": step, "reward": 1.0} for step in range(5000)]
    for stage in ("stage-1-sft", "stage-2-ppo"):
        run = run_directory(tmp_path / "staged" / stage, rows)
    for step in range(20):
        write(run / "episodes" / f"step-{step:06d}.jsonl", [sampled("4")] * 8)
    _, data = page(tmp_path / "staged")
    assert [run["name"] for run in data["runs"]] == ["staged/stage-1-sft", "staged/stage-2-ppo"]
    assert len(data["runs"][0]["series"]["reward"]) == 1000
    steps = [sample["step"] for sample in data["runs"][1]["samples"]]
    assert len(steps) == 8 and steps[0] == 0 and steps[-1] == 19


@pytest.mark.parametrize("runs", [[], ["nowhere"]])
def test_no_run_is_one_line(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *runs]) == 1
    assert "\n" not in capsys.readouterr().err.strip()


def test_ppo_saves_what_the_viewer_shows(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"per_device_train_batch_size": 8, "max_steps": 1, "max_turn_tokens": 4, "beta": 0.1}
    arguments |= {"max_completion_length": 60, "learning_rate": 1e-3, "save_strategy": "no", "save_episodes": 2}
    tiny_model().save_pretrained(tmp_path / "model")  # beta needs a reference, which a path gives
    model = str(tmp_path / "model")
    args = PPOConfig(str(tmp_path), logging_steps=1, report_to=[], disable_tqdm=True, **arguments)
    PPOTrainer(model, GuessNumber, args, processing_class=TOKENIZER).train()
    kept = list(read(tmp_path / "episodes" / "step-000001.jsonl"))
    assert len(kept) == 2
    for episode in kept:
        assert episode.action_mask and episode.completion_ids
        for name in ("advantage", "value", "kl"):
            known = [value is not None for value in episode.token_figures[name]]
            assert known == [bool(bit) for bit in episode.action_mask]
        assert "".join(episode.token_figures["text"]) == TOKENIZER.decode(episode.completion_ids)


@pytest.mark.parametrize("name", ["wandb", "[tensorboard, wandb]"])
def test_a_tracker_that_is_not_installed_is_told_before_anything_loads(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stands_for = importlib.util.find_spec, {"wandb": "no_such_package", "tensorboard": "json"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: real(stands_for.get(name, name), *rest))
    path = tmp_path / "c.yaml"
    path.write_text(
        f"model: {{model_name_or_path: tiny}}\ntraining: {{algorithm: ppo, report_to: {name}}}\nenvs: [math]\n"
    )
    assert main(["train", "--config", str(path), "--output", str(tmp_path / "out")]) == 1
    assert 'wandb is not installed; pip install "mrlm[wandb]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dashboard_without_trackio_says_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "trackio" else real(name, *rest)
    )
    path = tmp_path / "c.yaml"
    path.write_text("model: {model_name_or_path: tiny}\ntraining: {algorithm: ppo}\nenvs: [math]\n")
    assert main(["train", "--config", str(path), "--output", str(tmp_path / "out"), "--dashboard"]) == 1
    assert 'trackio is not installed; pip install "mrlm[trackio]"' in capsys.readouterr().err


def test_figures_belong_to_sampled_tokens_alone() -> None:
    episode = Episode("E", completion_ids=TOKENIZER.encode("abc"), action_mask=[1, 0, 1])
    tables = {name: torch.tensor([[1.0, 2.0, 3.0, 9.0]]) for name in ("advantages", "old_values")}
    log_probs = {"old_per_token_logps": torch.zeros(1, 4), "ref_per_token_logps": torch.full((1, 4), -0.5)}
    annotate([episode], {**tables, **log_probs}, TOKENIZER)
    assert episode.token_figures == {
        "text": ["a", "b", "c"],
        "advantage": [1.0, None, 3.0],
        "value": [1.0, None, 3.0],
        "kl": [0.5, None, 0.5],
    }
    assert Episode.from_json(episode.to_json()) == episode


@pytest.mark.parametrize("text", ["", "a b  c", "12 + 30 = 42\n"])
def test_the_texts_of_tokens_join_to_the_text(text: str) -> None:
    assert "".join(texts(TOKENIZER.encode(text), TOKENIZER)) == text
