"""python node_check.py NAME RUN_DIR MARK BUILD MODEL FOLDER COMMAND...: becomes COMMAND, if this node has what the run needs.

What a cluster places begins here: the node's Sluice must be the launcher's (BUILD), RUN_DIR must be the run's directory, in
which the launcher has left the file MARK, and take new files, and MODEL, unless empty, must be a folder. Otherwise one message
of service NAME goes to stderr, with a line a problem, and the exit code is UNFIT_NODE. COMMAND starts in FOLDER, the launcher's
working directory, so that relative paths of a recipe mean the same; where the node has none, in RUN_DIR.

This file is run by its path and without site-packages: it needs the standard library alone, and no module that takes time.
"""

import errno
import os
import sys
import zlib

UNFIT_NODE = 6
"""As in exit_codes.py, which this program does not import."""

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def build() -> str:
    """The Sluice and the Python of this node: two builds differ when version, Python's minor version or a file's size does."""
    with open(os.path.join(ROOT, "sluice", "__init__.py"), encoding="utf-8") as file:
        version = next(line.split('"')[1] for line in file if line.startswith("__version__"))
    python = "{}.{}".format(*sys.version_info)
    return f"{version} ({zlib.crc32(repr(sorted(_modules())).encode()):08x}) under Python {python}"


def run_dir_problem(run_dir: str, mark: str) -> str:
    """What is wrong with a run directory in which another machine has left the file `mark`; empty if nothing is."""
    path, node = os.path.join(run_dir, mark), os.uname().nodename
    if not os.path.exists(path):
        return (
            f"run.dir: {run_dir} on {node} is not the run's directory; put it on storage that every node mounts, under "
            "the same path"
        )
    try:
        written = f"{path}-{node}-{os.getpid()}"
        os.close(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(written)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ""  # a full disk is a wait of the service's own
        return f"run.dir: {run_dir} on {node} takes no new files: {error.strerror}; mount it for writing, for the same user"
    return ""


def _modules() -> list[tuple[str, int]]:
    """Sluice's files, each with its size in bytes."""
    found, folders = [], ["sluice", "services"]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(ROOT, folder)) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(f"{folder}/{entry.name}")
                elif entry.name.endswith(".py"):
                    found.append((f"{folder}/{entry.name}", entry.stat().st_size))
    return found


def _problems(run_dir: str, mark: str, launchers: str, model: str) -> list[str]:
    node, found, here = os.uname().nodename, [], build()
    if here != launchers:
        found.append(
            f"sluice: {ROOT} on {node} is Sluice {here}, the launcher's is {launchers}; install the same on every node"
        )
    found += filter(None, [run_dir_problem(run_dir, mark)])
    if model and not os.path.isdir(model):
        found.append(
            f"model.path: {model} is no folder on {node}; copy the model there, under the same path, or share it"
        )
    return found


def main() -> None:
    """Looks at the node, then replaces this process."""
    name, run_dir, mark, launchers, model, folder = sys.argv[1:7]
    try:
        os.chdir(folder)
    except OSError:
        os.chdir(run_dir if os.path.isdir(run_dir) else "/")
    if problems := _problems(run_dir, mark, launchers, model):
        sys.stderr.write(f"{name}: " + "\n".join(problems) + "\n")
        sys.exit(UNFIT_NODE)
    os.execvp(sys.argv[7], sys.argv[7:])


if __name__ == "__main__":
    main()
