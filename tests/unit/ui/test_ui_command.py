"""`sluice ui` and `run.ui` before anything listens: each mistake is one line that says what to do."""

import importlib.util
import socket
from pathlib import Path

import pytest

import sluice.cli.main
from sluice.cli.ui import links
from sluice.ui.gate import Tokens


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = sluice.cli.main.main(["ui", *words])
    return code, capsys.readouterr().err


def test_a_run_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = said(capsys)
    assert (code, "must be given a run: name a run directory, or --coordinator HOST:PORT" in line) == (2, True)


def test_a_folder_that_is_no_run_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, line = said(capsys, str(tmp_path), "--port", "0")
    assert (code, line.count("\n")) == (1, 1)
    assert f"{tmp_path}: is no run directory" in line


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, line = said(capsys, str(tmp_path), "--port", str(port))
    assert (code, line) == (
        1,
        f"sluice: sluice ui: cannot listen at 127.0.0.1:{port}: Address already in use; --port 0 takes any free port\n",
    )


@pytest.mark.parametrize("host", ["", "[::1]", "127.0.0.1:80", "http://node", "a b", "0", "127.1", "a..b", "x" * 64])
def test_a_host_that_is_none_is_refused_before_anything_listens(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, host: str
) -> None:
    code, line = said(capsys, str(tmp_path), "--host", host, "--port", "0")
    assert (code, line.count("\n")) == (2, 1)
    assert line.startswith(
        "sluice: --host: must be an address or a name of this machine, without port, brackets or http"
    )
    assert repr(host) in line


def test_without_the_extra_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nicegui" else found(name))
    code, line = said(capsys, str(tmp_path))
    assert (code, line) == (
        1,
        "sluice: sluice ui: needs nicegui, of the extra `ui`; install it with pip install 'sluice-rl[ui]'\n",
    )


def test_beyond_loopback_each_role_has_a_link_of_its_own() -> None:
    tokens = Tokens(operator="o", reader="r")
    assert links("127.0.0.1", 8050, None) == ["http://127.0.0.1:8050/"]
    operator, reader, warning = links("10.0.0.1", 8050, tokens)
    assert operator == "http://10.0.0.1:8050/?token=o  (with actions)"
    assert reader == "http://10.0.0.1:8050/?token=r  (to look only)"
    assert "ssh -L 8050:127.0.0.1:8050" in warning
