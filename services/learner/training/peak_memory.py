"""The most memory that a rank held while it trained one step.

On CUDA: bytes of tensors (`max_memory_allocated`), reset before each step; the context and the allocator's fragments come on
top. On a CPU under Linux: the process's peak resident set (VmHWM), reset by /proc/self/clear_refs; where the kernel refuses
the reset, the peak since the process started, which a log line says. Elsewhere there is no figure.
"""

from pathlib import Path

import structlog
import torch

log = structlog.get_logger(__name__)

_PROC = Path("/proc/self")
_RESET_PEAK = "5"
"""What proc(5) has one write to clear_refs to make VmHWM the present resident set."""


class PeakMemory:
    """Measures one rank."""

    def __init__(self, device: torch.device, *, proc: Path = _PROC) -> None:
        self._device, self._proc = device, proc
        self._told = False

    def reset(self) -> None:
        """Begins a measurement."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            (self._proc / "clear_refs").write_text(_RESET_PEAK)
        except OSError as error:
            if not self._told:
                self._told = True
                log.info("peak_memory_since_start", metric="learner/peak_memory_bytes", reason=str(error))

    def read_bytes(self) -> int | None:
        """The peak since the reset; None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        try:
            status = (self._proc / "status").read_text()
        except OSError:
            return None
        line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
        return None if line is None else 1024 * int(line.split()[1])
