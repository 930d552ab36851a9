"""One rank of a replay: trains the recorded batches from a checkpoint with the learner's own code.

No coordinator and no Redis. Waits: each rank for the other ranks, in a collective (distributed/ranks.py).
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from services.learner.app import make_worker
from services.learner.batches.batch import Batch
from services.learner.checkpoint.export import export_version
from services.learner.checkpoint.export_checkpoint import read_config
from services.learner.control.wire import batch_from_wire
from services.learner.distributed.ending import end_process
from services.learner.distributed.ranks import Ranks, join_ranks, naming_lost_ranks
from services.learner.replay.recorded_steps import RecordedStep, batch_body, recorded_steps
from services.learner.replay.step_comparison import Replayed
from sluice.config.load import dump_config
from sluice.errors import SluiceError
from sluice.model_identity import vocabulary_size
from sluice.policy_version import PolicyVersion
from sluice.rpc.service import exit_code
from sluice.run_dir.batch_file import payloads_of
from sluice.telemetry.logs import configure_logs
from sluice.v1 import coordinator_pb2


def main(argv: list[str] | None = None) -> int:
    """Replays; returns 0 when the replay was carried out, also when the figures differ."""
    parser = argparse.ArgumentParser(prog="python -m services.learner.replay.rank")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--resume", required=True, help="as `learner.resume`: never or a checkpoint")
    parser.add_argument("--scratch", type=Path, required=True, help="folder that stands for the run's")
    parser.add_argument("--result", type=Path, required=True, help="where rank 0 writes what came of it")
    parser.add_argument("--context-parallel-size", type=int, required=True, help="as `learner.context_parallel_size`")
    parser.add_argument("--out", type=Path, help="where rank 0 writes the weights")
    args = parser.parse_args(argv)
    configure_logs(service="replay", level="warning")
    try:
        with naming_lost_ranks():
            ranks = join_ranks()
            _replay(ranks, args)
            ranks.leave()
    except SluiceError as failure:
        return exit_code(failure)
    return 0


def _replay(ranks: Ranks, args: argparse.Namespace) -> None:
    config = read_config(args.run_dir)
    context = args.context_parallel_size
    learner = config.learner.model_copy(update={"resume": args.resume, "context_parallel_size": context})
    launch = config.launch.model_copy(update={"learner_nproc_per_node": ranks.size, "learner_nnodes": 1})
    text = dump_config(config.model_copy(update={"learner": learner, "launch": launch}))
    config, worker, state = make_worker(ranks, facts=(text, str(args.scratch)))
    recorded = recorded_steps(args.run_dir)
    metrics: dict[str, float] = {}
    vocabulary = vocabulary_size(config.model.path)
    for step in range(state.step, args.step + 1):
        worker.allow_sharing(recorded[step].metrics.get("learner/prompt_tokens_saved", 0) > 0)
        metrics = worker.train(_batch(args.run_dir, recorded[step], vocabulary) if ranks.leads else None)
    snapshot = worker.gather(PolicyVersion(lineage=recorded[args.step].lineage, number=worker.step))
    if snapshot is None:
        return
    if args.out is not None:
        export_version(snapshot, config=config, target=args.out)
    digest, device = snapshot.manifest.digest, ranks.device.type
    outcome = Replayed(metrics=metrics, weights_digest=digest, ranks=ranks.size, device=device, context=context)
    args.result.write_text(json.dumps(asdict(outcome)))


def _batch(run_dir: Path, recorded: RecordedStep, vocabulary: int) -> Batch:
    """The recorded batch, in the form in which the coordinator hands out a batch."""
    payloads = payloads_of(batch_body(run_dir, recorded))
    header = coordinator_pb2.BatchHeader(step=recorded.step, groups=len(payloads), digest=recorded.batch_digest)
    return batch_from_wire(header, payloads, vocabulary=vocabulary)


if __name__ == "__main__":
    end_process(main)
