"""`sluice ledger` and `sluice explain` on the files of a run."""

import asyncio
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.coordinator.state.group import QueuedGroup
from services.coordinator.state.ledger_row import PARTS, ledger_row, open_info, queued_row, reopened
from services.coordinator.storage.run_files import RunFiles
from sluice.cli.main import main
from sluice.report.group_page import advantages, group_page
from sluice.report.ledger_page import account_of_files, ledger_page
from sluice.report.ledger_tables import find_row, nearest_ids, select
from sluice.run_dir.batch_file import frames, payload_at, payloads_of
from sluice.run_dir.ledger_parts import OpenPart, damage_skipped, open_parts
from sluice.run_dir.ledger_schema import LEDGER_SCHEMA
from tests.unit.coordinator.fakes import make_config
from tests.unit.docs.pages import ROOT, blocks
from tests.unit.report.ledger_cases import make_group, write_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("ledger"))


def explained(run_dir: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["explain", *words, "--run-dir", str(run_dir)]) == 0
    return capsys.readouterr().out


def test_advantages_are_those_that_the_learner_has() -> None:
    scores = ((1.0, 0.5), (0.0, 0.0), (0.0, 0.0), (0.0, -0.5))
    row = {"term": "trained", "completions": [{"acc": acc, "shaped_reward": shaped} for acc, shaped in scores]}
    config = make_config(rollout__n=4, algorithm__norm_adv_by_std_in_grpo=False)
    assert advantages(row, config) == [0.5, 0.0, 0.0, -0.5]
    maxrl = make_config(rollout__n=4, algorithm__adv_estimator="maxrl")
    assert advantages(row, maxrl) == pytest.approx([3.0, -1.0, -1.0, -1.0], abs=1e-4)
    assert advantages(row | {"term": "stale"}, maxrl) == [None] * 4


# --- the ledger ---


