"""Two machines with a long link between them, on one machine: `with long_link(rate="1gbit", delay_s=0.02) as link`.

The machines are network namespaces. The rate is that of `tc` (tbf); the delay is a process's, which carries every packet from
one machine's interface (TUN) to the other's and holds it back meanwhile, because few kernels here have `tc`'s netem. Packets
cross in the large units that TCP's segmentation offload makes, so that a Python process keeps up with 1 Gbit/s. Needs root.
"""

import fcntl
import os
import select
import struct
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_CSUM_AND_TSO4 = 0x01 | 0x02
_LARGEST = 10 + 65_536
"""A header of virtio and the largest packet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LongLink:
    """Names of the two machines' namespaces, and the machines' addresses."""

    near: str
    far: str
    near_address: str
    far_address: str

    def command(self, machine: str, *words: str) -> list[str]:
        """The command line that runs `words` on a machine."""
        return ["ip", "netns", "exec", machine, *words]


@contextmanager
def long_link(*, rate: str, delay_s: float, send_bytes: int = 4 << 20) -> Iterator[LongLink]:
    """A link that is gone afterwards. `rate` is `tc`'s word; `delay_s` is that of one direction; `send_bytes` is the most that
    the kernel keeps of what one connection has sent and not seen acknowledged (tcp_wmem, whose default is 4 MiB)."""
    number = os.getpid() % 60_000
    names = [f"sluice-{end}{number}" for end in ("near", "far")]
    subnet = f"10.{214 + number // 30_000}.{number // 250 % 250}"
    addresses = [f"{subnet}.1", f"{subnet}.2"]
    for name in names:
        _run("ip", "netns", "add", name)
    try:
        ends = [_interface(*each, rate=rate, send_bytes=send_bytes) for each in zip(names, addresses, strict=True)]
        carrier = get_context("fork").Process(target=_carry, args=(*ends, delay_s), daemon=True)
        carrier.start()
        try:
            yield LongLink(near=names[0], far=names[1], near_address=addresses[0], far_address=addresses[1])
        finally:
            carrier.kill()
            carrier.join()
            for end in ends:
                os.close(end)
    finally:
        for name in names:
            _run("ip", "netns", "del", name)


def _interface(machine: str, address: str, *, rate: str, send_bytes: int) -> int:
    """The open end of a machine's interface."""
    name = f"tun{machine[-8:]}"
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _CSUM_AND_TSO4)
    _run("ip", "link", "set", name, "netns", machine)
    inside = ("ip", "-n", machine)
    _run(*inside, "addr", "add", f"{address}/24", "dev", name)
    for interface in ("lo", name):
        _run(*inside, "link", "set", interface, "up")
    queue = ("qdisc", "add", "dev", name, "root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms")
    here = ("ip", "netns", "exec", machine)
    _run(*here, "tc", *queue)
    _run(*here, "sh", "-c", f"echo 4096 16384 {send_bytes} >/proc/sys/net/ipv4/tcp_wmem")
    return descriptor


def _carry(near: int, far: int, delay_s: float) -> None:
    """Carries packets both ways until killed; each leaves `delay_s` after it came."""
    os.nice(-10)  # the link's delay should be the link's, not that of a busy machine
    other, held = {near: far, far: near}, deque[tuple[float, int, bytes]]()
    poll = select.poll()
    for descriptor in other:
        poll.register(descriptor, select.POLLIN)
    while True:
        left_s = held[0][0] - time.monotonic() if held else 1.0
        for descriptor, _ in poll.poll(max(0.0, 1e3 * left_s)):
            _take(descriptor, other[descriptor], held, delay_s)
        now = time.monotonic()
        while held and held[0][0] <= now:
            _, to, packet = held.popleft()
            try:
                os.write(to, packet)
            except OSError:  # full: a packet is lost, as on any link
                continue


def _take(descriptor: int, to: int, held: "deque[tuple[float, int, bytes]]", delay_s: float) -> None:
    while True:
        try:
            packet = os.read(descriptor, _LARGEST)
        except BlockingIOError:
            return
        held.append((time.monotonic() + delay_s, to, packet))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
