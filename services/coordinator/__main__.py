"""python -m services.coordinator: serves one run."""

import sys
from pathlib import Path

from sluice.rpc.service import COORDINATOR_PORT, add_bind_flag, add_credentials_flag, metrics_port
from sluice.rpc.service_parser import ServiceParser


def main(argv: list[str] | None = None) -> int:
    """Runs one coordinator; parses the flags before heavy imports, so that --help is instant."""
    parser = ServiceParser(
        prog="python -m services.coordinator",
        description="Sluice's coordinator: admission, queue, ledger, batches, weight pushes and the API of one run.",
    )
    parser.add_argument("--config", type=Path, required=True, help="recipe (YAML)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override")
    parser.add_argument("--run-dir", type=Path, required=True, help="run directory; its first name is the run's")
    parser.add_argument("--redis-url", required=True, help="redis://HOST:PORT/0, rediss:// or unix:///PATH")
    parser.add_argument("--redis-password-stdin", action="store_true", help="read Redis's password on standard input")
    add_bind_flag(parser, auto="at which this machine reaches itself alone")
    parser.add_argument(
        "--port", type=int, default=COORDINATOR_PORT, help="port, 0 for any free one (default %(default)s)"
    )
    parser.add_argument("--metrics-port", type=int, help="Prometheus port, 0 for any free one (default: port + 1000)")
    parser.add_argument("--ready-fd", type=int, default=None, help="write the port to this descriptor once serving")
    parser.add_argument("--reopen", action="store_true", help="go on with a run that was stopped or has failed")
    parser.add_argument("--stay", action="store_true", help="serve until SIGTERM, after the end of the run, too")
    parser.add_argument("--own-redis", action="store_true", help="shut Redis down when the run has ended")
    parser.add_argument("--idle", action="store_true", help="serve the API of a run that lies still")
    parser.add_argument("--check", action="store_true", help="check data, tokenizer and reward, then end")
    parser.add_argument("--evaluate", action="store_true", help="evaluate the model's own weights, then end")
    add_credentials_flag(parser)
    parser.add_argument("--log-format", choices=["console", "json"], default="console", help="default: %(default)s")
    args = parser.parse_args(argv)

    import os

    import uvloop

    from services.coordinator.app.options import Options
    from services.coordinator.app.serving import serve
    from sluice.addresses import loopback
    from sluice.config.load import load_config
    from sluice.errors import SluiceError
    from sluice.own_address import BIND, own_address
    from sluice.process.child import hide
    from sluice.rpc.access import Role
    from sluice.rpc.credentials import load_credentials
    from sluice.telemetry.logs import configure_logs

    hide()
    configure_logs(service="coordinator", fmt=args.log_format)
    try:
        config = load_config(args.config, overrides=args.overrides, environ=os.environ)
        options = Options(
            run_dir=args.run_dir.resolve(),
            redis_url=args.redis_url,
            bind=own_address(args.bind, auto=loopback, key=BIND),
            port=args.port,
            metrics_port=metrics_port(args),
            ready_fd=args.ready_fd,
            check_only=args.check,
            evaluate_only=args.evaluate,
            reopen=args.reopen,
            idle=args.idle,
            credentials=load_credentials(args.credentials, role=Role.COORDINATOR),
            stay=args.stay,
            own_redis=args.own_redis,
            redis_password=sys.stdin.read() if args.redis_password_stdin else "",
        )
        return uvloop.run(serve(config, options))
    except SluiceError as error:
        print(f"coordinator: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


if __name__ == "__main__":
    sys.exit(main())
