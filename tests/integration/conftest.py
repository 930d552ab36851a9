"""A real Redis, a real coordinator and the services around it, in the test's own directory."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from services.coordinator.storage.redis_store import Store
from sluice.launch.embedded_redis import EmbeddedRedis, start_redis
from tests.integration.coordinator_cases import Cast, Coordinator, Serve, coordinator, small_config
from tests.tiny_model import write_tiny_model


@pytest.fixture
async def redis_server(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    """A running server with the append-only file on."""
    server = await start_redis(tmp_path / "redis", log_path=tmp_path / "redis.log")
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def serve(model: Path, tmp_path: Path, redis_server: EmbeddedRedis) -> Serve:
    """Starts a coordinator of the one run of this test; again after it has ended, it goes on with that run."""

    def start(
        *, reopen: bool = False, stay: bool = False, port: int = 0, credentials: Path | None = None, **changes: Any
    ) -> AbstractAsyncContextManager[Coordinator]:
        config, how = small_config(model, **changes), {"reopen": reopen, "stay": stay, "port": port}
        return coordinator(config, tmp_path / "run", redis_server.url, credentials=credentials, **how)

    return start


@pytest.fixture
async def cast(model: Path) -> AsyncIterator[Cast]:
    async with Cast(model).standing() as made:
        yield made


@pytest.fixture
async def store(redis_server: EmbeddedRedis) -> AsyncIterator[Store]:
    """The state of a run that nobody serves."""
    made = Store(url=redis_server.url, run_id="run")
    await made.open()
    try:
        yield made
    finally:
        await made.close()
