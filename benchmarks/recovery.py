"""How long a run takes to have everybody back after a process was killed or frozen: the chaos suite's runs, put together.

Real runs of `sluice up` (tests/chaos: two learner ranks, a rollout, a reward with one grader process, embedded Redis, a tiny
model) under SIGKILL and SIGSTOP at moments drawn from seeds. A row is the median over the strikes of one victim alone, or of
several at once. The target is ten seconds beside what nobody can save: the start of the processes themselves, two learner
ranks importing what they need, measured before the runs; the loads of model and checkpoint, which the ranks log, are told
apart. Who is frozen for good is first noticed by a deadline, which is part
of the time and has no target. About ten minutes on 2 idle cores.
"""

import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Row

ROOT = Path(__file__).resolve().parents[1]
NOTED = ROOT / "build" / "chaos.json"
TARGET_S = 10.0
STARTS = "import services.learner.app, services.learner.rank_worker, torch.distributed.fsdp"


def run(arguments: Sequence[str] = ("tests/chaos/test_kill_anything.py",)) -> list[Row]:
    """Raises CalledProcessError when a run did not outlast what was done to it."""
    start_s = _start_s()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-m", "chaos", *arguments]
    subprocess.run(command, cwd=ROOT, check=True)
    rows = [Row(what="start of two learner ranks' processes", value=start_s, unit="s", target="", met=True)]
    strikes = json.loads(NOTED.read_text())
    runs = {strike["test"]: strike["loads_s"] for strike in strikes}
    if loads_s := [load_s for run_loads_s in runs.values() for load_s in run_loads_s]:
        what = f"model and checkpoint of a learner that starts ({len(loads_s)}), part of its recovery"
        rows.append(Row(what=what, value=statistics.median(loads_s), unit="s", target="", met=True))
    return rows + recovery_rows(strikes, start_s=start_s)


def recovery_rows(strikes: Iterable[Mapping[str, Any]], *, start_s: float) -> list[Row]:
    """Of the strikes that a run lived to see the end of, by victims."""
    seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for strike in strikes:
        if strike["back_s"] is not None:
            seconds[tuple(sorted(_deed(victim) for victim in strike["victims"]))].append(strike["back_s"])
    return [_row(victims, found, start_s) for victims, found in sorted(seconds.items(), key=_alone_first)]


def _row(victims: Sequence[str], found: Sequence[float], start_s: float) -> Row:
    median = statistics.median(found)
    counts = all(victim.endswith("killed") for victim in victims)
    return Row(
        what=f"{' and '.join(victims)} ({len(found)}): until everybody is READY",
        value=median,
        unit="s",
        target=f"< {TARGET_S:.0f} s + {start_s:.1f} s" if counts else "",
        met=median < TARGET_S + start_s or not counts,
    )


def _deed(victim: str) -> str:
    """Without how long it was frozen."""
    return victim.partition(" for ")[0] if victim.endswith(" s") else victim


def _alone_first(one: tuple[tuple[str, ...], Sequence[float]]) -> tuple[int, tuple[str, ...]]:
    return len(one[0]), one[0]


def _start_s() -> float:
    began = time.perf_counter()
    ranks = [subprocess.Popen([sys.executable, "-c", STARTS], cwd=ROOT) for _ in range(2)]
    if any(rank.wait() for rank in ranks):
        raise RuntimeError(f"a process could not start: python -c '{STARTS}'")
    return time.perf_counter() - began
