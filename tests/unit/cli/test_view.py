import io
import math
import re

import pytest
from rich.console import Console

from sluice.launch.view import LiveView, PlainView, make_view, render, step_line
from sluice.v1 import common_pb2
from sluice.v1 import coordinator_pb2 as pb


def version(number):
    return common_pb2.PolicyVersion(lineage="a", number=number)


def service(service_id, role, state, **facts):
    return pb.ServiceStatus(service_id=service_id, role=role, state=state, heartbeat_age_s=0.4, **facts)


def starting():
    return pb.GetStatusResponse(run_id="demo-1", state=pb.RUN_STATE_STARTING, total_steps=100)


def mid_run():
    return pb.GetStatusResponse(
        run_id="demo-1",
        state=pb.RUN_STATE_RUNNING,
        step=12,
        total_steps=100,
        train_wall_s=9.8,
        version=version(12),
        services=[
            service("rollout-0", pb.SERVICE_ROLE_ROLLOUT, pb.SERVICE_STATE_READY, running=96, capacity=128),
            service("rollout-1", pb.SERVICE_ROLE_ROLLOUT, pb.SERVICE_STATE_QUARANTINED, capacity=128),
            service("learner", pb.SERVICE_ROLE_LEARNER, pb.SERVICE_STATE_READY, version=version(12)),
        ],
        metrics={
            "reward/generated_acc": 0.52,
            "sampling/acceptance": 0.61,
            "queue/groups": 3,
            "queue/in_flight_groups": 41,
            "staleness/age_mean_steps": 0.9,
            "staleness/age_max_steps": 1,
            "rollout/generated_tokens_per_s": 9812,
            "step/wall_s": 0.71,
        },
        evaluations=[
            pb.Evaluation(version=version(0), avg_at_n=0.31, greedy=0.72, pass_at_n=0.8, n=8, prompts=256, wall_s=3),
            pb.Evaluation(version=version(10), avg_at_n=0.47, greedy=0.84, pass_at_n=0.88, n=8, prompts=64, wall_s=1),
        ],
    )


def ended(state, reason=""):
    status = mid_run()
    status.state, status.reason = state, reason
    return status


def picture(status, *, width=100, notes=()):
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(render(status, notes=notes))
    text = console.export_text()
    assert all(len(line) <= width for line in text.splitlines())
    return text


# --- the panel ---


def test_how_full_the_devices_are_is_shown_where_it_is_known():
    assert "KV cache" not in picture(mid_run())
    status = mid_run()
    for name, value in {"rollout/kv_use": 0.87, "rollout/preemptions": 3, "learner/peak_memory_bytes": 61.2e9}.items():
        status.metrics[name] = value
    text = picture(status, width=140)
    assert "KV cache" in text
    assert ".87" in text
    assert "61.2G" in text


def test_a_run_that_just_starts_shows_dashes_and_no_invented_numbers():
    text = picture(starting())
    for part in ("starting", "step 0/100", "eta –", "– → –", "–/–"):
        assert part in text
    assert "nan" not in text


def test_the_panel_of_a_run_in_the_middle_shows_all_of_it():
    text = picture(mid_run())
    for part in (
        "running",
        "12/100",
        "0:10",
        "eta 1:12",
        ".31 → .47",
        ".72 → .84",
        ".52",
        ".61",
        "41",
        "0.9/1",
        "9.8k",
    ):
        assert part in text, part
    for part in ("rollout-0", "96/128", "quarantined", "v12", "0.4 s ago"):
        assert part in text, part


def test_the_ledger_is_shown_in_groups_and_tokens_and_an_open_one_is_not_hidden():
    status = mid_run()
    status.ledger.MergeFrom(
        pb.Ledger(admitted=90, trained=60, filtered_all_wrong=7, generated_tokens=9000, lost_tokens=12, closed=True)
    )
    assert "90 admitted, 60 trained, 7 without signal; 9.0k tokens, 0 trained, 12 lost; closed" in picture(status)
    status.ledger.closed = False
    assert "NOT CLOSED" in picture(status)


def test_services_in_trouble_come_first():
    text = picture(mid_run())
    assert text.index("rollout-1") < text.index("rollout-0")


