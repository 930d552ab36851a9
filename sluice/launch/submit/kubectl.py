"""kubectl, the one program that speaks to a cluster of Kubernetes for Sluice: contexts, logins and proxies are its business.

Every call has a deadline; a cluster that does not answer is told from one that refuses.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sluice.errors import ConfigError, Forbidden, LaunchError, NotFound

ANSWER_S = 10
"""For one answer of the cluster."""
_MARGIN_S = 5.0
_SILENT = (
    "connection to the server",
    "unable to connect",
    "no such host",
    "i/o timeout",
    "timeout exceeded",
    "timed out",
)


_REFUSALS = {"NotFound": NotFound, "Forbidden": Forbidden}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a run's objects are."""

    context: str
    namespace: str

    def call(self, *arguments: str, said: str = "", within_s: float = ANSWER_S) -> str:
        """What kubectl prints. Raises LaunchError for a silent cluster, NotFound and ConfigError for what it refuses."""
        command = [*self.command(), f"--request-timeout={within_s:.0f}s", *arguments]
        try:
            done = subprocess.run(
                command, input=said, capture_output=True, text=True, timeout=within_s + _MARGIN_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise self._silent(f"no answer within {within_s:.0f} s") from None
        if done.returncode == 0:
            return done.stdout
        reason = done.stderr.strip() or f"kubectl ended with code {done.returncode}"
        if any(words in reason.lower() for words in _SILENT):
            raise self._silent(reason.splitlines()[-1])
        kind = next((error for word, error in _REFUSALS.items() if f"({word})" in reason), ConfigError)
        raise kind(f"kubernetes: {reason}")

    def find(self, *what: str) -> dict[str, Any] | None:
        """One object; None where there is none of that name, and an empty one where this user may not look."""
        try:
            return json.loads(self.call("get", *what, "-o", "json"))
        except NotFound:
            return None
        except Forbidden:
            return {}

    def missing(self, kind: str, names: Sequence[str]) -> list[str]:
        """The names of which there is no object; none where this user may not look."""
        try:
            found = self.call("get", kind, *names, "--ignore-not-found", "-o", "name").split()
        except Forbidden:
            return []
        return [name for name in names if f"{kind}/{name}" not in found]

    def lines(self, *arguments: str) -> Iterator[str]:
        """What kubectl prints, line by line, as long as it runs."""
        with subprocess.Popen(
            [*self.command(), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        ) as running:
            assert running.stdout is not None
            try:
                for line in running.stdout:
                    yield line.rstrip("\n")
            finally:
                running.terminate()

    def command(self) -> list[str]:
        """kubectl with this place."""
        return [_kubectl(), "--context", self.context, "--namespace", self.namespace]

    def _silent(self, reason: str) -> LaunchError:
        return LaunchError(
            f"kubernetes: no cluster answers at the context {self.context} ({reason}); `kubectl config get-contexts` lists "
            "others for kubernetes.context"
        )


def place_of(context: str | None, namespace: str | None) -> Place:
    """The place that is meant, by default that of the kubeconfig. Raises ConfigError without one."""
    kubeconfig = _kubeconfig()
    contexts = {entry["name"]: entry.get("context") or {} for entry in kubeconfig.get("contexts") or ()}
    chosen = context or kubeconfig.get("current-context")
    if not chosen:
        raise ConfigError(
            "kubernetes.context: must be given while the kubeconfig has no current context; `kubectl config use-context "
            "NAME` chooses one, KUBECONFIG names another file"
        )
    if chosen not in contexts:
        listed = ", ".join(sorted(contexts)) or "none"
        raise ConfigError(f"kubernetes.context: must be a context of the kubeconfig ({listed}), got {chosen}")
    return Place(context=chosen, namespace=namespace or contexts[chosen].get("namespace") or "default")


def _kubeconfig() -> dict[str, Any]:
    command = [_kubectl(), "config", "view", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    if done.returncode:
        raise ConfigError(f"kubernetes: the kubeconfig cannot be read: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _kubectl() -> str:
    path = shutil.which("kubectl")
    if path is None:
        raise LaunchError(
            "kubernetes: kubectl is not on the PATH; install it, or print the manifests with --dry-run and apply them elsewhere"
        )
    return path
