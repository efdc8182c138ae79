"""The `mrlm` command as a person meets it, and the training behind it on the toy policy."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mrlm_train.cli import main
from tests.support.paths import ROOT

DATA = ROOT.parent / "shared" / "data"
CONFIG = ROOT / "examples" / "configs" / "math_grpo.yaml"
SMALL = [
    "training.batch_size=8",
    "grpo.num_generations=4",
    "grpo.max_completion_length=16",
    "grpo.max_turn_tokens=10",
    "training.save_strategy=steps",
    "training.save_steps=2",
    "grpo.eval_episodes=8",
    "envs.0.reward=tests.support.guessing:share_of_digits",
]
CLOCKS = ("step_time", "tokens_per_second")


def mrlm(*arguments, timeout=280, **kwargs):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "mrlm_train.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, **kwargs)


def settings(*pairs):
    return [part for pair in pairs for part in ("--set", pair)]


def train(output, *more, steps=4, resume=None, callbacks=()):
    """`mrlm train` in this process."""
    pytest.importorskip("trl")
    from mrlm_train.experiment import config
    from mrlm_train.experiment import train as training

    overrides = [*SMALL, f"training.max_steps={steps}", "training.lr_scheduler_type=constant", *more]
    return training.run(config.load(CONFIG, overrides, str(output)), resume, callbacks)


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps, with a checkpoint every two."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder)
    return folder


def test_info_lists_environments_and_versions_without_torch():
    code = (
        "import sys; from mrlm_train.cli import main; main(['info']); "
        "sys.stderr.write(str([m for m in ('transformers', 'trl') if m in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert "mrlm/Math-v0" in result.stdout and "difficulty=(1, 3)" in result.stdout and "gymnasium" in result.stdout
    assert result.stderr == "[]"


TRAINERS = "torch transformers trl accelerate peft datasets tqdm pydantic annotated_types omegaconf "
OTHER_EXTRAS = "grpc grpc_health google jsonschema simpleeval pettingzoo openai sqlglot rapidfuzz inspect_ai"
SHORT_EVAL = ["eval", "--model", "tiny", "--environment", "math", "--num-episodes", "1", "--max-turn-tokens", "2"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["info"], 0, 'needs jsonschema: pip install "mrlm[tools]"'),
        (["play", "math", "--seed", "1"], 0, "[user]"),
        (
            ["serve", "--environments", "math"],
            1,
            'mrlm: grpc is not installed; install the server: pip install "mrlm[serve]"',
        ),
        (["train", "--config", "c.yaml"], 1, 'install them: pip install "mrlm[train]"'),
    ],
    ids=["info", "play", "serve", "train"],
)
def test_a_plain_installation_without_extras_has_a_working_command(arguments, code, said):
    result = mrlm_without(TRAINERS + OTHER_EXTRAS, arguments)
    assert result.returncode == code and said in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_the_extra_train_is_enough_to_evaluate():
    result = mrlm_without(OTHER_EXTRAS, SHORT_EVAL)
    assert result.returncode == 0 and "95 % interval" in result.stdout, result.stderr


def test_a_log_for_inspect_is_refused_before_the_episodes_where_something_is_missing():
    result = mrlm_without(OTHER_EXTRAS, [*SHORT_EVAL, "--export-inspect", "x.eval"])
    assert result.returncode == 1 and "pip install 'mrlm[tools]'" in result.stderr and not result.stdout


def mrlm_without(absent, arguments):
    """Run the command where these packages are not installed."""
    program = f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent.split()} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
from mrlm_train.cli import main
sys.exit(main({arguments}))
"""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, stdin=subprocess.DEVNULL)


def test_a_person_plays_and_may_see_the_reference():
    asked = "/expert\nI do not know\n"
    result = mrlm("play", "math", "--seed", 3, "--env-arg", "kinds=[addition]", "--env-arg", "max_turns=2", input=asked)
    assert "What is" in result.stdout and "\\boxed{" in result.stdout and "I found no final answer" in result.stdout
    reference = next(line for line in result.stdout.splitlines() if "\\boxed{" in line and "+" in line).removeprefix(
        "> "
    )
    won = mrlm("play", "math", "--seed", 3, "--env-arg", "kinds=[addition]", input=f"```\n{reference}\n```\n")
    assert "solved; return 1 (correct 1)" in won.stdout and won.returncode == 0


