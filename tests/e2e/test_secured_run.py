"""Whole runs that ask everybody who they are, with a Redis that asks too: they train, refuse strangers and spill no secret."""

import asyncio
import re
import secrets
import ssl
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml

from sluice import AsyncClient
from sluice.errors import SluiceError
from sluice.launch.embedded_redis import find_server
from sluice.rpc.access import Role
from sluice.rpc.credentials import NO_CREDENTIALS, load_credentials
from sluice.rpc.tokens import load as load_tokens
from sluice.testing import assert_eventually
from tests.free_port import free_port
from tests.security_cases import make_folder
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
STEPS = 3
RECIPE = {
    "run": {"name": "secured", "total_steps": STEPS},
    "model": {"dtype": "float32"},
    "data": {
        "train_files": ["mixadd3:train"],
        "train_batch_size": 4,
        "max_prompt_length": 16,
        "max_response_length": 32,
        "template": "none",
    },
    "rollout": {"n": 4, "engine": "transformers", "max_num_seqs": 32},
    "reward": {"workers": 1, "routes": {"mixadd3": "tests.chaos.grader"}},
    "learner": {"lr": 1e-4, "warmup_steps": 0, "max_tokens_per_micro_batch": 4096},
    "eval": {"every_steps": 0},
    "launch": {"check_reward": False, "max_restarts": 0, "grace_s": 5.0},
}


@asynccontextmanager
async def guarded_redis(folder: Path, password: str, *, tls: bool) -> AsyncIterator[str]:
    """The URL of a Redis that asks for the password, behind TLS of an authority of its own (FOLDER/ca.pem) where wanted."""
    port, socket_path = free_port(), folder / "redis.sock"
    command = [find_server(), "--requirepass", password, "--dir", str(folder), "--save", "", "--bind", "127.0.0.1"]
    command += ["--unixsocket", str(socket_path), "--appendonly", "yes", "--appendfsync", "always"]
    server = await asyncio.create_subprocess_exec(*command, "--port", "0" if tls else str(port), stdout=DEVNULL)
    try:
        await assert_eventually(socket_path.exists, within_s=20.0, what="redis listens")
        async with AsyncExitStack() as held:
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(folder / "operator" / "cert.pem", folder / "operator" / "key.pem")
                tunnel = partial(_tunnel, str(socket_path))
                await held.enter_async_context(await asyncio.start_server(tunnel, "127.0.0.1", port, ssl=context))
            yield f"{'rediss' if tls else 'redis'}://127.0.0.1:{port}/0"
    finally:
        server.kill()
        await server.wait()


async def _tunnel(socket_path: str, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
    """Carries one connection on to the server's socket (its builds often lack TLS)."""
    far_in, far_out = await asyncio.open_unix_connection(socket_path)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    await asyncio.gather(carry(near_in, far_out), carry(far_in, near_out), return_exceptions=True)


async def status_of_stop(address: str, credentials) -> str:
    async with AsyncClient(address, credentials=credentials) as client:
        with pytest.raises(SluiceError) as caught:
            await client.stop()
        return caught.value.status


@pytest.mark.parametrize(
    ("kind", "tls"),
    [pytest.param("certs", True, id="tls"), pytest.param("tokens", False, id="tokens", marks=pytest.mark.long)],
)
async def test_a_run_with_credentials_trains_refuses_strangers_and_spills_no_secret(
    tmp_path: Path, kind: str, tls: bool
) -> None:
    folder, run_dir, port = make_folder(tmp_path / "credentials", kind), tmp_path / "run", free_port()
    password = secrets.token_urlsafe(24)
    (tmp_path / "password").write_text(password + "\n")
    redis_folder = make_folder(tmp_path / "redis", "certs")
    async with guarded_redis(redis_folder, password, tls=tls) as redis_url:
        network = {"credentials": str(folder), "coordinator_port": port, "redis_url": redis_url}
        network |= {"redis_password_file": str(tmp_path / "password")}
        network |= {"bind": "0.0.0.0", "redis_ca_file": str(redis_folder / "ca.pem")} if tls else {}
        model = {"path": str(write_tiny_model(tmp_path / "model"))}
        recipe = RECIPE | {"model": RECIPE["model"] | model, "network": network}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        run = await start(tmp_path / "recipe.yaml", run_dir)
        address = f"127.0.0.1:{port}"
        try:
            lines = await command_lines_once_it_trains(run, run_dir)
            async with AsyncClient(address, credentials=load_credentials(folder / "operator")) as operator:
                assert (await operator.status()).total_steps == RECIPE["run"]["total_steps"]
            stranger = await status_of_stop(address, NO_CREDENTIALS)
            rollout = await status_of_stop(address, load_credentials(folder / "rollout"))
            assert run.stdout is not None
            async with asyncio.timeout(120):
                output = await run.stdout.read()
            assert await run.wait() == 0, output.decode()
        finally:
            await end(run)
    assert stranger == ("UNAUTHENTICATED" if kind == "tokens" else "UNAVAILABLE")
    assert rollout == "PERMISSION_DENIED"
    carried = "grpc" if tls else "auto"  # beyond loopback weights are encrypted as well
    assert re.search(rf"weights_sent_by .*{carried}", (run_dir / "logs" / "learner.log").read_text())
    hidden = all_secrets(folder, kind) | {password}
    printed = {**texts(run_dir), "output": output, "command lines": "\n".join(lines).encode()}
    assert [(name, secret[:4]) for secret in hidden for name, text in printed.items() if secret.encode() in text] == []
    assert any("services.coordinator" in line for line in lines)


async def start(recipe: Path, run_dir: Path) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "sluice.cli.main", "up", "-c", str(recipe), "--plain", "--run-dir", str(run_dir)]
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT, cwd=ROOT)


async def end(run: asyncio.subprocess.Process) -> None:
    if run.returncode is None:
        run.kill()
        await run.wait()


async def command_lines_once_it_trains(run: asyncio.subprocess.Process, run_dir: Path) -> list[str]:
    """Those of every process of the run, when its first step is committed."""
    metrics = run_dir / "metrics.jsonl"
    await assert_eventually(
        lambda: run.returncode is not None or (metrics.exists() and metrics.stat().st_size > 0),
        within_s=120.0,
        what="the first step is committed",
    )
    assert run.returncode is None
    return [" ".join(process.cmdline()) for process in psutil.Process(run.pid).children(recursive=True)]


def all_secrets(folder: Path, kind: str) -> set[str]:
    """Every token, or a line of every private key."""
    if kind == "tokens":
        return {token for role in Role for token in load_tokens(folder / role).speaks.values()}
    keys = [folder / "ca-key.pem", *(folder / role / "key.pem" for role in Role)]
    return {key.read_text().splitlines()[1] for key in keys}


def texts(run_dir: Path) -> dict[str, bytes]:
    """Every file of the run, logs included."""
    found = {str(path): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert {"config.yaml", "coordinator.log", "rollout-0.log", "learner.log"} <= {Path(name).name for name in found}
    return found
