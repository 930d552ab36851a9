"""What the configuration itself refuses of an open network."""

import pytest

from sluice.config.load import load_config
from sluice.config.schema import NetworkConfig
from sluice.errors import ConfigError

NEEDED = ("model.path=m", "data.train_files=[mixadd3:train]")


def problem(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides=[*NEEDED, *overrides])
    return str(caught.value)


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "10.0.0.1", "node7"])
def test_an_address_of_the_network_needs_credentials_and_the_message_names_the_keys(bind: str) -> None:
    said = problem(f"network.bind='{bind}'")
    assert "network.bind: must be a loopback address" in said
    assert "network.credentials" in said
    assert "sluice certs" in said
    assert NetworkConfig(bind=bind, credentials="creds").bind == bind


@pytest.mark.parametrize("bind", ["auto", "127.0.0.1", "localhost", "::1", "127.0.1.1"])
def test_loopback_needs_nothing(bind: str) -> None:
    config = load_config(None, overrides=[*NEEDED, f"network.bind='{bind}'"])
    assert (config.network.bind, config.network.credentials) == (bind, None)


@pytest.mark.parametrize("key", ["bind", "advertise"])
def test_a_network_that_is_none_is_refused(key: str) -> None:
    for words in ("10.1.0.0/99", "eth0/24", ""):
        said = problem(f"network.{key}='{words}'")
        assert (
            f"network.{key}: must be auto, an interface, a CIDR (10.1.0.0/16), an address or a host, got '{words}'"
            in said
        )


@pytest.mark.parametrize("key", ["bind", "advertise"])
def test_on_a_cluster_no_key_holds_the_address_of_one_node_and_none_needs_credentials(key: str) -> None:
    said = problem("launch.engine=ray", f"network.{key}=10.0.0.1")
    assert f"network.{key}: must be auto, an interface or a CIDR while launch.engine is ray, got 10.0.0.1" in said
    for words in ("auto", "ib0", "10.1.0.0/16", "127.0.0.1"):
        load_config(None, overrides=[*NEEDED, "launch.engine=slurm", f"network.{key}={words}"])
    load_config(None, overrides=[*NEEDED, "launch.engine=slurm", "network.bind='::'"])
    assert "network.advertise" in problem("launch.engine=slurm", "network.advertise=0.0.0.0")


def test_a_redis_password_in_the_recipe_is_refused_and_not_repeated() -> None:
    said = problem("network.redis_url=redis://:hunter2hunter2@host/0")
    assert "network.redis_url: must not hold the password" in said
    assert "network.redis_password_file" in said
    assert "hunter2" not in said


def test_no_key_of_the_schema_holds_a_secret_itself() -> None:
    names = [name for name in NetworkConfig.model_fields if "password" in name or "token" in name or "secret" in name]
    assert names == ["redis_password_file"]
