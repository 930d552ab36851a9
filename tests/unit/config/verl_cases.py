"""Settings of verl: how they are called, what becomes of them."""

from typing import Any

import pytest

from sluice.config.verl import from_verl
from sluice.errors import ConfigError

ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"


def refusals(*settings: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        from_verl(list(settings))
    return str(caught.value).splitlines()


def translated(*settings: str) -> dict[str, Any]:
    return from_verl(list(settings)).config_tree
