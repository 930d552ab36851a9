"""A logger that fails, hangs or is slow costs lines of its own, never the run's time."""

import threading

from structlog.testing import capture_logs

from services.coordinator.loggers.feed import Feed
from services.coordinator.loggers.line import Line, line_of


def line(place: int) -> Line:
    return Line(trained_steps=place, time_s=0.0, values={"loss/policy": 1.0})


class Recorder:
    def __init__(self, *, fails_at=(), gate=None):
        self.places, self.closed, self._fails_at, self._gate = [], False, fails_at, gate

    def write(self, line):
        if self._gate is not None:
            assert self._gate.wait(10)
        if line.trained_steps in self._fails_at:
            raise ConnectionError("no network")
        self.places.append(line.trained_steps)

    def close(self):
        self.closed = True


def test_lines_arrive_in_order_and_the_logger_is_closed_after_the_last():
    logger = Recorder()
    feed = Feed("tensorboard", lambda: logger)
    for place in range(5):
        feed.put(line(place))
    feed.close(within_s=5.0)
    assert (logger.places, logger.closed, feed.dropped) == ([0, 1, 2, 3, 4], True, 0)


def test_a_logger_without_a_line_is_never_opened():
    def opened():
        raise AssertionError("a coordinator that only answers questions makes no run at W&B")

    feed = Feed("wandb", opened)
    with capture_logs() as logs:
        feed.close(within_s=5.0)
    assert logs == []


def test_a_line_that_fails_is_counted_and_the_next_is_tried():
    logger = Recorder(fails_at=(1, 2, 3))
    with capture_logs() as logs:
        feed = Feed("mlflow", lambda: logger)
        for place in range(5):
            feed.put(line(place))
        feed.close(within_s=5.0)
    assert (logger.places, feed.dropped) == ([0, 4], 3)
    assert [entry["dropped"] for entry in logs if entry["event"] == "logger_line_dropped"] == [1, 2]
    assert "no network" in logs[0]["reason"]


def test_a_logger_that_cannot_be_opened_at_first_gets_the_lines_since_it_could():
    tries, logger = [], Recorder()

    def opened():
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("no network")
        return logger

    feed = Feed("wandb", opened)
    for place in range(4):
        feed.put(line(place))
    feed.close(within_s=5.0)
    assert (logger.places, feed.dropped) == ([2, 3], 2)


def test_a_logger_that_hangs_neither_blocks_who_puts_nor_who_closes():
    gate = threading.Event()
    logger = Recorder(gate=gate)
    with capture_logs() as logs:
        feed = Feed("wandb", lambda: logger, most_waiting=3)
        for place in range(100):
            feed.put(line(place))
        assert 96 <= feed.dropped <= 97  # the one being written, three that wait
        feed.close(within_s=0.02)
    assert [entry["event"] for entry in logs][-1] == "logger_left_behind"
    gate.set()


def test_a_step_stands_behind_itself_and_an_evaluation_at_its_version():
    step = line_of(
        {
            "kind": "step",
            "step": 4,
            "time_s": 9.5,
            "lineage": "a",
            "batch_digest": "ab",
            "loss/policy": 0.5,
            "loss/lr": 1,
        }
    )
    assert step == Line(trained_steps=5, time_s=9.5, values={"loss/policy": 0.5, "loss/lr": 1.0})
    nan = float("nan")
    evaluated = line_of(
        {"kind": "eval", "version": 5, "time_s": 9.6, "n": 8, "eval/greedy": nan, "eval/avg_at_n": 0.25}
    )
    assert evaluated == Line(trained_steps=5, time_s=9.6, values={"eval/avg_at_n": 0.25})
