"""`python -m services.learner --coordinator HOST:PORT`, alone or on every rank under torchrun: see --help."""

import os
from pathlib import Path

from services.learner.distributed.ending import end_process
from services.learner.distributed.rank_environment import prepare_allocator
from sluice.nccl import prepare_nccl
from sluice.rpc.service import LEARNER_PORT, ServiceOptions, exit_code, options_from, service_parser


def main(argv: list[str] | None = None) -> int:
    """Runs one rank; returns the exit code."""
    parser = service_parser(
        "learner",
        "Sluice's learner: FSDP2 training. Several ranks: python -m torch.distributed.run --nproc-per-node N "
        "-m services.learner ...",
        port=LEARNER_PORT,
        needs_coordinator=os.environ.get("RANK", "0") == "0",  # the other ranks hear everything from rank 0
    )
    parser.add_argument("--ended-file", type=Path, help="file to make when the run has ended")
    args = parser.parse_args(argv)

    prepare_allocator()
    prepare_nccl()
    from services.learner.app import run
    from services.learner.distributed.ranks import RankLost
    from sluice.errors import SluiceError
    from sluice.process import exit_codes
    from sluice.process.child import hide
    from sluice.telemetry.logs import configure_logs

    hide()
    configure_logs(service="learner", fmt=args.log_format)
    try:
        ended = run(options_from(ServiceOptions, args))
    except (SluiceError, ExceptionGroup) as failure:
        code = exit_code(failure, service="learner")
        return exit_codes.PEER_LOST if isinstance(failure, RankLost) else code
    if ended and args.ended_file is not None:
        args.ended_file.touch()
    return 0


if __name__ == "__main__":
    end_process(main)
