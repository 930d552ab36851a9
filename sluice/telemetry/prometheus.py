"""One Prometheus endpoint a process. Names come from the catalogue, with `/` as `_` and the prefix `sluice_`.

The coordinator's endpoint also lists the endpoints of all registered services at /targets, in the form that Prometheus
reads (`http_sd_configs`). Who may read is the business of a Guard: sluice/rpc/metrics_gate.py has the one of a run.
"""

import contextlib
import json
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Any, Protocol
from wsgiref.simple_server import make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app

from sluice.addresses import joined
from sluice.errors import LaunchError
from sluice.telemetry.bounded_http import BoundedServer, BoundedServerV6, QuietHandler
from sluice.telemetry.catalogue import metric_of
from sluice.telemetry.metric import prometheus_name

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""


class Guard(Protocol):
    """Decides who may read an endpoint."""

    def tls(self) -> ssl.SSLContext | None:
        """The endpoint's TLS; None: plain HTTP."""
        ...

    def guarded(self, app: App) -> App:
        """`app` for those who may read it; the others get a reason."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """An endpoint for Prometheus to read."""

    address: str
    """host:port."""
    labels: Mapping[str, str]


class Exporter:
    """Gauges and counters by catalogue name; a name outside the catalogue raises KeyError."""

    def __init__(self, *, service: str) -> None:
        self.registry = CollectorRegistry()
        self.targets: Sequence[Target] | None = None
        """The content of /targets, replaced as a whole because another thread reads it. None: there is no such page."""
        self._labels = {"service": service}
        self._gauges: dict[str, Gauge] = {}
        self._stack = contextlib.ExitStack()

    def set(self, values: Mapping[str, float]) -> None:
        """Sets gauges by catalogue name."""
        for name, value in values.items():
            if name not in self._gauges:
                self._gauges[name] = self.gauge(name)
            self._gauges[name].labels(**self._labels).set(value)

    def gauge(self, name: str) -> Gauge:
        """A gauge for the service to set, labelled with the service's name."""
        return Gauge(prometheus_name(name), _help(name), ["service"], registry=self.registry)

    def counter(self, name: str) -> Counter:
        """A counter, labelled with the service's name."""
        return Counter(prometheus_name(name), _help(name), ["service"], registry=self.registry)

    def refusals(self, reasons: Iterable[str]) -> dict[str, Counter]:
        """A counter for each reason of refusing a call."""
        service = self._labels["service"]
        return {reason: self.counter(f"rpc/refused_{reason}").labels(service) for reason in reasons}

    def serve(self, *, bind: str, port: int, guard: Guard | None = None) -> int:
        """Starts the HTTP endpoint (port 0: any free one) and returns its port. Without `guard` everybody may read it."""
        app = self._app() if guard is None else guard.guarded(self._app())
        tls = None if guard is None else guard.tls()
        try:
            kind = BoundedServerV6 if ":" in bind else BoundedServer
            server = make_server(bind, port, app, server_class=kind, handler_class=QuietHandler)
        except OSError as error:
            raise LaunchError(
                f"metrics: cannot listen on {joined(bind, port)}: {error}; --metrics-port 0 takes any free port"
            ) from error
        server.tls = tls
        thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        self._stack.callback(thread.join, 1.0)
        self._stack.callback(server.server_close)
        self._stack.callback(server.shutdown)
        return server.server_port

    def close(self) -> None:
        """Stops the endpoint."""
        self._stack.close()

    def _app(self) -> App:
        metrics = make_wsgi_app(self.registry)

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if self.targets is None or environ["PATH_INFO"] != "/targets":
                return metrics(environ, start_response)
            groups = [{"targets": [target.address], "labels": dict(target.labels)} for target in self.targets]
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(groups).encode()]

        return answer


def _help(name: str) -> str:
    metric = metric_of(name)
    return f"{metric.meaning} [{metric.unit}]"
