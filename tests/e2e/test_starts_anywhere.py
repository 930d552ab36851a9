"""A dry run in surroundings that people really have: either it passes, or it ends in seconds with one line that names them.

Each is the cheapest real start: launcher, Redis, coordinator, tokenizer, reward service and a graded prompt. A start takes
seconds, so that one start stands in several surroundings at once.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "recipes" / "cpu-demo.yaml"
WITHOUT_NAMES = [sys.executable, str(ROOT / "tests" / "nameless_machine.py")]
IPV6_ALONE = [*WITHOUT_NAMES, "--ipv6-alone"]
PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
NOWHERE = "http://127.0.0.1:9"  # nobody answers on the port of discard
HOMELESS = ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR")
SHADOWS = (
    "sluice",
    "redis",
    "torch",
    "grpc",
    "yaml",
    "numpy",
    "structlog",
    "uvloop",
    "pydantic",
    "transformers",
    "json",
)
GRADER = """
import sums_helper

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return sums_helper.score(solution_str, ground_truth)
"""
HELPER = """
from pathlib import Path

WORDS = Path(__file__).with_name("words.txt").read_text()

def score(given, wanted):
    return float(given.rpartition("#")[2].strip() == wanted)
"""


DryRun = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def dry_run(model: Path, tmp_path: Path) -> DryRun:
    """Runs one as somebody would who has Sluice installed: by the script, from a folder of his own."""

    def run(
        *overrides: str,
        environ: Mapping[str, str] | None = None,
        without: Sequence[str] = (),
        within: Sequence[str] = (),
    ) -> "subprocess.CompletedProcess[str]":
        command = [*within, str(Path(sys.executable).with_name("sluice")), "up", "-c", str(RECIPE)]
        command += ["--dry-run", "--plain"]
        for override in (f"model.path={model}", "network.coordinator_port=0", *overrides):
            command += ["--set", override]
        return subprocess.run(
            command,
            env={name: value for name, value in os.environ.items() if name not in without} | dict(environ or {}),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def passes(ended: "subprocess.CompletedProcess[str]") -> None:
    assert ended.returncode == 0, ended.stdout
    assert "gold answers score right" in ended.stdout


@pytest.fixture
def graders(tmp_path: Path) -> Path:
    """A folder of graders that import and read what lies beside them, by path and as modules of the working directory."""
    folder = tmp_path / "graders"
    folder.mkdir()
    (folder / "sums.py").write_text(GRADER)
    (folder / "relative.py").write_text(GRADER.replace("import", "from . import"))
    (folder / "sums_helper.py").write_text(HELPER)
    (folder / "words.txt").write_text("read")
    return folder


def test_proxies_shadows_of_modules_a_long_tmpdir_and_a_home_in_which_nothing_can_be_made(
    dry_run: DryRun, tmp_path: Path, graders: Path
) -> None:
    """Proxies are not for the services of a run; files and folders of the working directory stand for no module."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the working directory's {name}')\n")
    (tmp_path / "services" / "reward").mkdir(parents=True)
    (tmp_path / "services" / "__init__.py").write_text("raise RuntimeError('the working directory's services')\n")
    (tmp_path / ("a" * 200)).mkdir()
    environ = dict.fromkeys([*PROXIES, *map(str.upper, PROXIES)], NOWHERE)
    environ |= {"TMPDIR": str(tmp_path / ("a" * 200)), "HOME": "/proc/1/fd"}
    proxied = ("no_proxy", "NO_PROXY", "no_grpc_proxy")
    passes(dry_run("reward.routes={mixadd3: graders/sums.py:compute_score}", environ=environ, without=proxied))


def test_without_a_home_a_name_or_a_folder_for_temporary_files(dry_run: DryRun, tmp_path: Path, graders: Path) -> None:
    """A grader may be named as a module, and import relatively."""
    environ = {"TMPDIR": str(tmp_path / "missing")}
    passes(dry_run("reward.routes={mixadd3: graders.relative:compute_score}", environ=environ, without=HOMELESS))


@pytest.mark.needs("own-network")
def test_a_machine_with_ipv6_alone_that_does_not_know_its_own_name_nor_that_of_its_user(dry_run: DryRun) -> None:
    told = dry_run("network.bind=127.0.0.1", within=IPV6_ALONE)
    assert told.returncode == 1
    assert "cannot listen on 127.0.0.1" in told.stdout
    assert "network.bind" in told.stdout
    passes(dry_run(within=IPV6_ALONE, without=HOMELESS))
