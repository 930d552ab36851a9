"""Too few groups with signal: warns well before the end with the time that the batch still needs, then ends the run.

The end is `algorithm.filter_groups.on_starvation` after `max_num_gen_batches` generation batches without a full batch. A
batch that is trained as it is (`train_partial`) is the board's doing; here its run ends only if it has not one group.
Warnings come at half of them (where there is no such end, at WARN_AT), then each time their number has doubled.
"""

import structlog

from services.coordinator.groups.conductor import Conductor
from services.coordinator.state.run_context import RunContext
from sluice.dapo.dynamic_sampling import Verdict, gen_batches, starved

log = structlog.get_logger(__name__)

WARN_AT = 10.0
"""Generation batches. Chosen: verl's recipes for DAPO stop there."""

_LEAST = 1.5
"""Every batch needs one generation batch."""

_ENDS = {"stop": "; the run stops at {most}", "wait": "", "train_partial": "; at {most} it is trained as it is"}


class StarvationWatch:
    """Looks at the batch that is being filled."""

    def __init__(self, run: RunContext, *, conductor: Conductor) -> None:
        self._filters = run.config.algorithm.filter_groups
        self._board, self._events, self._clock = run.board, run.events, run.clock
        self._conductor = conductor
        self._step, self._warned = -1, 0.0

    def look(self) -> str:
        """Warns when it is time; why the run must stop, or nothing."""
        board, most = self._board, self._filters.max_num_gen_batches
        spent = gen_batches(verdicts_since_assignment=board.verdicts, gen_batch_size=board.gen_batch_size)
        if self._step != board.next_step:
            self._step, self._warned = board.next_step, 0.0
        first = max(_LEAST, most / 2) if most > 0 else WARN_AT
        is_over = self._filters.on_starvation != "wait" and starved(
            verdicts_since_assignment=board.verdicts, gen_batch_size=board.gen_batch_size, max_num_gen_batches=most
        )
        if not is_over and spent < max(first, 2 * self._warned):
            return ""
        choice = board.choose()
        if choice.ready:  # the learner has yet to ask for it
            return ""
        if not is_over:
            self._warned = spent
            self._warn(spent, missing=board.train_batch_size - len(choice.chosen))
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
