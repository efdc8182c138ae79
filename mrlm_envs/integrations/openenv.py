"""OpenEnv's protocol, both ways. Written against OpenEnv 0.10.0.

- `app("mrlm/Math-v0")` is an ASGI application that serves any text Gymnasium environment to OpenEnv's clients (TRL's,
  Unsloth's integrations, AgileRL, NeMo-Gym, verifiers). `mrlm serve --openenv` runs it. Each WebSocket has its own
  environment; a step after a reconnect is a `SESSION_ERROR` and never meets a fresh environment.
- `mrlm/OpenEnv-v0` is a text Gymnasium environment behind an OpenEnv server's address.

The protocol has no request ids, so a step whose reply is lost is lost: exactly-once is `mrlm serve`'s alone. What is
privileged never travels; `task_id` and the like are in `metadata`, because some clients show the policy the whole
`observation`. Needs `pip install "mrlm[openenv]"`.
"""

import asyncio
import json
import math
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mrlm_envs.core import EnvFault, Opening, Options, Reply, TextEnv, plain
from mrlm_envs.integrations.episode import Episode, make, require

if TYPE_CHECKING:
    from starlette.applications import Starlette

PAGES: dict[str, Any] = json.loads(Path(__file__).with_name("openenv_pages.json").read_text("utf-8"))
"""The replies that are the same for every environment, by path. That `/openapi.json` lists `/reset`, `/step` and
`/state` means simulation mode to `openenv validate`; they are reached over `/ws`."""


def app(env_id: str, max_sessions: int = 256, **kwargs: Any) -> "Starlette":
    """An ASGI application that serves an environment by OpenEnv's protocol.

    Args:
        env_id: What `gymnasium.make` takes.
        max_sessions: WebSockets open at once.
        **kwargs: Arguments of the environment.

    Raises:
        ModuleNotFoundError: `mrlm[openenv]` is not installed.
        ValueError: The environment's observations or actions are not text.
    """
    require("starlette")
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocketDisconnect

    first = make(env_id, **kwargs)
    page = (type(first.unwrapped).__doc__ or env_id).strip().splitlines()[0]
    first.close()
    pages = {**PAGES, "/metadata": {"name": env_id, "description": page, "version": "1.0.0"}}
    free = asyncio.Semaphore(max_sessions)

    async def socket(websocket: Any) -> None:
        await websocket.accept()
        if free.locked():
            await websocket.send_json(_error("CAPACITY_REACHED", f"all {max_sessions} sessions are taken"))
            return await websocket.close()
        async with free:
            session = await run_in_threadpool(_Session, env_id, **kwargs)
            try:
                async for text in websocket.iter_text():
                    if (reply := await run_in_threadpool(session.answer, text)) is None:
                        break
                    await websocket.send_text(json.dumps(plain(reply)))
            except (WebSocketDisconnect, KeyError):  # KeyError: a binary frame
                pass
            finally:
                session.close()

    def route(path: str, body: Any) -> Route:
        return Route(path, lambda request: JSONResponse(body), methods=["POST" if path == "/mcp" else "GET"])

    return Starlette(routes=[WebSocketRoute("/ws", socket), *(route(path, body) for path, body in pages.items())])


def _error(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "data": {"message": message, "code": code}}


