"""How Redis is proved to: the password comes from a file or the environment and is seen nowhere."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.coordinator.storage.redis_access import RedisAccess, redis_access
from sluice.config.schema import NetworkConfig
from sluice.errors import ConfigError

SECRET = "correct-horse"


def test_the_file_is_read_before_the_environment_and_without_its_newline(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(SECRET + "\n")
    from_file = redis_access(
        NetworkConfig(redis_password_file=str(tmp_path / "password")), {"SLUICE_REDIS_PASSWORD": "other-secret"}
    )
    from_environment = redis_access(NetworkConfig(), {"SLUICE_REDIS_PASSWORD": SECRET})
    for access in (from_file, from_environment):
        assert access.password is not None
        assert access.password.get_secret_value() == SECRET
        assert SECRET not in repr(access)
    assert redis_access(NetworkConfig(), {}).password is None


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe\xfd"])
def test_a_password_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"network\.redis_password_file: .*password"):
        redis_access(NetworkConfig(redis_password_file=str(path)), {})


async def test_the_client_gets_password_and_authority() -> None:
    access = redis_access(NetworkConfig(redis_ca_file="/ca.pem"), {"SLUICE_REDIS_PASSWORD": SECRET})
    client = access.connect("rediss://me@host:6380/2", retries=1)
    settings = client.connection_pool.connection_kwargs
    assert (settings["username"], settings["password"], settings["ssl_ca_certs"]) == ("me", SECRET, "/ca.pem")
    await client.aclose()


@pytest.mark.parametrize("url", [f"redis://:{SECRET}@h/0", f"redis://u:{SECRET}@h", f"redis://h/0?password={SECRET}"])
def test_a_url_with_the_password_in_it_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError, match="redis_password_file") as caught:
        RedisAccess().connect(url, retries=1)
    assert SECRET not in str(caught.value)


def test_a_server_on_the_network_must_ask_for_a_password_and_is_better_behind_tls() -> None:
    secured = redis_access(NetworkConfig(), {"SLUICE_REDIS_PASSWORD": SECRET})
    with pytest.raises(ConfigError, match="must ask for a password"):
        RedisAccess().check("rediss://10.0.0.3:6379/0")
    with capture_logs() as lines:
        secured.check("rediss://10.0.0.3:6379/0")
        RedisAccess().check("redis://127.0.0.1:6379/0")
        RedisAccess().check("unix:///run/redis.sock")
    assert lines == []
    with capture_logs() as lines:
        secured.check("redis://10.0.0.3:6379/0")
    assert [line["event"] for line in lines] == ["redis_without_tls"]
