"""The command line and environment of each service, as `sluice up` starts it."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sluice.config.schema import Config
from sluice.process.child import module_command
from sluice.rpc.access import Role

REDIS_PASSWORD = "SLUICE_REDIS_PASSWORD"


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a process takes of the node that it is placed on."""

    cpus: int = 1
    gpus: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuShare:
    """The GPUs of one process."""

    count: int = 0
    environ: Mapping[str, str] = field(default_factory=dict)
    """What tells the process its devices; empty where an engine tells it, or where there are none."""


_NO_GPUS = GpuShare()


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One process to start."""

    name: str
    """The service id: `rollout-0`, `learner` ..."""
    argv: Sequence[str]
    environ: Mapping[str, str]
    """What the process gets beside the environment of the machine that it runs on."""
    said: str = field(default="", repr=False)
    """What the process reads on standard input: a secret."""
    needs: Needs = field(default_factory=Needs)
    here: bool = False
    """Whether the process stays on the launcher's machine, whatever places the others."""
    machines: int = 1
    """How many processes the service is: each on a place of its own with `needs`, all started and ended together."""


def coordinator_command(
    config: Config,
    *,
    run_dir: Path,
    redis_url: str,
    redis_password: str = "",
    port: int,
    ready_fd: int | None,
    check_only: bool = False,
    evaluate_only: bool = False,
    idle: bool = False,
) -> Command:
    """The coordinator on `port`; the coordinator writes its port to `ready_fd`. `redis_password`: of the run's own Redis.

    With `ready_fd` the command is for the launcher's first coordinator, which continues a run that was stopped or has
    failed. An `idle` coordinator serves the API of a run at rest. Without `ready_fd` the command is for a restart, which
    takes the state of the run unchanged.
    """
    argv = [*module_command("services.coordinator"), "--config", str(run_dir / "config.yaml")]
    argv += ["--run-dir", str(run_dir), "--redis-url", redis_url, "--bind", config.network.bind, "--port", str(port)]
    if port != config.network.coordinator_port:  # on a free port the port + 1000 may belong to another process
        argv += ["--metrics-port", "0"]
    argv += ["--redis-password-stdin"] if redis_password else []
    argv += ["--stay", *(["--check"] if check_only else []), *(["--evaluate"] if evaluate_only else [])]
    argv += ["--ready-fd", str(ready_fd), "--idle" if idle else "--reopen"] if ready_fd is not None else []
    return Command(
        name="coordinator",
        argv=argv,
        environ=_environ(config, Role.COORDINATOR, threads=1),
        said=redis_password,
        here=True,
    )


def service_command(
    config: Config,
    role: str,
    *,
    index: int,
    coordinator: str,
    run_id: str,
    evaluate_only: bool = False,
    gpus: GpuShare = _NO_GPUS,
) -> Command:
    """A reward, a rollout or the learner, with its share of the GPUs: all machines of the learner where an engine places them,
    otherwise its first one.

    With `evaluate_only` a rollout serves the model folder's weights.
    """
    common = ["--coordinator", coordinator, "--bind", config.network.bind, "--advertise", config.network.advertise]
    common += ["--port", "0", "--metrics-port", "0"]
    if role == "learner":
        nproc, threads = config.launch.learner_nproc_per_node, config.learner.threads or 1
        ranks = ["--nproc-per-node", str(nproc)]
        environ = _environ(config, Role.LEARNER, threads=threads) | dict(gpus.environ)
        machines = config.launch.learner_nnodes
        if config.launch.engine == "local":
            ranks += _meeting(config, node_rank=0, run_id=run_id) if machines > 1 else []
            machines = 1
        elif machines > 1:
            limit_s = config.launch.place_timeout_s + config.launch.ready_timeout_s
            ranks += ["--nnodes", str(machines), "--timeout-s", f"{limit_s:g}"]
        learner = learner_command([*ranks, "--", *common], environ=environ)
        return replace(learner, needs=Needs(cpus=threads * nproc, gpus=gpus.count), machines=machines)
    name, threads = f"{role}-{index}", config.rollout.threads if role == "rollout" else 1
    argv = [*module_command(f"services.{role}"), "--service-id", name, *common]
    argv += ["--own-weights"] if evaluate_only and role == "rollout" else []
    environ = _environ(config, Role(role), threads=threads) | dict(gpus.environ)
    return Command(name=name, argv=argv, environ=environ, needs=Needs(cpus=threads, gpus=gpus.count))


def machine_command(command: Command, number: int, *, round_name: str) -> Command:
    """The process of one of a learner's machines; 0 keeps the service's name. `round_name`: of this start of them all."""
    flags = command.argv.index("--")
    which = ["--node-rank", str(number), "--round", round_name]
    return replace(
        command,
        name=f"{command.name}-{number}" if number else command.name,
        argv=[*command.argv[:flags], *which, *command.argv[flags:]],
        machines=1,
    )


def learner_command(arguments: Sequence[str], *, environ: Mapping[str, str]) -> Command:
    """The learner's ranks on one machine; `arguments` go to services.learner.distributed.node."""
    argv = [*module_command("services.learner.distributed.node"), *arguments]
    return Command(name="learner", argv=argv, environ=environ)


def credentials_folder(config: Config, role: Role) -> str:
    """The folder with the credentials of `role` on this machine; empty when the run has no credentials."""
    return "" if config.network.credentials is None else str(Path(config.network.credentials).resolve() / role)


def learner_node_line(config: Config, *, node_rank: int, run_id: str) -> str:
    """What to type on a further machine of the learner."""
    ranks = ["--nproc-per-node", str(config.launch.learner_nproc_per_node)]
    return shlex.join(["sluice", "learner-node", *_meeting(config, node_rank=node_rank, run_id=run_id), *ranks])


def _meeting(config: Config, *, node_rank: int, run_id: str) -> list[str]:
    """Flags by which the machines of the learner find each other."""
    launch = config.launch
    assert launch.learner_rdzv_endpoint is not None
    flags = ["--rdzv-endpoint", launch.learner_rdzv_endpoint, "--rdzv-id", run_id]
    flags += ["--nnodes", str(launch.learner_nnodes), "--node-rank", str(node_rank)]
    return [*flags, "--timeout-s", f"{launch.ready_timeout_s:g}"]


def _environ(config: Config, role: Role, *, threads: int) -> dict[str, str]:
    """The environment of a `role`: the credentials of that role alone; only the coordinator gets the Redis password."""
    environ = service_environ(threads=threads)
    if role is Role.COORDINATOR and REDIS_PASSWORD in os.environ:
        environ[REDIS_PASSWORD] = os.environ[REDIS_PASSWORD]
    return environ | {"SLUICE_CREDENTIALS": credentials_folder(config, role)}


def service_environ(*, threads: int) -> dict[str, str]:
    """What every process of a run gets beside its machine's environment: thread counts as the configuration gives them."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # No process forks without exec, and gRPC's fork support would log a warning for each process started.
        "GRPC_ENABLE_FORK_SUPPORT": "0",
    }


def inherited() -> dict[str, str]:
    """This process's environment without the Redis password: what a process that it starts here inherits."""
    return {name: value for name, value in os.environ.items() if name != REDIS_PASSWORD}
