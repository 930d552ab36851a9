"""What carries weights where the recipe leaves it open, and what could carry none."""

from pathlib import Path
from typing import Any

import pytest

from sluice.config.schema import Config
from sluice.errors import ConfigError
from sluice.rpc import tokens
from sluice.rpc.access import Role
from sluice.rpc.certificates import Certificates
from sluice.rpc.credentials import NO_CREDENTIALS
from sluice.weights.carrier import settled_backend

CERTIFICATES = Certificates(role=Role.LEARNER, certificate=b"", key=b"", authority=b"", folder=Path("creds/learner"))
TOKENS = tokens.Tokens(role=Role.LEARNER, speaks={}, accepts={Role.ROLLOUT: "digest"}, private_network=True)
FORMER_TOKENS = tokens.Tokens(role=Role.LEARNER, speaks={}, accepts={Role.COORDINATOR: "digest"}, private_network=True)


def config(**changes: Any) -> Config:
    return Config.model_validate({"model": {"path": "m"}, "data": {"train_files": ["x"]}, **changes})


@pytest.mark.parametrize(
    ("bind", "credentials", "changes", "carried"),
    [
        ("127.0.0.1", NO_CREDENTIALS, {}, "auto"),
        ("127.0.0.1", CERTIFICATES, {}, "auto"),
        ("10.0.0.1", CERTIFICATES, {}, "grpc"),
        ("0.0.0.0", CERTIFICATES, {}, "grpc"),
        ("10.0.0.1", CERTIFICATES, {"network": {"trusted": True}}, "auto"),
        ("10.0.0.1", TOKENS, {}, "auto"),
        ("10.0.0.1", FORMER_TOKENS, {}, "auto"),
        ("10.0.0.1", CERTIFICATES, {"weights": {"backend": "nccl"}}, "nccl"),
        ("127.0.0.1", NO_CREDENTIALS, {"weights": {"backend": "grpc"}}, "grpc"),
        ("10.0.0.1", TOKENS, {"weights": {"backend": "grpc"}}, "grpc"),
    ],
)
def test_grpc_carries_where_the_network_is_not_trusted_and_where_the_recipe_says_so(
    bind: str, credentials: Any, changes: dict[str, Any], carried: str
) -> None:
    assert settled_backend(config(**changes), bind=bind, credentials=credentials) == carried


def test_tokens_with_which_no_rollout_could_fetch_are_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"weights\.backend: grpc needs a token .* make them anew with `sluice tokens`"
    ):
        settled_backend(config(weights={"backend": "grpc"}), bind="10.0.0.1", credentials=FORMER_TOKENS)
