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
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium

from mrlm_envs.core import EnvFault, Opening, Options, Reply, TextEnv
from mrlm_envs.integrations.episode import Episode, make, require

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.websockets import WebSocket

PAGES: dict[str, Any] = json.loads(Path(__file__).with_name("openenv_pages.json").read_text("utf-8"))
"""The replies that are the same for every environment, by path. That `/openapi.json` lists `/reset`, `/step` and
`/state` means simulation mode to `openenv validate`; they are reached over `/ws`."""

_IN_OBSERVATION = ("role", "tools", "system")  # keys of `info` that are not metadata


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
    from starlette.responses import JSONResponse
    from starlette.routing import Route, WebSocketRoute

    first = make(env_id, **kwargs)
    page = (type(first.unwrapped).__doc__ or env_id).strip().splitlines()[0]
    first.close()
    pages = {**PAGES, "/metadata": {"name": env_id, "description": page, "version": "1.0.0"}}
    free = asyncio.Semaphore(max_sessions)

    async def socket(websocket: "WebSocket") -> None:
        await websocket.accept()
        if free.locked():
            await websocket.send_json(_error("CAPACITY_REACHED", f"all {max_sessions} sessions are taken"))
            return await websocket.close()
        async with free:
            await _Session(Episode(env_id, **kwargs)).serve(websocket)

    def route(path: str, body: Any) -> Route:
        return Route(path, lambda request: JSONResponse(body), methods=["POST" if path == "/mcp" else "GET"])

    return Starlette(routes=[WebSocketRoute("/ws", socket), *(route(path, body) for path, body in pages.items())])


def _error(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "data": {"message": message, "code": code}}


class _Session:
    """One WebSocket and its environment."""

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        self.episode_id: str | None = None

    async def serve(self, websocket: "WebSocket") -> None:
        """Answer until the client leaves."""
        from starlette.concurrency import run_in_threadpool
        from starlette.websockets import WebSocketDisconnect

        try:
            while True:
                try:
                    message = await websocket.receive_json()
                except (ValueError, RecursionError):
                    reply = _error("INVALID_JSON", "the message is not JSON")
                else:
                    if isinstance(message, dict) and message.get("type") == "close":
                        return
                    reply = await run_in_threadpool(self.answer, message)
                await websocket.send_json(reply)
        except (WebSocketDisconnect, KeyError):  # KeyError: a binary frame
            return
        finally:
            self.episode.close()

    def answer(self, message: Any) -> dict[str, Any]:
        """The reply to one message."""
        data = message.get("data") or {} if isinstance(message, dict) else None
        if not isinstance(data, dict):
            return _error("VALIDATION_ERROR", "a message is an object with 'type' and an object 'data'")
        match message.get("type"), data:
            case "reset", {"seed": seed} if seed is not None and (type(seed) is not int or seed < 0):
                return _error("VALIDATION_ERROR", f"seed is a non-negative integer, got {seed!r}")
            case "reset", {"options": options} if not isinstance(options, dict | None):
                return _error("VALIDATION_ERROR", f"options is an object, got {type(options).__name__}")
            case "reset", _:
                return self._reset(data)
            case "step", {"message": str()} if self.episode.is_over:
                return _error("SESSION_ERROR", "no episode is open on this connection; send reset first")
            case "step", {"message": str(action)}:
                return self._step(action)
            case "step", _:  # also before a reset: AgileRL probes with one and tolerates this error alone
                return _error("VALIDATION_ERROR", "an action is {'message': text}")
            case "state", _:
                state = {"episode_id": self.episode_id, "step_count": len(self.episode.rewards)}
                return {"type": "state", "data": {**state, "tools": self.episode.tools}}
            case kind, _:
                return _error("UNKNOWN_TYPE", f"unknown type {kind!r}; known: reset, step, state, close")

    def _reset(self, data: dict[str, Any]) -> dict[str, Any]:
        try:
            observation, info = self.episode.reset(data.get("seed"), data.get("options"), bool(data.get("evaluation")))
        except (EnvFault, ValueError, TypeError, gymnasium.error.Error) as fault:
            return _error("EXECUTION_ERROR", str(fault))
        seed = info.get("seed", data.get("seed"))
        self.episode_id = str(data.get("episode_id") or f"{info.get('task_id', '')}#{seed}")[:128]
        return _observation(observation, None, False, False, info)

    def _step(self, action: str) -> dict[str, Any]:
        try:
            observation, reward, _, truncated, info = self.episode.step(action)
        except Exception as fault:
            return _error("EXECUTION_ERROR", f"{type(fault).__name__}: {fault}")
        return _observation(observation, reward, self.episode.is_over, truncated, info)


