"""What a caller without, with a wrong or with another's credentials gets from real servers: refused, counted, told why."""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sluice.addresses import joined
from sluice.cli.main import main
from sluice.client import Client, RunState
from sluice.config.load import dump_config
from sluice.config.schema import Config
from sluice.errors import ConfigError
from sluice.launch.own_network import keep_credentials
from sluice.own_address import network_address
from sluice.rpc import probe
from sluice.rpc.access import ALLOWED, SERVED_BY, SERVERS, Role
from sluice.rpc.channel import open_channel
from sluice.rpc.credentials import Credentials, load_credentials
from sluice.rpc.gate import PUSHBACK
from sluice.rpc.server import RpcServer, make_server
from sluice.run_dir.naming import ADDRESS_FILE
from sluice.telemetry.prometheus import Exporter
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import coordinator_pb2_grpc
from tests.security_cases import answering, call, make_folder, methods

pytestmark = pytest.mark.integration

OK, UNAUTHENTICATED = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED
DENIED, UNAVAILABLE = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE

STATUS = "/sluice.v1.CoordinatorService/GetStatus"
STOP = "/sluice.v1.CoordinatorService/Stop"
BY_PATH = {path: method for _, path, method in methods()}


@pytest.fixture(params=["tokens", "certs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_folder(tmp_path / "made", request.param)


def of(folder: Path, role: Role) -> Credentials:
    return load_credentials(folder / role, role=role)


@contextlib.asynccontextmanager
async def channel_to(server: RpcServer, **how) -> AsyncIterator[grpc.aio.Channel]:
    channel = open_channel(f"127.0.0.1:{server.port}", **how)
    try:
        yield channel
    finally:
        await channel.close()


async def refusal(call_) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_
    return caught.value.code(), caught.value.details() or ""


async def read_on(watching) -> None:
    while await watching.read() is not grpc.aio.EOF:
        pass


@pytest.mark.parametrize("serves", sorted(SERVERS))
async def test_every_method_answers_exactly_the_roles_of_the_table(folder: Path, serves: Role) -> None:
    paths = [path for service, path, _ in methods() if serves in SERVED_BY[service]]
    async with answering(serves, credentials=of(folder, serves)) as server:
        for role in Role:
            credentials = of(folder, role)
            try:
                opened = channel_to(server, credentials=credentials, to=serves)
                async with opened as channel:
                    got = {path: await call(channel, path, BY_PATH[path]) for path in paths}
            except ConfigError:  # it has not so much as a token for this service
                assert not [path for path in paths if role in ALLOWED[path]]
                continue
            assert {path for path, code in got.items() if code is OK} == {p for p in paths if role in ALLOWED[p]}
            assert {code for code in got.values() if code is not OK} <= {DENIED}
    assert server.refused["denied"] > 0


async def test_without_credentials_a_caller_gets_nowhere_and_the_service_goes_on(folder: Path) -> None:
    async with answering(Role.COORDINATOR, credentials=of(folder, Role.COORDINATOR)) as server:
        async with channel_to(server) as stranger:
            codes = {await call(stranger, STOP, BY_PATH[STOP]) for _ in range(20)}
        assert len(codes) == 1
        assert codes <= {UNAUTHENTICATED, UNAVAILABLE}  # by the gate, or by TLS before it
        async with channel_to(server, credentials=of(folder, Role.OPERATOR)) as operator:
            assert await call(operator, STOP, BY_PATH[STOP]) is OK


async def test_credentials_of_another_run_are_refused(tmp_path: Path, folder: Path) -> None:
    kind = "tokens" if (folder / "operator" / "tokens.json").exists() else "certs"
    other = make_folder(tmp_path / "other", kind)
    async with (
        answering(Role.COORDINATOR, credentials=of(folder, Role.COORDINATOR)) as server,
        channel_to(server, credentials=of(other, Role.OPERATOR)) as channel,
    ):
        assert await call(channel, STOP, BY_PATH[STOP]) in (UNAUTHENTICATED, UNAVAILABLE)


async def test_certificates_are_good_at_an_address_that_none_of_them_names(tmp_path: Path) -> None:
    keep_credentials(tmp_path / "made")  # as a cluster's run does, before it knows its nodes
    for bind in {"127.0.0.9", network_address()}:
        async with answering(
            Role.COORDINATOR, credentials=of(tmp_path / "made", Role.COORDINATOR), bind=bind
        ) as server:
            channel = open_channel(joined(bind, server.port), credentials=of(tmp_path / "made", Role.ROLLOUT))
            try:
                path = "/sluice.v1.CoordinatorService/Heartbeat"
                assert await call(channel, path, BY_PATH[path]) is OK
                assert await call(channel, STOP, BY_PATH[STOP]) is DENIED
            finally:
                await channel.close()


async def test_a_verb_finds_a_run_and_its_credentials_by_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLUICE_CREDENTIALS", "/those/of/another/run")
    folder = make_folder(tmp_path / "made", "certs")
    config = Config(model={"path": "m"}, data={"train_files": ["x"]}, network={"credentials": str(folder)})  # type: ignore[arg-type]
    (tmp_path / "config.yaml").write_text(dump_config(config))
    async with answering(Role.COORDINATOR, credentials=of(folder, Role.COORDINATOR), bind="127.0.0.9") as server:
        (tmp_path / ADDRESS_FILE).write_text(f"127.0.0.9:{server.port}")
        assert await asyncio.to_thread(main, ["pause", "--run-dir", str(tmp_path)]) == 0
    (tmp_path / ADDRESS_FILE).unlink()
    assert await asyncio.to_thread(main, ["pause", "--run-dir", str(tmp_path)]) == 1
    assert "--run-dir: must be the directory of a run that `sluice up` has started" in capsys.readouterr().err


async def test_a_refusal_says_what_to_do_is_counted_and_logged_without_the_token(tmp_path: Path) -> None:
    folder, exporter = make_folder(tmp_path, "tokens"), Exporter(service="coordinator")
    credentials = of(folder, Role.COORDINATOR)
    with structlog.testing.capture_logs() as lines:
        async with answering(Role.COORDINATOR, credentials=credentials, exporter=exporter) as server:
            async with channel_to(server) as stranger:
                stop = stranger.unary_unary(STOP)
                none = await refusal(stop(b"", timeout=5))
                wrong = await refusal(stop(b"", timeout=5, metadata=(("authorization", "Bearer guessed-token"),)))
            async with channel_to(server, credentials=of(folder, Role.ROLLOUT)) as rollout:
                role = await refusal(rollout.unary_unary(STOP)(b"", timeout=5))
    assert none[0] is wrong[0] is UNAUTHENTICATED
    assert "SLUICE_CREDENTIALS" in none[1]
    assert "another run" in wrong[1]
    assert role == (DENIED, f"{STOP}: is for the role operator, not for rollout; call with such credentials")
    assert server.refused == {"unauthenticated": 2, "denied": 1}
    counted = {
        reason: exporter.registry.get_sample_value(f"sluice_rpc_refused_{reason}_total", {"service": "coordinator"})
        for reason in ("unauthenticated", "denied", "paced", "malformed", "slow")
    }
    assert counted == {"unauthenticated": 2, "denied": 1, "paced": 0, "malformed": 0, "slow": 0}
    refused = [line for line in lines if line["event"] == "call_refused"]
    assert [(line["caller"], line["reason"]) for line in refused] == [
        ("anybody@ipv4:127.0.0.1", "unauthenticated"),
        ("anybody@ipv4:127.0.0.1", "unauthenticated"),
        ("rollout@ipv4:127.0.0.1", "denied"),
    ]
    assert "guessed-token" not in str(lines) + wrong[1]


async def test_a_flood_of_strangers_does_not_fill_the_log(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "tokens")
    with structlog.testing.capture_logs() as lines:
        async with (
            answering(Role.COORDINATOR, credentials=of(folder, Role.COORDINATOR)) as server,
            channel_to(server) as stranger,
        ):
            await asyncio.gather(*(call(stranger, STOP, BY_PATH[STOP]) for _ in range(300)))
    assert server.refused["unauthenticated"] == 300
    assert len([line for line in lines if line["event"] == "call_refused"]) < 20


async def test_health_asks_for_nothing_and_reflection_for_an_operator(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "tokens")
    ask = reflection_pb2.ServerReflectionRequest(list_services="")

    async def services(channel: grpc.aio.Channel) -> list[str]:
        call_ = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
        return [service.name async for answer in call_ for service in answer.list_services_response.service]

    async with answering(Role.COORDINATOR, credentials=of(folder, Role.COORDINATOR)) as server:
        async with channel_to(server) as stranger:
            health = await health_pb2_grpc.HealthStub(stranger).Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            assert (await refusal(services(stranger)))[0] is UNAUTHENTICATED
        async with channel_to(server, credentials=of(folder, Role.ROLLOUT)) as rollout:
            assert (await refusal(services(rollout)))[0] is DENIED
        async with channel_to(server, credentials=of(folder, Role.OPERATOR)) as operator:
            assert "sluice.v1.CoordinatorService" in await services(operator)


async def test_a_method_that_is_in_no_table_is_for_nobody_even_without_credentials() -> None:
    async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return b""

    handler = grpc.method_handlers_generic_handler("s.New", {"Call": grpc.unary_unary_rpc_method_handler(answer)})
    server = make_server(lambda made: made.add_generic_rpc_handlers((handler,)), services=[])
    await server.start(bind="127.0.0.1", port=0)
    async with channel_to(server) as channel:
        code, why = await refusal(channel.unary_unary("/s.New/Call")(b"", timeout=5))
    await server.stop(grace_s=0)
    assert code is DENIED
    assert "access.py" in why


async def test_the_probe_of_a_container_asks_with_the_credentials_of_its_service(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async with answering(Role.REWARD, credentials=of(folder, Role.REWARD)) as server:
        monkeypatch.setenv("SLUICE_PORT", str(server.port))
        monkeypatch.setenv("SLUICE_CREDENTIALS", str(folder / "reward"))
        assert await asyncio.to_thread(probe.main, []) == 0
        monkeypatch.setenv("SLUICE_CREDENTIALS", str(folder))
        assert await asyncio.to_thread(probe.main, []) == 1
    assert "name the folder of one role" in capfd.readouterr().err


# --- certificates ------------------------------------------------------------------------------------------------


async def test_an_expired_certificate_is_refused_at_home_and_abroad(tmp_path: Path) -> None:
    from sluice.rpc.certificate_authority import make_certificates
    from sluice.rpc.certificates import Certificates

    folder = make_folder(tmp_path / "made", "certs")
    serving = of(folder, Role.COORDINATOR)
    make_certificates(folder, valid_for=datetime.timedelta(seconds=-5))
    with pytest.raises(ConfigError, match="expired"):
        of(folder, Role.OPERATOR)
    operator = folder / "operator"
    expired = Certificates(
        role=Role.OPERATOR,
        certificate=(operator / "cert.pem").read_bytes(),
        key=(operator / "key.pem").read_bytes(),
        authority=(operator / "ca.pem").read_bytes(),
        folder=operator,
    )
    make_certificates(folder, valid_for=datetime.timedelta(days=1))  # renewed under the same authority
    async with answering(Role.COORDINATOR, credentials=serving) as server:
        async with channel_to(server, credentials=expired) as channel:
            assert await call(channel, STOP, BY_PATH[STOP]) is UNAVAILABLE
        async with channel_to(server, credentials=of(folder, Role.OPERATOR)) as channel:
            assert await call(channel, STOP, BY_PATH[STOP]) is OK


async def test_a_rollout_cannot_pose_as_the_coordinator(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "certs")
    async with answering(Role.COORDINATOR, credentials=of(folder, Role.ROLLOUT)) as posing:
        async with channel_to(posing, credentials=of(folder, Role.OPERATOR)) as channel:
            assert await call(channel, STOP, BY_PATH[STOP]) is UNAVAILABLE
        assert not posing.refused


def test_a_key_of_another_certificate_is_refused_at_start(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "certs")
    (folder / "rollout" / "key.pem").write_bytes((folder / "reward" / "key.pem").read_bytes())
    with pytest.raises(ConfigError, match="do not fit"):
        of(folder, Role.ROLLOUT)


async def test_a_script_commands_a_run_over_tls(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "certs")
    async with answering(Role.COORDINATOR, credentials=of(folder, Role.COORDINATOR)) as server:
        with Client(f"127.0.0.1:{server.port}", credentials=of(folder, Role.OPERATOR)) as client:
            assert await asyncio.to_thread(client.stop) is RunState.UNSPECIFIED


# --- how much, how fast, how slow ----------------------------------------------------------------------------------


async def test_a_caller_that_calls_too_often_is_told_when_to_come_back_and_others_are_served(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "tokens")
    async with answering(Role.COORDINATOR, credentials=of(folder, Role.COORDINATOR), calls_per_s=5) as server:
        async with channel_to(server, credentials=of(folder, Role.OPERATOR)) as operator:
            codes = [await call(operator, STATUS, BY_PATH[STATUS]) for _ in range(10)]
            assert codes == [OK] * 10
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.gather(*(operator.unary_unary(STATUS)(b"", timeout=5) for _ in range(20)))
        async with channel_to(server, credentials=of(folder, Role.LEARNER)) as learner:
            assert await call(learner, STATUS, BY_PATH[STATUS]) is OK
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "network.max_calls_per_s" in (caught.value.details() or "")
    assert 0 < int(dict(caught.value.trailing_metadata() or ())[PUSHBACK]) <= 201
    assert server.refused["paced"] > 0


async def test_a_request_that_is_too_large_is_refused_and_the_next_one_served() -> None:
    path = "/sluice.v1.LearnerService/GetInfo"
    async with answering(Role.LEARNER) as server, channel_to(server) as channel:
        code, _ = await refusal(channel.unary_unary(path)(b"x" * (2 << 20), timeout=20))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(channel, path, BY_PATH[path]) is OK


async def test_what_is_no_message_is_an_invalid_argument_and_counted() -> None:
    async with answering(Role.COORDINATOR) as server, channel_to(server) as channel:
        code, why = await refusal(channel.unary_unary(STOP)(b"\xff\xff\xff", timeout=5))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "protobuf" in why
        empty = channel.stream_unary(STOP)()
        await empty.done_writing()
        assert (await refusal(empty))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert server.refused == {"malformed": 2}


async def test_a_stranger_is_refused_before_its_message_is_there(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "tokens")
    async with (
        answering(Role.COORDINATOR, credentials=of(folder, Role.COORDINATOR)) as server,
        channel_to(server) as channel,
    ):
        never_written = channel.stream_unary(STOP)(timeout=5)
        assert (await refusal(never_written))[0] is UNAUTHENTICATED


async def test_a_request_that_never_arrives_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluice.rpc.server.RECEIVE_S", 0.2)
    async with answering(Role.COORDINATOR) as server, channel_to(server) as channel:
        code, why = await refusal(channel.stream_unary(STOP)(timeout=20))
        assert (code, why) == (grpc.StatusCode.DEADLINE_EXCEEDED, "the request took longer than 0.2 s to arrive")
        assert await call(channel, STOP, BY_PATH[STOP]) is OK
    assert server.refused == {"slow": 1}


async def test_a_caller_that_does_not_read_loses_its_stream_and_frees_what_it_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sluice.rpc.server.SEND_S", 0.3)
    left = asyncio.Event()

    class Talking(coordinator_pb2_grpc.CoordinatorServiceServicer):
        async def WatchEvents(self, request, context):
            try:
                while True:
                    yield pb.WatchEventsResponse(message="x" * (1 << 20))
            finally:
                left.set()

    server = make_server(
        lambda made: coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(Talking(), made), services=[]
    )
    await server.start(bind="127.0.0.1", port=0)
    async with channel_to(server) as channel:
        watching = coordinator_pb2_grpc.CoordinatorServiceStub(channel).WatchEvents(pb.WatchEventsRequest(), timeout=60)
        await watching.read()
        async with asyncio.timeout(20):
            await left.wait()
        code, _ = await refusal(read_on(watching))
    await server.stop(grace_s=0)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.refused == {"slow": 1}
