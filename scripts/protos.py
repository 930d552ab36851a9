"""Generates sluice/v1 from protos/, or with --check says whether the committed stubs differ from it."""

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).parent.parent


def generate(out: Path) -> None:
    """Writes the stubs below `out`."""
    sources = [str(path.relative_to(ROOT / "protos")) for path in sorted((ROOT / "protos").rglob("*.proto"))]
    bin_dir = Path(sys.executable).parent
    flags = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    plugins = [
        f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
    ]
    google = Path(grpc_tools.__file__).parent / "_proto"
    code = protoc.main(["protoc", f"-I{ROOT / 'protos'}", f"-I{google}", *plugins, *flags, *sources])
    if code:
        sys.exit(f"protoc ended with code {code}")


def main() -> None:
    """Generates or checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the stubs are stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        made = sorted(path.relative_to(folder) for path in Path(folder).rglob("*_pb2*"))
        stale = [str(path) for path in made if not _same(Path(folder) / path, ROOT / path)]
        gone = [
            str(path.relative_to(ROOT))
            for path in (ROOT / "sluice" / "v1").glob("*_pb2*.py*")
            if path.relative_to(ROOT) not in made and path.suffix in (".py", ".pyi")
        ]
    if stale or gone:
        sys.exit(f"stubs differ from protos/: {', '.join(stale + gone)}; run `make protos` and commit")


def _same(made: Path, committed: Path) -> bool:
    return committed.exists() and filecmp.cmp(made, committed, shallow=False)


if __name__ == "__main__":
    main()
