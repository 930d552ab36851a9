"""`sluice rollback`: which step is meant, what is shown, and that nobody is asked where nobody answers."""

import io

import pytest

from sluice.cli.main import main
from sluice.cli.rollback import rollback_page
from sluice.v1 import coordinator_pb2 as pb


def test_the_page_says_what_is_given_up() -> None:
    account = pb.RollbackResponse(
        to=300,
        reached=340,
        groups={"trained": 640, "assigned": 16, "queued": 3, "open": 1},
        tokens={"trained": 9000, "assigned": 200, "queued": 30, "open": 4},
        checkpoints=[320, 340],
    )
    assert rollback_page(account).splitlines() == [
        "back from step 340 to step 300 gives up",
        "  steps        300 to 339: 40, and their evaluations",
        "  groups       660: 640 trained, 16 assigned, 3 queued, 1 open",
        "  tokens       9234",
        "  checkpoints  step-320, step-340 (set aside until the run has come as far again)",
    ]
    assert "  checkpoints  none\n" in rollback_page(pb.RollbackResponse(to=1, reached=2)) + "\n"


@pytest.mark.parametrize("text", ["step-", "-3", "step-3x", "9" * 30])
def test_a_step_is_named_like_its_checkpoint(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["rollback", f"--to={text}", "--yes"])
    assert f"--to: must be like step-300, got {text!r}" in capsys.readouterr().err


def test_without_a_terminal_it_has_to_be_said_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["rollback", "--to", "step-3"]) == 2
    assert "--yes: must be given where nobody can be asked" in capsys.readouterr().err
