"""The peak of a device in floating-point operations a second: dense bfloat16 products, summed in float32.

The makers' data sheets name the figures; where a sheet has only the figure with sparsity, half of it stands here. A name
that is not in the table, or that names a part of a device (MIG) or a slower edition, has no figure: none is guessed.
"""

import re
from collections.abc import Mapping

_TERA = 1e12

_PEAKS: Mapping[tuple[str, ...], float] = {
    # NVIDIA A100, A800, A30, A40, A10 data sheets (2021 to 2022)
    ("A100",): 312,
    ("A800",): 312,
    ("A30",): 165,
    ("A40",): 149.7,
    ("A10",): 125,
    # NVIDIA H100 data sheet: SXM 1,979, PCIe 1,513, NVL 1,671 with sparsity
    ("H100",): 989.4,
    ("H100", "PCIE"): 756.5,
    ("H100", "NVL"): 835.5,
    ("H800",): 989.4,
    # NVIDIA H200 data sheet: SXM 1,979, NVL 1,671 with sparsity; GH200 data sheet: 1,979
    ("H200",): 989.4,
    ("H200", "NVL"): 835.5,
    ("GH200",): 989.4,
    # NVIDIA Blackwell data sheet: HGX B200 4.5 PFLOPS, GB200 5 PFLOPS with sparsity
    ("B200",): 2250,
    ("GB200",): 2500,
    # NVIDIA L40S, L40, L4 data sheets
    ("L40S",): 362.05,
    ("L40",): 181.05,
    ("L4",): 121,
    # NVIDIA Ampere GA102, Ada and RTX Blackwell white papers: bfloat16 with float32 sums
    ("3090",): 71,
    ("4090",): 165.2,
    ("5090",): 209.5,
    # AMD Instinct MI300X, MI325X data sheets
    ("MI300X",): 1307.4,
    ("MI325X",): 1307.4,
}
"""TFLOP/s by the words that a device's name has, as torch states it: "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"."""

_OTHER = frozenset({"MIG", "LAPTOP", "D", "MAX", "VF"})
"""Words of editions that are slower than the table says."""


def peak_flops(device_name: str) -> float | None:
    """Peak FLOP/s of one device; None for a device that is not in the table."""
    words = set(re.split(r"[\s\-/]+", device_name.upper()))
    if words & _OTHER:
        return None
    found = [(len(key), peak) for key, peak in _PEAKS.items() if words >= set(key)]
    return max(found)[1] * _TERA if found else None
