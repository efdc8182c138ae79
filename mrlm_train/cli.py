"""The `mrlm` command: train, eval, collect, report, serve, export, info, play, demo, check, prove, regrade.

A command is a function: its parameters are the flags, its docstring is the help (tyro reads both). Libraries are
imported by the command that needs them, so `mrlm info`, `mrlm play` and `mrlm serve` work without torch. A user's
error is one line on standard error and exit code 1; `MRLM_TRACEBACK=1` shows where it was raised.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from mrlm_train.commands.flags import (
    GREEDY,
    ONE_GPU,
    SAMPLED,
    Environments,
    Generation,
    Models,
    Pairs,
    Path,
    Positive,
    Repeated,
    Split,
    Training,
    need_trainers,
    values,
)
from mrlm_train.commands.trust import check, prove, regrade

NEXT = """\
mrlm trains language models by reinforcement learning on text environments. What to do next:

  mrlm demo                                 train a toy policy on sums, in about five minutes, with no download
  mrlm info                                 environments, algorithms, devices, versions
  mrlm play math                            play an environment yourself
  mrlm check math                           is an environment sound? its quality card
  mrlm train --config my.yaml               train a model; examples/configs/ has a file for each kind of run
  mrlm eval --model DIR --environment math  measure a model
  mrlm serve --environments math            serve environments to other programs

