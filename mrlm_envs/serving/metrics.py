"""What a server counts, as Prometheus reads it.

Counting a step is a dictionary look-up and two additions; everything else is done when the metrics are read.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any

BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # seconds


class Metrics:
    """Counters of one server; a `prometheus_client` collector.

    Args:
        gauges: Name and help of each gauge, and how to read it.
    """

    def __init__(self, gauges: dict[tuple[str, str], Callable[[], float]]) -> None:
        self._gauges = gauges
        self._lock = threading.Lock()
        self._latency: dict[str, list[float]] = {}  # environment -> a count per bucket, one above all, the sum
        self._errors: dict[str, int] = {}

    def step(self, env_id: str, seconds: float) -> None:
        """Count a step; on any thread."""
        with self._lock:
            row = self._latency.get(env_id)
            if row is None:
                row = self._latency[env_id] = [0.0] * (len(BUCKETS) + 2)
            row[bisect_left(BUCKETS, seconds)] += 1
            row[-1] += seconds

    def error(self, code: str) -> None:
        """Count an item's error by its code."""
        with self._lock:
            self._errors[code] = self._errors.get(code, 0) + 1

    def collect(self) -> Iterator[Any]:
        """The metric families, for `prometheus_client`."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for (name, text), read in self._gauges.items():
            yield GaugeMetricFamily(name, text, value=read())
        with self._lock:
            latency = {env_id: list(row) for env_id, row in self._latency.items()}
            counted = dict(self._errors)
        histogram = HistogramMetricFamily("mrlm_step_seconds", "Time an environment takes for a step", labels=["env"])
        for env_id, row in latency.items():
            total, buckets = 0.0, []
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), row):
                total += count
                buckets.append((bound, total))
            histogram.add_metric([env_id], buckets=buckets, sum_value=row[-1])
        yield histogram
        errors = CounterMetricFamily("mrlm_errors", "Items answered with an error", labels=["code"])
        for code, count in counted.items():
            errors.add_metric([code], count)
        yield errors

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Answer Prometheus at `http://host:port/metrics` from a thread of its own; returns what stops it."""
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()
        registry.register(self)  # pyright: ignore[reportArgumentType]
        server, thread = start_http_server(port, addr=host, registry=registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop
