"""Where the launcher's own processes listen, and the credentials that a run on several machines makes for itself."""

import datetime
import stat
from pathlib import Path

import pytest

from sluice.cli.whereabouts import where
from sluice.config.load import dump_config
from sluice.config.schema import Config
from sluice.errors import ConfigError, NotFound
from sluice.launch.own_network import VALID_FOR, keep_credentials, settled
from sluice.rpc import certificates
from sluice.rpc.access import Role
from sluice.rpc.certificate_authority import make_certificates, time_left
from sluice.rpc.credentials import load_credentials
from sluice.run_dir.naming import ADDRESS_FILE


def config(**network: str) -> Config:
    return Config(model={"path": "m"}, data={"train_files": ["x"]}, launch={"engine": "ray"}, network=network)  # type: ignore[arg-type]


def test_on_loopback_a_run_listens_there_and_needs_no_credentials(tmp_path: Path) -> None:
    for address in ("127.0.0.1", "127.0.0.2", "::1"):  # the launcher's on a cluster whose nodes are all this machine
        found = settled(config(), run_dir=tmp_path, address=address)
        assert (found.own.network.bind, found.own.network.advertise) == (address, address)
        assert (found.config, found.said, list(tmp_path.iterdir())) == (config(), "", [])


def test_beyond_loopback_a_run_without_credentials_makes_its_own_and_keeps_them(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    found = settled(config(), run_dir=tmp_path, address="10.1.4.7")
    assert (found.own.network.bind, found.own.network.advertise) == ("10.1.4.7", "10.1.4.7")
    assert (found.config.network.bind, found.config.network.credentials) == ("auto", str(folder))
    assert found.own.network.credentials == str(folder)
    assert f"made certificates for this run in {folder}" in found.said
    for role in Role:
        assert certificates.load(folder / role).role is role
    kept = {path: path.read_bytes() for path in folder.rglob("*.pem")}
    again = settled(config(bind="0.0.0.0"), run_dir=tmp_path, address="10.1.4.8")
    assert (again.own.network.bind, again.own.network.advertise) == ("0.0.0.0", "10.1.4.8")
    assert (again.said, {path: path.read_bytes() for path in folder.rglob("*.pem")}) == ("", kept)


def test_credentials_that_the_recipe_names_are_taken_and_no_others_made(tmp_path: Path) -> None:
    found = settled(config(credentials="/creds"), run_dir=tmp_path, address="10.1.4.7")
    assert (found.config.network.credentials, list(tmp_path.iterdir())) == ("/creds", [])


def test_what_is_made_is_the_owners_alone_whole_and_without_the_authoritys_key(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    assert keep_credentials(folder)
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"cert.pem", "key.pem", "ca.pem"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.pem")} == {0o600}
    assert not keep_credentials(folder)
    (folder / "rollout" / "ca.pem").write_bytes(b"of another authority")
    assert keep_credentials(folder)
    assert time_left(folder) > VALID_FOR / 2


def test_certificates_that_would_expire_during_the_run_are_made_anew_at_its_start(tmp_path: Path) -> None:
    make_certificates(tmp_path / "c", valid_for=datetime.timedelta(days=30), keep_authority=False)
    assert keep_credentials(tmp_path / "c")
    assert time_left(tmp_path / "c") > VALID_FOR / 2
    assert load_credentials(tmp_path / "c" / "operator", role=Role.OPERATOR)


def test_a_network_that_this_machine_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"network\.bind \(--bind\): .*got ib77; there are "):
        settled(config(bind="ib77"), run_dir=tmp_path, address="")


def test_a_run_is_found_by_its_directory_with_the_credentials_that_its_configuration_names(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="--run-dir: must be the directory of a run"):
        where(tmp_path)
    found = settled(config(), run_dir=tmp_path, address="10.1.4.7")
    (tmp_path / "config.yaml").write_text(dump_config(found.config))
    (tmp_path / ADDRESS_FILE).write_text("10.1.4.7:18050")
    assert where(tmp_path) == ("10.1.4.7:18050", str(tmp_path / "credentials" / "operator"))
    (tmp_path / "config.yaml").write_text(dump_config(config()))
    assert where(tmp_path) == ("10.1.4.7:18050", "")
