"""Two workers (`make test`) do one file each at a time; files that start an engine or whole runs are done by one, in turn."""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first."""
    items.sort(key=lambda item: not item.nodeid.startswith(IN_TURN))
