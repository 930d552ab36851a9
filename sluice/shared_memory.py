"""Room in /dev/shm for the processes of one engine: looked for before anything starts, too little is refused by name.

Only vLLM's tensor-parallel workers use /dev/shm: they and the rollout pass messages through it. Docker gives a container
64 MB of it, and a process that writes beyond the end is killed. Weights lie elsewhere (sluice/weights/staging.py).
"""

from pathlib import Path

from sluice.config.schema import Config
from sluice.errors import ConfigError
from sluice.run_dir.full_disk import free_bytes

FOLDER = Path("/dev/shm")

_QUEUE_BYTES = 160 << 20
"""The queue from the rollout to all workers: 10 messages of up to 16 MiB. Source: vLLM 0.32, VLLM_MQ_MAX_CHUNK_BYTES_MB."""

_WORKER_BYTES = 304 << 20
"""A worker's queue back, 10 messages of up to 24 MiB (vLLM 0.32, MessageQueue), and 64 MiB, chosen, for collectives: vLLM's own
on a CPU, NCCL's on GPUs without a fast link."""


def needed_bytes(config: Config, *, engine: str = "") -> int:
    """What one rollout's engine may come to use; `engine` is the one that serves, empty: rollout.engine."""
    workers = config.rollout.tensor_parallel_size
    if workers == 1 or (engine or config.rollout.engine) != "vllm":
        return 0
    return _QUEUE_BYTES + workers * _WORKER_BYTES


def check_room(config: Config, *, engine: str = "", rollouts: int = 1, folder: Path = FOLDER) -> None:
    """Raises ConfigError where this machine has less room than `rollouts` rollouts need. Blocking."""
    needed = rollouts * needed_bytes(config, engine=engine)
    if not needed or not folder.is_dir():
        return
    if (free := free_bytes(folder)) < needed:
        raise ConfigError(
            f"rollout.tensor_parallel_size: {config.rollout.tensor_parallel_size} processes an engine pass messages through "
            f"{folder}, which must have {needed >> 20} MiB free for the rollouts here ({rollouts}), and has {free >> 20}. "
            f"Give a container more: `docker run --shm-size={-(-needed >> 30)}g` (or --ipc=host), shm_size in Compose, an "
            f"emptyDir of medium Memory at {folder} on Kubernetes; a machine: `mount -o remount,size=SIZE {folder}`. Or set it "
            "to 1"
        )


def check_here(config: Config) -> None:
    """`check_room` for the rollouts that `sluice up` starts on this machine. Raises ConfigError."""
    if config.launch.engine == "local":
        check_room(config, rollouts=config.launch.rollouts)
