"""The engine of `--on local` keeps an engine's promises."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from sluice.launch.engines.local import LocalEngine
from tests.contract.engine_tasks import TasksAnywhere

pytestmark = pytest.mark.integration


@dataclass(kw_only=True, slots=True)
class Here:
    """This machine."""

    engine: LocalEngine = field(default_factory=LocalEngine)
    environ: Mapping[str, str] = field(default_factory=dict)
    many: int = 30


class TestLocalEngine(TasksAnywhere):
    @pytest_asyncio.fixture(scope="class", loop_scope="class")
    async def site(self, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Here]:
        here = Here()
        await here.engine.open(run_dir=tmp_path_factory.mktemp("run"), node_timeout_s=30)
        yield here
        await here.engine.close()
