"""The commands that ask whether figures can be trusted: `mrlm check`, `mrlm prove`, `mrlm regrade`."""

import contextlib
import pathlib
import sys
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from mrlm_envs.checks import Limits, card
from mrlm_train.commands.flags import Json, Positive, Repeated, need_trainers

_LIMITS = Limits()


def check(
    environment: Positional[str],
    kwargs: Json = "{}",
    json: bool = False,
    html: bool = False,
    limits: OmitArgPrefixes[Limits] = _LIMITS,
) -> int:
    """Is an environment sound? Its quality card; exit status 1 if a check fails.

    Args:
        environment: Short name (math), id, module:id, module:function of a PettingZoo game, or openenv:ADDRESS.
        kwargs: Arguments of the environment as a JSON object.
        json: Print the card as JSON.
        html: Print the card as a page.
        limits: The thresholds.
    """
    with contextlib.redirect_stdout(sys.stderr):  # an environment may print
        found = card(environment, _object(kwargs), limits)
    print(found.json() if json else found.html() if html else found.text())
    return int(bool(found.failed))


def prove(
    config: Annotated[str, arg(metavar="YAML")],
    output: Annotated[str, arg(metavar="DIR")] = "runs/prove",
    seeds: Positive = 3,
    problems: Positive = 200,
    overrides: Annotated[Repeated, arg(name="set", metavar="KEY=VALUE")] = (),
) -> None:
    """Is a lift real? A training beside its controls: random and shuffled rewards, more SFT, no training.

    Args:
        config: The configuration; demo is that of `mrlm demo`.
        output: Where results go; what is finished there is not run again.
        seeds: Trainings, with seeds 0 to N-1.
        problems: Test tasks in each environment.
        overrides: Replace a setting of the configuration, for example training.max_steps=3; may be given again.
    """
    need_trainers()
    from mrlm_train.commands import demo, prove
    from mrlm_train.experiment import config as configuration

    def load(seed: int, folder: str) -> Any:
        if config == "demo":
            return demo.prepared(pathlib.Path(folder), seed, overrides)
        return configuration.load(config, [*overrides, f"seed={seed}"], folder)

    prove.run(load, pathlib.Path(output), range(seeds), problems)


def regrade(
    episodes: Positional[str],
    env: str | None = None,
    kwargs: Json = "{}",
    in_place: bool = False,
) -> int:
    """Judge stored episodes by the environment as it is now; exit status 1 if one differs.

    Args:
        episodes: The JSONL file.
        env: The environment, instead of the one that each episode names.
        kwargs: Arguments of the environment as a JSON object, over those that each episode keeps.
        in_place: Refused: stored episodes are never changed.
    """
    from mrlm_train.commands import regrade as command

    if in_place:
        raise ValueError("regrade never changes stored episodes; collect new ones with: mrlm collect")
    return command.run(episodes, env, _object(kwargs))


def _object(text: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"--kwargs {text}: expected a JSON object")
    return found