class _Session(Episode):
    """The environment of one WebSocket."""

    episode_id: str | None = None

    def answer(self, text: str) -> dict[str, Any] | None:
        """The reply to one message; None to `close`."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return _error("INVALID_JSON", "the message is not JSON")
        data = message.get("data") or {} if isinstance(message, dict) else None
        if not isinstance(data, dict):
            return _error("VALIDATION_ERROR", "a message is an object with 'type' and an object 'data'")
        try:
            return self._answer(message.get("type"), data)
        except Exception as fault:  # the environment's own; the session goes on
            return _error("EXECUTION_ERROR", f"{type(fault).__name__}: {fault}")

    def _answer(self, kind: Any, data: dict[str, Any]) -> dict[str, Any] | None:
        match kind, data:
            case "reset", {"seed": seed} if seed is not None and (type(seed) is not int or seed < 0):
                return _error("VALIDATION_ERROR", f"seed is a non-negative integer, got {seed!r}")
            case "reset", {"options": options} if not isinstance(options, dict | None):
                return _error("VALIDATION_ERROR", f"options is an object, got {type(options).__name__}")
            case "reset", _:
                text, info = self.reset(data.get("seed"), data.get("options"), bool(data.get("evaluation")))
                made = f"{info.get('task_id', '')}#{info.get('seed', data.get('seed'))}"
                self.episode_id = str(data.get("episode_id") or made)[:128]
                return _observation(text, None, False, False, info)
            case "step", {"message": str()} if self.is_over:
                return _error("SESSION_ERROR", "no episode is open on this connection; send reset first")
            case "step", {"message": str(action)}:
                return _observation(*self.step(action))
            case "step", _:  # also before a reset: AgileRL probes with one and tolerates this error alone
                return _error("VALIDATION_ERROR", "an action is {'message': text}")
            case "state", _:
                state = {"episode_id": self.episode_id, "step_count": len(self.rewards), "tools": self.tools}
                return {"type": "state", "data": state}
            case "close", _:
                return None
        return _error("UNKNOWN_TYPE", f"unknown type {kind!r}; known: reset, step, state, close")


def _observation(text: str, reward: float | None, terminated: bool, truncated: bool, info: Options) -> dict[str, Any]:
    tools = {"tools": info["tools"]} if info.get("tools") else {}
    observation = {"prompt": text, "role": info.get("role", "user"), "truncated": truncated, **tools}
    metadata = {name: value for name, value in info.items() if name not in ("role", "tools", "system")}
    if info.get("system"):
        metadata["system_prompt"] = info["system"]
    data = {"observation": observation, "reward": reward, "done": terminated or truncated, "metadata": metadata}
    return {"type": "observation", "data": data}


class OpenEnv(TextEnv):
    """`mrlm/OpenEnv-v0`: an OpenEnv server as a text environment.

    The agent's text becomes the action's field; the observation's text is `prompt`, `text`, `message` or the first
    field of type string. An episode is a success when it ends with a positive reward. A lost connection ends the
    episode invalid; an error that the server answers to a step is the action's failure.

    Args:
        address: `http://host:port`.
        action_field: The field that takes the action; the first that the server's schema requires.
        observation_field: The field to show.
        timeout_s: Seconds for a reply.
        **kwargs: `split`, `max_turns` (100), `max_length`, `system_prompt`, `render_mode` of `TextEnv`.

    Raises:
        ValueError: Nothing answers at the address, or no field takes text.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "expert": None, "deterministic": False}
    num_tasks = 2**31  # seeds are tasks: the server keeps its own splits

    def __init__(
        self,
        address: str,
        action_field: str | None = None,
        observation_field: str | None = None,
        timeout_s: float = 60.0,
        max_turns: int = 100,
        **kwargs: Any,
    ) -> None:
        require("websockets")
        super().__init__(max_turns=max_turns, **kwargs)
        self.address, self.timeout_s = address.rstrip("/"), timeout_s
        try:
            with urllib.request.urlopen(f"{self.address}/schema", timeout=timeout_s) as reply:
                schema = json.load(reply)
        except (OSError, ValueError) as fault:
            raise ValueError(f"address {address}: no OpenEnv server answers there ({fault})") from None
        self.action_field = action_field or _field(schema.get("action", {}), address)
        self.observation_field = observation_field
        self._socket: Any = None

    def begin(self, options: Options) -> Opening:
        sent = {"seed": self.episode_seed} | ({"options": options} if options else {})
        kind, data = self._ask("reset", sent)
        if kind == "error":
            raise EnvFault(f"{self.address}: {data.get('message')}")
        metadata, observation = data.get("metadata") or {}, data.get("observation") or {}
        task_id = str(metadata.get("task_id", f"{self.address}/{self.episode_seed}"))
        info = {"system": self.system_prompt or metadata.get("system_prompt") or ""}
        return Opening(self._text(observation), task_id, observation.get("tools"), info)

    def respond(self, action: str) -> Reply:
        kind, data = self._ask("step", {self.action_field: action})
        if kind == "error":  # an episode that an action could make invalid would be an escape hatch
            info = {"action_valid": False, "stop_reason": "env_error"}
            return Reply(f"The environment refused it: {data.get('message')}", done=True, info=info)
        reward, done, observation = (
            float(data.get("reward") or 0),
            bool(data.get("done")),
            data.get("observation") or {},
        )
        role = "tool" if observation.get("role") == "tool" else "user"
        return Reply(self._text(observation), {"server": reward}, done, success=done and reward > 0, role=role)

    def _ask(self, kind: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Send a message; the type and the data of the reply. Only a reset opens a connection.

        Raises:
            EnvFault: No reply comes, or one that the protocol does not know.
        """
        from websockets.exceptions import ConnectionClosed, WebSocketException
        from websockets.sync.client import connect

        was_open = self._socket is not None
        try:
            if kind == "reset" and self._socket is None:
                url = "ws" + self.address.removeprefix("http") + "/ws"
                # Newer versions connect as a context manager only; `close` leaves it.
                self._socket = connect(url, open_timeout=self.timeout_s, max_size=16 << 20).__enter__()
            self._socket.send(json.dumps({"type": kind, "data": data}))
            reply = json.loads(self._socket.recv(timeout=self.timeout_s))
            answer, said = reply["type"], dict(reply.get("data") or {})
            if not all(isinstance(said.get(part) or {}, dict) for part in ("observation", "metadata")):
                raise ValueError("its observation and metadata are objects")
            if not math.isfinite(float(said.get("reward") or 0)):
                raise ValueError(f"its reward is {said['reward']}")
            return answer, said
        except (OSError, ValueError, LookupError, TypeError, OverflowError, WebSocketException) as fault:
            self.close()  # also after a TimeoutError, which is an OSError
            if kind == "reset" and was_open and isinstance(fault, ConnectionClosed):
                return self._ask(kind, data)  # the server hung up between two episodes
            raise EnvFault(f"{self.address}: {type(fault).__name__} {fault}") from fault

    def _text(self, observation: dict[str, Any]) -> str:
        texts = {name: value for name, value in observation.items() if isinstance(value, str)}
        names = (self.observation_field, "prompt", "text", "message", *texts)
        return next((texts[name] for name in names if name in texts), json.dumps(observation))

    def close(self) -> None:
        """Close the connection, and with it the episode."""
        held, self._socket, self._is_open = self._socket, None, False
        if held is not None:
            held.close()


def _field(schema: dict[str, Any], address: str) -> str:
    properties = schema.get("properties", {})
    for name in (*schema.get("required", ()), *properties):
        if properties.get(name, {}).get("type") == "string":
            return name
    raise ValueError(f"address {address}: no field of its action takes text (found: {', '.join(properties)})")
