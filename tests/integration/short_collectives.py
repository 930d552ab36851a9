"""One rank of the real learner whose collectives wait for 10 s instead of minutes. Run in
place of `services.learner.__main__`.
"""

from datetime import timedelta

from services.learner import __main__ as learner
from services.learner.control import thread
from services.learner.distributed import ranks
from services.learner.distributed.ending import end_process

LIMIT_S = 10.0


def main(argv: list[str] | None = None) -> int:
    """The learner's."""
    ranks.COLLECTIVE_TIMEOUT = timedelta(seconds=LIMIT_S)
    thread.MEANWHILE_S = LIMIT_S / 10
    return learner.main(argv)


if __name__ == "__main__":
    end_process(main)
