"""Our environments as a NeMo-Gym resources server: `/seed_session`, a path for each tool, `/verify`.

    app.py:   Server = server("mrlm/ToolUse-v0");  Server.run_webserver()
    data:     rows("mrlm/ToolUse-v0", n=1000)      # a line each of the agent's input_jsonl_fpath

For environments that answer in the tool's role or take one turn. An episode in which the environment failed is masked
(`mask_sample`). NeMo-Gym is not on the package index: written by its published base classes, tested by recorded
requests.
"""

# pyright: reportMissingImports=false
import secrets
from collections.abc import Iterator
from typing import Any

from mrlm_envs.integrations.episode import Episode, openings
from mrlm_envs.integrations.rewards import last_text
from mrlm_envs.tools.calls import Call, render

_SESSION = "mrlm_session"  # a cookie on every reply, since NeMo-Gym's agent keeps the cookies of the last one only
_MAX_SESSIONS = 4096  # beyond it the session that began first is dropped, and masked at its `/verify`


def rows(env_id: str, n: int, **kwargs: Any) -> Iterator[dict[str, Any]]:
    """The rows of a data set: row i is the episode with seed i.

    Args:
        env_id: What `gymnasium.make` takes.
        n: How many.
        **kwargs: Arguments of the environment.
    """
    for seed, messages, info in openings(env_id, range(n), **kwargs):
        tools = [{"type": "function", "strict": False, **tool["function"]} for tool in info.get("tools") or []]
        yield {"responses_create_params": {"input": messages, "tools": tools}, "seed": seed}


class Sessions:
    """The episodes that are being played, by session, and the replies of the server.

    Args:
        env_id: What `gymnasium.make` takes.
        **kwargs: Arguments of the environment.
    """

    def __init__(self, env_id: str, **kwargs: Any) -> None:
        self._env_id, self._kwargs = env_id, kwargs
        self._episodes: dict[str, Episode] = {}

    def answer(self, path: str, body: dict[str, Any], session: str) -> Any:
        """The reply to a POST: JSON, or for a tool what it says."""
        if path == "seed_session":
            if (before := self._episodes.pop(session, None)) is not None:
                before.close()
            if len(self._episodes) >= _MAX_SESSIONS:
                self._episodes.pop(next(iter(self._episodes))).close()
            episode = self._episodes[session] = Episode(self._env_id, **self._kwargs)
            episode.reset(body["seed"])
            return {}
        episode = self._episodes.get(session)
        if path != "verify":
            return episode.step(render([Call(path, body)]))[0] if episode else "No session; post /seed_session first."
        if episode is None:
            return {**body, "reward": 0.0, "mask_sample": True, "failure_reason": "the session is lost"}
        said = [item for item in body["response"]["output"] if item.get("type") == "message"]
        episode.step(last_text(said))
        self._episodes.pop(session).close()
        verdict = {"reward": episode.reward or 0.0, "success": episode.success, "turn_rewards": episode.rewards}
        reason = None if episode.is_valid else "the environment failed"
        return {**body, **verdict, "mask_sample": not episode.is_valid, "failure_reason": reason}


def server(env_id: str, **kwargs: Any) -> type:
    """The class of a resources server of NeMo-Gym, for its `app.py`. Arguments as in `Sessions`.

    Raises:
        ModuleNotFoundError: NeMo-Gym is not installed.
        ValueError: The environment does not fit.
    """
    try:
        from nemo_gym.base_resources_server import SimpleResourcesServer
    except ModuleNotFoundError:
        raise ModuleNotFoundError("NeMo-Gym is not installed; run this in its repository (NVIDIA-NeMo/Gym)") from None
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route

    Episode(env_id, **kwargs).close()  # whether it fits
    sessions = Sessions(env_id, **kwargs)

    async def answer(request: Any) -> Any:
        session = request.cookies.get(_SESSION) or secrets.token_hex(16)
        said = await run_in_threadpool(sessions.answer, request.path_params["path"], await request.json(), session)
        response = PlainTextResponse(said) if isinstance(said, str) else JSONResponse(said)
        response.set_cookie(_SESSION, session)
        return response

    class TextServer(SimpleResourcesServer):
        def setup_webserver(self) -> Any:
            application = super().setup_webserver()
            theirs = [known for known in application.router.routes if known.path not in ("/seed_session", "/verify")]
            application.router.routes[:] = [*theirs, Route("/{path}", answer, methods=["POST"])]
            return application

        verify = staticmethod(answer)  # abstract in the base class

    return TextServer
