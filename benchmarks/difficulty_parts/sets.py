"""Fixed sets of sums of the demo's task, as files of rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sluice.tasks import mixadd3

PROMPTS = 400
NO_SUM = "9999"
"""No two numbers of three digits have this sum."""


def set_of(name: str) -> list[dict[str, Any]]:
    """The first PROMPTS different sums of the training split, as rows."""
    texts: dict[str, None] = {}
    index = 0
    while len(texts) < PROMPTS:
        texts[mixadd3.prompt_at(seed=0, index=index, split="train")] = None
        index += 1
    beyond = 2 if name == "half" else PROMPTS + 1
    answers = {
        text: NO_SUM if place % beyond == beyond - 1 else mixadd3.answer(text) for place, text in enumerate(texts)
    }
    return [
        {"data_source": mixadd3.DATA_SOURCE, "prompt": text, "reward_model": {"ground_truth": answer}}
        for text, answer in answers.items()
    ]


def write_set(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as data.train_files takes them."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
