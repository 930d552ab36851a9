"""The policy's weights as one immutable packed snapshot per version.

All ranks gather in one fixed order (gather.py); rank 0 packs, under the names and in the shapes of the model's own files
(sluice/weights/file_form.py). Nothing is sent from here: the gather is over before the
first byte leaves, so a slow receiver can never stand between two collectives of the ranks. LoRA adapters are merged into
their layers or, with `weights.lora: adapter`, packed alone. Weights that are not finite are never published.

The parameters change again with the next step, so gathering, checking and the copies to the host come before the next step.
The digest reads only the host's copy: whoever calls `Packed.seal`, in any thread, computes the digest.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor
from torch.distributed.tensor import DTensor

from services.learner.distributed.ranks import Ranks
from services.learner.policy.forward import Policy
from services.learner.policy.lora import plain_name
from services.learner.policy.stored_model import published_form
from services.learner.snapshot.gather import Gatherer, NotFinite, Wanted
from services.learner.snapshot.host_buffers import HostBuffers
from sluice.accelerator import SideCopies, settle
from sluice.config.schema import Config
from sluice.errors import SluiceError
from sluice.policy_version import PolicyVersion
from sluice.weights.adapters import adapters_among, pushes_adapters, scale_of
from sluice.weights.file_form import FileForm, FilePart
from sluice.weights.manifest import Layout, plan
from sluice.weights.merging import merge
from sluice.weights.snapshot import Packer, Snapshot


class SnapshotPacker:
    """Gathers and packs one policy. Collective: every rank makes a SnapshotPacker, and all ranks call `gather` together."""

    def __init__(self, *, policy: Policy, config: Config, ranks: Ranks) -> None:
        """Raises AssertionError, before the first gather, unless all ranks have the same tensors."""
        self._ranks = ranks
        self._copies = SideCopies(ranks.device)
        """The snapshot's way to the host, beside the gathering of the next tensors."""
        self._bucket_bytes = config.weights.bucket_bytes_on(ranks.device.type)
        self._kept = 3 if config.weights.delta_share else 2
        causal_lm = policy.causal_lm
        form, untrained = published_form(Path(config.model.path), causal_lm)
        constants = {stored: causal_lm.get_buffer(name).float() for name, stored in untrained.items()}
        # Deduplicated: a tied head appears once, under the embedding's name.
        parameters = {plain_name(name): p for name, p in causal_lm.named_parameters()}
        adapters = adapters_among(parameters)
        matrices = {name for adapter in adapters.values() for name in (adapter.a, adapter.b)}
        self._adapters = self._part({name: parameters[name] for name in matrices}, dtype="float32", form=FileForm())
        rest = {name: p for name, p in parameters.items() if name not in matrices}
        self._model = self._part(rest, dtype=config.model.dtype, form=form, merged=adapters, constants=constants)
        self._merged = adapters
        """Adapters by the name of the weight into which each adapter is merged."""
        self._scale = scale_of(config) if adapters else 1.0
        self._adapters_alone = pushes_adapters(config)
        self._newest_adapters: Packed | None = None
        self.phases_ms: dict[str, float] = {}
        """The phases of the newest `pack` on this rank: waiting for tensors, checking and copying tensors; after `gather`
        also digesting."""
        prints = [part.layout.fingerprint for part in (self._model, self._adapters)]
        assert ranks.share_texts(prints) == prints, f"rank {ranks.rank}: other tensors than rank 0"

    @property
    def adapters(self) -> Snapshot | None:
        """The adapters of the newest version, float32, on rank 0; None without LoRA."""
        return self._newest_adapters.seal() if self._newest_adapters is not None else None

    def gather(self, version: PolicyVersion) -> Snapshot | None:
        """`pack`, and the digest."""
        packed = self.pack(version)
        started = time.perf_counter()
        snapshot = packed.seal() if packed is not None else None
        self.phases_ms["digest"] = 1e3 * (time.perf_counter() - started)
        return snapshot

    @torch.no_grad()
    def pack(self, version: PolicyVersion) -> "Packed | None":
        """All bytes of the version on rank 0, None on other ranks. The parameters may change as soon as this returns.

        Raises SluiceError, on every rank, when a weight is not finite.
        """
        self.phases_ms = {"gather": 0.0, "pack": 0.0}
        try:
            return self._pack_both(version)
        except NotFinite as name:
            raise SluiceError(f"version {version} is not published: {name} holds weights that are not finite") from None

    def _pack_both(self, version: PolicyVersion) -> "Packed | None":
        adapters: dict[str, Tensor] = {}

        def kept(name: str, matrix: Tensor) -> Tensor:
            return adapters.setdefault(name, matrix)

        def with_adapter(name: str, weight: Tensor) -> Tensor:
            if (adapter := self._merged.get(name)) is None:
                return weight
            merged = merge(weight, adapters[adapter.a], adapters[adapter.b], scale=self._scale)
            return merged.to(self._model.dtype)

        if self._merged:
            self._newest_adapters = self._pack(self._adapters, version, kept)
        if self._adapters_alone:
            return self._newest_adapters
        return self._pack(self._model, version, with_adapter)

    def _pack(
        self, part: "_Part", version: PolicyVersion, prepared: Callable[[str, Tensor], Tensor]
    ) -> "Packed | None":
        threads = blake3.AUTO if self._ranks.device.type == "cuda" else 1
        packer = Packer(part.layout, part.buffers.take(), digest_threads=threads) if self._ranks.leads else None

        def put(name: str, tensor: Tensor) -> None:
            assert packer is not None
            with self._timed("pack"):
                whole = prepared(name, tensor)
                for each in part.files[name]:
                    self._copies.copy(packer.room(each.name), each.of(whole))

        try:
            part.gatherer.gather(put)
            for name, constant in part.constants.items():
                if packer is not None:
                    self._copies.copy(packer.room(name), constant)
        finally:
            with self._timed("pack"):
                self._copies.finish()
        return Packed(packer, version) if packer is not None else None

    def _part(
        self,
        parameters: Mapping[str, Tensor],
        *,
        dtype: str,
        form: FileForm,
        merged: Collection[str] = (),
        constants: Mapping[str, Tensor] | None = None,
    ) -> "_Part":
        """A part of `parameters`: the weights in `merged`, which get adapters, travel in float32, the others in `dtype`."""
        names = sorted(parameters)
        files = {name: form.parts_of(name, parameters[name].shape) for name in names}
        named = [(each.name, dtype, each.shape) for name in names for each in files[name]]
        named += [(name, "float32", tuple(constant.shape)) for name, constant in (constants or {}).items()]
        nothing = Layout(tensors=(), total_bytes=0, bucket_bytes=self._bucket_bytes)
        wanted = [
            Wanted(
                name=name,
                parameter=_sharded(parameters[name]),
                dtype=torch.float32 if name in merged else getattr(torch, dtype),
            )
            for name in names
        ]
        layout = plan(named, bucket_bytes=self._bucket_bytes) if named else nothing
        return _Part(
            layout=layout,
            buffers=HostBuffers(layout.total_bytes, device=self._ranks.device, kept=self._kept),
            dtype=getattr(torch, dtype),
            gatherer=Gatherer(wanted, ranks=self._ranks, timed=self._timed),
            files=files,
            constants=constants or {},
        )

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
            settle(self._ranks.device)  # a CUDA device has only been told what to do
        finally:
            self.phases_ms[phase] += 1e3 * (time.perf_counter() - started)


