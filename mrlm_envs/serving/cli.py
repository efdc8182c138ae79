"""`mrlm serve`: one server process, several on ports of their own, or Ray actors.

Also `python -m mrlm_envs.serving`, which needs neither torch nor `mrlm_train`.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from mrlm_envs import ENVIRONMENTS
from mrlm_envs.serving.catalog import Refused, json_object
from mrlm_envs.serving.server import Server, Settings, read_tokens
from mrlm_envs.serving.sessions import Limits

_DEFAULTS = Limits()
_PARENT = "MRLM_SERVE_PARENT"  # process id of the `--workers` parent
_CRASHED = 1.0  # seconds before a lost worker is started again


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `mrlm serve`."""
    add = parser.add_argument
    add(
        "--environments",
        required=True,
        metavar="NAMES",
        help=f"comma-separated: short names ({', '.join(ENVIRONMENTS)}), ids (mrlm/Math-v0) or other packages' ids "
        "(my_pkg:My/Env-v0)",
    )
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all")
    add("--port", type=int, default=50051, help="port of the first worker; 0 takes free ones")
    add("--workers", type=int, default=1, help="processes, on ports PORT, PORT+1, …")
    add(
        "--ray",
        type=int,
        default=0,
        metavar="N",
        help="run N servers as Ray actors instead of processes",
    )
    add(
        "--allow-kwargs",
        default="",
        metavar="NAMES",
        help="comma-separated environment arguments that clients may set besides split, max_turns, max_length and "
        "system_prompt; '*' allows all, files and endpoints included",
    )
    add(
        "--kwargs-file",
        metavar="F",
        help='JSON: {"llm": {"llm": {…}}, …}, arguments that the environments get on this server',
    )
    add("--token-file", metavar="F", help="one 'TENANT TOKEN' or 'TOKEN' a line; without it everyone is let in")
    add("--tls-cert", metavar="F", help="PEM certificate chain of the server")
    add("--tls-key", metavar="F", help="PEM private key of the server")
    add("--tls-client-ca", metavar="F", help="PEM certificates; clients must show one signed by them (mTLS)")
    add(
        "--metrics-port",
        type=int,
        metavar="P",
        help="Prometheus metrics of the first worker, then P+1, …",
    )
    add("--threads", type=int, default=64, help="steps that run at once in a worker")
    add("--max-calls", type=int, default=512, help="calls open at once in a worker")
    add("--max-batch", type=int, default=_DEFAULTS.batch, help="items of one call")
    add(
        "--max-action-bytes",
        type=int,
        default=_DEFAULTS.action_bytes,
        help="UTF-8 bytes of one action",
    )
    add("--max-sessions", type=int, default=_DEFAULTS.sessions, help="sessions of a worker")
    add(
        "--max-tenant-sessions",
        type=int,
        default=_DEFAULTS.tenant_sessions,
        help="sessions of one tenant in a worker",
    )
    add(
        "--max-queue",
        type=int,
        default=_DEFAULTS.queue,
        help="steps and resets waiting in a worker",
    )
    add(
        "--idle-ttl",
        type=float,
        default=_DEFAULTS.idle_ttl,
        help="seconds after which an unused session is closed; its client replays it if it comes back",
    )
    add(
        "--step-timeout",
        type=float,
        default=_DEFAULTS.step_timeout,
        help="seconds after which a step is given up",
    )
    add("--grace", type=float, default=30.0, help="seconds running steps get after SIGTERM")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit status."""
    logging.basicConfig(format="mrlm serve: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        if args.workers < 1:
            raise Refused(f"--workers must be at least 1, got {args.workers}")
        if args.ray:
            from mrlm_envs.serving.ray import serve

            return serve(settings(args), args.ray, _say)
        if args.workers > 1:
            return _supervise(args)
        return asyncio.run(_serve(settings(args)))
    except (Refused, OSError, ModuleNotFoundError) as error:
        _warn(str(error))
        return 2


def settings(args: argparse.Namespace) -> Settings:
    """What the flags say.

    Raises:
        Refused: If flags contradict each other.
        OSError: If a file cannot be read.
    """
    if bool(args.tls_cert) != bool(args.tls_key) or (args.tls_client_ca and not args.tls_cert):
        raise Refused("TLS needs both --tls-cert and --tls-key; --tls-client-ca needs them too")
    tokens = {}
    if args.token_file:
        with open(args.token_file, encoding="utf-8") as file:
            tokens = read_tokens(file)
    preset = {}
    if args.kwargs_file:
        preset = json_object(_bytes(args.kwargs_file), args.kwargs_file)
    return Settings(
        environments=_words(args.environments),
        host=args.host,
        port=args.port,
        allow_kwargs=_words(args.allow_kwargs),
        preset=preset,
        tokens=tokens,
        tls=(_bytes(args.tls_key), _bytes(args.tls_cert)) if args.tls_cert else None,
        tls_client_ca=_bytes(args.tls_client_ca) if args.tls_client_ca else None,
        metrics_port=args.metrics_port,
        threads=args.threads,
        calls=args.max_calls,
        grace=args.grace,
        limits=Limits(
            action_bytes=args.max_action_bytes,
            batch=args.max_batch,
            sessions=args.max_sessions,
            tenant_sessions=args.max_tenant_sessions,
            queue=args.max_queue,
            idle_ttl=args.idle_ttl,
            step_timeout=args.step_timeout,
        ),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _say(line: str) -> None:
    sys.stdout.write(f"mrlm serve: {line}\n")
    sys.stdout.flush()


def _warn(line: str) -> None:
    sys.stderr.write(f"mrlm serve: {line}\n")


async def _serve(settings: Settings) -> int:
    """One server, until a signal or the loss of the parent."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = Server(settings)
    await server.start()
    if settings.host not in ("127.0.0.1", "localhost", "::1") and not (settings.tokens and settings.tls):
        lacking = "a token" if not settings.tokens else "TLS"
        logging.getLogger("mrlm.serve").warning("%s is open to others without %s", settings.host, lacking)
    _say(f"{server.address} serves {', '.join(server.catalog.ids)}")
    parent = int(os.environ.get(_PARENT, 0))
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
        if parent and os.getppid() != parent:
            break
    await server.stop()
    return 0


