r"""U-Net over an N-d grid of latent vectors (Ronneberger et al. 2015, arXiv:1505.04597; Ho et al. 2020,
arXiv:2006.11239).

Residual blocks `x + conv(silu((1 + s) * norm(conv(silu(norm(x)))) + b))` with `(s, b)` a function of noise level and
conditions (scale-shift norm, Dhariwal & Nichol 2021, arXiv:2105.05233) and the last convolution zero at the start.
Where a level attends, grid cells attend to each other and to the tokens of the conditions in one softmax (GLIDE,
Nichol et al. 2021, arXiv:2112.10741).

A cell outside the mask is zero for every convolution, counts in no norm and is nobody's key: a masked grid gives what
the grid without those cells gives. Grids need no special size: a level of `n` cells has `ceil(n / 2)` below it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sciLDM.conditions import Condition, Tokens
from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.nets.conditioning import ConditionEmbedding, Embedded, FourierFeatures
from sciLDM.nets.dit import _Attention, _attention_bias
from sciLDM.nets.masked import Boundary, MaskedConv, MaskedGroupNorm
from sciLDM.types import Cond

__all__ = ["UNet"]


@dataclass(frozen=True)
class _Plan:
    """What all parts of one network share."""

    embedding: int
    heads: int
    boundary: tuple[Boundary, ...]
    tokens: bool


@final
class _Residual(nn.Module):
    def __init__(self, channels: int, out: int, plan: _Plan) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = MaskedGroupNorm(channels, affine=True), MaskedGroupNorm(out, affine=False)
        self.conv_1 = MaskedConv(channels, out, plan.boundary)
        self.conv_2 = MaskedConv(out, out, plan.boundary, zero=True)
        self.modulation = nn.Linear(plan.embedding, 2 * out)
        self.skip = nn.Linear(channels, out, bias=False) if channels != out else None

    def forward(self, x: Tensor, present: Tensor | None, context: Embedded) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x, present)), present)
        view = (*h.shape[:2], *[1] * (h.ndim - 2))
        shift, scale = (part.view(view) for part in self.modulation(context.vector).chunk(2, dim=-1))
        h = self.conv_2(
            F.silu(torch.addcmul(shift, self.norm_2(h, present).to(shift.dtype), 1 + scale)), present
        )
        return h + (x if self.skip is None else self.skip(x.movedim(1, -1)).movedim(-1, 1))


@final
class _GridAttention(nn.Module):
    def __init__(self, width: int, plan: _Plan) -> None:
        super().__init__()
        self.norm = MaskedGroupNorm(width, affine=True)
        self.attention = _Attention(width, plan.heads)
        self.context = nn.Linear(plan.embedding, width) if plan.tokens else None
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.attention.out.bias)

    def forward(self, x: Tensor, present: Tensor | None, context: Embedded) -> Tensor:
        tokens, extra = self.norm(x, present).flatten(2).transpose(1, 2), 0
        if self.context is not None and context.tokens is not None:
            extra = context.tokens.shape[1]
            tokens = torch.cat([self.context(context.tokens).to(tokens.dtype), tokens], dim=1)
        bias = _attention_bias(None if present is None else present[:, 0], context.token_mask, 1, tokens)
        mixed = self.attention(tokens, None, bias)[:, extra:]
        return x + mixed.transpose(1, 2).reshape(x.shape)


@final
class _Stage(nn.Module):
    """The blocks of one level on one side of the U."""

    def __init__(self, sources: Sequence[int], width: int, attends: bool, plan: _Plan) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Residual(source, width, plan) for source in sources])
        self.attention = nn.ModuleList([_GridAttention(width, plan) for _ in sources if attends])

    def forward(self, k: int, x: Tensor, present: Tensor | None, context: Embedded) -> Tensor:
        x = self.blocks[k](x, present, context)
        return self.attention[k](x, present, context) if len(self.attention) else x


@final
class UNet(nn.Module):
    """Convolutional denoiser for latents `[batch, channels, *shape]` with one, two or three grid axes.

    Args:
        channels: Latent channels, in and out.
        shape: A grid as in the data; only its number of axes is fixed, other sizes are taken too.
        widths: Channels of each level, finest first; each further level halves the grid.
        blocks_per_level: Residual blocks a level on the way down; one more on the way up.
        attention_levels: Levels with attention; 0 is the finest, -1 the coarsest.
        heads: Attention heads.
        boundary: What lies beyond the edge of the grid, for all axes or one entry an axis. Edges are those of the
            whole grid, never those of a mask. A circular axis is exactly periodic where every level halves it
            exactly.
        conditions: Declared conditions. Scalars, vectors and categories modulate, token sequences are attended to,
            fields are concatenated to the input.

    Raises:
        ConfigError: The options do not fit each other or the grid.
    """

    def __init__(
        self,
        channels: int,
        shape: Sequence[int],
        *,
        widths: Sequence[int] = (64, 128, 256),
        blocks_per_level: int = 2,
        attention_levels: Sequence[int] = (-1,),
        heads: int = 4,
        boundary: Boundary | Sequence[Boundary] = "zeros",
        conditions: Sequence[Condition] = (),
    ) -> None:
        super().__init__()
        edges: tuple[Boundary, ...] = (
            (boundary,) * len(shape) if isinstance(boundary, str) else tuple(boundary)
        )
        tokens = any(isinstance(c, Tokens) for c in conditions)
        attends = _check_options(len(shape), widths, blocks_per_level, attention_levels, heads, edges, tokens)
        plan = _Plan(4 * widths[0], heads, edges, tokens)
        self.channels, self.axes, self.blocks = channels, len(shape), blocks_per_level
        self.condition = ConditionEmbedding(conditions, plan.embedding)
        self.time = nn.Sequential(
            FourierFeatures(32, low=0.02, high=4.0), nn.Linear(65, plan.embedding), nn.SiLU()
        )
        self.time_out = nn.Linear(plan.embedding, plan.embedding)
        self.stem = MaskedConv(2 * channels + self.condition.field_channels, widths[0], plan.boundary)
        deepest = len(widths) - 1
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        skips, current = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            self.down.append(
                _Stage([current, *[width] * (blocks_per_level - 1)], width, attends[level], plan)
            )
            skips += [width] * blocks_per_level
            current = width
            if level < deepest:
                self.shrink.append(MaskedConv(width, width, plan.boundary, stride=2))
                self.grow.append(MaskedConv(widths[level + 1], width, plan.boundary))
                skips.append(width)
        self.middle = _Stage([current, current], current, attends[deepest], plan)
        for level in reversed(range(len(widths))):
            width = widths[level]
            sources = [width + skips.pop() for _ in range(blocks_per_level + 1)]
            self.up.insert(0, _Stage(sources, width, attends[level], plan))
        self.norm = MaskedGroupNorm(widths[0], affine=True)
        self.head = MaskedConv(widths[0], channels, plan.boundary, zero=True)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The declared conditions."""
        return self.condition.conditions

    def forward(
        self,
        x: Float[Tensor, "batch channel *shape"],
        noise_level: Float[Tensor, "batch"],
        cond: Cond | None = None,
        mask: Bool[Tensor, "batch *shape"] | None = None,
        previous: Float[Tensor, "batch channel *shape"] | None = None,
    ) -> Float[Tensor, "batch channel *shape"]:
        """Network output for input `x` at `noise_level`; `previous` is the last estimate (self-conditioning).

        Raises:
            ShapeMismatch: Wrong channels or number of axes.
        """
        if x.shape[1] != self.channels or x.ndim != self.axes + 2:
            raise ShapeMismatch(
                f"latent has shape {tuple(x.shape)}, this network expects [batch, {self.channels}, "
                f"{', '.join('xyz'[: self.axes])}]; was it made by another autoencoder?"
            )
        embedded = self.condition(cond, x)
        context = replace(embedded, vector=F.silu(self.time_out(self.time(noise_level)) + embedded.vector))
        inputs = [x, torch.zeros_like(x) if previous is None else previous]
        if embedded.fields is not None:
            inputs.append(embedded.fields)
        masks = self._masks(mask)
        x = self.stem(torch.cat(inputs, dim=1), masks[0])
        skips = [x]
        for level, stage in enumerate(self.down):
            for k in range(self.blocks):
                x = stage(k, x, masks[level], context)
                skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x, masks[level])
                skips.append(x)
        for k in range(2):
            x = self.middle(k, x, masks[-1], context)
        for level in reversed(range(len(self.up))):
            stage = self.up[level]
            for k in range(self.blocks + 1):
                x = stage(k, torch.cat([x, skips.pop()], dim=1), masks[level], context)
            if level:
                x = self.grow[level - 1](_double(x, skips[-1].shape[2:]), masks[level - 1])
        return self.head(F.silu(self.norm(x, masks[0])), masks[0])

    def _masks(self, mask: Tensor | None) -> list[Tensor | None]:
        """`[batch, 1, *shape]` per level; a coarse cell exists if any cell that it stands for does."""
        if mask is None:
            return [None] * len(self.down)
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[self.axes - 1]
        masks = [mask.bool()[:, None]]
        for _ in self.shrink:
            masks.append(pool(masks[-1].float(), 2, ceil_mode=True) > 0)
        return list(masks)


