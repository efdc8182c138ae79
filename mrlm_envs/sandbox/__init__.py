"""Running untrusted Python: one process a program, locked in by the kernel, judged from outside.

`Sandbox().run(code, calls=[("f", [1, 2])])` executes a program and calls functions in it; `Sandbox().session()` keeps
one alive between chunks. Importing this is light and works everywhere; using it needs Linux (see `Sandbox`).

Whatever a program does, the run ends within its `Limits`, with a `Result` that says what happened, and its neighbours
notice nothing. A program gets the standard library, read-only, one flat scratch directory as the working directory, and
threads. It does not get other files, processes, sockets, signals to others, chmod, or more memory or time. It can
find out that a file exists whose name it guesses, and its size (Landlock does not hide that), but not read it.
"""

from mrlm_envs.sandbox.program import Program
from mrlm_envs.sandbox.results import Answer, Failure, Limits, Result, SandboxFault, SandboxUnavailable, printable
from mrlm_envs.sandbox.sandbox import InterpreterSession, Sandbox
from mrlm_envs.sandbox.values import Opaque

__all__ = [
    "Answer", "Failure", "InterpreterSession", "Limits", "Opaque", "Program", "Result", "Sandbox", "SandboxFault",
    "SandboxUnavailable", "printable",
]  # fmt: skip
