"""What the view Fleet says of a service's GPUs."""

from sluice.ui.views.fleet import _cells
from sluice.v1 import coordinator_pb2 as pb


def test_gpus_are_named_with_their_number_a_cpu_is_one_and_who_has_not_told_has_a_dash() -> None:
    gpus = pb.Gpus(name="NVIDIA H200", count=2, memory_bytes=150_000_000_000)
    uuid = "GPU-01234567-89ab-cdef-0123-456789abcdef"
    assert _cells(pb.ServiceStatus(gpus=gpus, device=uuid))[8] == "2 × NVIDIA H200, 150 GB each, GPU-0123456…"
    assert _cells(pb.ServiceStatus(gpus=pb.Gpus(), device="cpu"))[8] == "cpu"
    assert _cells(pb.ServiceStatus())[8] == "–"
