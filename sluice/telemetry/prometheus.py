"""One Prometheus endpoint a process. Names come from the catalogue, with `/` as `_` and the prefix `sluice_`."""

import contextlib
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from sluice.errors import LaunchError
from sluice.telemetry.catalogue import CATALOGUE


class Exporter:
    """Gauges by catalogue name, and counters a service adds for itself."""

    def __init__(self, *, service: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"service": service}
        self._gauges: dict[str, Gauge] = {}
        self._meanings = {metric.name: f"{metric.meaning} [{metric.unit}]" for metric in CATALOGUE}
        self._stack = contextlib.ExitStack()

    def set(self, values: Mapping[str, float]) -> None:
        """Sets gauges by catalogue name; a name that is not in the catalogue is a KeyError."""
        for name, value in values.items():
            if name not in self._gauges:
                self._gauges[name] = self.gauge(name, self._meanings[name])
            self._gauges[name].labels(**self._labels).set(value)

    def gauge(self, name: str, meaning: str) -> Gauge:
        """A gauge of this service's own, labelled with the service's name."""
        return Gauge("sluice_" + name.replace("/", "_"), meaning, ["service"], registry=self.registry)

    def counter(self, name: str, meaning: str) -> Counter:
        """A counter of this service's own, labelled with the service's name."""
        return Counter("sluice_" + name.replace("/", "_"), meaning, ["service"], registry=self.registry)

    def refusals(self, reasons: Iterable[str]) -> dict[str, Counter]:
        """A counter by reason of the calls that the server turned away."""
        service = self._labels["service"]
        return {
            reason: self.counter(f"rpc/refused_{reason}", f"calls refused as {reason} [calls]").labels(service)
            for reason in reasons
        }

    def serve(self, *, bind: str, port: int) -> int:
        """Starts the HTTP endpoint (port 0: any free one) and returns its port."""
        try:
            server, thread = start_http_server(port, addr=bind, registry=self.registry)
        except OSError as error:
            raise LaunchError(
                f"metrics: cannot listen on {bind}:{port}: {error}; --metrics-port 0 takes any free port"
            ) from error
        self._stack.callback(thread.join, 1.0)
        self._stack.callback(server.server_close)
        self._stack.callback(server.shutdown)
        return server.server_port

    def close(self) -> None:
        """Stops the endpoint."""
        self._stack.close()
