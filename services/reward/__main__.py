"""`python -m services.reward --coordinator HOST:PORT`: see --help."""

import argparse
import sys
from collections.abc import Iterator


def main(argv: list[str] | None = None) -> int:
    """Runs the service; returns the exit code."""
    args = _parser().parse_args(argv)

    import structlog
    import uvloop

    from services.reward.app import Options, serve
    from sluice.errors import SluiceError
    from sluice.telemetry.logs import configure_logs

    configure_logs(service="reward", fmt=args.log_format)
    options = Options(
        coordinator=args.coordinator,
        bind=args.bind,
        advertise=args.advertise or args.bind,
        port=args.port,
        metrics_port=args.metrics_port,
        service_id=args.service_id,
    )
    code = 0
    try:
        uvloop.run(serve(options))
    except* SluiceError as failures:
        code = 2 if any(isinstance(failure, ValueError) for failure in _leaves(failures)) else 1
        for failure in _leaves(failures):
            structlog.get_logger().error("failed", reason=str(failure))
    except* KeyboardInterrupt:
        code = 130
    return code


def _leaves(failure: BaseException) -> Iterator[BaseException]:
    """The errors within nested exception groups."""
    if isinstance(failure, BaseExceptionGroup):
        for inner in failure.exceptions:
            yield from _leaves(inner)
    else:
        yield failure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.reward", description="Sluice's reward service: grades groups in killable processes."
    )
    parser.add_argument("--coordinator", required=True, metavar="HOST:PORT", help="where the run is conducted")
    parser.add_argument("--bind", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--advertise", metavar="HOST", help="host others reach it at (default: that of --bind)")
    parser.add_argument("--port", type=int, default=0, help="gRPC port; 0 takes any free one (default: %(default)s)")
    parser.add_argument("--metrics-port", type=int, default=0, help="Prometheus port (default: any free one)")
    parser.add_argument("--service-id", default="", help="name that outlives restarts (default: the coordinator's)")
    parser.add_argument("--log-format", choices=("console", "json"), default="console")
    return parser


if __name__ == "__main__":
    sys.exit(main())
