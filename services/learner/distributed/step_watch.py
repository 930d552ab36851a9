"""Ends a rank that hangs inside a step: the rank's heartbeats come from another thread and would go on for ever.

 who waits          for what                      unblocked by
 the watch's timer  the end of a part of a step   that end, or the limit: all stacks go to stderr and the process ends
The timer is a C thread (faulthandler), so that a hang that holds Python's lock is ended too. The ranks' parent then ends the
other ranks and the learner starts again from its checkpoint. A Python timer, which needs the lock, logs the part that hangs
just before.
"""

import contextlib
import faulthandler
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import structlog

log = structlog.get_logger(__name__)

FIRST_TIME_FACTOR = 2.0
"""The first step, gather and checkpoint of a process compile, connect and allocate: their limit is this much longer."""

_LINE_FIRST_S = 0.5
_APART_S = 0.2
"""The delay from rank to rank, so that the stacks of the ranks do not mix on one stderr."""

_STDERR = 2


@dataclass(kw_only=True, slots=True)
class StepWatch:
    """One watch a process, because faulthandler has one timer a process. Parts of a step follow each other, never nest."""

    limit_s: float
    """`learner.step_timeout_s`."""
    rank: int
    _seen: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def over(self, part: str, number: int, *, more_s: float = 0.0) -> Iterator[None]:
        """Ends the process unless the block ends within the limit and `more_s`; the log names `part` and `number`."""
        limit_s = self.limit_s * (1.0 if part in self._seen else FIRST_TIME_FACTOR) + more_s
        said = threading.Timer(limit_s, self._say, (f"{part} {number}", limit_s))
        said.daemon = True
        said.start()
        apart_s = _APART_S * int(os.environ.get("LOCAL_RANK", "0"))
        faulthandler.dump_traceback_later(limit_s + _LINE_FIRST_S + apart_s, exit=True, file=_STDERR)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            said.cancel()
        self._seen.add(part)

    def _say(self, part: str, limit_s: float) -> None:
        log.error(
            "step_hung",
            rank=self.rank,
            part=part,
            limit_s=limit_s,
            setting="learner.step_timeout_s",
            then="this rank ends, its stacks follow; all ranks start again from the last checkpoint",
        )
