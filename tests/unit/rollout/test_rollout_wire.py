"""What a Generate request has to be, and how a sample travels."""

import numpy as np
import pytest

from services.rollout.engine import FinishedSample, FinishReason, Span
from services.rollout.wire import sample_requests, sample_to_proto
from sluice.errors import InvalidRequest
from sluice.policy_version import PolicyVersion
from sluice.rpc.arrays import pack_ids, unpack_floats, unpack_ids
from sluice.v1 import common_pb2, rollout_pb2


def generate(**changes: object) -> rollout_pb2.GenerateRequest:
    fields: dict[str, object] = {
        "request_id": "g0.1",
        "prompt_token_ids": pack_ids([3, 4, 5]),
        "samples": [rollout_pb2.SampleSpec(index=index, seed=100 + index) for index in (0, 2)],
        "sampling": sampling(),
    }
    return rollout_pb2.GenerateRequest(**(fields | changes))  # type: ignore[arg-type]


def sampling(**changes: object) -> common_pb2.SamplingParams:
    return common_pb2.SamplingParams(**({"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 10} | changes))  # type: ignore[arg-type]


def test_a_request_becomes_one_engine_request_a_sample() -> None:
    wanted = sample_requests(generate(), vocab_size=64, max_model_len=13)
    assert list(wanted) == ["g0.1/0", "g0.1/2"]
    spec, request = wanted["g0.1/2"]
    assert (spec.index, request.seed, request.prompt_token_ids, request.max_tokens) == (2, 102, (3, 4, 5), 10)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"request_id": ""}, "request_id: must not be empty"),
        ({"prompt_token_ids": b""}, "prompt_token_ids: must not be empty"),
        ({"prompt_token_ids": b"abc"}, "multiple of 4 bytes"),
        ({"prompt_token_ids": pack_ids([3, 64])}, r"must be in \[0, 64\), got 3 to 64"),
        ({"prompt_token_ids": pack_ids([-1])}, r"must be in \[0, 64\)"),
        ({"prompt_token_ids": pack_ids([3] * 4)}, "prompt of 4 tokens and max_tokens 10 exceed the context of 13"),
        ({"samples": []}, "samples: must be 1 to 4096, got 0"),
        ({"samples": [rollout_pb2.SampleSpec()] * 2}, "an index appears twice"),
        ({"samples": [rollout_pb2.SampleSpec(seed=-1)]}, "seeds must be >= 0"),
        ({"sampling": sampling(top_p=0.9)}, "must be neutral"),
        ({"sampling": sampling(top_k=20)}, "must be neutral"),
        ({"sampling": sampling(top_k=0)}, "must be neutral"),
        ({"sampling": sampling(temperature=-0.5)}, "temperature: must be 0"),
        ({"sampling": sampling(temperature=0.001)}, "temperature: must be 0"),
        ({"sampling": sampling(max_tokens=0)}, "max_tokens: must be > 0"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_by_field(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(InvalidRequest, match=rule):
        sample_requests(generate(**changes), vocab_size=64, max_model_len=13)


@pytest.mark.parametrize("top_p", [0.0, -0.1, 1.1, float("nan")])
def test_an_evaluation_may_lower_top_p_within_its_range(top_p: float) -> None:
    asked = generate(sampling=sampling(top_p=0.7), evaluation=True)
    assert {one.top_p for _, one in sample_requests(asked, vocab_size=64, max_model_len=13).values()} == {0.7}
    with pytest.raises(InvalidRequest, match=r"top_p: must be > 0 and <= 1"):
        sample_requests(generate(sampling=sampling(top_p=top_p), evaluation=True), vocab_size=64, max_model_len=13)


def test_greedy_is_allowed() -> None:
    assert sample_requests(generate(sampling=sampling(temperature=0)), vocab_size=64, max_model_len=13)


def test_a_sample_keeps_every_bit_on_the_wire() -> None:
    versions = [PolicyVersion(lineage="a", number=number) for number in (3, 4)]
    sample = FinishedSample(
        sample_id="g0.1/2",
        token_ids=np.array([7, 8, 2], np.int32),
        logprobs=np.array([-0.1, -1e-9, -3.5], np.float32),
        spans=(Span(version=versions[0], start=0, end=2), Span(version=versions[1], start=2, end=3)),
        finish_reason=FinishReason.STOP,
    )
    spec = rollout_pb2.SampleSpec(index=2, seed=102)
    message = sample_to_proto(sample, spec=spec, text="ab", rollout_id="r1")
    np.testing.assert_array_equal(unpack_ids(message.token_ids), sample.token_ids)
    np.testing.assert_array_equal(unpack_floats(message.logprobs), sample.logprobs)
    assert [(span.version.number, span.start_token, span.end_token) for span in message.spans] == [(3, 0, 2), (4, 2, 3)]
    assert message.finish_reason == common_pb2.FINISH_REASON_STOP
    assert (message.index, message.seed, message.text, message.rollout_id) == (2, 102, "ab", "r1")
