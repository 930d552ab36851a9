"""python -m sluice.rpc.probe [HOST:PORT]: exits with 0 when the service is healthy, else with 1 and the reason.

For the health checks of container engines. The default is port SLUICE_PORT of this machine. The probe shows a service with
certificates the service's own certificate, from SLUICE_CREDENTIALS; a service with tokens tells its health without one.
"""

import argparse
import os
import sys

import grpc
from grpc_health.v1 import health_pb2

from sluice.errors import ConfigError
from sluice.limits import CHANNEL_OPTIONS
from sluice.rpc.certificates import Certificates
from sluice.rpc.credentials import ENVIRONMENT, load_credentials

TIMEOUT_S = 3.0
"""Shorter than the deadline of docker-compose.yml, so that the reason gets printed."""


def main(argv: list[str] | None = None) -> int:
    """Asks once; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sluice.rpc.probe", description="Asks a service for its health.")
    parser.add_argument("address", nargs="?", metavar="HOST:PORT", help="default: 127.0.0.1, port SLUICE_PORT")
    address = parser.parse_args(argv).address or f"127.0.0.1:{os.environ.get('SLUICE_PORT', '')}"
    try:
        opened = _open_channel(address)
    except ConfigError as error:
        print(f"{address}: {error}", file=sys.stderr)
        return 1
    with opened as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            status = check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status
        except grpc.RpcError as error:
            print(f"{address}: {error}", file=sys.stderr)
            return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(status))
    return 0 if status == health_pb2.HealthCheckResponse.SERVING else 1


def _open_channel(address: str) -> grpc.Channel:
    """A channel with the credentials of SLUICE_CREDENTIALS. Raises ConfigError for an unusable folder."""
    credentials = load_credentials(os.environ.get(ENVIRONMENT))
    if isinstance(credentials, Certificates):
        options = [*CHANNEL_OPTIONS, *credentials.channel_options(credentials.role)]
        return grpc.secure_channel(address, credentials.channel_tls(), options)
    return grpc.insecure_channel(address, CHANNEL_OPTIONS)


if __name__ == "__main__":
    sys.exit(main())