def test_a_person_plays_tools_without_writing_json():
    asked = "\n/nope 1\n/calculator\n/calculator (2+3)*7\n/answer 35\n"
    result = mrlm("play", "tools", "--seed", 3, "--env-arg", "kinds=[calculator]", input=asked)
    assert "calculator(expression): Evaluates" in result.stdout and "no tool 'nope'" in result.stdout
    assert "it is called as calculator(expression)" in result.stdout
    assert "[tool]\n35" in result.stdout and "That is not right." in result.stdout
    several = "/write_file path='a b.txt', content=\"it's\"\n/read_file a b.txt\n/quit\n"
    files = mrlm("play", "tools", "--seed", 1, "--env-arg", "call_format=react", input=several)
    assert "Action: write_file" in files.stdout and "[tool]\nit's" in files.stdout
    assert files.stdout.endswith("left before the end\n")
    solved = mrlm("play", "tools", "--seed", 3, input="/expert!\n" * 9)
    assert "solved; return 1" in solved.stdout


def test_a_person_plays_a_debate():
    result = mrlm("play", "debate", "--seed", 1, input="\n/expert\n/expert!\nI hold to [C1].\n/expert!\n")
    assert result.stdout.count("\n[user]\n") == 4  # the motion, and after each of three statements the answer
    assert "Your evidence:" in result.stdout and "The debate is" in result.stdout and "; return 0." in result.stdout
    assert result.returncode == 0 and not result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "nowhere.yaml"], "mrlm: config nowhere.yaml: No such file or directory"),
        (["train", "--config", CONFIG, "--set", "grpo.lerning_rate=1"], "unknown key 'lerning_rate' in 'grpo'"),
        (["train", "--config", CONFIG, "--set", "model.model_name_or_path=./nowhere"], "no such folder"),
        (["train", "--config", CONFIG, "--set", "envs.0.id=mrlm/Maths-v0"], "Maths"),
        (
            ["train", "--config", CONFIG, "--set", "envs.0.kwargs.kind=[addition]"],
            "unknown argument 'kind'; did you mean",
        ),
        (["train", "--config", CONFIG, "--set", "training.batch_size=9"], "batch_size 9, num_minibatches 1"),
        (["train", "--config", CONFIG, "--resume", "latest"], "no complete checkpoint"),
        (["eval", "--model", "./nowhere", "--environment", "math"], "no such folder"),
        (["play", "maths"], "maths"),
        (["play", "math", "--env-arg", "difficulty"], "--env-arg difficulty: expected NAME=VALUE"),
        (["play", "math", "--env-arg", "tasks=no.jsonl"], r"tasks no.jsonl: no such file"),
    ],
)
def test_a_fault_of_the_users_is_one_line(arguments, message, tmp_path, capsys):
    pytest.importorskip("trl")
    if arguments[0] == "train":
        arguments = [*arguments, "--output", tmp_path]
    code = main([str(argument) for argument in arguments])
    errors = capsys.readouterr().err
    last = errors.strip().splitlines()[-1]
    assert code == 1 and last.startswith("mrlm: ") and message in last, errors
    assert "Traceback" not in errors


def test_help_shows_the_defaults():
    assert "(default: 200)" in mrlm("eval", "--help").stdout


