"""Request fields that others choose: durations that are none, names without a bound."""

import math
from typing import Any

import pytest

from services.coordinator.api.registrations import check_registration
from sluice.errors import InvalidRequest
from sluice.limits import NAME_CHARACTERS
from sluice.rpc.policy_versions import version_from_proto
from sluice.rpc.requests import LONGEST_S, as_line, duration_s, line, name
from sluice.v1 import common_pb2
from sluice.v1 import coordinator_pb2 as pb


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, -1.0, 0.0, 2 * LONGEST_S])
def test_what_is_no_duration_is_refused_by_its_field(wrong: float) -> None:
    with pytest.raises(InvalidRequest, match="drain: timeout_s: must be seconds > 0"):
        duration_s(wrong, field="drain: timeout_s")


def test_zero_is_a_duration_where_it_may_be() -> None:
    assert duration_s(0.0, field="x", may_be_0=True) == 0.0
    assert duration_s(LONGEST_S, field="x") == LONGEST_S
    with pytest.raises(InvalidRequest):
        duration_s(math.nan, field="x", may_be_0=True)


@pytest.mark.parametrize("wrong", ["", "x" * (NAME_CHARACTERS + 1), "x" * 50_000_000, "a b", "a\nb", "\x1b[2J", "é"])
def test_what_is_no_name_is_refused_with_a_short_message(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="who: must be 1 to 200 ASCII") as refused:
        name(wrong, field="who")
    assert len(str(refused.value)) < 300


def test_a_line_may_have_blanks_and_no_breaks() -> None:
    assert line("vllm 0.32.0 on cpu", field="engine") == "vllm 0.32.0 on cpu"
    for wrong in ("a\nb", "x" * 201, "a\u2028b"):
        with pytest.raises(InvalidRequest, match="engine: must be one line"):
            line(wrong, field="engine")


@pytest.mark.parametrize("wrong", [{"number": -2}, {"number": 2**60}, {"lineage": "a" * 33}, {"lineage": "a b"}])
def test_what_is_no_version_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="version: "):
        version_from_proto(common_pb2.PolicyVersion(**{"lineage": "a", "number": 1} | wrong))


def registration(**changes: Any) -> pb.RegisterRequest:
    facts: dict[str, Any] = {"address": "[::1]:50051", "incarnation": "i", "engine": "vllm 0.32.0 on cpu"}
    return pb.RegisterRequest(**facts | {"service_id": "rollout-0", "model_hash": "0" * 64} | changes)


@pytest.mark.parametrize("address", ["host:1", "10.0.0.1:50051", "[::1]:50051", "[fe80::1%eth0]:1", "a-b.c_d:65535"])
def test_a_registration_with_an_address_is_taken(address: str) -> None:
    check_registration(registration(address=address.replace("_", "-")))


@pytest.mark.parametrize(
    "field", ["service_id", "address", "metrics_address", "incarnation", "engine", "model_hash", "tokenizer_hash"]
)
def test_every_name_of_a_registration_is_bounded(field: str) -> None:
    for wrong in ("x" * 50_000_000, "a\nb"):
        with pytest.raises(InvalidRequest, match=f"register: {field}"):
            check_registration(registration(**{field: wrong}))


@pytest.mark.parametrize("field", ["batch_digest", "weights_digest", "group_ids"])
def test_every_name_of_a_trained_step_is_bounded(field: str) -> None:
    long = "x" * 1_000_000
    step = pb.TrainedStep(step=0, **{field: [long] if field == "group_ids" else long})
    with pytest.raises(InvalidRequest, match=f"register: trained.{field}"):
        check_registration(registration(trained=[step]))


@pytest.mark.parametrize("address", ["host:65536", "host:99999", "host:\u0662", "host:80\n", ":80"])
def test_a_registration_without_a_port_that_there_is_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequest, match=r"register: address must be HOST:PORT"):
        check_registration(pb.RegisterRequest(incarnation="i", address=address))


@pytest.mark.parametrize("text", ["a\x00b", "a\n\n b", "\u200b" * 500, "x" * 5000, "\ud83d", ""])
def test_any_text_is_told_as_a_line_that_is_taken(text: str) -> None:
    told = as_line(text)
    assert line(told, field="f") == told
    assert len(told.encode()) <= 4 * NAME_CHARACTERS
