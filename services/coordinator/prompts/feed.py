"""The conductor's source of prompts: prompts that users submit to a live run come first, then the data set.

A cursor holds the positions in both, so that a restarted coordinator finds an open group's prompt again. A sampler
(difficulty.py) may choose a cursor further on. Groups of runs that an older version began may have the row of the data
as a third part. Submitted prompts are kept in the run directory and rendered when they are drawn, as those of the data
are.
"""

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from services.coordinator.prompts import PromptStream
from services.coordinator.prompts.submitted import SUBMITTED_FILE, SubmittedPrompts
from services.coordinator.state.group import PromptLike
from services.coordinator.storage.run_files import RunFiles
from services.coordinator.storage.unbroken import unbroken
from sluice.errors import InvalidRequest, SluiceError
from sluice.limits import NAME_CHARACTERS

log = structlog.get_logger(__name__)

CHARACTERS_A_TOKEN = 64
"""A prompt with more characters than this for each token that it may have is refused unread. Chosen: text has 2 to 6."""


class PromptFeed:
    """Prompts by cursor: `<data position>:<submitted position>`, or `<data position>:<submitted position>:<row>`."""

    def __init__(self, *, data: PromptStream, files: RunFiles, max_prompt_tokens: int) -> None:
        self._data, self._files, self._max_prompt_tokens = data, files, max_prompt_tokens
        self._submitted = SubmittedPrompts(files.run_dir / SUBMITTED_FILE)
        self._one_at_a_time = asyncio.Lock()

    def next(self, cursor: str) -> tuple[PromptLike, str]:
        """The prompt at `cursor` ("" is the start), and the cursor of the next prompt."""
        position, submitted, *again = (int(part) for part in (cursor or "0:0").split(":"))
        if again:
            return self._data.at_row(again[0]), f"{position}:{submitted}"
        while submitted < len(self._submitted):
            row, submitted = self._submitted.row(submitted), submitted + 1
            try:
                return self._render(row), f"{position}:{submitted}"
            except SluiceError as error:  # it was taken under another configuration
                log.warning("submitted_prompt_skipped", line=submitted, reason=str(error))
        prompt, after = self._data.next(position)
        return prompt, f"{after}:{submitted}"

    def again(self, cursor: str, *, submitted: bool) -> PromptLike:
        """The prompt that a group had which was admitted at `cursor`, from the data or `submitted`: since then prompts may have
        been submitted, which `next` would take first."""
        position, _, *chosen = (int(part) for part in (cursor or "0:0").split(":"))
        return self.next(cursor)[0] if submitted or chosen else self._data.next(position)[0]

    def origin(self, cursor: str, after: str) -> tuple[int, int]:
        """(epoch, row of the data) of the prompt between two cursors; (-1, line of the file) for a submitted prompt."""
        before, _, *again = (int(part) for part in (cursor or "0:0").split(":"))
        if again:
            return self._data.place(before)[0], again[0]
        position, submitted = (int(part) for part in after.split(":"))
        return (-1, submitted - 1) if position == before else self._data.place(position - 1)

    def is_submitted(self, cursor: str) -> bool:
        """Whether a submitted prompt comes next."""
        return int((cursor or "0:0").split(":")[1]) < len(self._submitted)

    async def submit(self, prompts: Sequence[Mapping[str, str]]) -> list[str]:
        """Adds rows as `parse_submitted` takes them; returns the ids. Raises InvalidRequest or DiskFull, and then adds none."""
        rows = [dict(prompt) for prompt in prompts]
        self._check_sizes(rows)
        # Tokenising takes seconds for megabytes, and everybody waits for this event loop.
        rendered = [await asyncio.to_thread(self._render, row) for row in rows]
        async with self._one_at_a_time:
            await unbroken(self._keep(rows))
        return [prompt.prompt_id for prompt in rendered]

    async def _keep(self, rows: list[dict[str, str]]) -> None:
        await self._files.append_all(SUBMITTED_FILE, rows)
        self._submitted.follow()  # only now may a cursor pass the rows, because the cursor outlasts a restart

    def _check_sizes(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Refuses prompts that cannot fit, before anything is tokenised."""
        most = CHARACTERS_A_TOKEN * self._max_prompt_tokens
        for place, row in enumerate(rows):
            for field, limit in (("data_source", NAME_CHARACTERS), ("prompt", most)):
                if len(row[field]) > limit:
                    raise InvalidRequest(
                        f"submit: prompt {place}: {field} has {len(row[field])} characters, at most {limit} are taken",
                        fix="shorten it, or raise data.max_prompt_length for a prompt",
                    )

    def _render(self, row: Mapping[str, str]) -> PromptLike:
        if not row["data_source"] or not row["prompt"]:
            raise InvalidRequest("submit: data_source and prompt must be set", fix="set both, for every prompt")
        return self._data.render(row)
