"""The limits that both ends of a wire share: gRPC's, and those of what a reward service may answer.

Weights cross gRPC in pieces of 1 MiB (sluice/weights/pieces.py), so 256 MiB has room for a group of 16 x 1M tokens.
"""

from collections.abc import Mapping, Sequence

MAX_MESSAGE_BYTES = 256 << 20

MAX_REQUEST_BYTES: Mapping[str, int] = {
    "sluice.v1.CoordinatorService": 64 << 20,  # prompts that are submitted, a learner's record
    "sluice.v1.RolloutService": 64 << 20,  # a prompt's ids, a manifest
    "sluice.v1.RewardService": MAX_MESSAGE_BYTES,  # a group's texts
    "sluice.v1.LearnerService": 1 << 20,
    "sluice.v1.EnvironmentService": 16 << 20,  # a row's chat, one turn of the policy; beside rewards their limit
    "sluice.v1.WeightService": 1 << 20,
}
"""The largest request each service takes; a larger one is refused before it is read whole."""

MAX_CALLS_AT_ONCE = 16_384
"""Calls that one server runs at once: two of DAPO's largest batches at a group a call, and room."""

MAX_STREAMS_A_CONNECTION = 4_096
"""Further calls on one connection wait in the caller."""

ANSWER_AFTER_S = 5.0
"""Behind which a server that is still at work says on what it is: half of the time that a service gives a call."""

MAX_CALLS_PER_S = 2_000.0
"""Default of network.max_calls_per_s, the limit of one caller: the heartbeats of 2000 rollouts behind one address."""

LARGEST_SCORE = 1e15
"""Largest size of a score. Advantages square scores in float32, which ends at 3.4e38: the squares of a group fit."""

TEXT_CHARACTERS = 16_384
"""Longest extracted answer, and longest reason why a sample was not graded."""

NAME_CHARACTERS = 200
"""Longest name, and longest version, of a grader or of a service."""

MOST_PARTS = 32
"""Components of a score that are kept, the first by name, because a user's function may return any number."""

SCHEMA_CHARACTERS = 1 << 16
"""Of a tool's description, and of the JSON Schema of its arguments."""

PART_CHARACTERS = 100
"""Longest name of a component that is kept."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A dead peer is noticed within 20 s + 10 s even when no byte is on its way.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # The environment's http_proxy leads out of the network of a run, never to its services.
    ("grpc.enable_http_proxy", 0),
    # A service that restarts is reached again within 2 s, not after gRPC's default backoff of up to 2 min.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *CHANNEL_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    # Ends a connection that never gets through its handshake, and a connection that has been unused for long.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 3_600_000),
    ("grpc.max_concurrent_streams", MAX_STREAMS_A_CONNECTION),
    ("grpc.max_metadata_size", 16 << 10),
    # Two servers on one port would each get half of the calls.
    ("grpc.so_reuseport", 0),
)


def server_options(services: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """The options of a server with these services: takes requests up to the largest limit among the services."""
    most = max((MAX_REQUEST_BYTES.get(service, MAX_MESSAGE_BYTES) for service in services), default=MAX_MESSAGE_BYTES)
    others = (option for option in SERVER_OPTIONS if option[0] != "grpc.max_receive_message_length")
    return (*others, ("grpc.max_receive_message_length", most))
