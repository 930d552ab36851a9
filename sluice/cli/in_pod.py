"""`python -m sluice.cli.in_pod up ...`: `sluice up` as the control pod of a run on Kubernetes.

Rollouts and rewards are Deployments, whose pods Kubernetes starts again whenever they end. So that they do not hold GPUs after
the run, this program sets their replicas to 0 once the run has ended.
"""

import sys
from collections.abc import Sequence

from sluice.cli import main as command
from sluice.errors import LaunchError
from sluice.launch import deployments
from sluice.process import exit_codes


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code. A run that a signal ended goes on in another pod, with the same services."""
    code = command.main(argv)
    if code != exit_codes.INTERRUPTED:
        for role in ("rollout", "reward"):
            print(f"sluice: {_told(role)}", file=sys.stderr)
    return code


def _told(role: str) -> str:
    try:
        return deployments.scale(deployments.owner(), role, 0)
    except LaunchError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
