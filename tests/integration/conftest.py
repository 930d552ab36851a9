"""A real Redis, a real coordinator and the services around it, in the test's own directory; models, made once.

What imports torch is imported by the fixtures that need it: most files here do not.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from services.coordinator.storage.redis_store import Store
from sluice.launch.embedded_redis import EmbeddedRedis, start_redis
from tests.integration.coordinator_cases import Cast, Coordinator, Serve, coordinator, small_config

if TYPE_CHECKING:
    from services.learner.distributed.ranks import Ranks
    from sluice.weights.receiver import WeightReceiver
    from sluice.weights.sender import WeightSender


@pytest.fixture
async def redis_server(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    """A running server with the append-only file on."""
    server = await start_redis(tmp_path / "redis", log_path=tmp_path / "redis.log")
    try:
        yield server
    finally:
        server.child.kill("the test is over")  # told to stop, the server would think for a tenth of a second
        await server.stop()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer, for rollouts and coordinators. Nobody writes into it."""
    from tests.tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def learner_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a tokenizer, for ranks. Nobody writes into it."""
    from tests.unit.learner.learner_cases import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("learner-model"))


@pytest.fixture(scope="module")
def alone() -> "Iterator[Ranks]":
    """This process as the only rank."""
    from services.learner.distributed.ranks import join_ranks

    ranks = join_ranks()
    yield ranks
    ranks.leave()


@pytest.fixture
def sender() -> "Iterator[WeightSender]":
    from sluice.weights.sender import WeightSender

    made = WeightSender(backend="gloo", host="127.0.0.1")
    yield made
    made.close()


@pytest.fixture
def receiver() -> "Iterator[WeightReceiver]":
    from sluice.weights.receiver import WeightReceiver

    made = WeightReceiver()
    yield made
    made.close()


@pytest.fixture
def serve(model: Path, tmp_path: Path, redis_server: EmbeddedRedis) -> Serve:
    """Starts a coordinator of the one run of this test; again after it has ended, it goes on with that run."""

    def start(
        *,
        reopen: bool = False,
        stay: bool = False,
        evaluate_only: bool = False,
        port: int = 0,
        credentials: Path | None = None,
        **changes: Any,
    ) -> AbstractAsyncContextManager[Coordinator]:
        config, how = small_config(model, **changes), {"reopen": reopen, "stay": stay, "evaluate_only": evaluate_only}
        return coordinator(config, tmp_path / "run", redis_server.url, port=port, credentials=credentials, **how)

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
