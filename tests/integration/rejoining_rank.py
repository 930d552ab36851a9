"""A learner's rank that ends as it is told, start by start: `--module` of services.learner.distributed.node.

The file RANK_ENDS has a code a start; with 0 the run has ended.
"""

import os
import sys
from pathlib import Path


def main() -> int:
    """Takes the first code out of the file and ends with it."""
    codes = Path(os.environ["RANK_ENDS"])
    code, *later = codes.read_text().split()
    codes.write_text(" ".join(later))
    if code == "0":
        Path(sys.argv[sys.argv.index("--ended-file") + 1]).touch()
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
