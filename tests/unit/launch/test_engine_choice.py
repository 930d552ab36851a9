"""An engine's library is imported only where the engine is chosen, and its lack is one line."""

import sys

import pytest

from sluice.config.schema import LaunchConfig
from sluice.errors import ConfigError
from sluice.launch.engines.choice import engine_of


def test_ray_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("sluice.launch.engines.ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ConfigError, match=r"launch\.engine: ray needs the package ray, .*: pip install 'sluice-rl\[ray\]'"
    ):
        engine_of(LaunchConfig(engine="ray"))
    assert engine_of(LaunchConfig()).name == "local"
