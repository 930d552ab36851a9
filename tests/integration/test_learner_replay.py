"""`sluice replay` on runs that a real learner process trained: the same figures, the same bytes, and what is refused."""

import asyncio
import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from blake3 import blake3

from services.coordinator.storage.run_files import RunFiles
from services.learner.replay import __main__ as replay
from sluice.config.load import dump_config
from sluice.run_dir.batch_file import batch_path
from sluice.run_dir.stored_group import StoredGroups
from sluice.testing.fakes import FakeCoordinator
from tests.integration.service_process import ENVIRON, ROOT, exit_code, learner
from tests.integration.tiny_run import serving_a_tiny_run
from tests.unit.learner.learner_cases import groups_to_wire, make_batch, write_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

STEPS = 5


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps on one rank; checkpoints step-3 and step-5."""
    return asyncio.run(_trained_run(tmp_path_factory.mktemp("alone"), ranks=1))


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    """The same run, to be damaged."""
    return shutil.copytree(run_dir, tmp_path / "run")


def test_a_step_trained_again_from_the_checkpoint_before_it_has_the_recorded_figures_and_the_runs_own_weights(
    copy: Path, tmp_path: Path
) -> None:
    RunFiles(copy).drop_batches_before(3)  # as a coordinator does once step-3 is the oldest checkpoint
    before = _content(copy)
    done = _sluice_replay(copy, "--step", "4", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    first, *table, weights, last = done.stdout.splitlines()
    assert first == f"step 4 of {copy}: batches 3 to 4 from step-3, ranks: 1"
    differences = {line.split()[0]: line.split()[-1] for line in table[1:]}
    assert {"loss/policy", "loss/grad_norm", "mismatch/k3_nats", "weights"} <= differences.keys()
    assert set(differences.values()) == {"0"}
    assert (weights, last) == (f"weights: {tmp_path / 'out'}", "same")
    ours, theirs = (path / "model.safetensors" for path in (tmp_path / "out", copy / "model"))
    assert _tensors(ours) == _tensors(theirs)
    assert _content(copy) == before


def test_without_a_checkpoint_before_it_a_step_is_trained_again_from_the_base_model(run_dir: Path) -> None:
    done = _replay(run_dir, "--step", "1")
    assert done.returncode == 0, done.stderr
    assert "batches 0 to 1 from model.path (version 0)" in done.stdout
    assert done.stdout.endswith("\nsame\n")


@pytest.mark.long
def test_two_ranks_of_a_micro_batch_are_repeated_and_say_why_weights_do_not_count_when_each_has_its_own(
    tmp_path: Path,
) -> None:
    run_dir = asyncio.run(_trained_run(tmp_path, ranks=2))
    together, apart = (_replay(run_dir, "--step", "3", *flags) for flags in ((), ("--context-parallel-size", "1")))
    assert (together.returncode, together.stdout.splitlines()[-1]) == (0, "same"), together.stderr
    assert "batch 3 from step-3, ranks: 2, 2 a micro-batch\n" in together.stdout
    assert "batch 3 from step-3, ranks: 2\n" in apart.stdout
    assert "weights are not compared: sums of 1 ranks a micro-batch round otherwise than of the run's 2" in apart.stdout
    assert "the weights" not in apart.stdout.splitlines()[-1]


def test_another_recorded_loss_and_digest_are_told_and_are_exit_code_1(copy: Path) -> None:
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines[3] |= {
        "loss/policy": lines[3]["loss/policy"] * (1 + 1e-5),
        "weights_digest": lines[3]["weights_digest"][::-1],
    }
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = _replay(copy, "--step", "3")
    said = "differs: loss/policy by more than 1e-06 of it and the weights"
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, said), done.stderr


def test_a_batch_with_one_other_byte_is_refused_by_its_digest(copy: Path) -> None:
    path = batch_path(copy, 3)
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    for step in ("3", "4"):
        done = _replay(copy, "--step", step)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"batch 3: {path} is not what was trained" in done.stderr


def test_what_cannot_be_replayed_is_said_in_one_line_that_names_what_can(copy: Path, tmp_path: Path) -> None:
    refusals = {
        ("--step", "7"): (1, "step 7: ", "steps that can be replayed: 0 to 4"),
        ("--step", "-1"): (2, "--step: must be >= 0, got -1", ""),
        ("--step", "3", "--ranks", "0"): (2, "--ranks: must be >= 1, got 0", ""),
        ("--step", "3", "--context-parallel-size", "2"): (2, "must be >= 1 and divide the 1 ranks, got 2", ""),
        ("--step", "3", "--out", str(tmp_path)): (2, f"--out: {tmp_path} exists", ""),
    }
    for flags, (code, *said) in refusals.items():
        done = _replay(copy, *flags)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
        assert all(part in done.stderr for part in said), done.stderr
    done = _replay(tmp_path / "nowhere", "--step", "3")
    assert (done.returncode, "must be the directory of a run" in done.stderr, done.stderr.count("\n")) == (2, True, 1)


async def _trained_run(folder: Path, *, ranks: int) -> Path:
    """The directory of a run that has ended, with what a coordinator leaves in it."""
    async with serving_a_tiny_run(folder, checkpoint_every_steps=3, keep_checkpoints=2) as (fake, address):
        launch = fake.config.launch.model_copy(update={"learner_nproc_per_node": ranks})
        learner_config = fake.config.learner.model_copy(update={"context_parallel_size": ranks})
        fake.config = fake.config.model_copy(update={"launch": launch, "learner": learner_config})
        write_tiny_model(folder / "base", heads=2)  # heads that two ranks divide
        fake.ready = fake.end = STEPS
        async with learner(address, ranks=ranks) as process:
            assert await exit_code(process) == 0
        await _record(fake)
    return fake.run_dir


async def _record(fake: FakeCoordinator) -> None:
    """Configuration, batches and the lines of the steps, as the coordinator writes them."""
    (fake.run_dir / "config.yaml").write_text(dump_config(fake.config))
    files = RunFiles(fake.run_dir)
    stored = StoredGroups()
    for commit in fake.commits:
        groups = groups_to_wire(make_batch(step=commit.step, groups=6, n=4))
        payloads = [stored.pack(group.SerializeToString()) for group in groups]
        batch = await files.stage_batch(commit.step, payloads=payloads)
        await files.name_batch(commit.step, batch.digest)
        made = {"lineage": "a", "weights_digest": commit.weights_digest, "batch_digest": batch.digest}
        await files.append("metrics.jsonl", {"kind": "step", "step": commit.step, **made, **commit.metrics})


def _replay(run_dir: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    """`sluice replay` without the seconds of its own imports; its ranks are processes."""
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        code = replay.main([str(run_dir), *flags])
    return subprocess.CompletedProcess(flags, code, output.getvalue(), errors.getvalue())


def _sluice_replay(run_dir: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sluice.cli.main", "replay", str(run_dir), *flags]
    return subprocess.run(command, env=ENVIRON, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def _content(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file with the time of its last change and its hash."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, blake3(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


def _tensors(path: Path) -> bytes:
    """What stands behind the header, whose facts are written in any order."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]
