"""The coordinator's durable records in one place: Redis, the run directory, and the codec of groups for both."""

from dataclasses import dataclass

from services.coordinator.state.ports import DurableState, GroupCodec
from services.coordinator.storage.ledger_files import LedgerFiles
from services.coordinator.storage.run_files import RunFiles


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """The durable records of one run."""

    store: DurableState
    files: RunFiles
    ledger: LedgerFiles
    codec: GroupCodec
