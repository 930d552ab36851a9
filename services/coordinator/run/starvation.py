"""Too few groups with signal: warns early, with the time that the batch still needs, and ends a starved run.

After `max_num_gen_batches` generation batches without a full batch `algorithm.filter_groups.on_starvation` decides. The
board releases a partial batch (`train_partial`); this watch ends such a run only when the batch has no group at all.
Warnings come at half of that number (without a limit at WARN_AT), then at each doubling.
"""

import structlog

from services.coordinator.groups.conductor import Conductor
from services.coordinator.state.run_context import RunContext
from sluice.dapo.dynamic_sampling import Verdict, gen_batches, starved

log = structlog.get_logger(__name__)

WARN_AT = 10.0
"""Generation batches before the first warning without a limit. Chosen: verl's recipes for DAPO stop at this number."""

_LEAST = 1.5
"""Fewest generation batches before a warning: every batch needs one generation batch."""

_ENDS = {"stop": "; the run stops at {most}", "wait": "", "train_partial": "; at {most} it is trained as it is"}


class StarvationWatch:
    """Watches the batch that is being filled."""

    def __init__(self, run: RunContext, *, conductor: Conductor) -> None:
        self._filters = run.config.algorithm.filter_groups
        self._board, self._events, self._clock = run.board, run.events, run.clock
        self._conductor = conductor
        self._step, self._warned = -1, 0.0

    @property
    def is_due(self) -> bool:
        """Whether `look` has anything to tell, as far as can be known cheaply."""
        most = self._filters.max_num_gen_batches
        first = max(_LEAST, most / 2) if most > 0 else WARN_AT
        warned = self._warned if self._step == self._board.next_step else 0.0
        return self._is_over or self._spent >= max(first, 2 * warned)

    @property
    def _spent(self) -> float:
        board = self._board
        return gen_batches(verdicts_since_assignment=board.verdicts, gen_batch_size=board.gen_batch_size)

    @property
    def _is_over(self) -> bool:
        return self._filters.on_starvation != "wait" and starved(
            verdicts_since_assignment=self._board.verdicts,
            gen_batch_size=self._board.gen_batch_size,
            max_num_gen_batches=self._filters.max_num_gen_batches,
        )

    def look(self) -> str:
        """Warns when a warning is due; returns why the run must stop, or ""."""
        board, most = self._board, self._filters.max_num_gen_batches
        if not self.is_due:
            return ""
        choice = board.choose()
        if choice.ready:  # the learner has not asked for the batch yet
            return ""
        if not self._is_over:
            self._step, self._warned = board.next_step, self._spent
            self._warn(self._warned, missing=board.train_batch_size - len(choice.chosen))
            return ""
        return (
            f"{board.verdicts} groups judged ({most} generation batches) without a full batch: {self._split()}; the data is "
            "too easy or too hard for the model. Change the data, raise algorithm.filter_groups.max_num_gen_batches, or set "
            "algorithm.filter_groups.on_starvation: wait"
        )

    def _warn(self, spent: float, *, missing: int) -> None:
        board, window = self._board, self._conductor.window
        left_s = window.seconds_to_keep(missing, now_s=self._clock.now())
        left = f"about {left_s:.0f} s more at this pace" if left_s is not None else "none was kept since the last step"
        most = self._filters.max_num_gen_batches
        end = _ENDS[self._filters.on_starvation].format(most=most) if most > 0 else ""
        text = (
            f"batch {board.next_step} has {board.train_batch_size - missing} of {board.train_batch_size} groups after "
            f"{spent:.1f} generation batches: {self._split()}; {left}{end}"
        )
        log.warning("starving", step=board.next_step, why=text)
        values = {"gen_batches": spent, "missing_groups": float(missing)}
        self._events.emit("starving", text, values=values | ({} if left_s is None else {"left_s": left_s}))

    def _split(self) -> str:
        shares = self._conductor.window.verdicts
        judged = max(1, shares.total())
        split = ", ".join(f"{verdict.value} {count}" for verdict, count in shares.most_common())
        return f"{split} (acceptance {shares[Verdict.KEPT] / judged:.2f})"
