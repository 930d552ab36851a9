"""From the names under `data.train_files` and `data.val_files` to a source of rows."""

from collections.abc import Sequence

from services.coordinator.prompts.data_files import read_files
from services.coordinator.prompts.procedural import (
    MIXADD3,
    PRODUCTS,
    REASONING_GYM,
    Mixadd3Source,
    ProductsSource,
    ReasoningGymSource,
)
from services.coordinator.prompts.rows import PromptSource
from sluice.errors import DataError
from sluice.tasks.splits import SPLITS


def open_source(names: Sequence[str], *, seed: int, held_out: bool) -> PromptSource:
    """Opens files, or one endless source. `held_out` chooses the side of a procedural task.

    Raises:
        DataError: a file is missing, empty or malformed, a task is unknown, or names do not go together.
    """
    endless = [name for name in names if name.startswith((REASONING_GYM, MIXADD3, PRODUCTS))]
    if not endless:
        return read_files(names)
    if len(names) > 1:
        raise DataError(f"{endless[0]}: is endless and must be the only source, got {', '.join(names)}")
    name = names[0]
    if name.startswith(REASONING_GYM):
        return ReasoningGymSource(task=name.removeprefix(REASONING_GYM), seed=seed, held_out=held_out)
    if name.startswith(PRODUCTS):
        return ProductsSource(split=_split(name, PRODUCTS, held_out=held_out), seed=seed)
    return Mixadd3Source(split=_split(name, MIXADD3, held_out=held_out), seed=seed)


def _split(name: str, task: str, *, held_out: bool) -> str:
    """Refuses splits of the other side, so that no run trains on evaluation prompts."""
    split = name.removeprefix(task)
    splits = [one for one in SPLITS if (one != "train") == held_out]
    if split not in splits:
        setting = "data.val_files" if held_out else "data.train_files"
        raise DataError(f"{setting}: {task}SPLIT must be one of {', '.join(splits)} here, got {split!r}")
    return split
