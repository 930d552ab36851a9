"""Rollouts and rewards that are Deployments of Kubernetes, whose pods the launcher does not start: how many there are to be.

The control pod of a run (submit/manifests/control-pod.yaml) has OWNER in its environment and an account that may set the
replicas of these two Deployments, and nothing else.
"""

import json
import os
import ssl
import urllib.request
from pathlib import Path

from sluice.errors import LaunchError

OWNER = "SLUICE_DEPLOYMENTS"
"""RUN, where the services are the Deployments RUN-rollout and RUN-reward of this pod's namespace."""

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SERVER = "https://kubernetes.default.svc"
_ANSWER_S = 10.0


def owner() -> str:
    """OWNER of this process's environment; empty where the launcher starts services itself."""
    return os.environ.get(OWNER, "")


def scale(run: str, role: str, replicas: int) -> str:
    """Sets the replicas of `role`; says so, for a person. Raises LaunchError where the API server refuses or is silent."""
    try:
        _patch(f"{run}-{role}", replicas)
    except OSError as error:  # urllib's errors are a kind of OSError
        command = f"kubectl scale deployment {run}-{role} --replicas={replicas}"
        raise LaunchError(f"{role}: `{command}` is left to you: {error}") from error
    return f"{role}: the Deployment {run}-{role} is told to have {replicas} replicas"


def _patch(deployment: str, replicas: int) -> None:
    namespace, token = ((ACCOUNT / name).read_text().strip() for name in ("namespace", "token"))
    request = urllib.request.Request(
        f"{SERVER}/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}/scale",
        data=json.dumps({"spec": {"replicas": replicas}}).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
        method="PATCH",
    )
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt")) if SERVER.startswith("https") else None
    with urllib.request.urlopen(request, timeout=_ANSWER_S, context=trusted):
        pass
