"""Everything that is known about one group: its row, its texts, its tokens, and the groups before and after."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sluice.config.schema import Config
from sluice.errors import NotFound, SluiceError
from sluice.report.group_texts import Texts, group_on_disk, texts_of, texts_on_disk
from sluice.report.ledger_tables import find_row
from sluice.report.sample_tokens import kept_group
from sluice.run_dir.token_figures import TokenFigures
from sluice.ui.runs import Run
from sluice.ui.token_text import TokenText, find_tokenizer, group_text, load_tokenizer
from sluice.v1 import common_pb2

MOST_SAMPLES = 64
"""Of one group on a page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Everything that is known about the group."""

    row: Mapping[str, Any]
    config: Config
    texts: Texts | str
    """A text says why there are none."""
    tokens: Sequence[TokenText] | str
    """Likewise."""
    before: str | None
    after: str | None


async def find_group(run: Run, group_id: str) -> Found:
    """The group in the files, else the one that the coordinator has. Raises NotFound."""
    files = run.files
    row = await asyncio.to_thread(find_row, files.path, group_id) if files is not None else None
    payload: common_pb2.Group | None = None
    live = run.live
    if row is None and live is not None and live.client is not None and live.away_since is None:
        answer = await live.client.group(group_id)
        row = json.loads(answer.row_json)
        payload = answer.group if answer.HasField("group") else None
    if row is None:
        raise NotFound(
            f"group {group_id[:100]!r}: has no row in the ledger of {run.name}; the table of groups has those that ended"
        )
    return await asyncio.to_thread(_read, run, row, payload)


def _read(run: Run, row: Mapping[str, Any], payload: common_pb2.Group | None) -> Found:
    files, config = run.files, run.config()
    texts: Texts | str = "not on this machine"
    figures: TokenFigures | None = None
    try:
        if payload is None and files is not None:
            payload = group_on_disk(files.path, group_id=row["group_id"], step=row["step"])
        if payload is not None:
            texts = texts_of(payload)
        elif files is not None:
            texts = texts_on_disk(files.path, group_id=row["group_id"], step=row["step"])
    except (SluiceError, ValueError, OSError) as error:
        texts = f"cannot be read: {error}"
    if payload is not None and files is not None:
        try:
            kept = kept_group(files.path, row["group_id"])
        except (SluiceError, OSError):
            kept = None  # the texts are there all the same; the page says that the group has no figures
        if kept is not None and kept.figures is not None:
            figures = kept.figures
    neighbours = (None, None)
    if files is not None:
        try:
            neighbours = files.ledger.neighbours(row["admission"])
        except SluiceError:
            neighbours = (None, None)
    return Found(
        row=row,
        config=config,
        texts=texts,
        tokens=_tokens(run, config, payload, figures),
        before=neighbours[0],
        after=neighbours[1],
    )


def _tokens(
    run: Run, config: Config, payload: common_pb2.Group | None, figures: TokenFigures | None
) -> Sequence[TokenText] | str:
    if payload is None:
        return (
            "Tokens have colours while the batch of the group is kept (batches/), and afterwards in the one group a step that "
            "sample_tokens.jsonl has. This group is in neither."
        )
    folder = run.files.path if run.files is not None else None
    path = find_tokenizer(folder, config.model.path) if folder is not None else None
    if path is None:
        return f"Neither the run's model/ nor {config.model.path} has a tokenizer.json here, so tokens have no colours."
    try:
        tokenizer = load_tokenizer(path)
    except Exception as error:  # noqa: BLE001 - the library raises no narrower type for a damaged file
        return f"{path} cannot be read, so tokens have no colours: {error}"
    return group_text(payload.samples[:MOST_SAMPLES], tokenizer, figures)