def _double(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Every cell twice along each axis, cropped to `shape`."""
    for axis, n in enumerate(shape):
        x = x.repeat_interleave(2, dim=2 + axis).narrow(2 + axis, 0, n)
    return x


def _check_options(
    axes: int,
    widths: Sequence[int],
    blocks: int,
    attention_levels: Sequence[int],
    heads: int,
    boundary: Sequence[str],
    tokens: bool,
) -> list[bool]:
    """Which levels attend, once all options are known to fit."""
    levels = len(widths)
    if not 1 <= axes <= 3:
        raise ConfigError(f"a U-Net takes latents with 1 to 3 grid axes, got {axes}; use a DiT")
    if not widths or min(widths) < 1 or blocks < 1:
        raise ConfigError(
            f"a U-Net needs positive widths and blocks_per_level, got {tuple(widths)} and {blocks}"
        )
    if len(boundary) != axes or not set(boundary) <= set(get_args(Boundary)):
        raise ConfigError(
            f"boundary must be one of {', '.join(get_args(Boundary))}, or one of them for each of the {axes} axes, "
            f"got {tuple(boundary)}"
        )
    if any(not -levels <= level < levels for level in attention_levels):
        raise ConfigError(
            f"attention_levels must lie in 0 to {levels - 1}, or -1 for the last; got {attention_levels}"
        )
    attends = [level in {k % levels for k in attention_levels} for level in range(levels)]
    wrong = [width for width, attend in zip(widths, attends, strict=True) if attend and width % heads]
    if wrong:
        raise ConfigError(f"widths of levels with attention must be multiples of heads={heads}, got {wrong}")
    if tokens and not any(attends):
        raise ConfigError(
            "token conditions enter by attention, but attention_levels is empty; name a level, say [-1]"
        )
    return attends
