"""The pages that programs make are current, and hold what the outside contract promises."""

import re

from scripts import api_docs, grader_table
from sluice.config import docs as config_docs
from tests.unit.docs.pages import ROOT, in_backticks

PROMISED = {
    "CoordinatorService": {
        *(
            "GetStatus",
            "WatchEvents",
            "Pause",
            "Resume",
            "Drain",
            "Stop",
            "Scale",
            "ReportPlaces",
            "SaveCheckpoint",
            "Evaluate",
        ),
        *("SubmitPrompts", "ListGroups", "GetGroup", "GetLedger", "GetConfig", "Rollback"),
        *("Register", "Heartbeat", "GetBatch", "CommitStep", "CommitCheckpoint", "MeetLearner"),
    },
    "RolloutService": {
        *("Generate", "Abort", "GetInfo", "JoinEpoch", "ReceiveWeights", "ApplyWeights", "OpenTransfer", "Drain"),
    },
    "RewardService": {"Score", "ListGraders"},
    "LearnerService": {"GetInfo", "OpenTransfer", "SaveCheckpoint", "Export"},
    "EnvironmentService": {"ListEnvironments", "Open", "Step", "Close"},
    "WeightService": {"FetchWeights"},
}
"""What scripts may rely on within sluice.v1: nothing here ever goes away."""

STREAMS = {"WatchEvents", "GetBatch", "Generate", "FetchWeights"}

ROLLOUT_STATES = ("REGISTERED", "SYNCING", "READY", "DRAINING", "QUARANTINED", "LOST")


def test_the_configuration_page_is_what_its_module_prints() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == config_docs.render_markdown()


def test_every_key_says_what_it_means() -> None:
    assert [key for key, info in config_docs.leaves() if not info.description] == []


def test_the_api_page_is_what_its_script_writes() -> None:
    assert api_docs.PAGE.read_text(encoding="utf-8") == api_docs.render_markdown()


def test_the_tables_of_graders_are_what_the_script_writes() -> None:
    text = grader_table.PAGE.read_text(encoding="utf-8")
    assert text == grader_table.page(text)


def test_the_promised_rpcs_are_there_and_no_others_go_unnoticed() -> None:
    services = {service.name: service for file in api_docs.read_protos() for service in file.service}
    assert {name: {method.name for method in service.method} for name, service in services.items()} == PROMISED
    streaming = {m.name for service in services.values() for m in service.method if m.server_streaming}
    assert streaming == STREAMS


def test_the_api_page_has_a_row_for_every_rpc_and_a_heading_for_every_message() -> None:
    page = api_docs.PAGE.read_text(encoding="utf-8")
    assert {rpc for rpcs in PROMISED.values() for rpc in rpcs} <= set(in_backticks(api_docs.PAGE))
    headings = set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
    messages = {message.name for file in api_docs.read_protos() for message in file.message_type}
    assert messages <= headings


def test_the_states_of_a_rollout_are_those_promised() -> None:
    states = [
        value.name.removeprefix("SERVICE_STATE_")
        for file in api_docs.read_protos()
        for enum in file.enum_type
        if enum.name == "ServiceState"
        for value in enum.value
    ]
    assert states == ["UNSPECIFIED", *ROLLOUT_STATES]
