"""`environments`: what the policy acts in, by the names that rows give."""

from collections.abc import Iterator
from typing import Any, Final

from pydantic import Field

from sluice.config.schema.section import PathText, PositiveInt, Section

EXTERNAL: Final = "external"
"""In place of a class: a server of the user's hosts the environment, and registers."""

AGENT: Final = "agent"
"""In place of a class: agents of the user's bring their own loop, and take episodes from the coordinator's gateway."""


class EnvironmentConfig(Section):
    """Environments, by the names that rows give (docs/environments.md)."""

    environment: PathText = Field(
        min_length=1,
        description="built-in environment, `file.py:Class`, `module:Class`, or `external` for one on a server that registers, "
        "or `agent` for agents that bring their own loop",
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="keywords of the class; of `agent`: scores")
    network: bool = Field(default=False, description="whether it may use the network")
    episodes: PositiveInt = Field(
        default=64,
        description="episodes that one reward service hosts at once; more wait without holding an engine's place; of `agent`: "
        "agents at once",
    )
    workers: PositiveInt = Field(default=2, description="processes that host them in one reward service")

    @property
    def scores(self) -> bool:
        """Of `agent` alone: whether the agent says the score; else a grader scores the last turn."""
        return self.settings.get("scores", True) is True

    def problems(self) -> Iterator[str]:
        """Refuses settings that an agent does not have."""
        if self.environment != AGENT:
            return
        if unknown := sorted(self.settings.keys() - {"scores"}):
            yield f"settings: must be scores alone with `agent`, got {unknown[0]!r}; an agent has settings of its own"
        if not isinstance(self.settings.get("scores", True), bool):
            yield f"settings: scores must be true or false, got {self.settings['scores']!r:.80}"
        if self.network:
            yield "network: must be false for `agent`, which runs where you start it and uses what network it has"
