r"""Structured pruning of a `DiT`: which heads, hidden units and blocks go, and the smaller network that is left.

Units are removed in order of importance for each parameter saved (`sciLDM.compress.importance`), whole groups of hidden
units at a time, since matrix products of odd sizes are slow. A block without heads (or hidden units) has no such part
left, and one without either is gone. What comes out is an ordinary `DiT` of its own shape: `DiTNetwork` says all of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from sciLDM.compress.importance import BlockImportance
from sciLDM.errors import ConfigError
from sciLDM.nets import DiT, DiTNetwork

__all__ = ["Kept", "choose_units", "count_parameters", "pruned_recipe", "pruned_weights"]

GROUP = 16
"""Hidden units that stay or go together."""
_HEAD_TIME = 2.0
"""Time of a head's parameters over that of as many in hidden units: it normalises, and its products are small."""


@final
@dataclass(frozen=True)
class Kept:
    """What is left of each block of the unpruned network, by index there.

    Attributes:
        heads: Attention heads.
        hidden: Hidden units.
    """

    heads: tuple[tuple[int, ...], ...]
    hidden: tuple[tuple[int, ...], ...]

    @staticmethod
    def all_of(net: DiT) -> "Kept":
        """Nothing removed."""
        return Kept(
            tuple(tuple(range(0 if b.attention is None else b.attention.heads)) for b in net.blocks),
            tuple(tuple(range(0 if b.mlp is None else b.mlp[0].out_features)) for b in net.blocks),
        )

    @property
    def blocks(self) -> list[int]:
        """Blocks that have anything left."""
        return [k for k, parts in enumerate(zip(self.heads, self.hidden, strict=True)) if any(parts)]

    def without(self, kind: str, block: int, units: Sequence[int]) -> "Kept":
        """With these `heads` or `hidden` units of a block removed as well."""
        parts = {"heads": list(self.heads), "hidden": list(self.hidden)}
        parts[kind][block] = tuple(unit for unit in parts[kind][block] if unit not in set(units))
        return Kept(tuple(parts["heads"]), tuple(parts["hidden"]))

    def state(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"heads": [list(h) for h in self.heads], "hidden": [list(h) for h in self.hidden]}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "Kept":
        """From plain JSON."""
        return Kept(*(tuple(tuple(part) for part in state[name]) for name in ("heads", "hidden")))


def count_parameters(net: DiT, kept: Kept) -> int:
    """Parameters of `net` with nothing but `kept` left of its blocks."""
    blocks = sum(p.numel() for p in net.blocks.parameters())
    return sum(p.numel() for p in net.parameters()) - blocks + _block_parameters(net, kept)


def _block_parameters(net: DiT, kept: Kept) -> int:
    width, total = net.embed.out_features, 0
    for k in kept.blocks:
        heads, hidden = len(kept.heads[k]), len(kept.hidden[k])
        total += 6 * width
        if heads:
            total += heads * _head_cost(net) + width + 2 * net.head_width
        if hidden:
            total += hidden * _hidden_cost(net) + width
    return total


def _head_cost(net: DiT) -> int:
    """Parameters of one head: queries, keys, values with biases, and its columns of the output matrix."""
    return net.head_width * (4 * net.embed.out_features + 3)


def _hidden_cost(net: DiT) -> int:
    return 2 * net.embed.out_features + 1


def choose_units(net: DiT, importance: Sequence[BlockImportance], parameters: int) -> Kept:
    """Remove the units that matter least for what they cost, until no more than so many parameters are left.

    Args:
        net: The unpruned network.
        importance: Of the units of each block.
        parameters: To be left at most.

    Raises:
        ConfigError: Fewer than are outside the blocks and one group.
    """
    found = Kept.all_of(net)
    units: list[tuple[float, str, int, tuple[int, ...]]] = []
    for k, scores in enumerate(importance):
        heads = enumerate(scores.heads.tolist())
        units += [(score / (_HEAD_TIME * _head_cost(net)), "heads", k, (unit,)) for unit, score in heads]
        units += [
            (score / (_hidden_cost(net) * len(group)), "hidden", k, group)
            for score, group in _groups(scores.hidden.tolist())
        ]
    for _, kind, k, group in sorted(units):
        if count_parameters(net, found) <= parameters:
            return found
        found = found.without(kind, k, group)
    if count_parameters(net, found) <= parameters and found.blocks:
        return found
    least = count_parameters(net, found)
    raise ConfigError(
        f"expected at least {least + 1:,} parameters to be left (what is outside the blocks is not pruned), got "
        f"{parameters:,}; keep more"
    )


def _groups(scores: Sequence[float]) -> list[tuple[float, tuple[int, ...]]]:
    """Units in groups of like importance; the remainder of the division is the least important one."""
    order = sorted(((score, unit) for unit, score in enumerate(scores)), reverse=True)
    groups = [order[i : i + GROUP] for i in range(0, len(order), GROUP)]
    return [(sum(s for s, _ in group), tuple(u for _, u in group)) for group in groups]


def pruned_recipe(recipe: DiTNetwork, kept: Kept) -> DiTNetwork:
    """What a configuration says of the smaller network."""
    return replace(
        recipe,
        depth=len(kept.blocks),
        block_heads=tuple(len(kept.heads[k]) for k in kept.blocks),
        block_hidden=tuple(len(kept.hidden[k]) for k in kept.blocks),
    )


def pruned_weights(net: DiT, kept: Kept) -> dict[str, Tensor]:
    """The state of the smaller network: rows and columns of what is left."""
    state = {name: x for name, x in net.state_dict().items() if not name.startswith("blocks.")}
    for new, old in enumerate(kept.blocks):
        block = net.blocks[old]
        own = {name: x for name, x in block.state_dict().items() if name == "modulation"}
        if kept.heads[old]:
            own |= {f"attention.{n}": x for n, x in _some_heads(block.attention, kept.heads[old]).items()}
        if kept.hidden[old]:
            own |= {f"mlp.{n}": x for n, x in _some_hidden(block.mlp, kept.hidden[old]).items()}
        state |= {f"blocks.{new}.{name}": x for name, x in own.items()}
    return {name: x.detach().clone() for name, x in state.items()}


def _some_heads(attention: Any, heads: Sequence[int]) -> dict[str, Tensor]:
    index = torch.tensor(heads)
    own = dict(attention.state_dict())
    split = (3, attention.heads, attention.head_width)
    own["qkv.weight"] = own["qkv.weight"].unflatten(0, split)[:, index].flatten(0, 2)
    own["qkv.bias"] = own["qkv.bias"].unflatten(0, split)[:, index].flatten()
    own["out.weight"] = own["out.weight"].unflatten(1, split[1:])[:, index].flatten(1)
    return own


def _some_hidden(mlp: Any, units: Sequence[int]) -> dict[str, Tensor]:
    index = torch.tensor(units)
    own = dict(mlp.state_dict())
    return own | {
        "0.weight": own["0.weight"][index],
        "0.bias": own["0.bias"][index],
        "2.weight": own["2.weight"][:, index],
    }
