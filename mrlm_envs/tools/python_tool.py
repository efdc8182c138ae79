"""The Python tool: an interpreter that remembers, in the sandbox, one for each episode."""

import re

from mrlm_envs.core import EnvFault
from mrlm_envs.sandbox import Failure, InterpreterSession, Limits, Sandbox, SandboxFault
from mrlm_envs.sandbox.sandbox import Backend
from mrlm_envs.tools.registry import ToolError, Toolset, tool

_ADDRESS = re.compile(r"\b0x[0-9a-f]{8,16}\b")  # of an object: another one in every process


class PythonTool(Toolset):
    """A stateful interpreter.

    Args:
        backend: How programs are isolated; see `mrlm_envs.sandbox.Sandbox`.
        timeout_s: Seconds for each chunk of code.
        memory_mb: Memory beyond the interpreter's own, in MiB.

    Raises:
        SandboxUnavailable: No isolation works here.
    """

    def __init__(self, backend: Backend = "auto", timeout_s: float = 5.0, memory_mb: int = 256) -> None:
        self._sandbox = Sandbox.shared(backend).start()
        self._limits = Limits(timeout_s=timeout_s, total_s=3600.0, memory_mb=memory_mb)
        self._seed = 0
        self._session: InterpreterSession | None = None

    def reset(self, seed: int) -> None:
        """Forget the interpreter; the first call starts a new one."""
        self.close()
        self._seed = seed

    def close(self) -> None:
        """End the interpreter."""
        if self._session is not None:
            self._session.close()
            self._session = None

    @tool
    def python(self, code: str) -> str:
        """Runs Python code and shows what it prints and the value of a last expression.
        Variables and functions are kept for later calls.

        Args:
            code: The code.
        """
        if self._session is None:
            self._session = self._sandbox.session(self._limits, self._seed)
        try:
            result = self._session.run(code)
        except SandboxFault as fault:
            raise EnvFault(str(fault)) from fault
        answer = result.answers[0]
        printed = result.stdout + result.stderr
        if answer.failure is not None:
            said = _said(answer.failure, self._session.is_alive)
            raise ToolError(_ADDRESS.sub("0x…", f"{said}\n{printed}".strip()))
        text = f"{printed}{answer.shown}".strip("\n")
        return _ADDRESS.sub("0x…", text) or "done; nothing was printed"


def _said(failure: Failure, is_alive: bool) -> str:
    if failure.kind == "exception":
        return failure.trace.strip() or f"{failure.type}: {failure.message}"
    if is_alive:  # after `sys.exit()`, say
        return f"{failure.message}; the interpreter keeps its variables"
    return f"{failure.message}; the interpreter starts afresh, without its variables"
