"""One `sluice up` of the tiny model that is struck while it runs, and judged when it has ended.

who waits      for what                             unblocked by
`carry_out`    the step before each strike          the run's metrics.jsonl, its end, or the deadline
`finish`       the launcher's exit                  its exit, or the deadline; then `whereabouts` says who is where
`finish`       the end of open episodes             the servers' leases, or the limit for them
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from sluice.rpc.credentials import load_credentials
from sluice.v1 import coordinator_pb2 as pb
from tests.chaos.episodes import Episodes
from tests.chaos.plan import Deed, Hit, Moment, Plan, Victim
from tests.chaos.verdict import problems
from tests.chaos.victims import descendants, family, is_alive, send
from tests.chaos.witness import Recovery, Witness
from tests.free_port import free_port

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 300.0
"""Of one run: many times what it needs on an idle machine."""

LOG_LINES = 20
LEAVE_S = 20.0
"""How long a process that was started by hand may take to leave when it is told to."""


class Trial:
    """A run under way. Use as a context manager: whatever it started is gone afterwards."""

    def __init__(
        self,
        recipe: Path,
        run_dir: Path,
        *,
        overrides: Sequence[str] = (),
        deadline_s: float = DEADLINE_S,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        beside: Callable[[str], Sequence[Sequence[str]]] = lambda coordinator: (),
        forgetful: bool = False,
        credentials: Path | None = None,
        episodes: Sequence[Episodes] = (),
    ) -> None:
        """`prefix` goes before the launcher's command line; `beside` gives those of processes that are started by hand.

        With a Redis that is `forgetful` the coordinator may for a moment know of fewer steps than it did. `credentials` is
        the folder that the run has, with an operator's in it. `episodes` are those of servers of environments, which
        `beside` starts: the first one is the victim, which is started anew when it is killed.
        """
        self.run_dir = run_dir
        self.output_path = run_dir.parent / f"{run_dir.name}.out"
        self.host, self.port = host, free_port()
        self._prefix = list(prefix)
        self._command = [*self._prefix, sys.executable, "-m", "sluice.cli.main", "up", "-c", str(recipe), "--plain"]
        self._command += ["--run-dir", str(run_dir), "--set", f"network.coordinator_port={self.port}"]
        self._command += [part for override in overrides for part in ("--set", override)]
        self._by_hand, self._beside = beside, list[subprocess.Popen[bytes]]()
        self._episodes = episodes
        self._deadline_s, self._give_up = deadline_s, time.monotonic() + deadline_s
        self.witness = Witness(
            address=f"{host}:{self.port}",
            processes=self._descendants,
            committed_s=lambda: [at_s for _, at_s in self._committed()],
            forgetful=forgetful,
            credentials=load_credentials(credentials and credentials / "operator"),
        )

    def __enter__(self) -> "Trial":
        self.launcher = self._start(self._command)
        for words in self._by_hand(f"{self.host}:{self.port}"):
            self.start_beside(words)
        self.witness.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.witness.close()
        for process in [*self.witness.seen.values(), *self._descendants()]:
            send(process, signal.SIGKILL)
        for started in (self.launcher, *self._beside):
            started.kill()
            started.wait()

    def start_beside(self, words: Sequence[str]) -> None:
        """Starts a process that is not the launcher's to keep; it is told to leave when the run has ended."""
        self._beside.append(self._start(words))

    def carry_out(self, plan: Plan) -> None:
        """Strikes as planned, each when its step is committed and an episode is there."""
        for strike in plan.strikes:
            self.until(lambda strike=strike: self.steps() >= strike.after_step, what=f"step {strike.after_step}")
            time.sleep(strike.pause_s)
            if strike.moment is not Moment.ANY:
                self.until(lambda strike=strike: self._episodes[0].is_one(strike.moment), what=strike.moment.value)
            self.strike(strike.hits)

    def strike(self, hits: Sequence[Hit]) -> None:
        """Kills and freezes at once, when all of them are there; nothing when the run has ended before."""
        names = {hit.victim for hit in hits}
        self.until(
            lambda: names <= self.witness.alive.keys() or self.launcher.poll() is not None,
            what=f"{' and '.join(sorted(name.value for name in names))} to run",
        )
        found, now = self.witness.alive, time.time()
        if not names <= found.keys():
            return
        recovery = Recovery(victims=list(map(str, hits)), struck_s=now, thawed_s=now, former={})
        for hit in hits:
            process = found[hit.victim]
            started_by = process.cmdline() if hit.victim is Victim.ENVIRONMENT and hit.deed is Deed.KILL else []
            send(process, signal.SIGKILL if hit.deed is Deed.KILL else signal.SIGSTOP)
            if hit.thaw_after_s is None:
                recovery.former[hit.victim] = (process.pid, self.witness.address_of(hit.victim))
            else:
                recovery.thawed_s = max(recovery.thawed_s, now + hit.thaw_after_s)
                self.witness.thaw_later(process, at_s=now + hit.thaw_after_s)
            if started_by:
                self.start_beside(started_by)
        self.witness.note(recovery)

    def cut(self, name: str, *, cut: Callable[[], None], mend: Callable[[], None], for_s: float) -> None:
        """Cuts a link for so long."""
        now = time.time()
        cut()
        try:
            time.sleep(for_s)
        finally:
            mend()
        self.witness.note(Recovery(victims=[name], struck_s=now, thawed_s=now + for_s, former={}))

    def process(self, victim: Victim) -> psutil.Process:
        """The living process of a role."""
        self.until(lambda: victim in self.witness.alive, what=f"{victim.value} to run")
        return self.witness.alive[victim]

    def until(self, condition: Callable[[], bool], *, what: str) -> None:
        """Returns when the condition holds; fails when the run ends first or its deadline passes."""
        while True:
            ended = self.launcher.poll() is not None
            if condition():
                return
            assert not ended, f"the run ended before {what}\n{self.output()}"
            assert self.witness.watches, "the witness has failed; its traceback is above"
            assert time.monotonic() < self._give_up, f"{what}: not in {self._deadline_s} s\n{self.whereabouts()}"
            time.sleep(0.02)

    def finish(self) -> None:
        """Waits for the end, and judges the run: fails with everything that is wrong."""
        try:
            code = self.launcher.wait(max(0.1, self._give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run has not ended in {self._deadline_s} s\n{self.whereabouts()}") from None
        assert code == 0, f"exit code {code}\n{self.output()}\n{self.whereabouts()}"
        still_open = [problem for one in self._episodes for problem in one.left_open()]
        for started in self._beside:
            started.terminate()
            started.wait(LEAVE_S)
        assert self.witness.watches, "the witness has failed; its traceback is above"
        self.witness.close()
        found = [*problems(self.run_dir), *still_open, *self.witness.went_back, *self.left_behind()]
        assert not found, "\n".join([*found, f"in {self.run_dir}"])

    def steps(self) -> int:
        """Steps committed so far."""
        return max((step for step, _ in self._committed()), default=-1) + 1

    def output(self) -> str:
        """The end of what the launcher printed."""
        return "\n".join(self.output_path.read_text().splitlines()[-60:])

    def left_behind(self) -> list[str]:
        """Processes and ports of the run that are still there."""
        alive = [process for process in self.witness.seen.values() if is_alive(process)]
        there = sorted(self.witness.addresses | {f"{self.host}:{self.port}"})
        return [f"left behind: {_state_of(process)}" for process in alive] + [
            f"left behind: a server at {address}" for address in there if is_served(address, asked_by=self._prefix)
        ]

    def whereabouts(self) -> str:
        """Who is there, what the coordinator said last, and how each log ends."""
        witness = self.witness
        lines = [f"{role.value}: {_state_of(process)}" for role, process in witness.alive.items()]
        lines += ["the coordinator answers" if witness.answers else "the coordinator does not answer; its last words:"]
        told = pb.GetStatusResponse()
        told.CopyFrom(witness.status)
        told.ClearField("metrics")
        told.ledger.ClearField("tokens")
        lines += str(told).splitlines()
        for log in sorted((self.run_dir / "logs").glob("*.log")):
            lines += [f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-LOG_LINES:]]
        return "\n".join([*lines, f"in {self.run_dir}"])

    def _start(self, words: Sequence[str]) -> "subprocess.Popen[bytes]":
        with self.output_path.open("a") as output:
            return subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)

    def _descendants(self) -> list[psutil.Process]:
        """Of the launcher; and the processes that were started by hand, with theirs."""
        by_hand = (one for started in self._beside for one in family(started.pid))
        return [*descendants(self.launcher.pid), *by_hand]

    def _committed(self) -> list[tuple[int, float]]:
        """(step, Unix time) of every whole line of metrics.jsonl."""
        path = self.run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        steps = [json.loads(line) for line in lines if line.endswith("}")]
        return [(line["step"], line["time_s"]) for line in steps if line["kind"] == "step"]


def is_served(address: str, *, asked_by: Sequence[str] = ()) -> bool:
    """Whether somebody takes connections there, as a process sees it that is started by the words `asked_by`.

    From outside the cables (links.py) a gateway may answer for every address that it does not know.
    """
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1.0)"
    host, _, port = address.rpartition(":")
    asked = [*asked_by, sys.executable, "-I", "-S", "-c", connect, host, port]
    return subprocess.run(asked, check=False, capture_output=True, timeout=30.0).returncode == 0


def _state_of(process: psutil.Process) -> str:
    try:
        with process.oneshot():
            return (
                f"process {process.pid} ({process.name()}, {process.status()}, {process.cpu_times().user:.1f} s of CPU)"
            )
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return f"process {process.pid} is gone"