class Packed:
    """A version whose bytes are complete in host memory; for one thread at a time."""

    def __init__(self, packer: Packer, version: PolicyVersion) -> None:
        self._packer, self._version = packer, version
        self._sealed: Snapshot | None = None

    def seal(self) -> Snapshot:
        """The snapshot. The first call digests the bytes, with as many threads as the device's kind allows."""
        if self._sealed is None:
            self._sealed = self._packer.seal(self._version)
        return self._sealed


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """Parameters that are packed together."""

    layout: Layout
    dtype: torch.dtype
    gatherer: Gatherer
    files: Mapping[str, tuple[FilePart, ...]]
    """The tensors that each parameter is in the files."""
    constants: Mapping[str, Tensor]
    """Tensors that files have and nobody trains (the bias by which DeepSeek-V3 balances its experts), by the file's name."""
    buffers: HostBuffers


def _sharded(parameter: Tensor) -> DTensor:
    assert isinstance(parameter, DTensor)  # the policy's root is sharded, so every parameter is
    return parameter


def renamed(snapshot: Snapshot, version: PolicyVersion) -> Snapshot:
    """The snapshot's bytes under another version; the digest does not cover the version."""
    return Snapshot(manifest=dataclasses.replace(snapshot.manifest, version=version), buffer=snapshot.buffer)
