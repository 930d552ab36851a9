"""A dry run in surroundings that people really have: either it passes, or it ends in seconds with one line that names them.

Each case is the cheapest real start: launcher, Redis, coordinator, tokenizer, reward service and a graded prompt.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "recipes" / "cpu-demo.yaml"
WITHOUT_NAMES = [sys.executable, str(ROOT / "tests" / "nameless_machine.py")]
IPV6_ALONE = [*WITHOUT_NAMES, "--ipv6-alone"]
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


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a dry run ended."""

    code: int
    output: str


DryRun = Callable[..., Ended]


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
        port: int = 0,
    ) -> Ended:
        command = [
            *within,
            str(Path(sys.executable).with_name("sluice")),
            "up",
            "-c",
            str(RECIPE),
            "--dry-run",
            "--plain",
        ]
        for override in (f"model.path={model}", f"network.coordinator_port={port}", *overrides):
            command += ["--set", override]
        done = subprocess.run(
            command,
            env={name: value for name, value in os.environ.items() if name not in without} | dict(environ or {}),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return Ended(code=done.returncode, output=done.stdout)

    return run


def passes(ended: Ended) -> None:
    assert ended.code == 0, ended.output
    assert "gold answers score right" in ended.output


def test_proxies_in_the_environment_are_not_for_the_services_of_a_run(dry_run: DryRun) -> None:
    names = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
    proxies = dict.fromkeys([*names, *map(str.upper, names)], NOWHERE)
    passes(dry_run(environ=proxies, without=("no_proxy", "NO_PROXY", "no_grpc_proxy")))


def test_files_and_folders_of_the_working_directory_stand_for_no_module(dry_run: DryRun, tmp_path: Path) -> None:
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the working directory's {name}')\n")
    (tmp_path / "services" / "reward").mkdir(parents=True)
    (tmp_path / "services" / "__init__.py").write_text("raise RuntimeError('the working directory's services')\n")
    passes(dry_run())


@pytest.mark.parametrize("grader", ["graders/sums.py:compute_score", "graders.sums:compute_score"])
def test_a_grader_of_the_working_directory_imports_and_reads_what_lies_beside_it(
    dry_run: DryRun, tmp_path: Path, grader: str
) -> None:
    folder = tmp_path / "graders"
    folder.mkdir()
    (folder / "sums.py").write_text(GRADER if ".py" in grader else GRADER.replace("import", "from . import"))
    (folder / "sums_helper.py").write_text(HELPER)
    (folder / "words.txt").write_text("read")
    passes(dry_run(f"reward.routes={{mixadd3: {grader}}}"))


@pytest.mark.parametrize("folder", ["a" * 200, "missing"])
def test_a_folder_for_temporary_files_with_a_long_path_or_that_is_not_there(
    dry_run: DryRun, tmp_path: Path, folder: str
) -> None:
    if folder != "missing":
        (tmp_path / folder).mkdir()
    passes(dry_run(environ={"TMPDIR": str(tmp_path / folder)}))


def test_without_a_home_or_with_a_home_in_which_nothing_can_be_made(dry_run: DryRun) -> None:
    passes(dry_run(without=HOMELESS))
    passes(dry_run(environ={"HOME": "/proc/1/fd"}))


@pytest.mark.needs("own-network")
def test_a_machine_that_does_not_know_its_own_name_nor_that_of_its_user(dry_run: DryRun) -> None:
    passes(dry_run(within=WITHOUT_NAMES, without=HOMELESS))


@pytest.mark.needs("own-network")
def test_a_machine_with_ipv6_alone(dry_run: DryRun) -> None:
    told = dry_run("network.bind=127.0.0.1", within=IPV6_ALONE)
    assert told.code == 1
    assert "cannot listen on 127.0.0.1" in told.output
    assert "network.bind" in told.output
    passes(dry_run(within=IPV6_ALONE))
