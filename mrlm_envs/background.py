"""The event loop in the background of this process, for clients that are asynchronous inside."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class _Loop:
    lock = threading.RLock()  # a finalizer may spawn while its thread holds it
    pid: int | None = None
    loop: asyncio.AbstractEventLoop


def _forget_parent() -> None:
    _Loop.lock = threading.RLock()  # another thread of the parent's may hold the inherited one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


def spawn(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Starts a coroutine on the loop, from any thread; a forked process has a loop of its own."""
    with _Loop.lock:
        if _Loop.pid != os.getpid():
            _Loop.loop = asyncio.new_event_loop()
            threading.Thread(target=_Loop.loop.run_forever, name="mrlm-background", daemon=True).start()
            _Loop.pid = os.getpid()
    return asyncio.run_coroutine_threadsafe(work, _Loop.loop)


def run(work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
    """Runs a coroutine on the loop, from synchronous code in any thread.

    Args:
        work: The coroutine; it is cancelled when the caller stops waiting, as by Ctrl-C.
        timeout: Seconds to wait.

    Raises:
        TimeoutError: It took longer.
    """
    future = spawn(work)
    try:
        return future.result(timeout)
    except BaseException:
        future.cancel()
        raise
