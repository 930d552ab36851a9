"""Which environments of a recipe this process hosts, and the context in which they are hosted."""

from contextlib import AbstractAsyncContextManager

from services.reward.environments.host import EnvironmentHost
from services.reward.environments.hosted import Wanted
from services.reward.sandbox.guarded_process import Limits
from sluice.config.schema import Config
from sluice.config.schema.environments import AGENT, EXTERNAL


def open_environments(config: Config) -> AbstractAsyncContextManager[EnvironmentHost]:
    """Starts and loads the recipe's environments that live here. Raises ConfigError, a line for each that cannot be."""
    reward = config.reward
    return EnvironmentHost.start(
        [
            Wanted(
                name=name,
                environment=one.environment,
                settings=one.settings,
                places=one.episodes,
                workers=one.workers,
                limits=Limits(
                    timeout_s=config.rollout.turn_timeout_s,
                    memory_bytes=reward.worker_memory_bytes,
                    file_bytes=reward.worker_file_bytes,
                    max_processes=reward.worker_max_processes,
                    recycle_after=reward.recycle_after,
                    environment=tuple(reward.environment),
                    network=one.network,
                ),
            )
            for name, one in config.environments.items()
            if one.environment not in (EXTERNAL, AGENT)
        ]
    )
