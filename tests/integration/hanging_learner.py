"""One rank of the real learner that hangs in the training of a step. Run in place of `services.learner.__main__`.

Environment: HANG_AT the step, HANG_RANK the rank, HANG_HOW `sleep` (Python goes on beside it), `lock` (it holds Python's
lock) or a folder: then it makes `hanging` in it and goes on once there is a file `go`.
"""

import ctypes
import os
import time
from pathlib import Path

from services.learner import __main__ as learner
from services.learner.batches.batch import Batch
from services.learner.distributed.ending import end_process
from services.learner.training.train_step import Trainer

FOR_EVER_S = 1000
_train = Trainer.train


def _hang_then_train(self: Trainer, batch: Batch) -> dict[str, float]:
    if batch.step == int(os.environ["HANG_AT"]) and os.environ.get("RANK", "0") == os.environ["HANG_RANK"]:
        _hang(os.environ["HANG_HOW"])
    return _train(self, batch)


def _hang(how: str) -> None:
    if how == "lock":
        ctypes.PyDLL(None).sleep(FOR_EVER_S)
    elif how == "sleep":
        time.sleep(FOR_EVER_S)
    else:
        Path(how, "hanging").touch()
        end_s = time.monotonic() + FOR_EVER_S
        while not Path(how, "go").exists():
            assert time.monotonic() < end_s, f"there is no {how}/go"
            time.sleep(0.01)


def main(argv: list[str] | None = None) -> int:
    """The learner's."""
    Trainer.train = _hang_then_train  # type: ignore[method-assign]
    return learner.main(argv)


if __name__ == "__main__":
    end_process(main)
