"""What is said where kubectl or a cluster is missing. The kubectl is real; no cluster is."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from sluice.cli import in_pod
from sluice.errors import ConfigError, LaunchError
from sluice.launch import deployments
from sluice.launch.submit.kubectl import place_of
from sluice.launch.submit.kubernetes import KubernetesSubmitter
from tests.unit.submit.kubernetes_cases import submission


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One context, `quiet`, behind whose address nobody listens."""
    tree = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "quiet", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "users": [{"name": "u", "user": {"token": "none"}}],
        "current-context": "quiet",
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(tree))
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


def test_without_kubectl_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        LaunchError, match="kubectl is not on the PATH; install it, or print the manifests with --dry-run"
    ):
        KubernetesSubmitter().submit(submission())


@pytest.mark.needs("kubectl")
def test_a_context_is_that_of_the_kubeconfig_unless_another_is_named(kubeconfig: Path) -> None:
    assert (place_of(None, None).context, place_of(None, None).namespace) == ("quiet", "team")
    assert place_of("quiet", "mine").namespace == "mine"
    with pytest.raises(
        ConfigError, match=r"kubernetes\.context: must be a context of the kubeconfig \(quiet\), got loud"
    ):
        place_of("loud", None)
    kubeconfig.write_text("{}")
    with pytest.raises(ConfigError, match="has no current context; `kubectl config use-context"):
        place_of(None, None)


@pytest.mark.needs("kubectl")
@pytest.mark.usefixtures("kubeconfig")
def test_a_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(LaunchError, match=r"no cluster answers at the context quiet \(.*127\.0\.0\.1:1 was refused"):
        KubernetesSubmitter().submit(submission())
    with pytest.raises(ConfigError, match=r"a job of Kubernetes is KIND/NAME\.NAMESPACE@CONTEXT, got demo"):
        KubernetesSubmitter().state("demo")


@pytest.fixture
def api() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A server that notes what it is told."""
    told: list[tuple[str, str, bytes]] = []

    class Notes(BaseHTTPRequestHandler):
        def do_PATCH(self) -> None:
            told.append(
                (self.path, self.headers["Authorization"], self.rfile.read(int(self.headers["Content-Length"])))
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Notes) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", told
        server.shutdown()


@pytest.mark.integration
@pytest.mark.parametrize(("code", "released"), [(0, 2), (1, 2), (130, 0)])
def test_a_run_that_has_ended_gives_back_the_pods_of_its_services_and_keeps_its_exit_code(
    code: int,
    released: int,
    api: tuple[str, list[tuple[str, str, bytes]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "namespace").write_text("team\n")
    (tmp_path / "token").write_text("t0ken\n")
    address, told = api
    monkeypatch.setattr(deployments, "ACCOUNT", tmp_path)
    monkeypatch.setattr(deployments, "SERVER", address)
    monkeypatch.setenv(deployments.OWNER, "math-1")
    monkeypatch.setattr(in_pod.command, "main", lambda arguments: {("up", "-c", "r"): code}[tuple(arguments)])
    assert in_pod.main(["up", "-c", "r"]) == code
    assert told == [
        (f"/apis/apps/v1/namespaces/team/deployments/math-1-{role}/scale", "Bearer t0ken", b'{"spec": {"replicas": 0}}')
        for role in ("rollout", "reward")[:released]
    ]


def test_pods_that_cannot_be_given_back_are_named_with_the_line_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deployments, "ACCOUNT", tmp_path)
    monkeypatch.setenv(deployments.OWNER, "math-1")
    monkeypatch.setattr(in_pod.command, "main", lambda arguments: 0)
    assert in_pod.main(["up"]) == 0
    assert "rollout: `kubectl scale deployment math-1-rollout --replicas=0` is left to you" in capsys.readouterr().err
