"""`python -m services.reward --coordinator HOST:PORT`: see --help."""

import sys

from sluice.rpc.service import REWARD_PORT, ServiceOptions, exit_code, options_from, service_parser


def main(argv: list[str] | None = None) -> int:
    """Runs the service; returns the exit code."""
    description = "Sluice's reward service: grades groups in killable processes."
    args = service_parser("reward", description, port=REWARD_PORT).parse_args(argv)

    import uvloop

    from services.reward.app import serve
    from sluice.errors import SluiceError
    from sluice.process.child import hide
    from sluice.telemetry.logs import configure_logs

    hide()
    configure_logs(service="reward", fmt=args.log_format)
    try:
        uvloop.run(serve(options_from(ServiceOptions, args)))
    except (SluiceError, ExceptionGroup) as failure:
        return exit_code(failure, service="reward")
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
