"""What a service computes on, for its registration."""

from sluice.v1 import coordinator_pb2 as pb


def gpus_message(model: tuple[str, int] | None, *, count: int) -> pb.Gpus:
    """model: name and bytes of memory of one GPU, of which the service uses `count`; None: it computes on CPUs."""
    if model is None:
        return pb.Gpus()
    name, memory_bytes = model
    return pb.Gpus(name=name, count=count, memory_bytes=memory_bytes)
