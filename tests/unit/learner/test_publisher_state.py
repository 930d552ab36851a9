"""Who wishes for a checkpoint is answered with one that began after the wish."""

from pathlib import Path

import pytest

from services.learner.control.publisher_state import PublisherState, SavedCheckpoint
from sluice.errors import NotReady, SluiceError
from sluice.policy_version import PolicyVersion
from sluice.weights.sender import WeightSender

A3, A4 = (PolicyVersion(lineage="a", number=number) for number in (3, 4))


def _publisher() -> PublisherState:
    sender = WeightSender(backend="file", host="127.0.0.1", directory=Path())
    return PublisherState(sender, world_size=1, backend="gloo")


def test_a_wish_during_a_write_waits_for_the_next_checkpoint() -> None:
    publisher = _publisher()
    early = publisher.request_checkpoint()
    assert publisher.checkpoint_wanted
    publisher.checkpoint_begun()
    late = publisher.request_checkpoint()
    assert publisher.checkpoint_wanted
    publisher.checkpoint_saved(A3, Path("step-3"))
    assert early.result(timeout=0) == SavedCheckpoint(version=A3, path=Path("step-3"))
    assert not late.done()
    publisher.checkpoint_begun()
    assert not publisher.checkpoint_wanted
    publisher.checkpoint_saved(A4, Path("step-4"))
    assert late.result(timeout=0).path == Path("step-4")


def test_a_checkpoint_that_could_not_be_written_is_said_so() -> None:
    publisher = _publisher()
    wish = publisher.request_checkpoint()
    publisher.checkpoint_begun()
    publisher.checkpoint_saved(A3, None)
    with pytest.raises(SluiceError, match="a3 could not be written"):
        wish.result(timeout=0)


def test_version_0_needs_no_checkpoint() -> None:
    publisher = _publisher()
    wish = publisher.request_checkpoint()
    publisher.checkpoint_begun()
    publisher.checkpoint_saved(PolicyVersion(lineage="a", number=0), None)
    with pytest.raises(NotReady, match=r"version 0 is model\.path"):
        wish.result(timeout=0)
