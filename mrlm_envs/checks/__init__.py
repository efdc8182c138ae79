"""The quality card: is an environment worth training on?

    mrlm check math                       # or card("mrlm/Math-v0")
    mrlm check my_package:My/Env-v0 --json

Twelve checks, one line each, of any Gymnasium environment of text, of the first agent of a PettingZoo game, and of
what can be known of an OpenEnv server from outside. A line says pass, fail or skip, and shows the seed and the action.

| check | fails when |
| --- | --- |
| oracle | the expert does not earn the maximum |
| floor | a policy that does not solve tasks is paid: silence, echo, noise, injections, a constant |
| leakage | the answer stands in an observation, info, a tool's schema or the rendered text before the end |
| determinism | the same seed and actions give other bytes, or something besides the seed decides |
| replay | they do in a process with another hash seed |
| interleaving | two instances stepped in turns disturb each other |
| threads | an instance does not play in a worker thread, or several do not at once |
| pickling | the spec or a fresh instance does not pickle, or the copy plays differently |
| splits | a split has too few distinct tasks, or a task is in both |
| difficulty | one kind of task is given away |
| speed | a reset or a step takes too long, or episodes leave memory behind |
| faults | a text is an error (hostile strings, lone surrogates, 2 MB), or a step of any check hangs |
"""

from mrlm_envs.checks.card import NAMES, Card, card
from mrlm_envs.checks.subject import Check, Limits

__all__ = ["NAMES", "Card", "Check", "Limits", "card"]