def _supervise(args: argparse.Namespace) -> int:
    """Run `--workers` processes, start a lost one again, pass signals on; 0 if all of them ended well."""
    settings(args)  # complain once, not once a worker
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    workers = [_start(args, index) for index in range(args.workers)]
    while not stop.wait(0.2):
        for index, worker in enumerate(workers):
            if worker.poll() is None:
                continue
            if worker.returncode >= 0:  # it ended by itself, and said why
                stop.set()
                break
            _warn(f"worker {index} was lost (signal {-worker.returncode}) and is started again")
            time.sleep(_CRASHED)
            workers[index] = _start(args, index)
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    end = time.monotonic() + args.grace + 5.0
    for worker in workers:
        try:
            worker.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    return max(abs(worker.returncode) for worker in workers)


def _start(args: argparse.Namespace, index: int) -> "subprocess.Popen[bytes]":
    own = vars(args) | {"workers": 1, "port": args.port + index if args.port else 0}
    if args.metrics_port:
        own["metrics_port"] = args.metrics_port + index
    parser = _parser()
    flags = [
        part
        for action in parser._actions
        if own.get(action.dest) is not None and action.dest != "help"
        for part in (action.option_strings[0], str(own[action.dest]))
    ]
    command = [sys.executable, "-m", "mrlm_envs.serving", *flags]
    return subprocess.Popen(command, env={**os.environ, _PARENT: str(os.getpid())}, start_new_session=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mrlm serve",
        description="Serve text environments over gRPC.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m mrlm_envs.serving`."""
    return run(_parser().parse_args(argv))
