"""Where the processes beside the launcher listen, and the credentials of a run that leaves this machine without any.

On a cluster nobody knows before on which nodes the services will be, and certificates name roles alone. So a run without
`network.credentials` gets certificates of its own, in its own directory, which every node sees.
"""

import datetime
import shutil
from dataclasses import dataclass
from pathlib import Path

from sluice.addresses import is_loopback
from sluice.config.schema import Config, NetworkConfig
from sluice.errors import LaunchError
from sluice.own_address import BIND, advertised_address, network_address, own_address
from sluice.run_dir.private import make_private_folder

CREDENTIALS = "credentials"
"""The folder in a run directory."""

VALID_FOR = datetime.timedelta(days=365)
"""Chosen: far above the length of a run. A start of the run makes new certificates when less than half is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """A configuration whose `network` is settled."""

    config: Config
    """For every node: with credentials where the run needs any."""
    own: Config
    """The same with this machine's addresses, for the processes beside the launcher."""
    said: str
    """What the user should know; empty for nothing."""


def settled(config: Config, *, run_dir: Path, address: str) -> Settled:
    """Finds this machine's addresses, and gives a run that would be open to the network credentials of its own.

    `address`: the launcher's on the cluster, as far as the engine knows it. Raises ConfigError, LaunchError without
    `cryptography`, OSError.
    """
    own, folder, said = own_network(config.network, address=address), run_dir / CREDENTIALS, ""
    if own.credentials is None and not is_loopback(own.bind):
        if keep_credentials(folder):
            said = f"made certificates for this run in {folder}; `sluice status --run-dir {run_dir}` and the like find them"
        config = _with(config, config.network.model_copy(update={"credentials": str(folder)}))
    addresses = {"bind": own.bind, "advertise": own.advertise}
    return Settled(config=config, own=_with(config, config.network.model_copy(update=addresses)), said=said)


def own_network(network: NetworkConfig, *, address: str) -> NetworkConfig:
    """`network` with what its words stand for on this machine; `auto` is `address`, else the one towards the network.

    Raises ConfigError.
    """

    def auto() -> str:
        return address or network_address()

    bind = own_address(network.bind, auto=auto, key=BIND)
    advertise = advertised_address(network.advertise, bind=bind, auto=auto)
    return network.model_copy(update={"bind": bind, "advertise": advertise})


def keep_credentials(folder: Path) -> bool:
    """Makes FOLDER/ROLE for every role, unless they are there and good for long; returns whether they were made.

    The key of their authority is thrown away, so that nobody can add to them. Raises LaunchError without `cryptography`.
    """
    try:
        from sluice.rpc.certificate_authority import make_certificates, time_left
    except ModuleNotFoundError as error:
        raise LaunchError(
            "network.credentials: a run that leaves this machine needs some, and to make certificates for it Sluice needs "
            f"the package `cryptography` ({error}); install it with `pip install 'sluice-rl[certs]'`, or set "
            "network.credentials to the folder that `sluice tokens DIR --private-network` makes"
        ) from error
    if time_left(folder) > VALID_FOR / 2:
        return False
    partial = folder.with_name(f"{folder.name}.partial")
    for former in (partial, folder):
        shutil.rmtree(former, ignore_errors=True)
    make_private_folder(partial)
    make_certificates(partial, valid_for=VALID_FOR, keep_authority=False)
    partial.rename(folder)
    return True


def _with(config: Config, network: NetworkConfig) -> Config:
    return config.model_copy(update={"network": network})