mrlm COMMAND --help lists the flags of a command."""


def train(
    config: Annotated[str, arg(metavar="YAML")],
    output: Annotated[str | None, arg(metavar="DIR")] = None,
    resume: Annotated[str | None, arg(metavar="CKPT")] = None,
    overrides: Annotated[Repeated, arg(name="set", metavar="KEY=VALUE")] = (),
    dashboard: bool = False,
) -> int:
    """Train a model as a YAML file says.

    Args:
        config: The configuration.
        output: Replaces output_dir of the configuration.
        resume: A checkpoint folder, or `latest` of the run directory.
        overrides: Replace a setting of the configuration, for example training.max_steps=3; may be given again.
        dashboard: Report to Trackio, and show it in a browser while training lasts.
    """
    need_trainers()
    from mrlm_train.commands import trackers
    from mrlm_train.experiment import config as configuration

    overrides = (*overrides, *trackers.DASHBOARD) if dashboard else overrides
    run = configuration.load(config, overrides, output)
    if "LOCAL_RANK" not in os.environ:
        trackers.check(run)
        configuration.require(run)
        if dashboard:
            trackers.show()
    from mrlm_train.experiment import distributed

    if distributed.must_launch(run):
        flags = {"--config": config, "--output": output, "--resume": resume}
        command = [part for flag, value in flags.items() if value is not None for part in (flag, value)]
        return distributed.launch(run, ["train", *command, *(f"--set={text}" for text in overrides)])
    from mrlm_train.experiment import train as training  # takes seconds: after the errors in the file

    training.run(run, resume=resume)
    distributed.leave()
    return 0


def evaluate(
    model: Models = (),
    environment: Environments = (),
    env_arg: Pairs = (),
    world_model: Annotated[str | None, arg(metavar="FILE")] = None,
    agent: Pairs = (),
    address: Annotated[str | None, arg(metavar="HOST:PORT")] = None,
    base_url: Annotated[str | None, arg(metavar="URL")] = None,
    num_episodes: Positive = 200,
    samples: Positive = 1,
    split: Split = "test",
    generation: OmitArgPrefixes[Generation] = GREEDY,
    output: Annotated[str | None, arg(metavar="FILE")] = None,
    episodes: Annotated[str | None, arg(metavar="FILE")] = None,
    export_inspect: Annotated[str | None, arg(metavar="FILE")] = None,
) -> None:
    """Measure the success of models in environments.

    Args:
        model: A model or adapter folder, a Hub name, tiny, or openai:NAME of a chat endpoint; may be given again.
        environment: Short name (math), id, or module:id; may be given again.
        env_arg: Argument of the environment, the value in YAML, for example difficulty=[1,2]; may be given again.
        world_model: Instead: ask the model for the observations of the episodes in a file.
        agent: Who acts as an agent of a game: a model as above or module:function; the policy by default.
        address: Play on `mrlm serve`, one address or several.
        base_url: Where openai:NAME is, for example http://127.0.0.1:8000/v1; OpenAI by default.
        num_episodes: Tasks in each environment; seeds 0 to N-1.
        samples: Attempts at each task, for pass@k and avg@k; needs a temperature above 0.
        split: Which tasks.
        generation: How replies are sampled.
        output: Write the result as JSON, with a line for each episode.
        episodes: Write the episodes as JSONL.
        export_inspect: Write the episodes as an Inspect log, FILE.eval.
    """
    if not model:
        raise ValueError("eval: --model is missing; name a folder, a Hub model, tiny, or openai:NAME")
    if bool(environment) == bool(world_model):
        raise ValueError("eval: give either --environment ENV or --world-model FILE")
    if (world_model or export_inspect) and len(model) > 1:
        raise ValueError("eval: --world-model and --export-inspect take one --model")
    played = (env_arg, agent, address, episodes, export_inspect, samples > 1, generation.temperature)
    if world_model and any(played):
        raise ValueError(
            "eval: --world-model plays nothing: it asks greedily for what is in FILE; remove --env-arg, --agent, "
            "--address, --samples, --temperature, --episodes, --export-inspect"
        )
    if samples > 1 and generation.temperature == 0:
        raise ValueError(f"eval: {samples} samples of a task are all alike at temperature 0; give --temperature 1")
    names = _at_endpoints(model, base_url)
    need_trainers()
    if export_inspect:
        from mrlm_envs.integrations import inspect  # needs the extra `tools`

        inspect.require("inspect-ai")  # before the episodes, which may take hours
    from mrlm_train.inference.hub import check_exists

    results = {}
    entries = _playable(environment, env_arg, agent, address)
    for name in names:
        check_exists(name)  # before torch, which takes seconds
    from mrlm_train.commands import evaluate as command
    from mrlm_train.inference.policy import make

    load = lambda name: make(name, engine=generation.engine, rows=generation.rows)
    if world_model is not None:
        if names[0].startswith("openai:"):
            raise ValueError("eval: --world-model scores tokens, which an endpoint does not show; name a model folder")
        command.world_model(names[0], load(names[0]), world_model, output)
        return
    listed = command.trained_environments(names, entries)
    for name in names:
        results[name] = command.run(load(name), listed, num_episodes, split, generation.sampling(), samples)
    command.report(results, split, output, episodes, export_inspect)


def collect(
    environment: Environments,
    num_episodes: Annotated[Positive, arg(aliases=["-n"])],
    output: Annotated[str, arg(aliases=["-o"], metavar="FILE")],
    model: Path = None,
    expert: bool = False,
    env_arg: Pairs = (),
    agent: Pairs = (),
    address: Annotated[str | None, arg(metavar="HOST:PORT")] = None,
    base_url: Annotated[str | None, arg(metavar="URL")] = None,
    preferences: Annotated[str | None, arg(metavar="FILE")] = None,
    filter_reward: Annotated[float | None, arg(metavar="T")] = None,
    group_size: Positive = 1,
    split: Split = "train",
    generation: OmitArgPrefixes[Generation] = SAMPLED,
) -> None:
    """Play episodes and keep them as JSONL or Parquet (docs/episodes.md).

    Args:
        environment: Short name (math), id, or module:id; may be given again.
        num_episodes: Episodes to play.
        output: Where the episodes go; a name that ends in .parquet makes it a Parquet file.
        model: A model or adapter folder, a Hub name, tiny, or openai:NAME of a chat endpoint.
        expert: The environments' own reference solutions instead.
        env_arg: Argument of the environment, the value in YAML, for example difficulty=[1,2]; may be given again.
        agent: Who acts as an agent of a game: a model as above or module:function; the policy by default.
        address: Play on `mrlm serve`, one address or several.
        base_url: Where openai:NAME is, for example http://127.0.0.1:8000/v1; OpenAI by default.
        preferences: Also write the best against the worst attempt at each task, for DPO; needs --group-size.
        filter_reward: Keep episodes with a reward of at least T.
        group_size: Attempts at each task.
        split: Which tasks.
        generation: How replies are sampled.
    """
    if expert == bool(model):
        raise ValueError("collect: give either --model PATH or --expert")
    if expert and address:
        raise ValueError("collect: servers do not give away reference solutions; play --expert without --address")
    if expert and group_size > 1:
        raise ValueError("collect: --expert solves each task once; --group-size and --preferences need --model")
    if preferences and group_size < 2:
        raise ValueError("collect: --preferences compares attempts at one task; give --group-size 2 or more")
    names = _at_endpoints([model] if model else [], base_url)
    need_trainers()
    envs = [entry.on_split(split) for entry in _playable(environment, env_arg, agent, address)]
    from tqdm import tqdm

    from mrlm_train.commands import collect as command

    seed = generation.seed
    with tqdm(total=num_episodes, unit="episode", disable=None) as bar:
        seen = lambda episode: bar.update()
        if model is None:
            found = command.collect_experts(envs, num_episodes, output, filter_reward, seed, progress=seen)
        else:
            from mrlm_train.inference.policy import make

            policy = make(names[0], engine=generation.engine, rows=generation.rows)
            found = command.collect(
                *(policy, envs, num_episodes, output, generation.sampling(), group_size, filter_reward, seed),
                preferences=preferences,
                progress=seen,
            )
    print(f"{found}\n{found.written} written to {output}")
    if preferences is not None:
        print(f"{found.pairs} pairs written to {preferences}")


def play(
    environment: Positional[str],
    seed: int | None = None,
    split: Split | None = None,
    env_arg: Pairs = (),
    agent: Pairs = (),
) -> None:
    """Play an environment yourself.

    Args:
        environment: Short name (math), id, module:id, or module:function of a PettingZoo game.
        seed: The episode seed; a random one without it.
        split: Which tasks.
        env_arg: Argument of the environment, the value in YAML, for example difficulty=[1,2]; may be given again.
        agent: Who acts as an agent of a game, as module:function; you by default.
    """
    from mrlm_train.commands import play as command

    [entry] = _entries([environment], env_arg, agent)
    command.run(dataclasses.replace(entry, split=split), seed)


def credit_probe(
    model: Annotated[str, arg(metavar="PATH")],
    environment: str,
    env_arg: Pairs = (),
    tasks: Positive = 8,
    group_size: Positive = 8,
    branches: Positive = 16,
    generation: OmitArgPrefixes[Generation] = SAMPLED,
    output: Annotated[str | None, arg(metavar="FILE")] = None,
) -> None:
    """How well each way of credit agrees with Monte Carlo: which turn of an episode mattered?

    Args:
        model: A model folder, a Hub name or tiny.
        environment: Short name (sokoban), id, or module:id; one that can be replayed.
        env_arg: Argument of the environment, the value in YAML, for example difficulty=[1,2]; may be given again.
        tasks: Groups that are played.
        group_size: Episodes of each.
        branches: Fresh episodes from each state, for the reference.
        generation: How replies are sampled.
        output: Write the figures as JSON.
    """
    need_trainers()
    from mrlm_train.commands import credit_probe as command
    from mrlm_train.inference.hub import check_exists

    check_exists(model)
    sampling = dataclasses.asdict(generation)
    sampling["max_completion_length"] = sampling.pop("max_episode_tokens")
    (entry,) = _entries([environment], env_arg)
    command.run(model, entry, tasks, branches, output, num_generations=group_size, **sampling)


def info(
    environment: Positional[str | None] = None,
    model: Path = None,
    training: OmitArgPrefixes[Training] = ONE_GPU,
) -> None:
    """Show environments, algorithms, devices and versions; with --model, the memory a training needs.

    Args:
        environment: Only this one, with its whole page; a short name (math) or an id.
        model: A folder, a Hub name or tiny; only its config.json is read.
        training: The training whose memory is estimated.
    """
    if model is None:
        from mrlm_train.commands import info as command

        print(command.text() if environment is None else command.page(environment))
        return
    need_trainers()
    from mrlm_train.commands import memory

    print(memory.text(model, training))


def demo(output: Annotated[str, arg(metavar="DIR")] = "runs/demo", seed: int = 0, resume: bool = False) -> None:
    """Train the built-in toy policy on Math in about five minutes, without any download.

    Args:
        output: Where results go.
        seed: Of weights, tasks and sampling.
        resume: Go on with an interrupted demo.
    """
    need_trainers()
    from mrlm_train.commands import demo as command

    command.run(seed=seed, output=output, resume=resume)


def report(
    runs: Positional[tuple[str, ...]],
    output: Annotated[str, arg(aliases=["-o"], metavar="FILE")] = "report.html",
) -> None:
    """Write one HTML page about training runs: curves, tables, configurations, episodes token by token.

    Args:
        runs: Output directories of `mrlm train`; several are compared.
        output: The page.
    """
    if not runs:
        raise ValueError("report: name at least one run directory")
    from mrlm_train.commands import report as command

    command.write(runs, output)
    print(f"report written to {output}")


def export(
    kind: Positional[Literal["openenv", "verifiers"]],
    environment: Positional[str],
    folder: Positional[str],
    env_arg: Pairs = (),
) -> None:
    """Write a folder that brings an environment to another project.

    Args:
        kind: openenv (a Space that serves it, with what `openenv validate` wants) or verifiers (a package for vf-eval).
        environment: Short name (math), id, or module:id.
        folder: Where it goes.
        env_arg: Argument of the environment, the value in YAML, for example difficulty=[1,2]; may be given again.
    """
    from mrlm_train.commands import export as command

    [entry] = _entries([environment], env_arg)
    command.run(kind, entry.id, folder, **entry.kwargs)
    print(f"{entry.id} written to {folder}")


def serve_openenv(
    environments: Annotated[str, arg(metavar="ENV")], host: str = "127.0.0.1", port: int = 8000, env_arg: Pairs = ()
) -> None:
    """Serve one environment by OpenEnv's protocol.

    Args:
        environments: Short name (math), id, or module:id.
        host: Address to listen on.
        port: Port to listen on.
        env_arg: Argument of the environment, the value in YAML, for example difficulty=[1,2]; may be given again.
    """
    from mrlm_envs.integrations import openenv

    [entry] = _entries([environments], env_arg)
    application = openenv.app(entry.id, **entry.kwargs)
    import uvicorn

    uvicorn.run(application, host=host, port=port, log_level="warning")


def serve() -> None:  # its flags belong to `mrlm_envs.serving`, which also works by itself
    """Serve environments over gRPC; with --openenv, one of them by OpenEnv's protocol."""


