"""What a learner tells of a group's tokens: checked on the wire, written beside the group, read back as it was."""

import json
from pathlib import Path

import numpy as np
import pytest

from services.coordinator.storage.run_files import RunFiles
from services.coordinator.wire.messages import ZstdGroups
from services.coordinator.wire.token_figures import figures_from
from sluice.errors import DataError, InvalidRequest
from sluice.report.group_texts import group_on_disk, texts_on_disk
from sluice.report.sample_tokens import kept_group
from sluice.run_dir.token_figures import SAMPLE_TOKENS_FILE, TokenFigures, line_of, pack_figures
from sluice.v1 import coordinator_pb2 as pb
from tests.unit.report.ledger_cases import make_group


def message(*, log_ratios: list[float], entropies: list[float], group_id: str = "g") -> pb.TokenFigures:
    return pb.TokenFigures(
        group_id=group_id,
        log_ratios=np.array(log_ratios, "<f2").tobytes(),
        entropies=np.array(entropies, "<f2").tobytes(),
    )


def test_figures_cross_the_wire_and_those_that_no_token_has_are_refused() -> None:
    nan = float("nan")
    figures = figures_from(message(log_ratios=[0.25, nan], entropies=[1.5, nan]))
    assert (figures.group_id, figures.log_ratios[0], figures.entropies[0]) == ("g", 0.25, 1.5)
    assert np.isnan([figures.log_ratios[1], figures.entropies[1]]).all()
    for bad, why in (
        (message(log_ratios=[0.0], entropies=[]), "one log ratio and one entropy a token, got 1 and 0"),
        (message(log_ratios=[float("inf")], entropies=[0.0]), "example.log_ratios: must be finite"),
        (message(log_ratios=[0.0], entropies=[-1.0]), "example.entropies: must be >= 0, got -1"),
        (message(log_ratios=[0.0], entropies=[0.0], group_id=""), "example.group_id"),
        (pb.TokenFigures(group_id="g", log_ratios=b"x"), "must be a multiple of 2 bytes, got 1"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            figures_from(bad)
    assert np.frombuffer(pack_figures(np.array([1e9, np.inf])), "<f2")[0] == np.finfo(np.float16).max


async def test_a_group_outlives_its_batch_in_a_thinned_file(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, most_bytes=20_000)
    for step in range(100):
        group = make_group(step, 1.0, 0.0)
        figures = TokenFigures(group_id=group.group_id, log_ratios=np.full(8, 0.5), entropies=np.arange(8.0))
        line = line_of(step, group.group_id, payload=ZstdGroups().encode(group), figures=figures if step % 2 else None)
        await files.append_sample(line, name=SAMPLE_TOKENS_FILE)
    assert (tmp_path / SAMPLE_TOKENS_FILE).stat().st_size <= 22_000
    kept = kept_group(tmp_path, "run-0000099")
    assert kept is not None
    assert kept.figures is not None
    assert (kept.group.prompt.text, kept.figures.entropies.tolist()) == ("99+1=", [0, 1, 2, 3, 4, 5, 6, 7])
    assert texts_on_disk(tmp_path, group_id="run-0000099", step=99).prompt == "99+1="  # type: ignore[union-attr]
    first = kept_group(tmp_path, "run-0000000")
    assert first is not None
    assert first.figures is None
    assert group_on_disk(tmp_path, group_id="run-0000001", step=1) is None
    with (tmp_path / SAMPLE_TOKENS_FILE).open("a") as file:
        file.write(json.dumps({"step": 100, "group_id": "g", "group": "?"}, separators=(",", ":")) + "\n")
    with pytest.raises(DataError, match="the line of group g cannot be read"):
        kept_group(tmp_path, "g")
    with (tmp_path / SAMPLE_TOKENS_FILE).open("a") as file:
        file.write('{"step":99,"group_id":"run-0000099","group":"torn')
    assert kept_group(tmp_path, "run-0000099") is not None, "the line before the torn one"
