"""How rank 0 gives a batch to the other ranks: vector by vector, without pickling anything."""

from services.learner.batches.batch import Batch
from services.learner.batches.batch_flat import DTYPES, FlatBatch, flatten, rebuild
from services.learner.distributed.ranks import Ranks


def share_batch(ranks: Ranks, batch: Batch | None) -> Batch:
    """The leader's batch on every rank; followers give None."""
    if ranks.size == 1:
        assert batch is not None
        return batch
    texts = [str(batch.step), batch.digest, *(group.group_id for group in batch.groups)] if batch else []
    step, digest, *group_ids = ranks.share_texts(texts)
    own = flatten(batch) if batch else None
    shared = {
        name: ranks.share_array(None if own is None else getattr(own, name), dtype=dtype)
        for name, dtype in DTYPES.items()
    }
    return rebuild(FlatBatch(**shared), step=int(step), digest=digest, group_ids=group_ids)