def test_a_run_leaves_config_metrics_transcripts_checkpoints_and_the_model(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for key in ("loss", "reward", "reward_std", "success", "entropy", "grad_norm", "tokens_per_second"):
        assert isinstance(rows[0][key], int | float), key
    assert {"checkpoint-2", "checkpoint-4", "config.yaml", "episodes", "final"} <= {p.name for p in trained.iterdir()}
    card = (trained / "README.md").read_text()
    assert "fine-tuned version of `tiny`" in card and f'model="{trained / "final"}"' in card and "None" not in card
    transcript = json.loads(next((trained / "episodes").iterdir()).read_text().splitlines()[0])
    assert transcript["env_id"] == "mrlm/Math-v0" and transcript["messages"]
    assert json.loads((trained / "final" / "mrlm.json").read_text())["envs"][0]["kwargs"]["kinds"] == ["addition"]


def test_resume_of_a_killed_run_goes_on_with_the_same_curve(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for lost in ("checkpoint-4", "final"):
        shutil.rmtree(folder / lost)
    half = folder / "checkpoint-3"  # the kill came while this one was written
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"cut")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 99.0}\n{"step": 5, "lo')
    train(folder, resume="latest")
    assert metrics(folder) == metrics(trained)
    assert metrics(trained)[3]["grad_norm"] > 0  # or the same curve would prove nothing


def test_the_checkpoints_after_the_one_that_is_resumed_do_not_count_as_the_latest(trained, tmp_path):
    from mrlm_train.experiment import checkpoints

    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    train(folder, "training.save_strategy=no", resume=str(folder / "checkpoint-2"), steps=3)
    assert checkpoints.latest(folder) == folder / "checkpoint-2"
    assert checkpoints.fault(folder / "replaced-checkpoint-4") is None


def test_control_c_waits_for_the_end_of_the_generation_where_a_resume_is_exact(tmp_path):
    pytest.importorskip("trl")
    from transformers import TrainerCallback

    from mrlm_train.experiment.train import Interrupted

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 0:
                os.kill(os.getpid(), signal.SIGINT)

    twice = ("grpo.num_iterations=2", "training.save_steps=4")
    train(tmp_path / "whole", *twice)
    with pytest.raises(Interrupted, match="interrupted at step 2"):
        train(tmp_path / "cut", *twice, callbacks=[Interrupt()])
    train(tmp_path / "cut", *twice, resume="latest")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_resume_from_within_a_generation_is_told(tmp_path, capsys):
    train(tmp_path, "grpo.num_iterations=2", steps=3)
    train(tmp_path, "grpo.num_iterations=2", steps=4, resume="latest")
    assert "warning: checkpoint-3 lies within the 2 steps that a batch serves" in capsys.readouterr().err


def test_control_c_writes_a_checkpoint_where_only_the_best_are_saved(tmp_path):
    pytest.importorskip("trl")
    from transformers import TrainerCallback

    from mrlm_train.experiment.train import Interrupted

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    watched = ("training.metric_for_best_model=eval_n", "training.greater_is_better=true")  # the first is the best
    best = ("training.save_strategy=best", "training.eval_strategy=steps", "training.eval_steps=1", *watched)
    train(tmp_path / "whole", *best)
    with pytest.raises(Interrupted, match="interrupted at step 3"):
        train(tmp_path / "cut", *best, callbacks=[Interrupt()])
    assert (tmp_path / "cut" / "checkpoint-3").is_dir() and not (tmp_path / "whole" / "checkpoint-3").exists()
    train(tmp_path / "cut", *best, resume="latest")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_run_that_has_reached_its_goal_stops_at_the_end_of_the_generation(tmp_path):
    goal = ("training.stop_at_success=0.0", "training.eval_strategy=steps", "training.eval_steps=1")
    train(tmp_path, "grpo.num_iterations=2", "training.save_steps=4", *goal)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_new_run_does_not_mix_with_the_checkpoints_of_an_earlier_one(trained):
    with pytest.raises(ValueError, match=r"checkpoint-4 is from an earlier run: go on with it \(--resume latest\)"):
        train(trained)


def test_early_stopping_without_what_it_watches_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"early_stopping_patience needs training\.eval_strategy"):
        train(tmp_path, "training.early_stopping_patience=2")


def test_a_goal_that_no_evaluation_can_reach_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"stop_at_success needs evaluations .* training\.eval_strategy"):
        train(tmp_path, "training.stop_at_success=0.9", "training.max_steps=1")


def test_sft_evaluates_its_eval_envs(tmp_path):
    from mrlm_train.experiment import config
    from mrlm_train.experiment import train as training

    path = tmp_path / "sft.yaml"
    path.write_text(
        "model: {model_name_or_path: tiny}\ntraining: {algorithm: sft, max_steps: 2, per_device_train_batch_size: 4}\n"
        "sft: {num_episodes: 8}\nrollout: {system_prompt: Add., eval_episodes: 4, max_completion_length: 8}\n"
        "envs: [{id: math, kwargs: {kinds: [addition]}}]\neval_envs: [{id: math, kwargs: {kinds: [addition]}}]\n"
    )
    final = training.run(config.load(path, output_dir=str(tmp_path / "run"))).parent
    rows = [json.loads(line) for line in (final / "metrics.jsonl").read_text().splitlines()]
    seen = [row for row in rows if "eval_success" in row]
    assert len(seen) == 1 and seen[0]["eval_n"] == 4


def test_another_seed_is_another_run_and_its_last_step_is_shown_once(trained, tmp_path, capsys):
    train(tmp_path, "seed=1", steps=2)
    assert metrics(tmp_path)[0]["reward"] != metrics(trained)[0]["reward"]
    assert "".join(capsys.readouterr()).count("step 2/2: ") == 1


