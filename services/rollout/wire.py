"""Generate requests and samples to and from protobuf, with every rule for a request."""

from services.rollout.engine import FinishedSample, FinishReason, SampleRequest
from sluice.errors import InvalidRequest
from sluice.rpc.arrays import pack_floats, pack_ids, unpack_ids
from sluice.rpc.policy_versions import version_to_proto
from sluice.v1 import common_pb2, rollout_pb2

MAX_SAMPLES_PER_REQUEST = 4096
"""Chosen: far above any group size in use, so that one call cannot take the whole queue by mistake."""

MIN_TEMPERATURE = 0.01
"""vLLM samples any lower temperature at 0.01, so that the logprobs would belong to another distribution."""

_REASON_TO_PROTO = {
    FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: common_pb2.FINISH_REASON_ABORT,
    FinishReason.ERROR: common_pb2.FINISH_REASON_ERROR,
}


def sample_id(request_id: str, index: int) -> str:
    """The engine's name for one sample of a request."""
    return f"{request_id}/{index}"


def sample_requests(
    request: rollout_pb2.GenerateRequest, *, vocab_size: int, max_model_len: int
) -> dict[str, tuple[rollout_pb2.SampleSpec, SampleRequest]]:
    """Decodes and checks a request; returns the samples to draw, by sample_id. Raises InvalidRequest with the field."""
    prompt = unpack_ids(request.prompt_token_ids, field="prompt_token_ids")
    _require(bool(request.request_id), "request_id: must not be empty")
    _require(prompt.size > 0, "prompt_token_ids: must not be empty")
    _require(
        bool((prompt >= 0).all() and (prompt < vocab_size).all()),
        f"prompt_token_ids: must be in [0, {vocab_size}), got {prompt.min()} to {prompt.max()}",
    )
    _check_sampling(request, prompt_tokens=prompt.size, max_model_len=max_model_len)
    specs = {spec.index: spec for spec in request.samples}
    _require(
        0 < len(request.samples) <= MAX_SAMPLES_PER_REQUEST,
        f"samples: must be 1 to {MAX_SAMPLES_PER_REQUEST}, got {len(request.samples)}",
    )
    _require(len(specs) == len(request.samples), "samples: an index appears twice")
    _require(all(spec.seed >= 0 for spec in request.samples), "samples: seeds must be >= 0")
    prompt_token_ids = tuple(prompt.tolist())
    return {
        sample_id(request.request_id, spec.index): (
            spec,
            SampleRequest(
                sample_id=sample_id(request.request_id, spec.index),
                prompt_token_ids=prompt_token_ids,
                seed=spec.seed,
                temperature=request.sampling.temperature,
                max_tokens=request.sampling.max_tokens,
                top_p=request.sampling.top_p,
            ),
        )
        for spec in request.samples
    }


def sample_to_proto(
    sample: FinishedSample, *, spec: rollout_pb2.SampleSpec, text: str, rollout_id: str
) -> common_pb2.Sample:
    """FinishedSample -> wire."""
    return common_pb2.Sample(
        index=spec.index,
        token_ids=pack_ids(sample.token_ids),
        logprobs=pack_floats(sample.logprobs),
        spans=[
            common_pb2.VersionSpan(version=version_to_proto(span.version), start_token=span.start, end_token=span.end)
            for span in sample.spans
        ],
        finish_reason=_REASON_TO_PROTO[sample.finish_reason],
        text=text,
        rollout_id=rollout_id,
        seed=spec.seed,
    )


def _check_sampling(request: rollout_pb2.GenerateRequest, *, prompt_tokens: int, max_model_len: int) -> None:
    sampling = request.sampling
    _require(
        not request.evaluation or 0 < sampling.top_p <= 1,
        f"sampling.top_p: must be > 0 and <= 1, got {sampling.top_p:g}",
    )
    _require(
        (sampling.top_p == 1 or request.evaluation) and sampling.top_k == -1,
        f"sampling: must be neutral (top_p 1, top_k -1), got top_p {sampling.top_p:g}, top_k {sampling.top_k}; "
        "truncation changes the distribution whose log-probabilities training uses; an evaluation may lower top_p",
    )
    _require(
        sampling.temperature == 0 or sampling.temperature >= MIN_TEMPERATURE,
        f"sampling.temperature: must be 0 (greedy) or >= {MIN_TEMPERATURE}, got {sampling.temperature:g}",
    )
    _require(sampling.max_tokens > 0, f"sampling.max_tokens: must be > 0, got {sampling.max_tokens}")
    _require(
        prompt_tokens + sampling.max_tokens <= max_model_len,
        f"prompt of {prompt_tokens} tokens and max_tokens {sampling.max_tokens} exceed the context of {max_model_len}",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InvalidRequest(message)
