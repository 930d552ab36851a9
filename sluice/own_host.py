"""Which machine this process runs on, for whoever plans what crosses the network between machines.

The kernel's boot id: the same in all containers and pods of one machine, which share its network card, and another one on
every other machine and after every start. The host name serves where no boot id can be read; it tells containers apart.
SLUICE_HOST_LABEL says it where neither is right: sandboxes with a kernel each, or machines behind one narrow link.
"""

import os
import socket
from pathlib import Path

from sluice.errors import ConfigError
from sluice.limits import NAME_CHARACTERS

VARIABLE = "SLUICE_HOST_LABEL"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def own_host() -> str:
    """The label of this process's machine. Raises ConfigError for a label that is no name."""
    label = os.environ.get(VARIABLE, "")
    if len(label) > NAME_CHARACTERS or not all("!" <= character <= "~" for character in label):
        raise ConfigError(
            f"{VARIABLE}: must be at most {NAME_CHARACTERS} ASCII characters without blanks, got {len(label)}: "
            f"{label[:40]!r}"
        )
    return label or _boot_id() or socket.gethostname()[:NAME_CHARACTERS]


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
