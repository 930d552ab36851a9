"""What one step made of the devices: the share of their peak, and the most memory that a rank held."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from services.learner.distributed.ranks import Ranks
from services.learner.training.device_peak import peak_flops
from services.learner.training.peak_memory import PeakMemory
from services.learner.training.utilisation import costs_of, step_flops, utilisation
from sluice.config.schema import Config


class DeviceUse:
    """Measures the steps of one rank; figures that are not known are left out."""

    def __init__(self, causal_lm: PreTrainedModel, *, config: Config, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks
        self._costs = costs_of(causal_lm)
        self._peak_flops = config.learner.peak_flops or peak_flops(_device_name(ranks))
        """FLOP/s of one rank's device."""
        self._memory = PeakMemory(ranks.device)

    def begin(self) -> None:
        """Call when a step begins."""
        self._memory.reset()

    def metrics(
        self, lengths: Sequence[int], *, not_computed: Sequence[int] = (), elapsed_s: float
    ) -> dict[str, float]:
        """The figures of a step that trained sequences of these lengths in tokens on all ranks. Collective.

        not_computed: tokens of each prompt that samples of a group shared instead of computing the prompt again.
        """
        peak_bytes = torch.tensor([self._memory.read_bytes() or 0], dtype=torch.float64, device=self._ranks.device)
        most_bytes = float(self._ranks.largest(peak_bytes))
        used = {"learner/peak_memory_bytes": most_bytes} if most_bytes else {}
        if self._costs is None or self._peak_flops is None:
            return used
        flops = step_flops(self._costs, lengths, self._config, not_computed=not_computed)
        return used | utilisation(flops, elapsed_s=elapsed_s, peak_flops=self._peak_flops * self._ranks.size)


def _device_name(ranks: Ranks) -> str:
    return torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "CPU"
