"""Batches on one axis whose samples end at different cells: a short sample need not be computed to the longest's end.

Samples are sorted by length and cut into groups of nearly equal ones; each group is computed to its own longest. What a
network says inside the mask is the same, since cells outside are never attended to.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

__all__ = ["Groups", "join", "split_by_length"]

Groups = Sequence[tuple[Tensor, int]]
"""Which samples, and how many cells hold all of them."""

_FEWEST = 16
"""Samples in a group: fewer do not keep a matrix product busy."""
_MOST = 8
_WORTH = 0.9
"""Share of the work that must remain at most; moving samples around costs something too."""


def split_by_length(mask: Bool[Tensor, "batch length"] | None, *, power: int = 1) -> Groups | None:
    """Groups of samples of similar length, or None where one batch is as good: no mask, few samples, equal lengths.

    On CPUs alone: a GPU would wait for the lengths. Not while a graph is traced, which would keep this batch's groups.

    Args:
        mask: True where a cell exists.
        power: Work grows with the length (1) or its square (2).
    """
    if mask is None or mask.device.type != "cpu" or mask.shape[0] < 2 * _FEWEST:
        return None
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    batch, length = mask.shape
    cells = torch.arange(1, length + 1)
    lengths, order = torch.sort((mask * cells).amax(dim=1).clamp_min(1), stable=True)
    groups = [(part, int(lengths[k])) for part, k in _cut(order, min(_MOST, batch // _FEWEST))]
    work = sum(len(part) * longest**power for part, longest in groups)
    return groups if work <= _WORTH * batch * length**power else None


def _cut(order: Tensor, count: int) -> list[tuple[Tensor, int]]:
    """Equal parts, each with the position of its last sample."""
    parts = order.tensor_split(count)
    last = torch.tensor([len(part) for part in parts]).cumsum(0) - 1
    return list(zip(parts, last.tolist(), strict=True))


def join(parts: Sequence[Tensor], groups: Groups, length: int, axes: Sequence[int]) -> Tensor:
    """One tensor of what was computed for each group, zero where it was not, in the order of the batch.

    Args:
        parts: One tensor for each group, samples along its first axis.
        groups: As `split_by_length` gives them.
        length: Cells of the whole batch.
        axes: The axes of `parts` that have as many entries as the group has cells.
    """
    order = torch.cat([samples for samples, _ in groups])
    shape = list(parts[0].shape)
    shape[0] = len(order)
    for axis in axes:
        shape[axis] = length
    whole = parts[0].new_zeros(shape)
    for part, (samples, longest) in zip(parts, groups, strict=True):
        index: list[Tensor | slice] = [slice(None)] * part.ndim
        index[0] = samples
        for axis in axes:
            index[axis] = slice(longest)
        whole[tuple(index)] = part
    return whole
