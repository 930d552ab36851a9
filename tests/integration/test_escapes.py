"""A graded program that tries to get out, with namespaces, as an ordinary user, with Landlock alone, and with neither."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.reward.ports import Grade, Question
from services.reward.sandbox.protections import check_programs
from services.reward.sandbox.shutting_in import PROMISES
from services.reward.verifiers import code
from sluice.errors import ConfigError
from tests.integration.escapes import program

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

HERE = Path(__file__).parent
MACHINES = {
    "with namespaces": None,
    "as an ordinary user": ["ordinary_user.py"],
    "with Landlock alone": ["no_namespaces.py"],
    "with neither": ["no_namespaces.py", "--no-landlock"],
}
SHUT_IN = [
    pytest.param("with namespaces", marks=pytest.mark.needs("own-files")),
    pytest.param("as an ordinary user", marks=pytest.mark.needs("own-files")),
    pytest.param("with Landlock alone", marks=pytest.mark.needs("landlock")),
]
ADDS = "a, b = map(int, input().split())\nprint(a + b)\n"


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Programs run as on a machine of MACHINES from then on."""

    def choose(name: str) -> None:
        if words := MACHINES[name]:
            python = tmp_path / "python"
            python.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / words[0]} {" ".join(words[1:])} "$@"\n')
            python.chmod(0o755)
            monkeypatch.setattr(sys, "executable", str(python))
        code.promises.cache_clear()

    yield choose
    code.promises.cache_clear()


def run(body: str, given: str = "", wanted: str = "none", **settings: object) -> Grade:
    truth = json.dumps({"inputs": [given], "outputs": [wanted]})
    question = Question(data_source="", prompt_text="", ground_truth=truth, extra_info={})
    chosen = code.Settings(**{"cpu_s": 20.0, "wall_s": 60.0, **settings})  # type: ignore[arg-type]
    return code.grade(question=question, text=f"```python\n{body}\n```", finished=True, settings=chosen)


def printed(body: str, tmp_path: Path, **settings: object) -> str:
    """What a program prints; the grader keeps no outputs, so the expected one is found here."""
    cases = code._Budget(code.Settings(cpu_s=20.0, wall_s=60.0, **settings), tmp_path / "budget")  # type: ignore[arg-type]
    (tmp_path / "budget").mkdir()
    (tmp_path / "budget" / "program.py").write_text(body)
    return (cases.run(["stdin"], "") or "").strip()


@pytest.mark.parametrize("machine", SHUT_IN)
def test_a_program_gets_at_nothing_of_its_user(
    machine: str, on: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_TEST_KEY", "correct-horse")
    secret, grader = tmp_path / "key.pem", tmp_path / "grader.py"
    secret.write_text("secret")
    grader.write_text("as it was")
    on(machine)
    assert code.promises() == PROMISES
    abstract = f"\0sluice-{os.getpid()}"
    with (
        subprocess.Popen(["sleep", "300"]) as victim,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as hidden,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        try:
            unix.bind(str(tmp_path / "redis.sock"))
            hidden.bind(abstract)
            unix.listen()
            hidden.listen()
            names = {"SECRET": str(secret), "GRADER": str(grader), "UNIX": str(tmp_path / "redis.sock")}
            names |= {"ABSTRACT": abstract, "HOME": str(tmp_path)}
            tried = program(**names, PORT=server.getsockname()[1], PID=victim.pid)
            assert printed(tried, tmp_path) == "none"
            assert victim.poll() is None
        finally:
            victim.kill()
    assert (secret.read_text(), grader.read_text()) == ("secret", "as it was")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("python", "budget")) == [
        "grader.py",
        "key.pem",
        "redis.sock",
    ]


@pytest.mark.parametrize("machine", SHUT_IN)
def test_honest_programs_run_as_anywhere(machine: str, on: Callable[[str], None]) -> None:
    on(machine)
    assert run(ADDS, "1 2\n", "3").acc == 1.0
    body = """
import asyncio, collections, concurrent.futures, decimal, json, numpy, re, subprocess, sys, tempfile, threading
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("x"); file.seek(0); assert file.read() == "x"
async def one():
    return 1
assert asyncio.run(one()) == 1
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    assert list(pool.map(str, [1, 2])) == ["1", "2"]
assert subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, text=True).stdout == "7\\n"
assert int(numpy.arange(3).sum()) == 3
print("none")
"""
    assert run(body).acc == 1.0


@pytest.mark.parametrize("machine", SHUT_IN)
def test_what_a_program_leaves_in_the_background_or_forks_without_end_is_gone(
    machine: str, on: Callable[[str], None], tmp_path: Path
) -> None:
    on(machine)
    runaway = (
        "import os, time\nif os.fork() == 0:\n    try: os.setsid()\n    except OSError: pass\n    time.sleep(300)\n"
    )
    assert run(runaway + "print('none')").acc == 1.0
    if machine == "as an ordinary user":
        return  # whose number outside is root's, whose processes the kernel does not count
    bomb = (
        "import os, time\ntry:\n    for _ in range(500):\n        if os.fork() == 0: time.sleep(300)\n"
        "except OSError: print('none')\n"
    )
    assert run(bomb, wanted="none").acc == 1.0
    assert run("hoard = []\nwhile True: hoard.append(bytearray(1 << 24))").acc == 0.0
    assert not living("code_child")


@pytest.mark.needs("own-files")
def test_a_programs_files_fill_no_disk(on: Callable[[str], None]) -> None:
    flood = "try:\n    for n in range(500):\n        open(str(n), 'wb').write(bytes(1 << 20))\nexcept OSError: print('none')\n"
    on("with namespaces")
    assert run(flood).acc == 1.0


def test_where_nothing_keeps_programs_from_files_they_do_not_run_unless_the_operator_accepts_it(
    on: Callable[[str], None],
) -> None:
    on("with neither")
    assert "files" not in code.promises()
    with pytest.raises(RuntimeError, match=r"reward\.allow_unsandboxed: true") as refused:
        run(ADDS, "1 2\n", "3")
    assert "\n" not in str(refused.value)
    assert run(ADDS, "1 2\n", "3", isolation="if_possible").acc == 1.0


async def test_a_service_that_cannot_shut_programs_in_refuses_their_route_before_it_starts(
    on: Callable[[str], None],
) -> None:
    on("with neither")
    await check_programs("")
    with pytest.raises(ConfigError, match=r"^reward\.routes\.apps: code: this machine lets programs reach .*files"):
        await check_programs("reward.routes.apps")


def living(name: str) -> list[str]:
    """Command lines of living processes that contain `name`, once those that are ending have ended."""
    give_up_s, found = time.monotonic() + 10.0, [""]
    while found and time.monotonic() < give_up_s:
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = entry.read_bytes().decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if name in command:
                found.append(command)
    return found
