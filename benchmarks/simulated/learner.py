"""A fake learner's batches, however long they take."""

from sluice.testing.fakes import FakeLearner
from sluice.testing.fakes.service import Connection
from sluice.v1 import coordinator_pb2 as pb


async def whole_batch(learner: FakeLearner, run: Connection, step: int) -> list[pb.GetBatchResponse]:
    """Header and groups of batch `step`. Waits without a limit; raises RuntimeError when the run ends instead."""
    while True:
        batch = await learner.batch(run, step)
        if batch[0].WhichOneof("part") == "header":
            return batch
        if batch[0].not_ready.ended:
            raise RuntimeError(f"no batch {step}: {batch[0].not_ready.reason}")