def test_every_end_is_a_line_in_groups_and_tokens_and_the_ledger_is_closed(run_dir, capsys) -> None:
    assert main(["ledger", "--run-dir", str(run_dir)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["admitted,", "received", "7", "53"]
    assert ["trained", "2", "16"] in lines
    assert ["failed:reward_timeout", "1", "8"] in lines
    assert ["lost", "–", "5"] in lines
    assert lines[-1][0] == "closed:"


def test_a_group_without_a_row_keeps_the_ledger_open_and_is_counted(run_dir, tmp_path) -> None:
    parts = sorted((run_dir / "ledger").iterdir())
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / parts[1].name).write_bytes(parts[1].read_bytes())
    account = account_of_files(tmp_path)
    assert not account.closed
    assert "4 groups have no row yet" in ledger_page(account)


@pytest.mark.parametrize("damage", ["cut short", "emptied", "a flipped byte", "no parquet at all"])
def test_a_damaged_file_is_named_and_the_rows_of_the_others_are_there(run_dir, tmp_path, capsys, damage) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    first, *others = sorted((tmp_path / "run" / "ledger").iterdir())
    body = bytearray(first.read_bytes())
    body[40] ^= 0xFF
    bad = {"cut short": body[:200], "emptied": b"", "a flipped byte": body, "no parquet at all": b"x" * 4096}[damage]
    first.write_bytes(bytes(bad))
    ids = [name for path in others for name in pq.read_table(path)["group_id"].to_pylist()]
    assert all(find_row(tmp_path / "run", name) for name in ids)
    columns, rows = select(tmp_path / "run", "SELECT group_id FROM groups ORDER BY group_id")
    asyncio.run(RunFiles(tmp_path / "run").mark_rolled_back(since=0, fault="back"))
    left = [name for part in open_parts(tmp_path / "run") for name in read_ids(part)]
    assert (columns, [name for (name,) in rows]) == (["group_id"], sorted(ids))
    assert sorted(left) == sorted(ids)
    capsys.readouterr()
    assert main(["ledger", "--run-dir", str(tmp_path / "run")]) in (0, 1)
    assert first.name in capsys.readouterr().err


def test_a_token_of_an_attempt_that_is_in_no_sample_keeps_the_ledger_open(run_dir, tmp_path) -> None:
    (tmp_path / "ledger").mkdir()
    for part in (run_dir / "ledger").iterdir():
        rows = pq.read_table(part).to_pylist()
        for row in rows:
            row["lost_tokens"] = 0
        table = pq.read_table(part).from_pylist(rows, schema=LEDGER_SCHEMA)
        pq.write_table(table, tmp_path / "ledger" / part.name)
    account = account_of_files(tmp_path)
    assert (account.received_tokens, sum(account.tokens.values()), account.closed) == (53, 48, False)


def test_a_file_with_fewer_columns_is_read_with_the_rest_absent(run_dir, tmp_path) -> None:
    (tmp_path / "ledger").mkdir()
    old = ["group_id", "admission", "prompt_id", "attempt", "term", "step", "oldest_version", "tokens"]
    part = run_dir / "ledger" / "part-000000000000.parquet"
    pq.write_table(pq.read_table(part, columns=old), tmp_path / "ledger" / part.name)
    assert account_of_files(tmp_path).closed
    assert select(tmp_path, "SELECT fault, lost_tokens FROM groups LIMIT 1")[1] == [(None, None)]


def read_ids(part: OpenPart) -> list[str]:
    with damage_skipped(part.path):
        return [name for batch in part.batches(["group_id"]) for name in batch.column(0).to_pylist()]
    return []


def without_parts(run_dir: Path, folder: Path) -> Path:
    """The ledger as it was written before samples had `parts`."""
    (folder / "ledger").mkdir()
    place = LEDGER_SCHEMA.get_field_index("completions")
    fields = [field for field in LEDGER_SCHEMA.field(place).type.value_type if field.name != "parts"]
    older = LEDGER_SCHEMA.set(place, pa.field("completions", pa.list_(pa.struct(fields))))
    for part in (run_dir / "ledger").iterdir():
        rows = pq.read_table(part).to_pylist()
        pq.write_table(pa.Table.from_pylist(rows, schema=older), folder / "ledger" / part.name)
    (folder / "config.yaml").write_bytes((run_dir / "config.yaml").read_bytes())
    return folder


def test_a_file_of_before_the_parts_is_read_as_it_is(run_dir, tmp_path, capsys) -> None:
    older = without_parts(run_dir, tmp_path)
    assert account_of_files(older).closed
    asked = "SELECT extracted, grader, detail, parts FROM samples WHERE group_id = 'run-0000000' ORDER BY sample"
    assert select(older, asked)[1] == [("42", "fake 1", "", None), ("", "fake 1", "", None)]
    assert "parts of" not in explained(older, capsys, "0")


async def test_an_older_file_keeps_its_columns_through_a_rollback(run_dir, tmp_path) -> None:
    older = without_parts(run_dir, tmp_path)
    await RunFiles(older).mark_rolled_back(since=3, fault="rolled back")
    assert select(older, "SELECT term FROM groups WHERE admission = 0")[1] == [("rollback",)]


@pytest.mark.parametrize("sql", blocks(ROOT / "docs" / "ledger.md", "sql"))
def test_the_queries_in_the_documentation_find_something(run_dir, capsys, sql: str) -> None:
    assert main(["ledger", "--run-dir", str(run_dir), "--sql", sql]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 1


def test_there_are_four_queries_in_the_documentation() -> None:
    assert len(blocks(ROOT / "docs" / "ledger.md", "sql")) == 4


def test_every_column_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "ledger.md").read_text(encoding="utf-8")
    lists = [field for field in LEDGER_SCHEMA if field.name in ("attempts", "completions")]
    columns = LEDGER_SCHEMA.names + [field.name for listed in lists for field in listed.type.value_type]
    assert [name for name in columns if f"`{name}`" not in page] == []


def test_a_row_has_exactly_the_columns_of_the_files() -> None:
    row = ledger_row(make_group(0, 1.0, 0.0), term="filtered_other")
    assert list(row) == LEDGER_SCHEMA.names
    for name in ("attempts", "completions"):
        assert list(row[name][0]) == [field.name for field in LEDGER_SCHEMA.field(name).type.value_type]


@pytest.mark.parametrize("sql", ["SELECT nothing FROM groups", "DROP TABLE groups", "SELECT 1; SELECT 2"])
def test_sql_that_cannot_be_answered_is_bad_usage_and_the_tables_are_named(run_dir, capsys, sql: str) -> None:
    assert main(["ledger", "--run-dir", str(run_dir), "--sql", sql]) == 2
    assert "groups(group_id, admission" in capsys.readouterr().err


def test_sql_without_a_run_directory_is_bad_usage(capsys) -> None:
    assert main(["ledger", "--sql", "SELECT 1"]) == 2
    assert "must come with --run-dir" in capsys.readouterr().err


def test_a_run_without_a_ledger_is_named(tmp_path, capsys) -> None:
    assert main(["ledger", "--run-dir", str(tmp_path / "absent")]) == 1
    assert "no such run directory" in capsys.readouterr().err
    assert main(["ledger", "--run-dir", str(tmp_path)]) == 1
    assert "has no ledger/*.parquet yet" in capsys.readouterr().err


# --- one group ---


def test_the_life_of_a_trained_group_is_told_from_its_prompt_to_its_step(run_dir, capsys) -> None:
    page = explained(run_dir, capsys, "run-0000000")
    for part in (
        "group run-0000000: trained in step 3",
        "sums, row 40 of the data, epoch 0 (id p0)",
        "as number 0, at rank 0 (live groups before it) while batch 0 was next",
        "rollout-9 at version 0, 1 s: 1 of 2 samples, 5 tokens; repeated or given up because: rollout-9: connection reset",
        "rollout-0 at version 2, 0.5 s: 2 of 2 samples, 8 tokens",
        "samples: 8 tokens, and 5 received and thrown away",
        "a2:1-1, a3:2-4",
        "verdict: kept, its samples differ in acc",
        "step 3, which makes version 4; its oldest token is of version 2, age 1 of at most 1 steps",
    ):
        assert part in page, part
    samples = [line.split() for line in page.splitlines() if "a2:" in line]
    assert samples[0] == ["0", "4", "stop", "1", "1", "-0.25", "0.75", "+0.707", "a2:1-4", "42"]
    assert samples[1][:8] == ["1", "4", "length", "0", "0", "0", "0", "-0.707"]
    assert "completion of sample" not in page


def test_the_named_components_of_a_score_are_shown_sample_by_sample(run_dir, capsys) -> None:
    lines = [line.split() for line in explained(run_dir, capsys, "0").splitlines()]
    title = lines.index(["parts", "of", "the", "raw", "scores,", "unweighted"])
    assert lines[title + 1 : title + 4] == [["#", "brevity", "right"], ["0", "0.25", "1"], ["1", "–", "–"]]
    assert "parts of" not in explained(run_dir, capsys, "1")


def test_a_row_keeps_a_bounded_number_of_components(capsys) -> None:
    group = make_group(0, 1.0)
    group.rewards = [replace(group.rewards[0], parts={f"p{number:04}": float(number) for number in range(1000)})]
    kept = json.loads(ledger_row(group, term="queued")["completions"][0]["parts"])
    assert kept == {f"p{number:04}": float(number) for number in range(PARTS)}


def test_texts_are_shown_when_asked_for_and_while_the_batch_is_kept(run_dir, capsys) -> None:
    page = explained(run_dir, capsys, "0", "--text")
    assert "prompt text\n  0+1=" in page
    assert "completion 1\n  completion of sample 1" in page
    assert "batches/step-000002.groups was removed" in explained(run_dir, capsys, "1", "--text")
    assert "not on disk" in explained(run_dir, capsys, "3", "--text")


def test_texts_come_from_the_samples_file_when_the_batch_is_gone(run_dir, capsys) -> None:
    shown = {"text": "1+1=2", "raw_score": 1.0, "shaped_reward": 1.0, "acc": 1.0, "finish_reason": "stop", "tokens": 4}
    line = {"group_id": "run-0000001", "step": 2, "prompt": "1+1=", "samples": [shown]}
    path = run_dir / "samples.jsonl"
    path.write_text(json.dumps(line) + "\n")
    assert "completion 0\n  1+1=2" in explained(run_dir, capsys, "1", "--text")
    path.unlink()


@pytest.mark.parametrize(
    ("group", "verdict"),
    [
        (
            "2",
            "verdict: kept, its samples differ in acc (dynamic sampling); then too old: its oldest token is of version 0",
        ),
        ("3", "verdict: dropped, every sample is right"),
        ("4", "verdict: dropped, every sample is wrong"),
        ("5", "verdict: none, it failed (reward_timeout): the grader ran longer than 5 s"),
        ("6", "verdict: none, the run ended before it had one"),
    ],
)
def test_every_other_end_is_told_with_its_reason(run_dir, capsys, group: str, verdict: str) -> None:
    assert verdict in explained(run_dir, capsys, group)


def test_a_group_that_was_open_when_its_coordinator_died_keeps_its_admission_and_says_what_was_lost() -> None:
    before = make_group(0, 1.0, 0.0)
    after = reopened(before.group_id, json.loads(json.dumps(open_info(before))), before.prompt)
    after.attempts += before.attempts
    assert (after.admitted, after.admission, after.response_tokens) == (before.admitted, 0, 0)
    page = group_page(ledger_row(after, term="pending", ended=False), config=make_config())
    assert "the coordinator was started again: what it held of the group was lost" in page
    assert "1  2023-" in page
    assert "verdict: not yet, it waits for a rollout" in page


def test_a_row_that_was_repaired_from_little_says_what_is_not_known(tmp_path) -> None:
    accepted = QueuedGroup(
        group_id="run-0000000",
        admission=0,
        oldest_version=-1,
        tokens=0,
        payload_bytes=0,
        prompt_id="",
        attempt=0,
        shaped_mean=0.0,
    )
    row = dict.fromkeys(LEDGER_SCHEMA.names) | queued_row(accepted, term="trained", step=4) | {"fault": "repaired"}
    page = group_page(row, config=make_config())
    for part in (
        "place in the data not recorded",
        "attempts: not recorded",
        "its age is not recorded",
        "note: repaired",
    ):
        assert part in page, part


def test_samples_that_were_not_graded_have_no_scores(run_dir, capsys) -> None:
    row = find_row(run_dir, "5")
    assert row is not None
    assert [completion["raw_score"] for completion in row["completions"]] == [None, None]
    assert "timeout" in explained(run_dir, capsys, "5")


def test_a_group_that_is_not_there_is_answered_with_the_nearest_ids(run_dir, capsys) -> None:
    assert nearest_ids(run_dir, "run-0000009") == ["run-0000006", "run-0000005", "run-0000004"]
    assert main(["explain", "run-0000009", "--run-dir", str(run_dir)]) == 1
    error = capsys.readouterr().err
    assert "the nearest are run-0000006, run-0000005, run-0000004" in error
    assert main(["explain", "", "--run-dir", str(run_dir)]) == 1
    assert main(["explain", "9" * 40, "--run-dir", str(run_dir)]) == 1


def test_control_characters_from_outside_do_not_reach_the_terminal(run_dir, tmp_path, capsys) -> None:
    group = make_group(0, 0.0, 0.0, status="error")
    group.fault = "\x1b[2Jgone"
    path = tmp_path / "ledger" / "part-000000000000.parquet"
    path.parent.mkdir()
    row = ledger_row(group, term="failed:reward_error")
    pq.write_table(pq.read_table(run_dir / "ledger").from_pylist([row], schema=LEDGER_SCHEMA), path)
    (tmp_path / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    assert "\x1b" not in explained(tmp_path, capsys, "0")
    assert main(["ledger", "--run-dir", str(tmp_path), "--sql", "SELECT fault FROM groups"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_batch_file_is_read_as_it_is_framed() -> None:
    payloads = [b"", b"a", b"bc" * 300]
    body = b"".join(frames(payloads))
    assert payloads_of(body) == payloads
    assert [payload_at(io.BytesIO(body), index) for index in range(3)] == payloads
    with pytest.raises(IndexError):
        payload_at(io.BytesIO(body), 3)
