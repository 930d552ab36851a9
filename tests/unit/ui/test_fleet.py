"""What the view Fleet says of a service: its GPUs, what it does now, its newest push."""

from sluice.ui.views.fleet import _cells
from sluice.v1 import coordinator_pb2 as pb


def test_gpus_are_named_with_their_number_a_cpu_is_one_and_who_has_not_told_has_a_dash() -> None:
    gpus = pb.Gpus(name="NVIDIA H200", count=2, memory_bytes=150_000_000_000)
    uuid = "GPU-01234567-89ab-cdef-0123-456789abcdef"
    assert _cells(pb.ServiceStatus(gpus=gpus, device=uuid))[8] == "2 × NVIDIA H200, 150 GB each, GPU-0123456…"
    assert _cells(pb.ServiceStatus(gpus=pb.Gpus(), device="cpu"))[8] == "cpu"
    assert _cells(pb.ServiceStatus())[8] == "–"


def test_each_role_says_what_it_does_now_with_the_unit() -> None:
    rollout = pb.ServiceStatus(role=pb.SERVICE_ROLE_ROLLOUT, running=180, capacity=1256)
    assert _cells(rollout)[4] == "180 of 1,256 samples"
    assert _cells(pb.ServiceStatus(role=pb.SERVICE_ROLE_REWARD, running=1, capacity=8))[4] == "1 of 8 groups"
    assert _cells(pb.ServiceStatus(role=pb.SERVICE_ROLE_ENVIRONMENT, capacity=4))[4] == "0 of 4 episodes"
    learner = pb.ServiceStatus(role=pb.SERVICE_ROLE_LEARNER, capacity=64)
    trains = pb.Wait(who="learner", why="trains step 300 (learner.step_timeout_s is 1800)")
    assert _cells(learner, [pb.Wait(who="run", why="waits"), trains])[4] == "trains step 300"
    assert _cells(learner, [pb.Wait(who="batch 12", why="waits for 3 of 8 groups")])[4] == "waits for batch 12"
    assert _cells(learner)[4] == "–"


def test_a_push_has_seconds_where_it_takes_some() -> None:
    assert _cells(pb.ServiceStatus(push_ms=41.27, encoding="delta", sent_bytes=2_300_000_000))[5].startswith(
        "41.3 ms, delta"
    )
    assert _cells(pb.ServiceStatus(push_ms=1482.1))[5].startswith("1.5 s, files")
