"""python dependencies.py PYPROJECT FOLDER: writes FOLDER/EXTRA.txt for each extra: what Sluice needs with it, a line each."""

import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    project, folder = tomllib.loads(Path(sys.argv[1]).read_text())["project"], Path(sys.argv[2])
    folder.mkdir(parents=True)
    for extra, needed in project["optional-dependencies"].items():
        (folder / f"{extra}.txt").write_text("\n".join([*project["dependencies"], *needed]) + "\n")