def test_the_nodes_of_services_are_shown_where_a_launcher_has_told_them():
    status = mid_run()
    assert "  node" not in picture(status)
    status.services[0].node = "n2"
    assert re.search(r"last seen +node", picture(status))
    assert re.search(rf"{status.services[0].service_id} .* n2", picture(status))


def test_what_travelled_to_a_rollout_from_whom_and_how_far_it_is_behind_are_shown():
    status = mid_run()
    assert "newest push" not in picture(status, width=140)
    first, second = status.services[:2]
    first.version.CopyFrom(version(11))
    first.source, first.push_ms, first.encoding, first.sent_bytes = "rollout-7", 81.4, "delta", 2_830_000
    second.source, second.push_ms, second.sent_bytes = "learner-0", 900.0, 269_000_000  # a file
    text = picture(status, width=140)
    assert re.search(r"last seen +newest push", text)
    assert re.search(r"rollout-0 .* v11 \(1 behind\) .* delta 2\.83 MB, rollout-7, 81(\.4)? ms", text)
    assert re.search(r"  269 MB, learner-0, 900 ms", text)


def test_a_large_fleet_is_cut_and_the_rest_counted():
    status = mid_run()
    status.services.extend(
        service(f"rollout-{k}", pb.SERVICE_ROLE_ROLLOUT, pb.SERVICE_STATE_READY) for k in range(2, 256)
    )
    text = picture(status)
    assert "and 245 more" in text
    assert len(text.splitlines()) < 30


def test_a_finished_run_has_no_time_left():
    status = ended(pb.RUN_STATE_FINISHED)
    status.step = 100
    text = picture(status)
    assert "finished" in text
    assert "100/100" in text
    assert "eta –" in text


def test_a_failed_run_says_why():
    text = picture(ended(pb.RUN_STATE_FAILED, "learner: died 4 times [limit 3]"))
    assert "failed" in text
    assert "learner: died 4 times [limit 3]" in text


def test_the_panel_fits_a_narrow_terminal():
    assert "12/100" in picture(mid_run(), width=64)


def test_not_a_number_is_shown_as_a_dash():
    status = mid_run()
    status.metrics["reward/generated_acc"] = math.nan
    status.evaluations[1].greedy = math.nan
    text = picture(status)
    assert ".72 → –" in text
    assert "nan" not in text


def test_notes_are_neither_markup_nor_terminal_control():
    assert "[bold]x[/] ␛[2J" in picture(mid_run(), notes=["[bold]x[/] \x1b[2J"])


# --- the live view ---


def test_the_live_view_keeps_the_last_warnings_and_leaves_its_last_picture():
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    view = LiveView(console)
    for k in range(6):
        view.event(pb.WatchEventsResponse(kind="warning", time_s=1.0, message=f"number {k}"))
    view.event(pb.WatchEventsResponse(kind="weights_pushed", message="comes with every step"))
    view.update(mid_run())
    view.close()
    text = console.export_text()
    assert "number 5" in text
    assert "number 1" not in text
    assert "comes with every step" not in text


def test_a_live_view_that_is_closed_before_its_first_status_prints_nothing():
    console = Console(record=True, file=io.StringIO(), force_terminal=True)
    LiveView(console).close()
    assert console.export_text().strip() == ""


# --- plain lines ---


def plain(*given):
    stream = io.StringIO()
    view = PlainView(stream)
    for item in given:
        if isinstance(item, pb.GetStatusResponse):
            view.update(item)
        elif isinstance(item, pb.WatchEventsResponse):
            view.event(item)
        else:
            view.message(item)
    view.close()
    return stream.getvalue().splitlines()


def step_event(step, **values):
    return pb.WatchEventsResponse(kind="step_trained", values={"step": step, **values})


def test_the_line_of_a_step_reads_like_this():
    assert step_line(mid_run()) == (
        "step 12/100  acc(held-out) .31→.47  pass .52  accept .61  queue 3  age 0.9/1  9.8k tok/s  eta 1:12"
    )


def test_a_status_prints_the_state_the_evaluations_and_the_step_once():
    assert plain(mid_run(), mid_run()) == [
        "run running",
        "evaluated v0  avg@8 .31  pass@8 .80  greedy .72  256 prompts in 0:03",
        "evaluated v10  avg@8 .47  pass@8 .88  greedy .84  64 prompts in 0:01",
        step_line(mid_run()),
    ]


