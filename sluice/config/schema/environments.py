"""`environments`: what the policy acts in, by the names that rows give."""

from typing import Any, Final

from pydantic import Field

from sluice.config.schema.section import PathText, PositiveInt, Section

EXTERNAL: Final = "external"
"""In place of a class: a server of the user's hosts the environment, and registers."""


class EnvironmentConfig(Section):
    """Environments, by the names that rows give (docs/environments.md)."""

    environment: PathText = Field(
        min_length=1,
        description="built-in environment, `file.py:Class`, `module:Class`, or `external` for one on a server that registers",
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="keywords of the class")
    network: bool = Field(default=False, description="whether it may use the network")
    episodes: PositiveInt = Field(
        default=64,
        description="episodes that one reward service hosts at once; more wait without holding an engine's place",
    )
    workers: PositiveInt = Field(default=2, description="processes that host them in one reward service")
