"""From the names under `data.train_files` and `data.val_files` to a source of rows."""

from collections.abc import Sequence

from services.coordinator.prompts.data_files import read_files
from services.coordinator.prompts.procedural import MIXADD3, REASONING_GYM, Mixadd3Source, ReasoningGymSource
from services.coordinator.prompts.rows import PromptSource
from sluice.errors import DataError
from sluice.tasks import mixadd3


def open_source(names: Sequence[str], *, seed: int, held_out: bool) -> PromptSource:
    """Opens files, or one endless source. `held_out` chooses the side of a procedural task.

    Raises:
        DataError: a file is missing, empty or malformed, a task is unknown, or names do not go together.
    """
    endless = [name for name in names if name.startswith((REASONING_GYM, MIXADD3))]
    if not endless:
        return read_files(names)
    if len(names) > 1:
        raise DataError(f"{endless[0]}: is endless and must be the only source, got {', '.join(names)}")
    name = names[0]
    if name.startswith(REASONING_GYM):
        return ReasoningGymSource(task=name.removeprefix(REASONING_GYM), seed=seed, held_out=held_out)
    return _mixadd3(name.removeprefix(MIXADD3), seed=seed, held_out=held_out)


def _mixadd3(split: str, *, seed: int, held_out: bool) -> Mixadd3Source:
    """Refuses splits of the other side, so that no run trains on evaluation prompts."""
    splits = [name for name in mixadd3.SPLITS if (name != "train") == held_out]
    if split not in splits:
        setting = "data.val_files" if held_out else "data.train_files"
        raise DataError(f"{setting}: {MIXADD3}SPLIT must be one of {', '.join(splits)} here, got {split!r}")
    return Mixadd3Source(split=split, seed=seed)
