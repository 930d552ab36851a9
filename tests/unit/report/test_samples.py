import io
import json

import pytest
from rich.console import Console

from sluice.report.samples import print_samples, read_samples

SAMPLE = {
    "text": "7+0=07#617",
    "raw_score": 1.0,
    "shaped_reward": 0.75,
    "acc": 1.0,
    "finish_reason": "stop",
    "tokens": 11,
}


def write_groups(run_dir, *, count=1, prompt="37+580=", **changes):
    records = [
        {"group_id": f"g{k}", "step": k, "prompt": prompt, "samples": [SAMPLE | changes] * 3} for k in range(count)
    ]
    (run_dir / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def shown(run_dir, *, groups_shown=3, samples_shown=2):
    console = Console(record=True, width=100, file=io.StringIO())
    print_samples(console, read_samples(run_dir), groups_shown=groups_shown, samples_shown=samples_shown)
    return console.export_text()


def test_prompt_completion_and_every_fact_of_a_sample_are_shown(tmp_path):
    write_groups(tmp_path)
    text = shown(tmp_path)
    for part in ("step 0", "g0", "37+580=", "7+0=07#617", "0.75", "stop", "11"):
        assert part in text


def test_only_the_first_samples_of_a_group_are_shown(tmp_path):
    write_groups(tmp_path)
    assert shown(tmp_path, samples_shown=2).count("7+0=07#617") == 2


def test_shown_groups_are_spread_over_the_run_with_both_ends(tmp_path):
    write_groups(tmp_path, count=11)
    text = shown(tmp_path, groups_shown=3)
    assert [k for k in range(11) if f"group g{k} " in text] == [0, 5, 10]


def test_a_completion_is_neither_markup_nor_terminal_control(tmp_path):
    write_groups(tmp_path, text="[bold]x[/bold] [/nothing] \x1b[2J", prompt="[red]p")
    text = shown(tmp_path)
    assert "[bold]x[/bold] [/nothing] ␛[2J" in text
    assert "[red]p" in text


def test_a_run_without_samples_says_so(tmp_path):
    assert "no samples" in shown(tmp_path)


def test_a_group_without_a_field_is_refused_by_name(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"group_id": "g7", "step": 1, "samples": []}\n')
    with pytest.raises(ValueError, match="group 'g7' lacks the field 'prompt'"):
        read_samples(tmp_path)
