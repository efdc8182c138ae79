"""What a server tells its operator: Prometheus metrics, and logs of one JSON object a line."""

import datetime
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # seconds
_NAMES = {"worker", "pid", "tenant", "session", "env", "task"}


class Metrics:
    """The metrics of one server.

    Args:
        gauges: Name and help of each gauge, and how to read it.

    Attributes:
        steps: Seconds an environment takes for a step, by environment; its count is the number of steps.
        resets: Resets, by environment.
        waits: Seconds a call's first item waits for a thread.
        errors: Items answered with an error, by code.
        refusals: Calls refused as a whole, by gRPC status.
        registry: All of them, and the process's own (resident memory, CPU, open files).
    """

    def __init__(self, gauges: Mapping[tuple[str, str], Callable[[], float]]) -> None:
        self.registry = registry = CollectorRegistry()
        self._server: Any = None
        ProcessCollector(registry=registry)
        for (name, text), read in gauges.items():
            Gauge(name, text, registry=registry).set_function(read)
        self.steps = Histogram(
            "mrlm_step_seconds", "Time an environment takes for a step", ["env"], buckets=BUCKETS, registry=registry
        )
        self.resets = Counter("mrlm_resets", "Resets", ["env"], registry=registry)
        self.waits = Histogram(
            "mrlm_queue_seconds", "Time a call's first item waits for a thread", buckets=BUCKETS, registry=registry
        )
        self.errors = Counter("mrlm_errors", "Items answered with an error", ["code"], registry=registry)
        self.refusals = Counter("mrlm_refused_calls", "Calls refused as a whole", ["status"], registry=registry)

    def serve(self, host: str, port: int) -> None:
        """Answer Prometheus at `http://host:port/metrics` from a thread of its own."""
        self._server, _ = start_http_server(port, addr=host, registry=self.registry)

    def stop(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class JsonFormatter(logging.Formatter):
    """A log record as one line: a JSON object of time, level, message, and what is known of session and error."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= {name: value for name, value in vars(record).items() if name in _NAMES}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = repr(record.exc_info[1])
            if record.name.startswith("mrlm"):  # gRPC's are about what strangers sent
                line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_json(level: int = logging.INFO) -> None:
    """Write the process's logs to standard error, as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("mrlm").setLevel(level)
