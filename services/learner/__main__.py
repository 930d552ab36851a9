"""`python -m services.learner --coordinator HOST:PORT`, alone or on every rank under torchrun: see --help."""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    """Runs one rank; returns the exit code."""
    args = _parser().parse_args(argv)

    import structlog

    from services.learner.app import run
    from services.learner.control_plane import Options
    from sluice.errors import SluiceError
    from sluice.telemetry.logs import configure_logs

    configure_logs(service="learner", fmt=args.log_format)
    options = Options(
        coordinator=args.coordinator,
        bind=args.bind,
        advertise=args.advertise or args.bind,
        port=args.port,
        metrics_port=args.metrics_port,
    )
    try:
        run(options)
    except SluiceError as error:
        structlog.get_logger().error("failed", reason=str(error))
        return 2 if isinstance(error, ValueError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.learner",
        description="Sluice's learner: FSDP2 training. Several ranks: python -m torch.distributed.run "
        "--nproc-per-node N -m services.learner ...",
    )
    parser.add_argument("--coordinator", required=True, metavar="HOST:PORT", help="where the run is conducted")
    parser.add_argument("--bind", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--advertise", metavar="HOST", help="host others reach it at (default: that of --bind)")
    parser.add_argument(
        "--port", type=int, default=50053, help="gRPC port; 0 takes any free one (default: %(default)s)"
    )
    parser.add_argument("--metrics-port", type=int, default=51053, help="Prometheus port (default: %(default)s)")
    parser.add_argument("--log-format", choices=("console", "json"), default="console")
    return parser


if __name__ == "__main__":
    sys.exit(main())
