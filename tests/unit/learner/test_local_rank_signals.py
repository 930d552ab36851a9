"""The parent of the ranks of one machine is told to end twice, as by Ctrl-C and then by SIGTERM."""

import signal

import pytest

from services.learner.distributed import local_ranks


def test_a_second_signal_does_not_break_off_the_end_of_the_ranks() -> None:
    former = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        for signum in former:
            signal.signal(signum, local_ranks._stop)
        with pytest.raises(local_ranks._Stopped):
            signal.raise_signal(signal.SIGTERM)
        for signum in former:
            signal.raise_signal(signum)
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
