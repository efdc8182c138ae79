"""The settings of a server: the flags of `mrlm serve`, as one dataclass."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path


class Refused(ValueError):
    """A setting or a request that can never succeed here; its message is one line for the user."""


@dataclass(frozen=True)
class Settings:
    """Serve text environments over gRPC, every step exactly once.

    Args:
        environments: Comma-separated: short names (math), ids (mrlm/Math-v0) or other packages' ids
            (my_pkg:My/Env-v0).
        host: Address to listen on; 0.0.0.0 for all.
        port: Port of the first worker, the next ones get the following ports; 0 takes free ones. The default is
            outside Linux's range of ephemeral ports, so no outgoing connection can hold it.
        workers: Worker processes, each on a port of its own.
        ray: Run this many servers as Ray actors instead of worker processes.
        isolate: Run each environment in a child process of its own, so that a step that freezes or crashes costs one
            child and no other session; costs about 0.1 ms a step and some MB a session.
        allow_kwargs: Comma-separated environment arguments that clients may set besides split, max_turns, max_length
            and system_prompt; '*' allows all, files and endpoints included. What starts processes or imports code is
            never taken from a client.
        kwargs_file: JSON file {"llm": {"llm": {...}}, ...} with arguments that the environments get on this server.
        token_file: File with one 'TENANT TOKEN' or 'TOKEN' a line; without it everyone is let in.
        tls_cert: PEM certificate chain of the server.
        tls_key: PEM private key of the server.
        tls_client_ca: PEM certificates; clients must show one signed by them (mTLS).
        metrics_port: Port of the first worker's Prometheus metrics, the next ones get the following ports.
        threads: Steps that run at once in a worker.
        max_connections: Connections to a worker at once, of all clients; those without calls are closed after five
            minutes.
        max_calls: Calls open at once in a worker.
        max_batch: Items of one call.
        max_action_bytes: UTF-8 bytes of one action.
        max_message_bytes: Bytes of a reply; further items of the call are answered when the client asks again.
        max_sessions: Sessions of a worker.
        max_tenant_sessions: Sessions of one tenant in a worker.
        max_tenant_bytes: Bytes that one tenant's sessions may hold in a worker: arguments, conversations, answers.
        max_queue: Steps and resets waiting in a worker.
        idle_ttl: Seconds after which an unused session is closed; its client replays it if it comes back.
        step_timeout: Seconds after which a step or a reset is given up, and a worker that does not answer is killed.
        grace: Seconds that running steps get after SIGTERM.
    """

    environments: str
    host: str = "127.0.0.1"
    port: int = 25051
    workers: int = 1
    ray: int = 0
    isolate: bool = False
    allow_kwargs: str = ""
    kwargs_file: Path | None = None
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    metrics_port: int | None = None
    threads: int = 64
    max_connections: int = 1000
    max_calls: int = 512
    max_batch: int = 4096
    max_action_bytes: int = 1 << 20
    max_message_bytes: int = 3 << 20
    max_sessions: int = 20_000
    max_tenant_sessions: int = 20_000
    max_tenant_bytes: int = 256 << 20
    max_queue: int = 20_000
    idle_ttl: float = 900.0
    step_timeout: float = 120.0
    grace: float = 30.0

    def check(self) -> None:
        """Check the settings against each other.

        Raises:
            Refused: If they contradict each other.
        """
        if self.workers < 1:
            raise Refused(f"--workers must be at least 1, got {self.workers}")
        if bool(self.tls_cert) != bool(self.tls_key) or (self.tls_client_ca and not self.tls_cert):
            raise Refused("TLS needs both --tls-cert and --tls-key; --tls-client-ca needs them too")
        if self.ray and not self.port:
            raise Refused("--ray needs fixed ports: pass --port")

    def shifted(self, index: int) -> "Settings":
        """The settings of a worker: ports of its own, unless free ones are taken."""
        metrics_port = self.metrics_port and self.metrics_port + index
        return replace(self, port=self.port and self.port + index, metrics_port=metrics_port)

    def address(self, port: int) -> str:
        """`host:port`, with an IPv6 host in brackets."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


def words(text: str | Iterable[str]) -> list[str]:
    """The words of a comma-separated list."""
    parts = text.split(",") if isinstance(text, str) else text
    return [part.strip() for part in parts if part.strip()]
