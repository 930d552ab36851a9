"""The script for a GPU, whole on a CPU at its smallest: every part runs, and one that crashes or hangs costs itself alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked import FORKED

pytestmark = pytest.mark.integration

ON_CUDA_ALONE = {"suite", "demo"}


def test_every_part_runs_on_a_cpu_and_none_costs_another(tmp_path: Path) -> None:
    out = tmp_path / "one.json"
    process = FORKED.Process(target=_run, args=(out, tmp_path / "log"))
    process.start()
    process.join(120)
    process.kill()
    assert process.exitcode == 1, (tmp_path / "log").read_text()[-4000:]  # two parts of this test's own have failed
    page = json.loads(out.read_text())
    crashes, hangs, late, *parts = page["parts"]
    assert (crashes["state"], hangs["state"], late["state"]) == ("failed", "timed out", "left out")
    assert crashes["figures"][0]["value"] == 7.0, "what it had found is kept"
    assert "no such thing" in crashes["why"]
    assert hangs["seconds"] < 10
    assert late["why"].endswith("it needs 1e+06 s")
    assert {part["part"] for part in parts if part["state"] == "left out"} == ON_CUDA_ALONE
    assert [part for part in parts if part["state"] not in ("done", "left out")] == []
    figures = {figure["what"]: figure for part in parts for figure in part["figures"]}
    assert figures["no checkpointing: learner"]["ratio_of"] == "flops (MFU)"
    assert figures["page-locked: all"]["ratio"] > 0
    assert figures["step 2: k3 at age 0, to be below 1e-3"]["value"] < 1e-6
    assert figures["both on one device"]["value"] == 1.0
    assert [figures[f"rank {rank}: alive 0.2 s later"]["value"] for rank in (0, 1)] == [1.0, 1.0]
    assert not _lives(int((tmp_path / "child").read_text()))


def _lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _run(out: Path, log: Path) -> None:
    """The script's process, with parts of this test's own before its parts."""
    with log.open("ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    from benchmarks import one_gpu
    from benchmarks.gpu_parts import PARTS, Part
    from benchmarks.gpu_parts.context import Context, Figure

    def crashes(_: Context) -> Iterator[Figure]:
        yield Figure(what="found before", value=7.0, unit="")
        raise RuntimeError("no such thing")

    def hangs(_: Context) -> Iterator[Figure]:
        child = subprocess.Popen(["sleep", "600"])  # it would outlive its parent
        (out.parent / "child").write_text(str(child.pid))
        yield Figure(what="hung", value=1.0, unit="")
        time.sleep(600)

    own = (
        Part(name="crashes", what="", limit_s=20, run=crashes),
        Part(name="hangs", what="", limit_s=0.5, least_s=0.1, run=hangs),
        Part(name="late", what="", limit_s=1e7, least_s=1e6, run=crashes),
    )
    one_gpu.PARTS = (*own, *PARTS)  # type: ignore[misc]
    sys.exit(one_gpu.main(["--device", "cpu", "--out", str(out)]))
