"""A namespace of its own on the cluster of Kubernetes that KUBECONFIG names, with Sluice's Secrets, for one test.

`scripts/kubernetes.sh` says what the cluster must have. Nothing here depends on how the cluster was made.
"""

import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice.rpc.access import Role

ROOT = Path(__file__).parents[2]
HELM = ROOT / ".venv-kubernetes" / "bin" / "helm"
ANSWER_S = 60
ROLES = (Role.COORDINATOR, Role.LEARNER, Role.OPERATOR, Role.ROLLOUT, Role.REWARD)
MINOR_WITH_ALL_FIELDS = 26
"""Of Kubernetes 1.x: the first whose Jobs have every field of ours. An older API server leaves out what it does not know."""

STATUS = """
import json
from sluice.client import Client
from sluice.rpc.credentials import load_credentials
with Client("127.0.0.1:18050", credentials=load_credentials("/credentials/operator")) as client:
    status = client.status()
print(json.dumps([status.step, [[one.service_id, one.state] for one in status.services]]))
"""
READY = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Namespace:
    """A namespace, and the run `demo` in it."""

    name: str

    def kubectl(self, *words: str, said: str = "", within_s: float = ANSWER_S) -> str:
        """What kubectl prints."""
        return _output("kubectl", "--namespace", self.name, *words, said=said, within_s=within_s)

    def find(self, *what: str) -> dict[str, Any]:
        """One object, or the list of all that fit."""
        return json.loads(self.kubectl("get", *what, "-o", "json"))

    def helm(self, *words: str, said: str) -> None:
        """Installs the chart as the release `demo`."""
        old = self._minor() < MINOR_WITH_ALL_FIELDS
        unchecked = ["--server-side=false", "--disable-openapi-validation"] if old else []
        _output(
            *(str(HELM), "--namespace", self.name, "install", "demo", str(ROOT / "deploy" / "helm"), "-f", "-"),
            *(*unchecked, *words),
            said=said,
        )

    def pods(self, component: str) -> dict[str, Mapping[str, Any]]:
        """The pods of `control`, `rollout` or `reward` that nobody has asked to end, by name."""
        found = self.find("pods", "-l", f"app.kubernetes.io/instance=demo,app.kubernetes.io/component={component}")
        return {pod["metadata"]["name"]: pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]}

    def control(self) -> Mapping[str, Any] | None:
        """The control pod once it runs."""
        running = [pod for pod in self.pods("control").values() if pod["status"]["phase"] == "Running"]
        return running[0] if running else None

    def in_control(self, *command: str) -> str:
        """What a command prints in the control pod."""
        pod = self.control()
        assert pod is not None, f"no control pod runs\n{self.told()}"
        return self.kubectl("exec", pod["metadata"]["name"], "-c", "control", "--", *command)

    def status(self) -> tuple[int, dict[str, int]]:
        """Steps trained, and the state of every service; -1 while the coordinator is away."""
        try:
            told = self.in_control("python", "-c", STATUS)
        except AssertionError:
            return -1, {}
        step, services = json.loads(told.splitlines()[-1])
        return step, dict(services)

    def ready(self, role: str) -> set[str]:
        """The services of a role that are at work, which are named as their pods."""
        return {name for name, state in self.status()[1].items() if name.startswith(f"demo-{role}") and state == READY}

    def told(self) -> str:
        """For a failure's message: the pods, what has happened, and what the run has printed."""
        looks = ("get", "pods", "-o", "wide"), ("get", "events", "--sort-by=.lastTimestamp")
        logs = ("logs", "-l", "app.kubernetes.io/instance=demo", "--all-containers", "--prefix", "--tail=40")
        said = []
        for look in (*looks, logs):
            with contextlib.suppress(AssertionError):
                said.append(self.kubectl(*look))
        return "\n".join(said)

    def _minor(self) -> int:
        version = json.loads(self.kubectl("get", "--raw", "/version"))
        return int(version["minor"].rstrip("+"))


@contextlib.contextmanager
def own_namespace(folder: Path) -> Iterator[Namespace]:
    """Makes a namespace with a Secret for each role; takes it away with all that is in it, claims too."""
    namespace = Namespace(name=f"sluice-test-{secrets.token_hex(4)}")
    _output(sys.executable, "-m", "sluice.cli.main", "certs", str(folder / "creds"))
    _output("kubectl", "create", "namespace", namespace.name)
    try:
        for role in ROLES:
            secret = ("create", "secret", "generic", f"sluice-{role}", f"--from-file={folder / 'creds' / role}")
            namespace.kubectl(*secret)
        yield namespace
    finally:
        _output("kubectl", "delete", "namespace", namespace.name, "--wait=true", within_s=300)


def _output(*command: str, said: str = "", within_s: float = ANSWER_S) -> str:
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=False, timeout=within_s, cwd=ROOT)
    assert done.returncode == 0, f"{' '.join(command[:8])}: {done.stderr or done.stdout}"
    return done.stdout
