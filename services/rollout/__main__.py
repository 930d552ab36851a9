"""`python -m services.rollout --coordinator HOST:PORT`: see --help."""

import sys

from sluice.nccl import prepare_nccl
from sluice.rpc.service import ROLLOUT_PORT, exit_code, options_from, service_parser


def main(argv: list[str] | None = None) -> int:
    """Runs the service; returns the exit code."""
    description = "Sluice's rollout service: draws completions, takes new weights."
    parser = service_parser("rollout", description, port=ROLLOUT_PORT)
    parser.add_argument(
        "--engine", choices=("vllm", "transformers"), default="", help="instead of the configuration's rollout.engine"
    )
    parser.add_argument(
        "--own-weights",
        action="store_true",
        help="serve the model folder's weights, for an evaluation without a learner",
    )
    args = parser.parse_args(argv)

    prepare_nccl()
    import uvloop

    from services.rollout.app import Options, serve
    from sluice.errors import SluiceError
    from sluice.process.child import hide
    from sluice.telemetry.logs import configure_logs

    hide()
    configure_logs(service="rollout", fmt=args.log_format)
    try:
        uvloop.run(serve(options_from(Options, args, engine=args.engine, own_weights=args.own_weights)))
    except (SluiceError, ExceptionGroup) as failure:
        return exit_code(failure, service="rollout")
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