def test_evaluations_are_told_once_each_when_the_status_has_only_the_newest():
    statuses = [mid_run() for _ in range(4)]
    for number, status in enumerate(statuses):
        del status.evaluations[1:]
        status.evaluations.extend(pb.Evaluation(version=version(number + place), n=8) for place in (1, 2))
    told = [line.split()[1] for line in plain(*statuses) if line.startswith("evaluated")]
    assert told == ["v0", "v1", "v2", "v3", "v4", "v5"]


def test_steps_faster_than_the_status_each_get_their_line():
    events = [step_event(12, **{"reward/generated_acc": 0.55}), step_event(13)]
    lines = plain(mid_run(), *events)
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["12/100", "13/100", "14/100"]
    assert "pass .55" in lines[-2]


def test_a_step_that_the_status_has_told_is_not_told_again_by_its_event():
    lines = plain(mid_run(), step_event(11))
    assert sum(line.startswith("step") for line in lines) == 1


def test_steps_that_come_again_after_a_rollback_get_their_lines_again():
    back = mid_run()
    back.step = 3
    del back.evaluations[1:]
    back.rollbacks.add(to=3, lineage="b", reached=12)
    lines = plain(mid_run(), back, step_event(3), mid_run_again(back))
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["12/100", "4/100", "5/100"]
    assert [line.split()[1] for line in lines if line.startswith("evaluated")] == ["v0", "v10", "v4"]


def mid_run_again(back):
    status = pb.GetStatusResponse()
    status.CopyFrom(back)
    status.step = 5
    status.evaluations.add(version=version(4), n=8)
    return status


def test_a_start_without_data_prints_only_the_state():
    assert plain(starting()) == ["run starting"]


def test_a_failure_is_printed_with_its_reason():
    lines = plain(mid_run(), ended(pb.RUN_STATE_STARVED, "acceptance .01: 98% all wrong"))
    assert lines[-1] == "run starved: acceptance .01: 98% all wrong"


@pytest.mark.parametrize("kind", ["service_ready", "service_lost", "scale", "warning", "added_later"])
def test_changes_of_services_and_warnings_get_a_line(kind):
    assert plain(pb.WatchEventsResponse(kind=kind, message="rollout-1: x")) == [f"{kind}: rollout-1: x"]


def test_an_event_without_a_message_shows_its_labels():
    event = pb.WatchEventsResponse(kind="scale", labels={"role": "rollout", "replicas": "2"})
    assert plain(event) == ["scale: replicas=2, role=rollout"]


def test_a_plain_line_is_one_line_without_escape_sequences():
    lines = plain("two\nlines", pb.WatchEventsResponse(kind="warning", message="\x1b[31mred"))
    assert lines == ["two | lines", "warning: ␛[31mred"]


def test_a_stream_that_cannot_write_an_arrow_gets_a_question_mark():
    raw = io.BytesIO()
    view = PlainView(io.TextIOWrapper(raw, encoding="ascii"))
    view.update(mid_run())
    assert b"acc(held-out) .31?.47" in raw.getvalue()


def test_a_terminal_gets_the_panel_and_everything_else_plain_lines():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert isinstance(make_view(Terminal(), plain=False), LiveView)
    assert isinstance(make_view(Terminal(), plain=True), PlainView)
    assert isinstance(make_view(io.StringIO(), plain=False), PlainView)


def test_long_waits_are_named_longest_first_and_short_ones_are_not() -> None:
    status = mid_run()
    status.waits.extend(
        [
            pb.Wait(who="batch 12", why="waits for 3 of 20 groups", since_s=4.9),
            pb.Wait(who="learner", why="trains step 11", since_s=80),
            pb.Wait(who="rollout-1", why="quarantined: [bold]digest\x1b differs", since_s=200),
        ]
    )
    text = picture(status)
    assert "batch 12" not in text
    assert "learner trains step 11, since 1:20" in text
    assert "quarantined: [bold]digest" in text
    assert "\x1b" not in text
    assert text.index("rollout-1") < text.index("learner trains")