def _observation(text: str, reward: float | None, done: bool, truncated: bool, info: dict[str, Any]) -> dict[str, Any]:
    observation: dict[str, Any] = {"prompt": text, "role": info.get("role", "user"), "truncated": truncated}
    if info.get("tools"):
        observation["tools"] = info["tools"]
    metadata = {name: value for name, value in info.items() if name not in _IN_OBSERVATION}
    if info.get("system"):
        metadata["system_prompt"] = info["system"]
    data = {"observation": observation, "reward": reward, "done": done, "metadata": metadata}
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
        data = self._ask("reset", sent).get("data") or {}
        metadata = data.get("metadata") or {}
        task_id = str(metadata.get("task_id", f"{self.address}/{self.episode_seed}"))
        tools = data.get("observation", {}).get("tools")
        info = {"system": metadata["system_prompt"]} if metadata.get("system_prompt") and not self.system_prompt else {}
        return Opening(self._text(data), task_id=task_id, tools=tools, info=info)

    def respond(self, action: str) -> Reply:
        reply = self._ask("step", {self.action_field: action})
        data = reply.get("data") or {}
        if reply.get("type") == "error":  # an episode that an action could make invalid would be an escape hatch
            info = {"action_valid": False, "stop_reason": "env_error"}
            return Reply(f"The environment refused it: {data.get('message')}", done=True, info=info)
        reward, done = float(data.get("reward") or 0.0), bool(data.get("done"))
        role = "tool" if data.get("observation", {}).get("role") == "tool" else "user"
        return Reply(self._text(data), {"server": reward}, done, success=done and reward > 0, role=role)

    def _ask(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """Send a message and give the reply."""
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        try:
            if kind == "reset" and self._socket is None:
                url = "ws" + self.address.removeprefix("http") + "/ws"
                # Newer versions connect as a context manager only; `close` leaves it.
                self._socket = connect(url, open_timeout=self.timeout_s, max_size=16 << 20).__enter__()
            if self._socket is None:
                raise EnvFault(f"{self.address}: the connection was lost")
            self._socket.send(json.dumps({"type": kind, "data": data}))
            reply = json.loads(self._socket.recv(timeout=self.timeout_s))
        except (OSError, ValueError, WebSocketException) as fault:  # TimeoutError is an OSError
            self.close()
            raise EnvFault(f"{self.address}: {type(fault).__name__} {fault}") from fault
        if reply.get("type") == "error" and kind == "reset":
            raise EnvFault(f"{self.address}: {reply.get('data', {}).get('message')}")
        return reply

    def _text(self, data: dict[str, Any]) -> str:
        observation = data.get("observation") or {}
        for name in (self.observation_field, "prompt", "text", "message"):
            if name is not None and isinstance(observation.get(name), str):
                return observation[name]
        return next((value for value in observation.values() if isinstance(value, str)), json.dumps(observation))

    def close(self) -> None:
        """Close the connection."""
        held, self._socket = self._socket, None
        if held is not None:
            held.close()


def _field(schema: dict[str, Any], address: str) -> str:
    properties = schema.get("properties", {})
    named = [*schema.get("required", ()), *properties]
    texts = [name for name in named if properties.get(name, {}).get("type") == "string"]
    if not texts:
        raise ValueError(f"address {address}: no field of its action takes text (found: {', '.join(properties)})")
    return texts[0]
