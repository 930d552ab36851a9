"""`python -m sluice.cli.in_pod RUN up ...`: `sluice up` as the control pod of a run on Kubernetes.

Rollouts and rewards are Deployments, whose pods Kubernetes starts again whenever they end. So that they do not hold GPUs after
the run, this program sets their replicas to 0 once the run has ended, by the pod's own account (manifests/account.yaml).
"""

import json
import ssl
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from sluice.cli import main as command
from sluice.process import exit_codes

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SERVER = "https://kubernetes.default.svc"
_ANSWER_S = 10.0


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code. A run that a signal ended goes on in another pod, with the same services."""
    run, *arguments = argv
    code = command.main(arguments)
    if code != exit_codes.INTERRUPTED:
        for role in ("rollout", "reward"):
            try:
                release(f"{run}-{role}", account=ACCOUNT, server=SERVER)
            except OSError as error:
                print(
                    f"sluice: kubectl scale deployment {run}-{role} --replicas=0 is left to you: {error}",
                    file=sys.stderr,
                )
    return code


def release(deployment: str, *, account: Path, server: str) -> None:
    """Sets a Deployment's replicas to 0. Raises OSError, of which urllib's errors are a kind."""
    namespace, token = ((account / name).read_text().strip() for name in ("namespace", "token"))
    request = urllib.request.Request(
        f"{server}/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}/scale",
        data=json.dumps({"spec": {"replicas": 0}}).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
        method="PATCH",
    )
    trusted = ssl.create_default_context(cafile=str(account / "ca.crt")) if server.startswith("https") else None
    with urllib.request.urlopen(request, timeout=_ANSWER_S, context=trusted):
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
