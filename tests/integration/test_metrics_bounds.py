"""Strangers at a metrics endpoint neither use up threads nor keep Prometheus out."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from urllib.request import urlopen

import pytest

from sluice.telemetry import bounded_http
from sluice.telemetry.bounded_http import MOST_CONNECTIONS
from sluice.telemetry.prometheus import Exporter
from sluice.testing import assert_eventually_blocking

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]


@pytest.fixture
def port() -> Iterator[int]:
    exporter = Exporter(service="coordinator")
    exporter.set({"queue/groups": 3.0})
    yield exporter.serve(bind="127.0.0.1", port=0)
    exporter.close()


def threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def scraped(port: int) -> bool:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return b"sluice_queue_groups" in answer.read()


@contextlib.contextmanager
def strangers(port: int, count: int, said: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as held:
        made = [held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5.0)) for _ in range(count)]
        for stranger in made:
            with contextlib.suppress(OSError):  # it was cut off, for a later one
                stranger.sendall(said)
        yield made


@pytest.mark.parametrize("said", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n"])
def test_prometheus_is_answered_while_many_strangers_hold_connections(port: int, said: bytes) -> None:
    with strangers(port, 60, said):
        assert all(scraped(port) for _ in range(3))
        assert threads() <= 2 * MOST_CONNECTIONS
        assert_eventually_blocking(lambda: threads() <= MOST_CONNECTIONS, within_s=10.0)
    assert_eventually_blocking(lambda: threads() == 0, within_s=10.0)


def test_one_that_never_ends_its_request_is_cut_off_however_much_it_says(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "LIMIT_S", 0.5)
    with strangers(port, 1, b"GET /") as (stranger,):
        drip = threading.Event()

        def cut_off() -> bool:
            drip.wait(0.05)
            try:
                stranger.sendall(b"x")
                stranger.settimeout(0.01)
                return stranger.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        give_up = time.monotonic() + 8.0
        while not cut_off():
            assert time.monotonic() < give_up
    assert_eventually_blocking(lambda: threads() == 0, within_s=10.0)


def test_one_that_does_not_read_its_answer_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "LIMIT_S", 0.5)
    with strangers(port, 4, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
        assert_eventually_blocking(lambda: threads() == 0, within_s=10.0)
        assert scraped(port)
