"""A real Slurm on this machine: a controller and some nodes on loopback, as root, without systemd, cgroups or accounting.

Each node claims 8 CPUs and has 2 GPUs that are null devices. The ports are free ones and all files lie in one folder, so that
two clusters do not meet. `scripts/slurm.sh` installs the programs.
"""

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from sluice.testing import assert_eventually_blocking
from tests.free_port import free_port

CPUS, GPUS = 8, 2
SLURMD_TIMEOUT_S = 15

CONTROLLER = """\
ClusterName=sluice
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=bf_interval=2,sched_interval=2,requeue_delay=1
ReturnToService=2
SlurmdTimeout={timeout_s}
KillWait=5
GresTypes=gpu
PartitionName=all Nodes=ALL Default=YES
PartitionName=short Nodes=ALL MaxTime=5
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=8000 Gres=gpu:{gpus}\n"
)
DEVICES = "NodeName={names} Name=gpu AutoDetect=off Flags=nvidia_gpu_env File={folder}/gpu[0-{last}]\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmCluster:
    """A running cluster."""

    folder: Path
    nodes: Sequence[str]

    @property
    def environ(self) -> Mapping[str, str]:
        """This process's environment as on a machine of this cluster, outside any job."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH_", "SALLOC_"))}
        return kept | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def hold(self, *flags: str) -> str:
        """Hands in a job that only holds its nodes; returns its id when the nodes are there."""
        job = self.ask("sbatch", "--parsable", "--output=/dev/null", *flags, "--wrap", "exec sleep 3600")
        assert_eventually_blocking(lambda: self.state(job) == "RUNNING", within_s=30, what=f"job {job} runs")
        return job

    def home(self, job: str) -> str:
        """The node of a job's batch step: a job does not outlive it."""
        return self.ask("squeue", "--noheader", "--jobs", job, "--format", "%B")

    def state(self, job: str) -> str:
        """As squeue calls it, `RUNNING`."""
        return self.ask("squeue", "--noheader", "--jobs", job, "--format", "%T")

    def lose(self, node: str) -> None:
        """Ends a node and all that runs there, as a power failure would."""
        for process in self._of(node):  # slurmd first: it would tell of its steps' ends
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def add(self, node: str, *, hiding: Path | None = None) -> None:
        """Starts a node, which sees an empty folder at `hiding`, as where shared storage is not mounted."""
        hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {hiding} && exec "$@"', "sh"] if hiding else []
        subprocess.run([*hide, "slurmd", "-N", node], env=self.environ, check=True, timeout=60)

    def mend(self, *, hiding: Path | None = None) -> None:
        """Starts the nodes that are gone; returns when every node may get jobs."""
        for node in self.nodes:
            if not self._of(node):
                self.add(node, hiding=hiding)
        assert_eventually_blocking(self.mended, within_s=60, what=f"all nodes are up; see {self.folder}/*.log")

    def mended(self) -> bool:
        """Whether every node may get jobs."""
        states = self.ask("sinfo", "--noheader", "--Node", "--partition=all", "--format", "%T").split()
        return all(state in ("idle", "allocated", "mixed") for state in states)

    def _of(self, node: str) -> list[psutil.Process]:
        """The daemons of a node, found by the log that they write, and what runs below them."""
        daemons = [process for process in psutil.process_iter() if f"{self.folder}/{node}.log" in _open_files(process)]
        daemons.sort(key=lambda daemon: daemon.name() != "slurmd")
        return [*daemons, *(below for daemon in daemons for below in daemon.children(recursive=True))]


def _open_files(process: psutil.Process) -> set[str]:
    with contextlib.suppress(psutil.Error):
        if process.name() in ("slurmd", "slurmstepd"):
            return {file.path for file in process.open_files()}
    return set()


@contextlib.contextmanager
def slurm_cluster(folder: Path, *, nodes: int = 3) -> Iterator[SlurmCluster]:
    """Starts a cluster, ends all of it."""
    cluster = SlurmCluster(folder=folder, nodes=[f"n{index + 1}" for index in range(nodes)])
    _write_configuration(cluster)
    munge = ["munged", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munge += [f"--{kind}-file={folder}/munge.{kind}" for kind in ("pid", "log", "seed")]
    try:
        subprocess.run(munge, env=cluster.environ, check=True, timeout=60)
        subprocess.run(["slurmctld", "-c"], env=cluster.environ, check=True, timeout=60)
        cluster.mend()
        yield cluster
    finally:
        _end(cluster)


def _write_configuration(cluster: SlurmCluster) -> None:
    folder = cluster.folder
    folder.chmod(0o755)
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o400)
    for index in range(GPUS):
        os.mknod(folder / f"gpu{index}", 0o020666, os.makedev(1, 3))
    text = CONTROLLER.format(port=free_port(), folder=folder, timeout_s=SLURMD_TIMEOUT_S)
    host = os.uname().nodename.partition(".")[0]
    for name in cluster.nodes:
        text += NODE.format(name=name, host=host, port=free_port(), cpus=CPUS, gpus=GPUS)
    (folder / "slurm.conf").write_text(text)
    names = ",".join(cluster.nodes)
    (folder / "gres.conf").write_text(DEVICES.format(names=names, folder=folder, last=GPUS - 1))


def _end(cluster: SlurmCluster) -> None:
    """All at once: a test's cluster has nothing to keep."""
    for node in cluster.nodes:
        cluster.lose(node)
    for name in ("slurmctld.pid", "munge.pid"):
        with contextlib.suppress(psutil.Error, OSError):
            psutil.Process(int((cluster.folder / name).read_text())).kill()
