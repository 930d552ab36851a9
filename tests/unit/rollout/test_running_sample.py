"""Version spans, from tokens and switches."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from services.rollout.engine import FinishReason, RunningSample, SampleRequest
from sluice.policy_version import PolicyVersion

REQUEST = SampleRequest(sample_id="s", prompt_token_ids=(1,), seed=0, temperature=1.0, max_tokens=100)


@given(st.lists(st.booleans(), max_size=40))
def test_spans_name_the_version_of_every_token(events: list[bool]) -> None:
    """True samples a token, False switches to the next version."""
    version, expected = 0, []
    sample = RunningSample(REQUEST, PolicyVersion(lineage="a", number=version))
    for samples_token in events:
        if samples_token:
            sample.token_ids.append(9)
            sample.logprobs.append(-1.0)
            expected.append(version)
        else:
            version += 1
            sample.switch(PolicyVersion(lineage="a", number=version))
    spans = sample.finish(FinishReason.LENGTH).spans
    assert [span.version.number for span in spans for _ in range(span.start, span.end)] == expected
    assert all(before.end == after.start for before, after in itertools.pairwise(spans))
    assert all(span.end > span.start for span in spans)
