"""Who wishes for a checkpoint is answered with one that began after the wish."""

from pathlib import Path
from typing import Any, cast

import pytest

from services.learner.control.publisher_state import SavedCheckpoint, SharedFront
from sluice.errors import NotReady, SluiceError
from sluice.weights.manifest import PolicyVersion

A3, A4 = (PolicyVersion(lineage="a", number=number) for number in (3, 4))


def _front() -> SharedFront:
    return SharedFront(cast(Any, None), world_size=1, backend="gloo")


def test_a_wish_during_a_write_waits_for_the_next_checkpoint() -> None:
    front = _front()
    early = front.wish_checkpoint()
    assert front.checkpoint_wanted
    front.checkpoint_begun()
    late = front.wish_checkpoint()
    assert front.checkpoint_wanted
    front.checkpoint_saved(A3, Path("step-3"))
    assert early.result(timeout=0) == SavedCheckpoint(version=A3, path=Path("step-3"))
    assert not late.done()
    front.checkpoint_begun()
    assert not front.checkpoint_wanted
    front.checkpoint_saved(A4, Path("step-4"))
    assert late.result(timeout=0).path == Path("step-4")


def test_a_checkpoint_that_could_not_be_written_is_said_so() -> None:
    front = _front()
    wish = front.wish_checkpoint()
    front.checkpoint_begun()
    front.checkpoint_saved(A3, None)
    with pytest.raises(SluiceError, match="a3 could not be written"):
        wish.result(timeout=0)


def test_version_0_needs_no_checkpoint() -> None:
    front = _front()
    wish = front.wish_checkpoint()
    front.checkpoint_begun()
    front.checkpoint_saved(PolicyVersion(lineage="a", number=0), None)
    with pytest.raises(NotReady, match=r"version 0 is model\.path"):
        wish.result(timeout=0)