COMMANDS: dict[str, Any] = {
    **{"train": train, "eval": evaluate, "collect": collect, "serve": serve},
    **{"export": export, "play": play, "info": info, "demo": demo, "report": report},
    **{"check": check, "prove": prove, "regrade": regrade, "credit-probe": credit_probe},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # a trainer's file run as a script puts this folder first, where `episodes` would hide a user's package of that name
    here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != here]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `my_module:name` in a configuration means the user's own file
    try:
        if not arguments:
            print(NEXT, flush=True)
            return 0
        if arguments == ["--version"]:
            print(f"mrlm {importlib.metadata.version('mrlm')}")
            return 0
        if arguments[0] == "serve":
            return _serve(arguments[1:])
        about = "Environments and trainers for reinforcement learning of language models."
        config = (tyro.conf.FlagCreatePairsOff,)
        run = tyro.extras.subcommand_cli_from_dict
        return run(COMMANDS, prog="mrlm", description=about, args=arguments, config=config) or 0
    except KeyboardInterrupt:
        _report("interrupted", 130)
        return 130
    except BrokenPipeError:  # `mrlm | head`; what is left in the buffer must not fail at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("MRLM_TRACEBACK"):
            raise
        _report(_one_line(error), 1)
        return 1


def _serve(arguments: list[str]) -> int:
    if "--openenv" in arguments:
        tyro.cli(serve_openenv, prog="mrlm serve --openenv", args=[part for part in arguments if part != "--openenv"])
        return 0
    try:
        import grpc  # noqa: F401  (the extra `serve` may not be installed; all else works without it)

        from mrlm_envs.serving import cli as serving
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f'{missing.name} is not installed; install the server: pip install "mrlm[serve]"'
        ) from None
    return serving.run(arguments)


