"""The endless stream of prompts of a run, and the fixed set of an evaluation.

A position counts along the order of prompts. The stream keeps no position: Redis holds the cursor, and the same position
gives the same prompt in every process. Prompts longer than `data.max_prompt_length` are skipped and counted, never
truncated; so are rows that cannot become a prompt (`Unusable`), which the log names once.
"""

from collections.abc import Mapping, Sequence

import structlog

from services.coordinator.prompts.named_sources import open_source
from services.coordinator.prompts.order import row_index
from services.coordinator.prompts.questions import question_key
from services.coordinator.prompts.render import Environments, Prompt, Renderer, Unusable, load_tokenizer
from services.coordinator.prompts.rows import PromptRow, PromptSource, parse_submitted
from sluice.config.schema import Config
from sluice.errors import DataError
from sluice.gold_answers import as_a_model_writes

log = structlog.get_logger(__name__)

# How many prompts of an endless source in a row may be too long; a finite source is searched for a whole epoch.
_MOST_SKIPS_IN_A_ROW = 10_000
_KEPT_FOR_THE_CHECK = 2
# Evaluation prompts do not depend on run.seed, so that runs with different seeds are measured alike.
_HELD_OUT_SEED = 0


class PromptStream:
    """Prompts of one source in their order."""

    def __init__(
        self, source: PromptSource, *, renderer: Renderer, seed: int, shuffle: bool, max_prompt_length: int
    ) -> None:
        self._source, self._renderer = source, renderer
        self._seed, self._shuffle = seed, shuffle
        self._max_prompt_length = max_prompt_length
        self._looked_at = False
        self.kept_for_the_check: dict[tuple[str, bool], list[Prompt]] = {}
        """Prompts of each data source that a look at every row has kept for the check of the graders."""
        self.taken: list[bytes] = []
        """The questions of the prompts that `take` has returned (questions.py)."""
        self.too_long = 0
        """How often this process skipped a prompt because of its length."""
        self.unusable: dict[str, str] = {}
        """Prompt id -> place and reason of a row that this process skipped because it cannot become a prompt."""

    @classmethod
    def open(cls, config: Config, *, files: Sequence[str], held_out: bool = False) -> "PromptStream":
        """The prompts of `files` (as data.train_files names them), held-out ones in the stored order; reading may take seconds.

        Raises:
            DataError: a data set is missing, empty or malformed, or a row of a file names an environment that the recipe lacks.
            ConfigError: the model has no tokenizer, or lacks the chat template that the configuration asks for.
        """
        data = config.data
        seed = _HELD_OUT_SEED if held_out else config.run.seed
        source = open_source(files, seed=seed, held_out=held_out)
        environments = Environments(names=frozenset(config.environments), default=data.environment)
        for index in range(source.size or 0):
            environments.placed(source.row(index))
        return cls(
            source,
            renderer=Renderer(load_tokenizer(config.model.path), template=data.template, environments=environments),
            seed=seed,
            shuffle=data.shuffle and not held_out,
            max_prompt_length=data.max_prompt_length,
        )

    def next(self, position: int) -> tuple[Prompt, int]:
        """The first prompt at or after `position` that fits, and the next position. Raises DataError if no prompt fits."""
        # A row may stand early in one epoch and late in the next, almost two epochs on.
        attempts = 2 * self._source.size - 1 if self._source.size else _MOST_SKIPS_IN_A_ROW
        for candidate in range(position, position + attempts):
            prompt = self._fitting(self._row(candidate))
            if prompt is not None:
                return prompt, candidate + 1
        if self.unusable and not self.too_long:
            raise DataError(f"data: none of {attempts} rows can become a prompt: {next(iter(self.unusable.values()))}")
        raise DataError(
            f"data.max_prompt_length: must be larger, none of {attempts} prompts in a row has at most "
            f"{self._max_prompt_length} tokens"
        )

    @property
    def size(self) -> int | None:
        """Number of rows; None when endless."""
        return self._source.size

    def at_row(self, row: int) -> Prompt:
        """The prompt of a row that was drawn before. Raises DataError when the data have changed since."""
        size = self._source.size or 0
        prompt = self._fitting(self._source.row(row)) if row < size else None
        if prompt is None:
            raise DataError(
                f"data: row {row} was drawn before and is no usable prompt any more ({size} rows): the data or "
                "data.max_prompt_length have changed since the run began; put them back, or begin a new run directory"
            )
        return prompt

    def fits(self, row: int) -> bool:
        """Whether the row becomes a prompt."""
        return self._fitting(self._source.row(row)) is not None

    def id_of(self, row: int) -> str:
        """The id of a row's prompt."""
        return self._source.row(row).prompt_id

    def place(self, position: int) -> tuple[int, int]:
        """(epoch, row of the source) that a position stands for."""
        return row_index(position, size=self._source.size, seed=self._seed, shuffle=self._shuffle)

    def take(self, n: int) -> list[Prompt]:
        """The first `n` prompts that fit; fewer when one epoch has fewer."""
        prompts: list[Prompt] = []
        for position in range(self._source.size or n + _MOST_SKIPS_IN_A_ROW):
            if len(prompts) == n:
                break
            row = self._row(position)
            if (prompt := self._fitting(row)) is not None:
                prompts.append(prompt)
                self.taken.append(question_key(row))
        return prompts

    def of_each_environment(self) -> list[Prompt]:
        """The first prompt that fits of each pair of data source and environment, an empty environment included.

        Looks at every row of files; an endless source has one of each.
        """
        too_long, found = self.too_long, dict[tuple[str, str], Prompt]()
        for index in range(self._source.size or 0):
            row = self._source.row(index)
            pair = (row.data_source, self._renderer.environment_of(row))
            if pair not in found and (prompt := self._fitting(row)) is not None:
                found[pair] = prompt
        self.too_long = too_long
        return [*found.values()] if self._source.size else [self.next(0)[0]]

    def shared_with(self, held_out: "PromptStream") -> int:
        """How many of the prompts that were taken from `held_out` are rows here.

        Looks at every row of files. An endless source holds prompts out by itself: 0.
        """
        wanted = set(held_out.taken)
        here = {
            key for index in range(self._source.size or 0) if (key := question_key(self._source.row(index))) in wanted
        }
        return sum(key in here for key in held_out.taken)

    def look_at_every_row(self) -> None:
        """Renders every row of a finite source, so that the counts of `describe` are those of the whole data."""
        self.too_long = 0
        for row in range(self._source.size or 0):
            prompt = self._fitting(self._source.row(row))
            if prompt is not None:
                self._keep_for_the_check(prompt)
        self._looked_at = self._source.size is not None

    def _keep_for_the_check(self, prompt: Prompt) -> None:
        """Keeps a few prompts of each data source, those whose ground truth no model writes apart."""
        odd = as_a_model_writes(prompt.ground_truth) != prompt.ground_truth
        kept = self.kept_for_the_check.setdefault((prompt.data_source, odd), [])
        if len(kept) < _KEPT_FOR_THE_CHECK:
            kept.append(prompt)

    def render(self, submitted: Mapping[str, str]) -> Prompt:
        """Renders a submitted prompt (see `parse_submitted`). Raises DataError, also for a prompt that is too long."""
        prompt = self._renderer.render(parse_submitted(submitted))
        if len(prompt.token_ids) > self._max_prompt_length:
            raise DataError(
                f"prompt: must have at most data.max_prompt_length = {self._max_prompt_length} tokens, "
                f"got {len(prompt.token_ids)}"
            )
        return prompt

    def describe(self) -> dict[str, str | int]:
        """Facts for the log at start, with the first rendered prompt. Raises DataError if no prompt fits."""
        too_long = self.too_long
        example, _ = self.next(0)
        self.too_long = too_long if self._looked_at else self.too_long
        return {
            **self._source.describe(),
            "example_text": example.text,
            "example_tokens": len(example.token_ids),
            "skipped_too_long": self.too_long,
            **({"skipped_unusable": len(self.unusable)} if self.unusable else {}),
        }

    def _row(self, position: int) -> PromptRow:
        return self._source.row(self.place(position)[1])

    def _fitting(self, row: PromptRow) -> Prompt | None:
        try:
            prompt = self._renderer.render(row)
        except Unusable as error:
            if row.prompt_id not in self.unusable:
                log.warning("row_skipped", reason=str(error))
                self.unusable[row.prompt_id] = str(error)
            return None
        if len(prompt.token_ids) > self._max_prompt_length:
            self.too_long += 1
            return None
        return prompt
