"""An environment in a child process (`--isolate`): a step that freezes or crashes costs the child, and nothing else.

The children are forked from a server that has imported the environment already, so one takes milliseconds and a few
megabytes. They speak JSON over a pipe: what a child says is data, never code.
"""

import json
import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import gymnasium

from mrlm_envs.core import plain
from mrlm_envs.serving.protocol import ActionFailed
from mrlm_envs.serving.worker import die_with_parent
from mrlm_envs.spaces import Unicode

_context = multiprocessing.get_context("forkserver")


def preload(make_ids: list[str]) -> None:
    """Import the environments once, in the process that the children are forked from."""
    modules = [make_id.partition(":")[0] for make_id in make_ids if ":" in make_id]
    _context.set_forkserver_preload(["mrlm_envs.serving.isolated", *modules])


class IsolatedEnv(gymnasium.Env[str, str]):
    """The parent's side of an environment in a child process.

    Args:
        make_id: What `gymnasium.make` takes in the child.
        kwargs: The environment's arguments, JSON values.
        timeout: Seconds after which a child that does not answer is killed.

    Raises:
        ValueError: If the environment refuses its arguments.
        ActionFailed: If the child ends, or takes too long.
    """

    def __init__(self, make_id: str, kwargs: dict[str, Any], timeout: float) -> None:
        self._timeout = timeout
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()
        try:
            about = self._ask("make", {"id": make_id, **kwargs})
        except Exception:
            self.close()
            raise
        self.metadata, self.num_tasks = about["metadata"], about["num_tasks"]  # pyright: ignore[reportAttributeAccessIssue]
        self.observation_space = Unicode(about["observation_length"])
        self.action_space = Unicode(about["action_length"])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode in the child."""
        return tuple(self._ask("reset", {"seed": seed, "options": options}))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take a step in the child.

        Raises:
            ActionFailed: If the child ends, or takes too long.
        """
        return tuple(self._ask("step", {"action": action}))

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _ask(self, method: str, arguments: dict[str, Any]) -> Any:
        try:
            self._pipe.send_bytes(json.dumps([method, arguments]).encode())
            if not self._pipe.poll(self._timeout):
                self._process.kill()
                raise ActionFailed(f"gave up after {self._timeout:g} s")
            kind, value = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join(1.0)
            raise ActionFailed(f"the step ended its process (exit code {self._process.exitcode})") from None
        if kind != "ok":
            raise (ValueError if kind == "refused" else RuntimeError)(value)
        return value


def _serve(pipe: Connection) -> None:
    """The child's side: do what the parent asks until the pipe closes."""
    die_with_parent()
    import mrlm_envs  # noqa: F401  (registers the built-in environments)

    env: Any = None
    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        try:
            method, arguments = json.loads(request)
            if method == "make":
                env = gymnasium.make(disable_env_checker=True, **arguments)
                inner, observation, action = env.unwrapped, env.observation_space, env.action_space
                value = {"metadata": inner.metadata, "num_tasks": getattr(inner, "num_tasks", None)}
                value |= {"observation_length": observation.max_length, "action_length": action.max_length}
            else:
                value = getattr(env, method)(**arguments)
            answer = "ok", plain(value)
        except (ValueError, TypeError, gymnasium.error.Error) as error:
            answer = "refused", str(error)
        except BaseException as error:  # an environment may even call sys.exit
            answer = "failed", f"{type(error).__name__}: {error}"
        pipe.send_bytes(json.dumps(answer).encode())
