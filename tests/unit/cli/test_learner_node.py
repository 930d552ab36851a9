"""The line that `sluice up` prints for the learner's other machines, and what `sluice learner-node` makes of it."""

import shlex
from collections.abc import Sequence
from typing import Any

import pytest

import sluice.launch.learner_node
from sluice.cli.main import main
from sluice.config.schema import Config
from sluice.launch.commands import learner_node_line, service_command

CONFIG = Config.model_validate(
    {
        "model": {"path": "m"},
        "data": {"train_files": ["x.jsonl"]},
        "launch": {
            "learner_nnodes": 3,
            "learner_nproc_per_node": 4,
            "learner_rdzv_endpoint": "10.0.0.1:29400",
            "ready_timeout_s": 77,
        },
    }
)


def _flags(words: Sequence[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def test_the_printed_line_leads_to_the_meeting_that_the_first_machine_waits_at(monkeypatch: pytest.MonkeyPatch) -> None:
    stayed: list[Sequence[str]] = []

    async def stay(arguments: Sequence[str], **_: Any) -> int:
        stayed.append(arguments)
        return 0

    monkeypatch.setattr(sluice.launch.learner_node, "stay", stay)
    program, *words = shlex.split(learner_node_line(CONFIG, node_rank=2, run_id="a run"))
    assert (program, main(words)) == ("sluice", 0)
    first = service_command(CONFIG, "learner", index=0, coordinator="c:1", run_id="a run").argv
    ours = first[first.index("services.learner.distributed.node") + 1 : first.index("--")]
    assert _flags(stayed[0]) == _flags(ours) | {"--node-rank": "2"}
    assert _flags(ours) == {
        "--rdzv-endpoint": "10.0.0.1:29400",
        "--rdzv-id": "a run",
        "--nnodes": "3",
        "--node-rank": "0",
        "--timeout-s": "77",
        "--nproc-per-node": "4",
    }


@pytest.mark.parametrize("rank", ["0", "2"])
def test_a_node_rank_that_no_further_machine_can_have_is_refused(rank: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["learner-node", "--rdzv-endpoint", "h:1", "--rdzv-id", "r", "--nnodes", "2", "--node-rank", rank]
    assert main(words) == 2
    assert f"--node-rank: must be 1 to 1 with --nnodes 2, got {rank}" in capsys.readouterr().err
