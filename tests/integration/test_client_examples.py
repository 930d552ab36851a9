"""docs/client.md's examples as they stand, and clients that have none of Sluice's code: by reflection, and Node.js."""

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.integration.coordinator_cases import Cast, Serve
from tests.typescript_example import EXAMPLE
from tests.unit.docs.pages import ROOT, blocks

pytestmark = pytest.mark.integration

EXAMPLES = [code for code in blocks(ROOT / "docs" / "client.md", "python") if "Client.start" not in code]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
async def test_an_example_of_the_page_runs(
    serve: Serve, cast: Cast, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve() as run:
        await cast.register(run)
        await run.until(lambda status: len(status.evaluations) == 1)
        await cast.learner.train(run, range(1))
        assert "127.0.0.1:18050" in code
        script = compile(code.replace("127.0.0.1:18050", run.address), "docs/client.md", "exec")
        capsys.readouterr()
        await asyncio.to_thread(exec, script, {"__name__": "__main__"})
    assert capsys.readouterr().out


async def test_reflection_alone_is_enough_to_find_and_call_the_api(serve: Serve) -> None:
    async with serve() as run:
        status = await asyncio.to_thread(_status_by_reflection, run.address)
    assert (status["runId"], status["state"], status["totalSteps"]) == ("run", "RUN_STATE_STARTING", "3")


def _status_by_reflection(address: str) -> dict[str, Any]:
    """GetStatus with nothing but what the server says of itself: no stubs, no descriptors of ours."""
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        (name,) = [name for name in database.get_services() if name.endswith(".CoordinatorService")]
        method = DescriptorPool(database).FindServiceByName(name).FindMethodByName("GetStatus")
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        call = channel.unary_unary(
            f"/{name}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return MessageToDict(call(request(), timeout=10))


@pytest.mark.needs("typescript-example")
async def test_a_client_in_node_reads_commands_watches_and_is_told_the_fix(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        await run.until(lambda status: len(status.evaluations) == 1)
        command = [
            "node",
            Path(__file__).with_name("client.cjs"),
            EXAMPLE / "node_modules",
            ROOT / "protos",
            run.address,
        ]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        said |= json.loads(line)
    refused = said.pop("refused")
    assert said == {
        "status": {"run": "run", "state": "RUN_STATE_RUNNING", "totalSteps": 3},
        "paused": "RUN_STATE_PAUSED",
        "resumed": "RUN_STATE_RUNNING",
        "events": ["paused", "open"],
    }
    assert (refused["status"], refused["kind"]) == ("FAILED_PRECONDITION", "NOT_READY")
    assert refused["reason"] == "scale: no launcher is attached to this run"
    assert "docker compose up" in refused["fix"]
