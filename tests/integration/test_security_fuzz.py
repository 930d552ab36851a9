"""Malformed, oversized, replayed and reordered calls to every method of every real service: each ends as the contract says,
none as a bug of ours, and the service then gives a good answer.

SLUICE_FUZZ_MESSAGES is how many, over all methods; `make fuzz` sends 10,000.
"""

import os
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest
from hypothesis import HealthCheck, given, settings

from sluice.limits import MAX_REQUEST_BYTES
from sluice.rpc.access import SERVED_BY
from sluice.v1 import coordinator_pb2, environment_pb2, learner_pb2, reward_pb2, rollout_pb2, weight_pb2
from tests.integration.fuzz_messages import requests
from tests.integration.fuzz_services import ENDING, MAY_WAIT, Services
from tests.security_cases import methods

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

METHODS = {path: method for _, path, method in methods()}
MESSAGES = int(os.environ.get("SLUICE_FUZZ_MESSAGES", "1000"))
REPLAYED = 5
EACH = max(10, MESSAGES // len(METHODS) - REPLAYED)

S = grpc.StatusCode
HONEST = {
    *(S.OK, S.INVALID_ARGUMENT, S.FAILED_PRECONDITION, S.NOT_FOUND, S.ABORTED, S.RESOURCE_EXHAUSTED),
    *(S.UNAVAILABLE, S.DATA_LOSS),
}
"""How a call may end that makes no sense; never as UNKNOWN or INTERNAL, which are bugs of ours."""

GOOD = {
    "sluice.v1.CoordinatorService": ("GetStatus", coordinator_pb2.GetStatusRequest()),
    "sluice.v1.RolloutService": ("GetInfo", rollout_pb2.RolloutServiceGetInfoRequest()),
    "sluice.v1.RewardService": (
        "Score",
        reward_pb2.ScoreRequest(
            group_id="g",
            data_source="mixadd3",
            ground_truth="125",
            items=[reward_pb2.ScoreItem(index=0, text="#125", response_tokens=3, finish_reason="FINISH_REASON_STOP")],
        ),
    ),
    "sluice.v1.LearnerService": ("GetInfo", learner_pb2.LearnerServiceGetInfoRequest()),
    "sluice.v1.EnvironmentService": ("ListEnvironments", environment_pb2.ListEnvironmentsRequest()),
    "sluice.v1.WeightService": ("FetchWeights", weight_pb2.FetchWeightsRequest(epoch="none", secret="guessed")),
}
ON_THE_SERVER_OF = {"sluice.v1.EnvironmentService": "sluice.v1.RewardService"}
"""A server has one limit, the largest of its services."""

ANSWERS = {"sluice.v1.WeightService": S.PERMISSION_DENIED}
"""The good answer, where it is not OK: nothing is open to who guesses."""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    made = Services(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


def still_serves(services: Services, service: str) -> None:
    method, request = GOOD[service]
    path = f"/{service}/{method}"
    answers = services.send(path, [request.SerializeToString()] * 3, streams=METHODS[path].server_streaming)
    assert [code for code, _ in answers] == [ANSWERS.get(service, S.OK)] * 3, answers


@pytest.mark.parametrize("path", sorted(METHODS))
def test_no_message_harms_a_service(services: Services, path: str) -> None:
    method, sent = METHODS[path], list[bytes]()

    @settings(max_examples=EACH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        requests(
            method.input_type,
            services.known,
            good=services.good.get(path),
            raw=method.name != "Export" and path not in ENDING,
        )
    )
    def collect(request: bytes) -> None:
        sent.append(request)

    collect()
    sent += sent[REPLAYED - 1 :: -1]  # replayed, and in another order
    allowed = (
        HONEST | ({S.DEADLINE_EXCEEDED} if method.name in MAY_WAIT else set()) | {ANSWERS.get(path.split("/")[1], S.OK)}
    )
    ended = services.send(path, sent, streams=method.server_streaming)
    bad = [
        (code.name, why[:300], request)
        for (code, why), request in zip(ended, sent, strict=True)
        if code not in allowed or "Traceback" in why
    ]
    assert bad[:3] == [], f"{len(bad)} of {len(sent)}: {Counter(code for code, _, _ in bad)}"
    still_serves(services, path.split("/")[1])


@pytest.mark.parametrize("service", sorted(SERVED_BY))
def test_a_message_over_the_limit_is_refused_and_the_service_goes_on(services: Services, service: str) -> None:
    path = f"/{service}/{GOOD[service][0]}"
    streams = METHODS[path].server_streaming
    limit = MAX_REQUEST_BYTES[ON_THE_SERVER_OF.get(service, service)]
    ended = services.send(path, [bytes(limit + 1)], streams=streams)
    assert [(code, "Received message larger than max" in why) for code, why in ended] == [(S.RESOURCE_EXHAUSTED, True)]
    still_serves(services, service)
