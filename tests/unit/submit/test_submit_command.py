"""`sluice submit`, and `status`, `stop` and `logs` of what was submitted, with a queue that lives in this process."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sluice.cli.main import main
from sluice.errors import LaunchError, NotFound
from sluice.launch.submit import choice
from sluice.launch.submit.port import JobState, Submission
from tests.unit.submit.kubernetes_cases import RECIPE


class Queue:
    """A Submitter whose jobs do as they are told."""

    name = "slurm"

    def __init__(self, *states: JobState) -> None:
        self.states = iter([*states, *itertools.repeat(states[-1], 9)])
        self.handed_in: list[Submission] = []
        self.stopped: list[str] = []

    def render(self, submission: Submission) -> Mapping[str, str]:
        return {"run.sbatch": f"sluice up {submission.run_dir}", "learner.sbatch": "sluice learner-node"}

    def submit(self, submission: Submission) -> str:
        self.handed_in.append(submission)
        return "4711"

    def state(self, job: str) -> JobState:
        if job != "4711":
            raise NotFound(f"slurm: there is no job {job}")
        return next(self.states)

    def stop(self, job: str) -> None:
        self.stopped.append(job)

    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        yield "step 1\x1b[2J"
        if follow:
            yield "step 2"


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Queue:
    made = Queue(JobState.RUNNING)
    monkeypatch.setattr(choice, "submitter_of", lambda name: made)
    monkeypatch.setattr("sluice.cli.submit._LOOK_EVERY_S", 0.0)
    monkeypatch.setenv("SLUICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SLUICE__RUN__SEED", "7")
    return made


def submit(tmp_path: Path, *more: str) -> int:
    run_dir = tmp_path / "runs" / "sums_1.5B"
    return main(
        ["submit", "-c", str(RECIPE), "--on", "slurm", "--set", "run.total_steps=3", "--run-dir", str(run_dir), *more]
    )


def test_a_run_is_handed_in_and_found_again_by_its_id_and_its_name(
    queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(tmp_path) == 0
    first, *next_steps = capsys.readouterr().out.splitlines()
    assert first == f"submitted slurm/4711, run directory {tmp_path}/runs/sums_1.5B"
    assert [line.split("--job ")[1] for line in next_steps] == ["slurm/4711"] * 3
    (handed_in,) = queue.handed_in
    assert handed_in.name == "sums-1-5B"
    assert list(handed_in.overrides) == ["run.seed=7", "run.total_steps=3"], (
        "the cluster's shell has not this shell's keys"
    )
    assert handed_in.config.run.seed == 7
    for job in ("slurm/4711", "sums-1-5B"):
        assert main(["status", "--job", job]) == 0
        assert capsys.readouterr().out == (
            f"slurm/4711 is running by its queue; run directory {tmp_path}/runs/sums_1.5B; the run itself was not asked: its "
            "address is not known on this machine; --coordinator HOST:PORT names it\n"
        )
    assert main(["stop", "--job", "sums-1-5B"]) == 0
    assert queue.stopped == ["4711"]
    assert main(["logs", "--job", "slurm/4711"]) == 0
    assert capsys.readouterr().out.endswith("step 1^[[2J\n".replace("^[", "␛")), "no log drives the reader's terminal"


def test_a_job_that_nobody_knows_is_refused(queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(tmp_path) == 0
    assert main(["status", "--job", "slurm/1"]) == 1
    assert "there is no job 1" in capsys.readouterr().err
    assert main(["stop", "--job", "math"]) == 1
    assert "got math; here was slurm/4711" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("end", "code"), [(JobState.FINISHED, 0), (JobState.FAILED, 1), (JobState.STOPPED, 130)], ids=lambda one: str(one)
)
def test_waiting_follows_the_log_and_exits_as_the_run_did(
    end: JobState, code: int, queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.states = iter([JobState.RUNNING, end])
    assert submit(tmp_path, "--wait") == code
    said = capsys.readouterr()
    assert said.out.splitlines()[2:] == ["step 2"]
    assert said.err == f"sluice: slurm/4711 is {end}\n"


def test_a_dry_run_prints_the_files_alone_to_stdout_and_hands_nothing_in(
    queue: Queue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(tmp_path, "--dry-run") == 0
    said = capsys.readouterr()
    assert said.out.split("# ===== ")[1:] == [
        f"run.sbatch =====\nsluice up {tmp_path}/runs/sums_1.5B\n\n",
        "learner.sbatch =====\nsluice learner-node\n\n",
    ]
    assert "groups per step" in said.err
    assert "not on this machine, so left to the run's own start: mixadd3-base" in said.err
    assert queue.handed_in == []


def test_the_log_of_a_process_is_printed_out_of_the_run_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rollout-0.log").write_bytes(b"loaded\ncaf\xe9\n")
    assert main(["logs", "--run-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["rollout-0", "12", "bytes"]
    assert main(["logs", "--run-dir", str(tmp_path), "rollout-0"]) == 0
    assert capsys.readouterr().out == "loaded\ncaf�\n"
    assert main(["logs", "--run-dir", str(tmp_path), "rollout-1"]) == 1
    assert "has no log of rollout-1; it has rollout-0" in capsys.readouterr().err


def test_a_followed_log_goes_on_where_it_ended_and_from_the_start_where_it_was_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sluice.cli import logs

    path = tmp_path / "learner.log"
    path.write_text("one\n")
    text = ["two\n", None, "3\n"]

    def written(_: float) -> None:
        more = text.pop(0)
        if more is None:
            path.write_text("")
            more = text.pop(0)
        with path.open("a") as log:
            log.write(more)

    monkeypatch.setattr(logs.time, "sleep", written)
    assert list(itertools.islice(logs._text(path, follow=True), 3)) == ["one\n", "two\n", "3\n"]


def test_a_queue_whose_library_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_CLASSES", {"nowhere": "NowhereSubmitter"})
    with pytest.raises(LaunchError, match=r"--on nowhere needs the module sluice\.launch\.submit\.nowhere"):
        choice.submitter_of("nowhere")
