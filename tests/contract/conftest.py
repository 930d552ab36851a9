"""A model for engines."""

from pathlib import Path

import pytest

from services.rollout.adapters.engine_environment import set_environment


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Torch is imported after an engine's environment is set. Nobody writes into it."""
    set_environment(threads=1)
    from tests.tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("model"))
