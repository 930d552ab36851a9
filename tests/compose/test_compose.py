"""`make compose-test`: builds the images, runs the demo in containers, and disturbs it. Needs a Docker engine and Compose v2.

Not part of `make test`: it takes minutes and an engine. What .env says does not hold here; what the environment says does.
"""

import json
import os
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sluice.testing.waiting import assert_eventually_blocking

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
RUN, STEPS = "compose-test", 100
ENVIRON = (
    {"COMPOSE_ENV_FILES": os.devnull}
    | os.environ
    | {
        "COMPOSE_PROJECT_NAME": "sluice-test",
        "RUN": RUN,
        "SLUICE__RUN__TOTAL_STEPS": str(STEPS),
        "PUBLISHED_PORT": "0",
    }
)
PATIENCE_S = 600.0
"""For what takes a loaded machine of two cores its time: starting three engines, a hundred steps."""

STATUS = """
import json
from sluice.client import Client
from sluice.rpc.credentials import load_credentials
with Client("coordinator:18050", credentials=load_credentials("/credentials/operator")) as client:
    status = client.status()
print(json.dumps([status.state, status.step, [[s.service_id, s.role, s.state] for s in status.services]]))
"""
READY, LOST = 3, 6

SCRAPE = """
import json
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from sluice.rpc.tokens import load
tokens = load(Path("/credentials/operator")).speaks
def read(path, role="coordinator"):
    shown = {"Authorization": f"Bearer {tokens[role]}"} if role else {}
    return urlopen(Request(f"http://{path}", headers=shown), timeout=10).read()
found = json.loads(read("coordinator:19050/targets"))
assert b"sluice_" in read("coordinator:19050/metrics")
for group in found: assert b"sluice_" in read(group["targets"][0] + "/metrics", group["labels"]["role"])
try: raise AssertionError(read("coordinator:19050/metrics", role=""))
except HTTPError as refused: assert refused.code == 401, refused
print(*sorted(group["labels"]["role"] for group in found))
"""
"""What Prometheus does, from another container: asks the coordinator where everybody is, then reads each."""


def compose(*words: str, check: bool = True) -> str:
    """Output of `docker compose WORDS`."""
    done = subprocess.run(
        ["docker", "compose", *words], cwd=ROOT, env=ENVIRON, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + ("" if check else done.stderr)


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout


def containers(service: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in compose("ps", "-a", "--format", "json", service).splitlines()]


def status() -> tuple[int, dict[str, int]]:
    """Steps trained, and the state of every service; nothing while the coordinator is away."""
    told = compose("exec", "-T", "watch", "python", "-c", STATUS, check=False).splitlines()
    try:
        _, step, services = json.loads(told[0])
    except (IndexError, ValueError):
        return -1, {}
    return step, {name: state for name, _, state in services}


def ready(role: str) -> int:
    return sum(name.startswith(role) and state == READY for name, state in status()[1].items())


def eventually(condition: Any, what: str) -> None:
    assert_eventually_blocking(condition, within_s=PATIENCE_S, what=what)


@pytest.fixture(scope="module")
def project() -> Iterator[None]:
    """The project, up; removed with its volumes afterwards."""
    compose("down", "--volumes", "--remove-orphans")
    compose("build")
    compose("up", "--detach")
    yield
    print(compose("logs", "--no-color", "--tail", "40"))
    compose("down", "--volumes", "--remove-orphans")


@pytest.mark.parametrize("name", ["metrics", "traces"])
def test_what_stands_beside_a_run_is_whole_with_it_and_alone(name: str) -> None:
    beside = ("-f", f"deploy/docker-compose.{name}.yml", "--profile", name, "config", "--quiet")
    compose("--project-directory", ".", *beside)
    compose("-f", "docker-compose.yml", "-f", "docker-compose.gpu.yml", *beside)


@pytest.mark.usefixtures("project")
def test_a_disturbed_run_trains_to_its_end_and_its_ledger_closes() -> None:
    eventually(lambda: status()[0] >= 1, "a step is trained")

    scale = compose("exec", "-T", "watch", "sluice", "scale", "rollout", "3", check=False)
    compose(*shlex.split(scale.split("`docker compose ")[1].split("`")[0]))
    compose("up", "--detach", "--no-deps", "--no-recreate", "--scale", "reward=2", "reward")
    eventually(lambda: (ready("rollout"), ready("reward")) == (3, 2), "three rollouts and two rewards are ready")

    roles = compose("exec", "-T", "watch", "python", "-c", SCRAPE).split()
    assert roles == ["learner", "reward", "reward", "rollout", "rollout", "rollout"]

    before = docker("inspect", "-f", "{{.RestartCount}}", containers("learner")[0]["ID"]).strip()
    compose("exec", "-T", "learner", "sh", "-c", "kill -9 -1", check=False)
    eventually(
        lambda: docker("inspect", "-f", "{{.RestartCount}}", containers("learner")[0]["ID"]).strip() != before,
        "the learner is started again",
    )

    cut = containers("rollout")[0]["ID"]
    docker("network", "disconnect", "sluice-test_services", cut)
    eventually(
        lambda: Counter(status()[1].values())[LOST] >= 1 or ended(), "the rollout that is cut off counts as lost"
    )
    docker("network", "connect", "sluice-test_services", cut)

    compose("up", "--detach", "--no-deps", "--no-recreate", "--scale", "rollout=1", "rollout")
    eventually(ended, "all containers have ended by themselves")

    codes = {container["Service"]: container["ExitCode"] for name in SERVICES for container in containers(name)}
    assert codes == dict.fromkeys(SERVICES, 0), compose("logs", "--tail", "30")
    summary = json.loads(
        compose("run", "--rm", "--no-deps", "--entrypoint", "cat", "watch", f"/runs/{RUN}/summary.json")
    )
    assert (summary["steps"], summary["groups"]["closed"]) == (STEPS, True)
    assert summary["groups"]["trained"] == STEPS * 20
    files = compose("run", "--rm", "--no-deps", "--entrypoint", "find", "watch", f"/runs/{RUN}", "-maxdepth", "2")
    for made in ("config.yaml", "curves.png", "metrics.jsonl", "model/model.safetensors"):
        assert f"/runs/{RUN}/{made}" in files.splitlines()


SERVICES = ("credentials", "prepare", "redis", "coordinator", "reward", "rollout", "learner", "watch")


def ended() -> bool:
    return all(container["State"] == "exited" for name in SERVICES for container in containers(name))
