"""A model's parameters as the tensors of the model's own files, in both directions and without copying.

transformers 5 keeps some tensors otherwise than files do: the matrices of all experts of a layer as one parameter, or a
tensor under another name. What is published and exported has the names and shapes of the files, because vLLM, earlier
transformers and everybody else read those. transformers' own conversions say what belongs to what; only conversions that
leave every number in its place are understood here: a new name, stacking (one row an expert) and joining side by side.

Legend: E experts, I width of an expert, H hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePart:
    """One tensor of the files, and its place in a parameter or buffer of the model."""

    name: str
    """As in the file."""
    shape: tuple[int, ...]
    expert: int | None = None
    """Its row in a parameter that stacks experts, e.g. [E, 2I, H]; None where nothing is stacked."""
    dim: int | None = None
    """The dimension of the tensor along which it stands beside others; None where it stands alone."""
    start: int = 0
    """Its first index in that dimension."""

    def of(self, rows: Tensor, *, first: int = 0) -> Tensor:
        """A view of the tensor's place in a parameter, or in the parameter's rows from `first` on."""
        whole = rows if self.expert is None else rows[self.expert - first]
        return whole if self.dim is None else whole.narrow(self.dim, self.start, self.shape[self.dim])


@dataclass(frozen=True, kw_only=True, slots=True)
class FileForm:
    """How the files of a folder hold a model."""

    parts: Mapping[str, tuple[FilePart, ...]] = field(default_factory=dict, repr=False)
    """The tensors of each parameter and buffer, by the model's name; a tied parameter under each name that files have."""
    surplus: Mapping[str, str] = field(default_factory=dict)
    """Tensors of the files for which the model has no place: the name that the model would have for each."""
    twice: str = ""
    """Which two tensors are stored for one of the model's; empty where none are. Nothing else is known then."""
    computed: str = ""
    """A tensor of the files whose numbers transformers moves or changes; empty where it does not. Nothing else is known."""

    def parts_of(self, name: str, shape: Sequence[int]) -> tuple[FilePart, ...]:
        """The tensors of a parameter; one of the same name where the files have none of its own (a folder of .bin files)."""
        return self.parts.get(name) or (FilePart(name=name, shape=tuple(shape)),)


def find_form(causal_lm: PreTrainedModel, names: Mapping[str, Tensor], stored: Mapping[str, Sequence[int]]) -> FileForm:
    """The form of files with the tensors `stored` (shapes by name), for a model that may be without memory.

    names: the model's parameters and persistent buffers. Shapes are not compared.
    """
    target_of = _renaming(causal_lm, names)
    found: dict[str, _Sources] = {}
    surplus: dict[str, str] = {}
    for name in sorted(stored, key=dot_natural_key):  # transformers' order, in which the experts are counted
        target, converter, pattern = target_of(name)
        if target not in names:
            surplus[name] = target
            continue
        sources = found.setdefault(target, _Sources(converter=converter))
        if sources.converter is not converter or (converter is None and sources.of):
            return FileForm(twice=f"{sources.first} and {name} are both stored for {target}")
        sources.of.setdefault(pattern, []).append(name)
    parts: dict[str, tuple[FilePart, ...]] = {}
    for target, sources in found.items():
        if not sources.keep_numbers:
            return FileForm(computed=sources.first)
        parts[target] = sources.parts(stored)
    return FileForm(parts=parts, surplus=surplus)


@dataclass(kw_only=True, slots=True)
class _Sources:
    """The tensors of the files that make up one parameter."""

    converter: WeightConverter | None
    of: dict[str, list[str]] = field(default_factory=dict)
    """Names by the converter's pattern, each list in the order of the experts; "" without a converter."""

    @property
    def first(self) -> str:
        return next(iter(self.of.values()))[0]

    @property
    def keep_numbers(self) -> bool:
        """Whether transformers only stacks them (one row an expert), joins them, or first stacks and then joins them."""
        if self.converter is None:
            return True
        steps: list[Any] = self.converter.operations
        kinds = [type(step) for step in steps]
        if kinds[:1] == [MergeModulelist] and steps[0].dim != 0:
            return False
        if kinds == [MergeModulelist]:
            return len(self.of) == 1
        return kinds == [Concatenate] or (kinds == [MergeModulelist, Concatenate] and steps[1].dim > 0)

    def parts(self, stored: Mapping[str, Sequence[int]]) -> tuple[FilePart, ...]:
        """Places by the arithmetic of torch.stack and torch.cat, which transformers' operations call."""
        if self.converter is None:
            return (FilePart(name=self.first, shape=tuple(stored[self.first])),)
        steps: list[Any] = self.converter.operations
        stacked = isinstance(steps[0], MergeModulelist)
        dim = steps[-1].dim - int(stacked) if isinstance(steps[-1], Concatenate) else None
        parts: list[FilePart] = []
        start = 0
        for pattern in self.converter.source_patterns:
            for number, name in enumerate(names := self.of.get(pattern, [])):
                expert = number if stacked else None
                parts.append(FilePart(name=name, shape=tuple(stored[name]), expert=expert, dim=dim, start=start))
                start += stored[name][dim] if dim is not None and not stacked else 0
            start += stored[names[0]][dim] if dim is not None and stacked and names else 0
        return tuple(parts)


def _renaming(
    causal_lm: PreTrainedModel, wanted: Mapping[str, Tensor]
) -> Callable[[str], tuple[str, WeightConverter | None, str]]:
    """A function from a stored name to the model's name, and the converter and pattern by which transformers computes it.

    The order of the steps is that of transformers' convert_and_load_state_dict_in_model.
    """
    mapping = get_model_conversion_mapping(causal_lm)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    prefix, known = causal_lm.base_model_prefix, dict(wanted)

    def target_of(name: str) -> tuple[str, WeightConverter | None, str]:
        target, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if target not in known and name in known:
            target, pattern = rename_source_key(name, [], [], prefix, known)
        return (target, None, "") if pattern is None else (target, by_pattern[pattern], pattern)

    return target_of
