"""A real Redis for tests that need one: the embedded server, in the test's own directory."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sluice.launch.embedded_redis import EmbeddedRedis, start_redis


@pytest.fixture
async def redis_server(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    """A running server with the append-only file on."""
    server = await start_redis(tmp_path / "redis", log_path=tmp_path / "redis.log")
    try:
        yield server
    finally:
        await server.stop()
