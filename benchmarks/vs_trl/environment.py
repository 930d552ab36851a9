"""TRL's own environment: a venv with pinned versions and the torch build that Sluice itself runs on."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = ("trl==1.16.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0")
_TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_RECORD = "vs-trl-requirements.txt"


def prepare(folder: Path) -> Path:
    """Makes the environment unless it is there already; returns its interpreter. Raises CalledProcessError."""
    python = folder / "bin" / "python"
    wanted = "\n".join((f"torch=={importlib.metadata.version('torch')}", *REQUIREMENTS))
    record = folder / _RECORD
    if record.exists() and record.read_text() == wanted:
        return python
    print(f"TRL's environment: {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    torch, *others = wanted.splitlines()
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if subprocess.run([*pip, torch], stderr=subprocess.DEVNULL).returncode:  # a CPU build is not on PyPI
        subprocess.run([*pip, "--extra-index-url", _TORCH_CPU_INDEX, torch], check=True)
    subprocess.run([*pip, torch, *others], check=True)
    record.write_text(wanted)
    return python
