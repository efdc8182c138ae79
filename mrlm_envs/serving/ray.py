"""`mrlm serve --ray N`: the servers as Ray actors on fixed ports.

Ray starts a lost actor again; it then listens where its predecessor did, and clients replay their episodes on it or on
another. Needs `pip install ray`; nothing here is imported without `--ray`.
"""

import importlib
import signal
import sys
import threading
from typing import Any

from mrlm_envs.background import run
from mrlm_envs.serving.server import Server
from mrlm_envs.serving.settings import Refused, Settings, words

ray: Any = importlib.import_module("ray")  # type checkers would take `import ray` for this file


async def _started(settings: Settings) -> Server:
    server = Server(settings)
    await server.start()
    return server


class _Actor:
    """One server in an actor's process."""

    def __init__(self, settings: Settings) -> None:
        self._server: Server = run(_started(settings))

    def address(self) -> str:
        """`host:port`, with the address of the actor's node."""
        host = self._server.settings.host
        return f"{ray.util.get_node_ip_address() if host == '0.0.0.0' else host}:{self._server.port}"

    def stop(self) -> None:
        """Drain."""
        run(self._server.stop())


def start(settings: Settings, count: int, **options: Any) -> list[Any]:
    """Start `count` actors on ports `settings.port`, `settings.port` + 1, …; Ray restarts lost ones.

    Args:
        settings: What to serve; the port must not be 0, since a restarted actor has to come back to its own.
        count: How many servers.
        **options: Ray's actor options, such as `num_cpus` or `scheduling_strategy`.

    Raises:
        Refused: If the port is 0.
    """
    if not settings.port:
        raise Refused("--ray needs fixed ports: pass --port")
    actor = ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=1)(_Actor)
    actor = actor.options(**options) if options else actor
    return [actor.remote(settings.shifted(index)) for index in range(count)]


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT, then drain; the process's exit status."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    actors = start(settings, settings.ray)
    for address in ray.get([actor.address.remote() for actor in actors]):
        sys.stdout.write(f"mrlm serve: {address} serves {', '.join(words(settings.environments))}\n")
    sys.stdout.flush()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    ray.get([actor.stop.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
    ray.shutdown()
    return 0
