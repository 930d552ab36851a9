"""The API of a run that is not up: starts the run's Redis and an idle coordinator, for instance for a rollback.

Nothing is generated or trained meanwhile, and `sluice up` cannot start the run: the lock of the run directory is held.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from sluice.addresses import joined, loopback
from sluice.config.load import parse_config
from sluice.config.schema import Config
from sluice.errors import NotFound
from sluice.launch.commands import coordinator_command, credentials_folder
from sluice.launch.embedded_redis import new_password, start_redis
from sluice.launch.own_network import own_network
from sluice.launch.processes import read_ready, start
from sluice.launch.run_lock import lock_run_dir
from sluice.rpc.access import Role


@contextlib.asynccontextmanager
async def resting_run(run_dir: Path) -> AsyncIterator[tuple[str, str]]:
    """The idle coordinator's address, and the folder with the credentials to call this coordinator with.

    Raises NotFound without a run, LaunchError when the run is up or cannot be served.
    """
    config = _config(run_dir)
    network = own_network(config.network, address=loopback())  # who calls it is here
    config = config.model_copy(update={"network": network})
    async with contextlib.AsyncExitStack() as held:
        lock_fd = await lock_run_dir(run_dir)
        held.callback(os.close, lock_fd)
        redis_url = config.network.redis_url
        password = ""
        if redis_url is None:
            password = new_password()
            log_path = run_dir / "logs" / "redis.log"
            redis = await start_redis(run_dir / "redis", log_path=log_path, lock_fd=lock_fd, password=password)
            held.push_async_callback(redis.stop)
            redis_url = redis.url
        read_fd, write_fd = os.pipe()
        command = coordinator_command(
            config, run_dir=run_dir, redis_url=redis_url, redis_password=password, port=0, ready_fd=write_fd, idle=True
        )
        log_path = run_dir / "logs" / "coordinator.log"
        try:
            child = await start(command, log_path=log_path, pass_fds=[write_fd])
        finally:
            os.close(write_fd)
        held.push_async_callback(child.stop, grace_s=config.launch.grace_s)
        port = await read_ready(read_fd, child, timeout_s=config.launch.ready_timeout_s)
        yield joined(config.network.advertise, int(port)), credentials_folder(config, Role.OPERATOR)


def _config(run_dir: Path) -> Config:
    path = run_dir / "config.yaml"
    try:
        return parse_config(path.read_text(encoding="utf-8"), where=str(path))
    except OSError as error:
        raise NotFound(f"{run_dir}: must be the directory of a run, {path} cannot be read: {error.strerror}") from error
