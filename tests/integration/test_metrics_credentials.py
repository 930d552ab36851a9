"""Who may read the metrics endpoint of a run that has credentials: Prometheus and operators, over TLS where there is TLS."""

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sluice.rpc.access import Role
from sluice.rpc.certificates import SERVES
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials, load_credentials
from sluice.rpc.metrics_gate import MetricsGate
from sluice.rpc.tokens import PLAIN_FILE
from sluice.telemetry.prometheus import Exporter, Target
from tests.security_cases import make_folder

pytestmark = pytest.mark.integration


@contextlib.contextmanager
def endpoint(credentials: Credentials) -> Iterator[int]:
    """The port of a coordinator's endpoint."""
    exporter = Exporter(service="coordinator")
    exporter.set({"queue/groups": 3.0})
    exporter.targets = [Target(address="reward-7f:19052", labels={})]
    try:
        yield exporter.serve(bind="127.0.0.1", port=0, guard=MetricsGate(credentials))
    finally:
        exporter.close()


def get(
    port: int, path: str = "/metrics", *, token: str | None = None, tls: ssl.SSLContext | None = None
) -> tuple[int, str]:
    """Status and text of a page. Raises ssl.SSLError, or ConnectionError, where TLS refuses the caller."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)) as connection:
        connection.connect()
        if tls is not None:
            connection.sock = tls.wrap_socket(connection.sock, server_hostname=SERVES)
        connection.request("GET", path, headers={} if token is None else {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def client_tls(folder: Path, *, shows: Path | None) -> ssl.SSLContext:
    """As `tls_config` of deploy/prometheus/prometheus-tls.yml; `shows` is the folder of the caller's certificate."""
    tls = ssl.create_default_context(cafile=folder / "metrics" / "ca.pem")
    if shows is not None:
        tls.load_cert_chain(shows / "cert.pem", shows / "key.pem")
    return tls


def test_with_tokens_prometheus_and_operators_read_and_nobody_else(tmp_path: Path) -> None:
    folder, other = make_folder(tmp_path / "run", "tokens"), make_folder(tmp_path / "other", "tokens")
    tokens = {role: load_credentials(folder / role) for role in Role}
    with endpoint(tokens[Role.COORDINATOR]) as port, capture_logs() as logs:
        shown = (folder / "metrics" / PLAIN_FILE).read_text()
        assert (get(port, token=shown)[0], get(port, "/targets", token=shown)[0]) == (200, 200)
        operators = dict(tokens[Role.OPERATOR].metadata(f"127.0.0.1:{port}", Role.COORDINATOR))["authorization"]
        status, text = get(port, token=operators.removeprefix("Bearer "))
        assert status == 200
        assert 'sluice_queue_groups{service="coordinator"} 3.0' in text
        rollouts = dict(tokens[Role.ROLLOUT].metadata(f"127.0.0.1:{port}", Role.COORDINATOR))["authorization"]
        assert get(port, token=rollouts.removeprefix("Bearer ")) == (
            403,
            "metrics are for the roles metrics and operator, not for rollout\n",
        )
        for wrong in (None, "guessed-token", (other / "metrics" / PLAIN_FILE).read_text(), f"{shown}, Bearer {shown}"):
            for path in ("/metrics", "/targets", "/"):
                status, text = get(port, path, token=wrong)
                assert status == 401
                assert "sluice_queue" not in text
                assert "reward-7f" not in text
    assert {line["event"] for line in logs} == {"scrape_refused"}
    assert not [line for line in logs if shown in str(line) or "guessed-token" in str(line)]
    with endpoint(tokens[Role.LEARNER]) as port:  # one token reads all services, and calls none of their methods
        assert get(port, token=shown)[0] == 200


def test_with_certificates_the_endpoint_is_https_and_reads_the_role_in_the_callers(tmp_path: Path) -> None:
    folder, other = make_folder(tmp_path / "run", "certs"), make_folder(tmp_path / "other", "certs")
    with endpoint(load_credentials(folder / "reward")) as port:
        silent = socket.create_connection(("127.0.0.1", port))  # its handshake never begins, and keeps nobody out
        for role, status in ((Role.METRICS, 200), (Role.OPERATOR, 200), (Role.ROLLOUT, 403), (Role.REWARD, 403)):
            assert get(port, tls=client_tls(folder, shows=folder / role))[0] == status
        assert "sluice_queue_groups" in get(port, tls=client_tls(folder, shows=folder / "metrics"))[1]
        for shows in (None, other / "metrics"):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                get(port, tls=client_tls(folder, shows=shows))
        with pytest.raises(ssl.SSLCertVerificationError):  # one that poses as an endpoint of the run
            get(port, tls=client_tls(other, shows=other / "metrics"))
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            get(port)
        silent.close()
    with endpoint(load_credentials(folder / "metrics")) as posing, pytest.raises(ssl.SSLCertVerificationError):
        get(posing, tls=client_tls(folder, shows=folder / "metrics"))


def test_without_credentials_the_machine_reads_as_before() -> None:
    with endpoint(NO_CREDENTIALS) as port:
        assert get(port)[0] == get(port, "/targets")[0] == 200
