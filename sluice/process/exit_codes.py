"""Exit codes that one process of Sluice reads of another."""

BAD_USAGE = 2
"""The process was started or configured wrongly: starting the process again would not help."""

NOT_JOINED = 4
"""One machine of the learner: the other machines did not join in time."""

PEER_LOST = 5
"""A rank of the learner: another rank is gone, so that this one could not go on. Somebody else's end has the cause."""

UNFIT_NODE = 6
"""The node lacks what the run needs, and the process has not begun: another node may do."""

AGAIN = 75
"""The process ends on purpose, to be started again at once: not counted as a restart."""

INTERRUPTED = 130
"""A signal from the keyboard, or SIGTERM, ended the command."""
