"""What holds for every test: the order, what is left out for want of something, and that no error stays unseen.

Two workers (`make test`) do one file each at a time; files that start an engine or whole runs are done by one, in turn.
"""

from collections import Counter
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from tests.asyncio_errors import asyncio_errors
from tests.needs import met_and_missing

# Without a deadline an example: on a busy machine the first call of torch, or a collection of garbage, takes longer than any.
settings.register_profile("sluice", deadline=None, max_examples=50)
settings.load_profile("sluice")

pytest.register_assert_rewrite("tests.contract.engine_tasks")

# structlog's default draws a traceback with every local variable, which takes a quarter of a second for each logged error.
_PLAIN = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _PLAIN])

IN_TURN = (
    "tests/e2e/",
    "tests/chaos/",
    "tests/compose/",
    "tests/gpu/",
    "tests/contract/test_engine_",
    "tests/integration/test_rollout_process.py",
)


class InTurn(LoadFileScheduling):
    """Sends all of IN_TURN to the same worker."""

    def _split_scope(self, nodeid: str) -> str:
        return "in turn" if nodeid.startswith(IN_TURN) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> InTurn:
    """The hook of pytest-xdist."""
    return InTurn(config, log)


@pytest.fixture(autouse=True)
def event_loop_errors() -> Iterator[list[str]]:
    """The errors that asyncio only logs fail a test, unless the test expects them and takes them out of this list."""
    with asyncio_errors() as errors:
        yield errors
    assert errors == []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What this machine lacks something for is left out; what takes longest comes first."""
    items[:], cannot, config.stash[_MISSING] = met_and_missing(items)
    config.hook.pytest_deselected(items=cannot)
    items.sort(key=lambda item: not item.nodeid.startswith(IN_TURN))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells the process that prints what it has left out."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["missing"] = dict(session.config.stash.get(_MISSING, {}))


def pytest_testnodedown(node: WorkerController) -> None:
    """All workers have left out the same; one that was killed says nothing."""
    told = Counter[str](getattr(node, "workeroutput", {}).get("missing", {}))
    node.config.stash[_MISSING] = node.config.stash.get(_MISSING, Counter()) | told


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A line a reason."""
    for reason, tests in sorted(config.stash.get(_MISSING, Counter()).items()):
        terminalreporter.line(f"left out: {tests} test{'s' * (tests > 1)} for want of {reason}", yellow=True)


_MISSING = pytest.StashKey[Counter[str]]()
