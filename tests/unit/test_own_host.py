"""By which label processes of one machine know that they share it."""

import socket
from pathlib import Path

import pytest

from sluice import own_host as module
from sluice.errors import ConfigError
from sluice.own_host import own_host


def test_a_machine_is_its_kernel_unless_a_label_says_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLUICE_HOST_LABEL", raising=False)
    monkeypatch.setattr(module, "_BOOT_ID", tmp_path / "none")
    assert own_host() == socket.gethostname()
    monkeypatch.setattr(module, "_BOOT_ID", tmp_path / "id")
    (tmp_path / "id").write_text("0d1c\n")
    assert own_host() == "0d1c"
    monkeypatch.setenv("SLUICE_HOST_LABEL", "rack-7")
    assert own_host() == "rack-7"
    monkeypatch.setenv("SLUICE_HOST_LABEL", "rack 7")
    with pytest.raises(ConfigError, match=r"SLUICE_HOST_LABEL: must be .* got 6: 'rack 7'"):
        own_host()
