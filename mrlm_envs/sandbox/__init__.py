"""Running untrusted Python: one process a program, locked in by the kernel, judged from outside.

`Sandbox().run(code, calls=[("f", [1, 2])])` executes a program and calls functions in it; `Sandbox().session()` keeps
one alive between chunks. Importing this is light and works everywhere; using it needs Linux (see `Sandbox`).

What a program gets: the standard library, read-only; one flat scratch directory as the working directory; threads.
What it does not: other files, processes, sockets, signals to others, chmod, more memory or time than its `Limits`.
It can see that a file exists whose name it guesses, and its size (Landlock does not hide that), not what is in it.
"""

from mrlm_envs.sandbox.program import Program
from mrlm_envs.sandbox.results import Answer, Failure, Limits, Result, SandboxFault, SandboxUnavailable, printable
from mrlm_envs.sandbox.sandbox import Sandbox, Session
from mrlm_envs.sandbox.values import Opaque

__all__ = [
    "Answer",
    "Failure",
    "Limits",
    "Opaque",
    "Program",
    "Result",
    "Sandbox",
    "SandboxFault",
    "SandboxUnavailable",
    "Session",
    "printable",
]
