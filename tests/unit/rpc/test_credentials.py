"""Folders of credentials: what is made, what is refused, and that nothing secret is shown."""

import json
import stat
from pathlib import Path

import pytest

from sluice.addresses import host_of, is_loopback
from sluice.errors import ConfigError, Unauthenticated
from sluice.rpc.access import Role, audiences
from sluice.rpc.credentials import NO_CREDENTIALS, load_credentials
from sluice.rpc.tokens import FILE, Tokens, load, make_tokens


class Shows:
    """A call that shows these headers."""

    def __init__(self, *pairs: tuple[str, str | bytes]) -> None:
        self._pairs = pairs

    def invocation_metadata(self):
        return self._pairs

    def auth_context(self):
        return {}


def shows(token: str) -> Shows:
    return Shows(("authorization", f"Bearer {token}"))


def tokens_of(folder: Path, role: Role) -> Tokens:
    return load(folder / role)


def test_each_role_speaks_to_whom_the_table_gives_it_something_to_ask(tmp_path: Path) -> None:
    make_tokens(tmp_path, private_network=False)
    for caller in Role:
        speaks = tokens_of(tmp_path, caller).speaks
        assert speaks.keys() == audiences(caller)
        for to, token in speaks.items():
            assert tokens_of(tmp_path, to).caller(shows(token)) is caller


def test_a_token_shown_to_one_service_opens_no_other(tmp_path: Path) -> None:
    make_tokens(tmp_path, private_network=False)
    overheard = tokens_of(tmp_path, Role.COORDINATOR).speaks[Role.ROLLOUT]
    for role in (Role.LEARNER, Role.REWARD, Role.COORDINATOR):
        with pytest.raises(Unauthenticated, match="does not know the token"):
            tokens_of(tmp_path, role).caller(shows(overheard))


def test_no_folder_holds_a_token_that_another_role_speaks(tmp_path: Path) -> None:
    make_tokens(tmp_path, private_network=False)
    spoken = {role: set(tokens_of(tmp_path, role).speaks.values()) for role in Role}
    for role in Role:
        text = (tmp_path / role / FILE).read_text()
        assert [token for other in Role if other is not role for token in spoken[other] if token in text] == []


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("authorization", "Bearer "),),
        (("authorization", "Basic abc"),),
        (("authorization", b"\xff\xfe"),),
        (("authorization", "Bearer a"), ("authorization", "Bearer b")),
        (("authorization", "Bearer " + "x" * 10_000),),
    ],
)
def test_headers_that_are_no_known_token_are_refused_without_repeating_them(tmp_path: Path, headers) -> None:
    make_tokens(tmp_path, private_network=False)
    with pytest.raises(Unauthenticated) as caught:
        tokens_of(tmp_path, Role.COORDINATOR).caller(Shows(*headers))
    assert "sluice tokens" in str(caught.value)
    assert "xxxx" not in str(caught.value)


def test_files_are_their_owners_alone_and_never_written_over(tmp_path: Path) -> None:
    make_tokens(tmp_path / "made", private_network=False)
    path = tmp_path / "made" / "rollout" / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        make_tokens(tmp_path / "made", private_network=False)
    assert path.read_bytes() == before


def test_what_is_printed_of_tokens_has_none_of_them(tmp_path: Path) -> None:
    make_tokens(tmp_path, private_network=False)
    tokens = tokens_of(tmp_path, Role.OPERATOR)
    assert [token for token in tokens.speaks.values() if token in repr(tokens)] == []


def test_tokens_stay_on_the_machine_unless_the_network_is_private(tmp_path: Path) -> None:
    make_tokens(tmp_path / "here", private_network=False)
    make_tokens(tmp_path / "network", private_network=True)
    here, network = (tokens_of(tmp_path / name, Role.ROLLOUT) for name in ("here", "network"))
    with pytest.raises(ConfigError, match="--private-network"):
        here.check_listens("0.0.0.0")
    with pytest.raises(ConfigError, match="--private-network"):
        here.metadata("10.0.0.1:18050", Role.COORDINATOR)
    here.check_listens("127.0.0.1")
    assert here.metadata("127.0.0.1:18050", Role.COORDINATOR)
    network.check_listens("0.0.0.0")
    assert network.metadata("10.0.0.1:18050", Role.COORDINATOR)


def test_without_credentials_only_loopback_is_listened_on_and_the_message_names_the_keys() -> None:
    NO_CREDENTIALS.check_listens("127.0.0.1")
    NO_CREDENTIALS.check_listens("::1")
    with pytest.raises(ConfigError) as caught:
        NO_CREDENTIALS.check_listens("0.0.0.0")
    for part in ("network.bind", "network.credentials", "sluice certs", "SLUICE_CREDENTIALS"):
        assert part in str(caught.value)


def test_a_folder_of_another_role_or_of_none_is_refused(tmp_path: Path) -> None:
    make_tokens(tmp_path, private_network=False)
    with pytest.raises(ConfigError, match="is that of a rollout, this is a learner"):
        load_credentials(tmp_path / "rollout", role=Role.LEARNER)
    with pytest.raises(ConfigError, match="it holds neither"):
        load_credentials(tmp_path)
    assert load_credentials("") is NO_CREDENTIALS


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"role": "king"}', '{"role": "rollout", "speaks": 3}', "\x00"])
def test_a_damaged_file_is_refused_by_name_without_what_it_holds(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"tokens\.json: cannot be used"):
        load(tmp_path)


def test_a_token_in_a_damaged_file_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"role": "rollout", "speaks": {"nobody": "a-secret-token"}}))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert "a-secret-token" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "host", "here"),
    [
        ("127.0.0.1:18050", "127.0.0.1", True),
        ("localhost:1", "localhost", True),
        ("[::1]:18050", "::1", True),
        ("127.9.9.9", "127.9.9.9", True),
        ("0.0.0.0:1", "0.0.0.0", False),
        ("::", "::", False),
        ("10.0.0.1:18050", "10.0.0.1", False),
        ("localhost.example.org:1", "localhost.example.org", False),
        ("127.0.0.1.example.org:1", "127.0.0.1.example.org", False),
    ],
)
def test_what_counts_as_this_machine(address: str, host: str, here: bool) -> None:
    assert host_of(address) == host
    assert is_loopback(host) is here