def test_eval_reads_the_model_and_the_arguments_it_was_trained_with(trained, tmp_path):
    out, episodes = tmp_path / "result.json", tmp_path / "episodes.jsonl"
    result = mrlm(
        *("eval", "--model", trained / "final", "--environment", "math", "--num-episodes", 12),
        *("--max-turn-tokens", 8, "--output", out, "--episodes", episodes),
    )
    assert result.returncode == 0, result.stderr
    assert '"kinds": ["addition"]' in result.stderr and "success" in result.stdout
    assert json.loads(out.read_text())["n"] == 12 and len(episodes.read_text().splitlines()) == 12


def test_eval_does_not_take_the_training_split_for_its_own(tmp_path):
    pytest.importorskip("transformers")
    from mrlm_train.experiment import run_directory
    from mrlm_train.rollout.environments import EnvEntry

    run_directory.write_environments(tmp_path, [EnvEntry("my/E-v0", {"split": "train", "low": 1})])
    assert run_directory.read_environments(str(tmp_path)) == {"my/E-v0": {"low": 1}}


def test_a_model_is_evaluated_behind_the_system_prompt_it_was_trained_with(tmp_path):
    train(tmp_path / "run", "rollout.system_prompt=Be brief.", steps=1)
    command = ["--model", str(tmp_path / "run" / "final"), "--environment", "math", "--num-episodes", "2"]
    assert main(["eval", *command, "--max-turn-tokens", "2", "--episodes", str(tmp_path / "e.jsonl")]) == 0
    first = json.loads((tmp_path / "e.jsonl").read_text().splitlines()[0])
    assert first["messages"][0] == {"role": "system", "content": "Be brief."}


def test_several_attempts_train_too(tmp_path):
    train(tmp_path, "envs.0.kwargs.max_turns=3", "grpo.max_completion_length=80", "grpo.max_turn_tokens=8", steps=2)
    assert metrics(tmp_path)[0]["turns"] > 1.5


def test_the_trainer_file_is_a_script(tmp_path):
    pytest.importorskip("trl")
    command = [sys.executable, "mrlm_train/grpo.py", "--config", str(CONFIG), "--output", str(tmp_path)]
    command += settings(*SMALL, "training.max_steps=1")
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "final" / "config.json").is_file()


def test_control_c_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path):
    pytest.importorskip("trl")
    command = [sys.executable, "-m", "mrlm_train.cli", "train", "--config", str(CONFIG), "--output", str(tmp_path)]
    command += settings(*SMALL, "training.max_steps=5000", "training.save_steps=5000")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT)
    try:
        deadline = time.monotonic() + 240
        while not _lines(tmp_path / "metrics.jsonl") and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert "--resume latest" in errors.strip().splitlines()[-1] and "Traceback" not in errors
    assert process.returncode == 1 and list(tmp_path.glob("checkpoint-*/trainer_state.json"))


def _lines(path):
    return path.read_text().splitlines() if path.is_file() else []


@pytest.mark.skipif(not DATA.is_dir(), reason="the real GSM8K is not beside this checkout")
def test_real_gsm8k_trains(tmp_path):
    pytest.importorskip("trl")
    from mrlm_train.experiment import config
    from mrlm_train.experiment import train as training

    overrides = [
        "model.model_name_or_path=tiny",
        f"envs.0.kwargs.tasks={{train: {DATA / 'gsm8k_train.jsonl'}, test: {DATA / 'gsm8k_test.jsonl'}}}",
        *("training.max_steps=2", "training.batch_size=8", "grpo.num_generations=4", "grpo.max_completion_length=12"),
        *(
            "grpo.eval_episodes=4",
            "training.eval_steps=2",
            "training.num_epochs=null",
            "training.per_device_train_batch_size=null",
        ),
    ]
    run = config.load(ROOT / "examples" / "configs" / "gsm8k_grpo.yaml", overrides, str(tmp_path))
    training.run(run)
    assert [row["step"] for row in metrics(tmp_path)][:2] == [1, 2]
    assert any("eval_success" in row for row in metrics(tmp_path))


def test_a_source_smaller_than_a_batch_is_an_error_and_not_a_run_of_no_steps(tmp_path):
    pytest.importorskip("trl")
    from mrlm_train.experiment import config
    from mrlm_train.experiment import train as training

    tasks = "envs.0.kwargs={tasks: [{question: '1+1?', answer: '2'}]}"
    run = config.load(CONFIG, [tasks, "training.max_steps=-1", "training.num_epochs=1"], str(tmp_path))
    with pytest.raises(ValueError, match="do not fill one batch"):
        training.run(run)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_error(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "mrlm_train.cli"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, cwd=ROOT, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
