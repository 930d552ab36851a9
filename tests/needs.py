"""What some tests need and a machine may lack: `@pytest.mark.needs("promtool")`.

A test whose need is not met is left out, never skipped, and the run's last lines say which need and why
(tests/conftest.py). What `make setup` always installs is no need: where it is missing, the test fails.
"""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from tests.small_disk import disk_of

ROOT = Path(__file__).parent.parent


def met_and_missing(items: Iterable[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item], Counter[str]]:
    """The tests that can run, those that cannot, and how many of these by what is missing and why.

    Raises UsageError for a need that no one has heard of.
    """
    can_run, cannot, reasons = list[pytest.Item](), list[pytest.Item](), Counter[str]()
    for item in items:
        if missing := [reason for name in _needs(item) if (reason := _missing(name))]:
            cannot.append(item)
            reasons["; ".join(missing)] += 1
        else:
            can_run.append(item)
    return can_run, cannot, reasons


def promtool() -> str | None:
    """The path of the one that `make promtool` has put beside this Python, else of the one on the PATH."""
    return shutil.which("promtool", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))


@functools.cache
def sandbox_permits() -> Mapping[str, bool]:
    """What this machine lets a grader's sandbox have: `network`, `processes`, `files` ... (isolation.py)."""
    command = [sys.executable, "-m", "services.reward.sandbox.isolation"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT, timeout=60).stdout)


def _needs(item: pytest.Item) -> list[str]:
    """What the marks name; `gpu` names a CUDA device by itself."""
    named = [name for marker in item.iter_markers("needs") for name in marker.args]
    return ["cuda", *named] if item.get_closest_marker("gpu") else named


@functools.cache
def _missing(name: str) -> str | None:
    """`name: why it is missing`, or None where it is there."""
    if name not in _PROBES:
        raise pytest.UsageError(f"needs({name!r}): tests/needs.py knows only {', '.join(sorted(_PROBES))}")
    why = _PROBES[name]()
    return why and f"{name}: {why}"


def chromium() -> str | None:
    """The path of Debian's, or of whatever else has one of its names."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _chromium() -> str | None:
    return None if chromium() else "not on the PATH; scripts/chromium.sh says why"


def _cuda() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def _two_gpus() -> str | None:
    """NCCL refuses two ranks on one device."""
    import torch

    return None if torch.cuda.device_count() >= 2 else f"torch finds {torch.cuda.device_count()} CUDA devices"


def _machines() -> str | None:
    """Network namespaces with names, cables between them."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return "network namespaces need root and iproute2's `ip`"
    name = f"probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False, timeout=30)
    if made.returncode:
        return f"no permission to make a network namespace: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True, timeout=30)
    return None


def _rack() -> str | None:
    """Machines behind a link of a limited rate (tests/rack.py)."""
    if why := _machines():
        return why
    if shutil.which("tc") is None:
        return "iproute2's `tc` is not on the PATH"
    name = f"probe{os.getpid()}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True, timeout=30)
    words = ["tc", "qdisc", "add", "dev", name, "root", "tbf", "rate", "1mbit", "burst", "16000", "latency", "50ms"]
    limited = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    subprocess.run(["ip", "link", "del", name], check=True, timeout=30)
    return f"this kernel cannot limit a link: {limited.stderr.strip()}" if limited.returncode else None


def _kubectl() -> str | None:
    return None if shutil.which("kubectl") else "not on the PATH"


def _kubernetes() -> str | None:
    """A cluster that a test may disturb."""
    asked = subprocess.run(
        [ROOT / "scripts" / "kubernetes.sh"], capture_output=True, text=True, check=False, timeout=60
    )
    return None if asked.returncode == 0 else asked.stdout.strip().removeprefix("kubernetes: ") or asked.stderr.strip()


def _kubernetes_tools() -> str | None:
    there = (ROOT / ".venv-kubernetes" / "bin" / "helm").exists()
    return None if there else ".venv-kubernetes is not there; scripts/kubernetes_tools.sh makes it"


def _promtool() -> str | None:
    return None if promtool() else "not beside this Python and not on the PATH; `make promtool` says why"


def _ray() -> str | None:
    return None if importlib.util.find_spec("ray") else "not installed; `make test-cluster` does"


def _reasoning_gym() -> str | None:
    return None if importlib.util.find_spec("reasoning_gym") else "not installed; one of its parts needs a C compiler"


def _sandbox(name: str, why: str) -> Callable[[], str | None]:
    return lambda: None if sandbox_permits()[name] else why


def _slurm() -> str | None:
    """The daemons of a cluster of one's own."""
    if any(shutil.which(program) is None for program in ("munged", "slurmctld", "slurmd", "sbatch")):
        return "not installed; scripts/slurm.sh does, from Debian's packages"
    return None if os.geteuid() == 0 else "its daemons start jobs as other users, which needs root"


def _tmpfs() -> str | None:
    try:
        with tempfile.TemporaryDirectory(prefix="sluice-probe-") as folder, disk_of(Path(folder), size_bytes=4096):
            return None
    except OSError as error:
        return str(error)


def _typescript_example() -> str | None:
    command = [ROOT / "scripts" / "typescript.sh", "--check"]
    checked = subprocess.run(command, stdout=subprocess.DEVNULL, check=False, timeout=60)
    return "examples/reward-typescript is not built; `make typescript` says why" if checked.returncode else None


def _verifiers() -> str | None:
    """Not beside vLLM: the two ask for different versions of openai."""
    there = (ROOT / ".venv-verifiers" / "bin" / "sluice").exists()
    return None if there else ".venv-verifiers is not there; docs/environments.md makes it"


_PROBES: Mapping[str, Callable[[], str | None]] = {
    "chromium": _chromium,
    "cuda": _cuda,
    "kubectl": _kubectl,
    "kubernetes": _kubernetes,
    "kubernetes-tools": _kubernetes_tools,
    "machines": _machines,
    "landlock": _sandbox("landlock", "no Landlock that keeps files from being written (Linux 6.2)"),
    "own-files": _sandbox("files", "no permission to make a mount namespace"),
    "own-network": _sandbox("network", "no permission to make a network namespace"),
    "own-processes": _sandbox("survivors", "no permission to make a process namespace"),
    "process-limit": _sandbox("processes", "the number of a sandbox's processes cannot be limited"),
    "promtool": _promtool,
    "rack": _rack,
    "ray": _ray,
    "reasoning-gym": _reasoning_gym,
    "slurm": _slurm,
    "tmpfs": _tmpfs,
    "two-gpus": _two_gpus,
    "typescript-example": _typescript_example,
    "verifiers": _verifiers,
}