def _report(text: str, code: int) -> None:
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    if rank is not None and world != "1":  # one of several processes of a training
        from mrlm_train.experiment import distributed

        if distributed.report(text, code):
            return
        text = f"process {rank} of {world}: {text}"
    print(f"mrlm: {text}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, ValueError | TypeError | OSError | ModuleNotFoundError | RuntimeError)
    return text if known else f"{type(error).__name__}: {text} (MRLM_TRACEBACK=1 shows where)"


def _entries(names: Sequence[str], env_arg: Sequence[str], agent: Sequence[str] = (), address: Any = None) -> list[Any]:
    """The environments that the flags name."""
    from mrlm_train.rollout.environments import EnvEntry

    kwargs, agents = values("--env-arg", env_arg), values("--agent", agent) or None
    return [dataclasses.replace(EnvEntry.of(name), kwargs=kwargs, agents=agents, address=address) for name in names]


def _playable(names: Sequence[str], env_arg: Sequence[str], *rest: Any) -> list[Any]:
    """`_entries` whose arguments an environment has taken: a fault is told before torch, which takes seconds."""
    entries = _entries(names, env_arg, *rest)
    for entry in entries if env_arg else ():  # without arguments a model's own may follow
        entry.build().close()
    return entries


def _at_endpoints(models: Sequence[str], base_url: str | None) -> list[str]:
    """Each `openai:NAME` at the address of --base-url, unless it names its own."""
    if base_url is None:
        return list(models)
    if not base_url.startswith("http"):
        raise ValueError(f"--base-url {base_url}: expected a URL such as http://127.0.0.1:8000/v1")
    asked = [model for model in models if model.startswith("openai:") and "@http" not in model]
    if not asked:
        raise ValueError(f"--base-url {base_url}: no --model is openai:NAME without an address; remove it")
    return [f"{model}@{base_url}" if model in asked else model for model in models]


if __name__ == "__main__":
    sys.exit(main())
