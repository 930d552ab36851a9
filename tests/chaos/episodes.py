"""What a server of an environment tells of its episodes while a run is struck (tests/chaos/environment.py writes it)."""

import json
import time
from pathlib import Path
from typing import Any

from tests.chaos.plan import Moment

LEFT_OPEN_S = 90.0
"""Longer than the leases that a run here asks for: `rollout.turn_timeout_s` and a minute."""


class Episodes:
    """Of one server, whatever processes it has had."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0
        self._doing: dict[str, tuple[str, int]] = {}
        """By episode: what was heard of it last, and of which turn."""
        self.open = 0
        """Open episodes, by the server's own count."""
        self.heard: set[str] = set()
        """What was ever told."""

    def is_one(self, moment: Moment) -> bool:
        """Whether an episode is in its third turn, or its environment is at work."""
        self._look()
        wanted = ("answered", 1) if moment is Moment.THIRD_TURN else ("asked", 0)
        return wanted in self._doing.values()

    def left_open(self) -> list[str]:
        """What the server still holds open when its leases have ended."""
        give_up = time.monotonic() + LEFT_OPEN_S
        while self._look() and time.monotonic() < give_up:
            time.sleep(0.2)
        return [f"{self.path.name}: {self.open} episodes are still open after {LEFT_OPEN_S:g} s"] if self.open else []

    def _look(self) -> int:
        """Reads on; returns how many are open."""
        if self.path.exists():
            with self.path.open("rb") as lines:
                lines.seek(self._read)
                for line in lines:
                    if line.endswith(b"\n"):
                        self._read += len(line)
                        self._take(json.loads(line))
        return self.open

    def _take(self, told: dict[str, Any]) -> None:
        self.open = told["open"]
        self.heard.add(told["event"])
        if told["event"] == "started":
            self._doing.clear()
        elif told["event"] in ("closed", "lease_ended"):
            self._doing.pop(told["episode"], None)
        else:
            self._doing[told["episode"]] = (told["event"], told["turn"])
