"""From a `Cond` mapping to what a network can add, attend to, or concatenate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sciLDM.conditions import Category, Condition, FieldMap, Scalar, Tokens, Vector, check_conditions
from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.types import Cond

__all__ = ["ConditionEmbedding", "Embedded", "FourierFeatures", "label_key"]


@dataclass(frozen=True)
class Embedded:
    """Conditions ready for a network: added to the time embedding, attended to, or concatenated to the input."""

    vector: Float[Tensor, "batch width"]
    tokens: Float[Tensor, "batch length width"] | None
    token_mask: Bool[Tensor, "batch length"] | None
    fields: Float[Tensor, "batch channels *shape"] | None


@final
class FourierFeatures(nn.Module):
    """sin and cos of a number at geometrically spaced frequencies, from `low` to `high` cycles per unit."""

    frequencies: Tensor

    def __init__(self, count: int, *, low: float = 0.05, high: float = 8.0) -> None:
        super().__init__()
        ladder = torch.logspace(math.log10(low), math.log10(high), count)
        self.register_buffer("frequencies", 2 * math.pi * ladder, persistent=False)

    def forward(self, value: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch features"]:
        phase = value[..., None] * self.frequencies.to(value)
        return torch.cat([value[..., None], phase.sin(), phase.cos()], dim=-1)


@final
class _CountEmbedding(nn.Module):
    """A learned vector for each of 0, 1, ..., `most`; linear in between."""

    def __init__(self, most: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(most + 1, width))

    def forward(self, value: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        value = value.clamp(0, self.table.shape[0] - 1)
        below = value.floor()
        share = (value - below)[..., None].to(self.table)
        low, high = (self.table[k.long()] for k in (below, value.ceil()))
        return low + share * (high - low)


@final
class _LabelEmbedding(nn.Module):
    """One entry's labels to vectors, with a learned vector for "missing"."""

    def __init__(self, condition: Condition, width: int) -> None:
        super().__init__()
        self.condition = condition
        self.null = nn.Parameter(torch.zeros(width))
        if isinstance(condition, Scalar) and condition.counts:
            self.embed = _CountEmbedding(condition.counts, width)
        elif isinstance(condition, Scalar):
            self.fourier = FourierFeatures(16)
            self.embed = nn.Sequential(nn.Linear(33, width), nn.SiLU(), nn.Linear(width, width))
        elif isinstance(condition, Category):
            self.embed = nn.Embedding(condition.classes, width)
            nn.init.normal_(self.embed.weight, std=0.02)
        elif isinstance(condition, Vector | Tokens):
            self.embed = nn.Sequential(nn.Linear(condition.size, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors, and which of them stand for a label that is present."""
        condition = self.condition
        if isinstance(condition, Category):
            present = label >= 0
            vector = self.embed(torch.where(present, label, torch.zeros_like(label)).long())
        elif isinstance(condition, Scalar) and condition.counts:
            present = label.isfinite()
            vector = self.embed(label.float().nan_to_num(0.0, 0.0, 0.0))
        elif isinstance(condition, Scalar):
            value = (label.float() - condition.mean) / condition.std
            present = value.isfinite()
            vector = self.embed(self.fourier(value.nan_to_num(0.0, 0.0, 0.0)))
        else:
            present = label.isfinite().all(dim=-1)
            vector = self.embed(label.float().nan_to_num(0.0, 0.0, 0.0))
        return torch.where(present[..., None], vector, self.null.to(vector.dtype)), present


@final
class ConditionEmbedding(nn.Module):
    """Embed every declared condition; entries that are absent from the mapping count as missing.

    Args:
        conditions: The declared entries.
        width: Width of the vectors and tokens returned.
    """

    def __init__(self, conditions: Sequence[Condition], width: int) -> None:
        super().__init__()
        self.conditions = tuple(conditions)
        self.width = width
        self.labels = nn.ModuleDict(
            {
                label_key(c.name): _LabelEmbedding(c, width)
                for c in self.conditions
                if not isinstance(c, FieldMap)
            }
        )

    @property
    def field_channels(self) -> int:
        """Input channels that fields add: each field and one mask saying where it is known."""
        return sum(c.channels + 1 for c in self.conditions if isinstance(c, FieldMap))

    def forward(self, cond: Cond | None, like: Float[Tensor, "batch channel *shape"]) -> Embedded:
        cond = cond or {}
        batch = like.shape[0]
        if not torch.compiler.is_compiling():
            check_conditions(cond, self.conditions, batch)
            for condition in self.conditions:
                _check_size(condition, cond.get(condition.name), like)
        vector = like.new_zeros(batch, self.width)
        tokens, masks, fields = [], [], []
        for condition in self.conditions:
            label = cond.get(condition.name)
            if isinstance(condition, FieldMap):
                fields.append(_known_field(condition, label, like))
                continue
            module = self.labels[label_key(condition.name)]
            if isinstance(condition, Tokens):
                if label is not None and label.shape[1]:
                    embedded, present = module(label)
                    # A sequence that is wholly missing keeps one null token, so that attention has something to say.
                    present = present.clone()
                    present[:, 0] |= ~present.any(dim=1)
                    tokens.append(embedded)
                    masks.append(present)
                else:
                    tokens.append(module.null.expand(batch, 1, -1))
                    masks.append(torch.ones(batch, 1, dtype=torch.bool, device=like.device))
            else:
                vector = vector + (module.null if label is None else module(label)[0])
        return Embedded(
            vector=vector,
            tokens=torch.cat(tokens, dim=1) if tokens else None,
            token_mask=torch.cat(masks, dim=1) if masks else None,
            fields=torch.cat(fields, dim=1) if fields else None,
        )


def label_key(name: str) -> str:
    """A condition's key in a ModuleDict, which refuses dots and the names of its own methods (a column "values")."""
    return (
        name
        if name and "." not in name and not hasattr(nn.ModuleDict(), name)
        else f"name_{name.encode().hex()}"
    )


def _check_size(condition: Condition, label: Tensor | None, like: Tensor) -> None:
    if label is None:
        return
    if isinstance(condition, FieldMap):
        expected = (condition.channels, *like.shape[2:])
        if tuple(label.shape[1:]) != expected:
            raise ShapeMismatch(
                f"field {condition.name!r}: expected {expected} per sample, the latent's own grid, got "
                f"{tuple(label.shape[1:])}; resample it"
            )
    elif isinstance(condition, Vector | Tokens) and label.shape[-1] != condition.size:
        raise ShapeMismatch(
            f"condition {condition.name!r}: expected {condition.size} features, got {label.shape[-1]}"
        )
    # On a GPU the check would wait for the device at every step.
    elif (
        isinstance(condition, Category) and label.device.type == "cpu" and (label >= condition.classes).any()
    ):
        raise ConfigError(
            f"condition {condition.name!r}: expected a class from 0 to {condition.classes - 1}, or -1 for missing, "
            f"got {label.max().item():g}"
        )


def _known_field(condition: FieldMap, label: Tensor | None, like: Tensor) -> Tensor:
    if label is None:
        return like.new_zeros(like.shape[0], condition.channels + 1, *like.shape[2:])
    known = label.isfinite().all(dim=1, keepdim=True)
    return torch.cat([label.nan_to_num(0.0, 0.0, 0.0), known.to(label)], dim=1).to(like)
