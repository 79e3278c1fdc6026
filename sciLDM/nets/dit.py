r"""Diffusion transformer over an N-d grid of latent vectors (Peebles & Xie 2023, arXiv:2212.09748).

Blocks are adaLN-Zero: `x + g * f((1 + s) * norm(x) + b)` with `(s, b, g)` a function of noise level and conditions.
The map to `(s, b, g)` is one matrix shared by all blocks plus a learned offset per block (PixArt-alpha, Chen et al.
2023, arXiv:2310.00426, section 2.3): a third fewer parameters at equal depth. Queries and keys are normalised (QK-norm,
Dehghani et al. 2023, arXiv:2302.05442); positions are learned or rotary, per axis (Su et al. 2021, arXiv:2104.09864).
"""

from collections.abc import Sequence
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sciLDM.conditions import Condition
from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.nets.conditioning import ConditionEmbedding, FourierFeatures
from sciLDM.nets.norms import stacked_rms_norm
from sciLDM.nets.positions import LearnedPositions, RotaryPositions, rotate
from sciLDM.types import Cond

__all__ = ["DiT"]


@final
class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int | None = None) -> None:
        super().__init__()
        head_width = width // heads if head_width is None else head_width
        self.heads, self.head_width = heads, head_width
        self.qkv = nn.Linear(width, 3 * heads * head_width)
        self.out = nn.Linear(heads * head_width, width)
        self.q_norm = nn.RMSNorm(head_width, eps=1e-6)
        self.k_norm = nn.RMSNorm(head_width, eps=1e-6)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, bias: Tensor | None) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # PyTorch's fused attention for CPUs pads its blocks: in bfloat16 its backward pass takes several times as long
        # as the plain products, up to a few hundred tokens. Elsewhere it is the faster one.
        short = heads.device.type == "cpu" and heads.dtype == torch.bfloat16 and length <= 256
        heads = heads.contiguous() if short else heads
        scale = self.head_width**-0.5  # of the scores, put where it costs nothing
        weights = torch.stack([self.q_norm.weight * scale, self.k_norm.weight])
        q, k = stacked_rms_norm(heads[:2], weights, self.q_norm.eps or 0.0).unbind(0)
        v = heads[2]
        if rotary is not None:
            cos, sin = (angle.transpose(0, 1) for angle in rotary)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        bias = None if bias is None else bias.to(q.dtype)
        if short:
            scores = q @ k.transpose(-1, -2)
            mixed = (scores if bias is None else scores + bias).softmax(dim=-1).to(v.dtype) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


@final
class _GELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        # The tanh form, as in DiT. On CPUs the erf form takes a third of the time, and in bfloat16 the two differ by
        # less than the rounding.
        exact = x.device.type == "cpu" and x.dtype == torch.bfloat16
        return F.gelu(x, approximate="none" if exact else "tanh")


@final
class _Block(nn.Module):
    """Attention and a perceptron of one hidden layer; without heads (or hidden units) there is only the other."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = _Attention(width, heads, head_width) if heads else None
        self.mlp = (
            nn.Sequential(nn.Linear(width, hidden), _GELU(), nn.Linear(hidden, width)) if hidden else None
        )
        self.modulation = nn.Parameter(torch.zeros(6, width))

    def forward(
        self, x: Tensor, shared: Tensor, rotary: tuple[Tensor, Tensor] | None, bias: Tensor | None
    ) -> Tensor:
        b1, s1, g1, b2, s2, g2 = (shared + self.modulation.to(shared.dtype))[:, None].unbind(2)
        if self.attention is not None:
            inner = torch.addcmul(b1, self.norm_1(x).to(b1.dtype), 1 + s1)
            x = torch.addcmul(x, g1, self.attention(inner, rotary, bias))
        if self.mlp is not None:
            x = torch.addcmul(x, g2, self.mlp(torch.addcmul(b2, self.norm_2(x).to(b2.dtype), 1 + s2)))
        return x


@final
class DiT(nn.Module):
    """Transformer denoiser for latents `[batch, channels, *shape]` with one, two or three grid axes.

    Args:
        channels: Latent channels, in and out.
        shape: The largest grid; learned positions exist for it, rotary ones extrapolate.
        width: Model width; a multiple of `heads`.
        depth: Number of blocks, each with `heads` and `4 * width` hidden units; or `(heads, hidden units)` of each,
            where some were pruned (0 for no attention, or no perceptron).
        heads: Attention heads; each has `width / heads` channels.
        patch: Grid cells per token along each axis; 1 keeps every cell a token.
        positions: `"learned"` table per axis or `"rotary"`.
        conditions: Declared conditions. Scalars, vectors and categories modulate, token sequences are attended to,
            fields are concatenated to the input.
    """

    def __init__(
        self,
        channels: int,
        shape: Sequence[int],
        *,
        width: int = 256,
        depth: int | Sequence[tuple[int, int]] = 6,
        heads: int = 4,
        patch: int = 1,
        positions: Literal["learned", "rotary"] = "learned",
        conditions: Sequence[Condition] = (),
    ) -> None:
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise ConfigError(f"width must be heads times an even number, got width={width}, heads={heads}")
        if any(n % patch for n in shape):
            raise ConfigError(
                f"every axis of shape {tuple(shape)} must be a multiple of patch={patch}; pad the latent"
            )
        if positions == "rotary" and width // heads < 2 * len(shape):
            raise ConfigError(
                f"rotary positions need at least {2 * len(shape)} channels a head for {len(shape)} axes, got "
                f"width={width}, heads={heads}; use fewer heads"
            )
        self.channels, self.shape, self.patch = channels, tuple(shape), patch
        self.head_width = width // heads
        self.condition = ConditionEmbedding(conditions, width)
        cells = patch ** len(self.shape)
        self.embed = nn.Linear((2 * channels + self.condition.field_channels) * cells, width)
        tokens = tuple(n // patch for n in self.shape)
        self.learned = LearnedPositions(tokens, width) if positions == "learned" else None
        self.rotary = RotaryPositions(len(tokens), width // heads) if positions == "rotary" else None
        self.time = nn.Sequential(FourierFeatures(32, low=0.02, high=4.0), nn.Linear(65, width), nn.SiLU())
        self.time_out = nn.Linear(width, width)
        self.shared = nn.Linear(width, 6 * width)
        sizes = [(heads, 4 * width)] * depth if isinstance(depth, int) else depth
        self.blocks = nn.ModuleList([_Block(width, own, width // heads, hidden) for own, hidden in sizes])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, channels * cells)
        self._initialise()

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The declared conditions."""
        return self.condition.conditions

    def _initialise(self) -> None:
        for block in self.blocks:
            attention, mlp = block.attention, block.mlp
            linears = [] if attention is None else [attention.qkv, attention.out]
            for linear in linears + ([] if mlp is None else [mlp[0], mlp[2]]):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
        # adaLN-Zero: every block starts as the identity and the network starts at zero.
        for linear in (self.shared, self.final_modulation, self.head):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Float[Tensor, "batch channel *shape"],
        noise_level: Float[Tensor, "batch"],
        cond: Cond | None = None,
        mask: Bool[Tensor, "batch *shape"] | None = None,
        previous: Float[Tensor, "batch channel *shape"] | None = None,
    ) -> Float[Tensor, "batch channel *shape"]:
        """Network output for input `x` at `noise_level`; `previous` is the last estimate (self-conditioning)."""
        if x.shape[1] != self.channels or x.ndim != len(self.shape) + 2:
            raise ShapeMismatch(
                f"latent has shape {tuple(x.shape)}, this network expects [batch, {self.channels}, *{self.shape}]; "
                "was it made by another autoencoder?"
            )
        grid = x.shape[2:]
        if any(n % self.patch for n in grid):
            raise ShapeMismatch(
                f"every axis of grid {tuple(grid)} must be a multiple of patch={self.patch}; pad it"
            )
        embedded = self.condition(cond, x)
        inputs = [x, torch.zeros_like(x) if previous is None else previous]
        if embedded.fields is not None:
            inputs.append(embedded.fields)
        cells_in = torch.cat(inputs, dim=1)
        if mask is not None:  # a token may hold cells of both kinds
            cells_in = cells_in.masked_fill(~mask.bool()[:, None], 0.0)
        tokens = self.embed(_patchify(cells_in, self.patch))
        cells = tuple(n // self.patch for n in grid)
        if self.learned is not None:
            tokens = tokens + self.learned(cells).to(tokens.dtype)
        rotary = None if self.rotary is None else self.rotary(cells, tokens.device)
        extra = 0
        if embedded.tokens is not None:
            extra = embedded.tokens.shape[1]
            tokens = torch.cat([embedded.tokens.to(tokens.dtype), tokens], dim=1)
            rotary = None if rotary is None else _prefix_rotary(rotary, extra)
        bias = _attention_bias(mask, embedded.token_mask, self.patch, tokens)
        c = F.silu(self.time_out(self.time(noise_level)) + embedded.vector)
        shared = self.shared(c).view(x.shape[0], 6, -1)
        for block in self.blocks:
            tokens = block(tokens, shared, rotary, bias)
        shift, scale = self.final_modulation(c)[:, None].chunk(2, dim=-1)
        tokens = torch.addcmul(shift, self.norm(tokens[:, extra:]).to(shift.dtype), 1 + scale)
        return _unpatchify(self.head(tokens), self.patch, self.channels, grid)


def _patchify(x: Tensor, patch: int) -> Tensor:
    """`[batch, channel, *shape]` -> `[batch, tokens, channel * patch^d]`."""
    batch, channel, *grid = x.shape
    if patch == 1:
        return x.flatten(2).transpose(1, 2)
    axes = len(grid)
    x = x.reshape(batch, channel, *[n for g in grid for n in (g // patch, patch)])
    order = [0, *[2 + 2 * a for a in range(axes)], 1, *[3 + 2 * a for a in range(axes)]]
    return x.permute(order).reshape(batch, -1, channel * patch**axes)


def _unpatchify(tokens: Tensor, patch: int, channels: int, grid: Sequence[int]) -> Tensor:
    batch, axes = tokens.shape[0], len(grid)
    if patch == 1:
        return tokens.transpose(1, 2).reshape(batch, channels, *grid)
    x = tokens.reshape(batch, *[g // patch for g in grid], channels, *[patch] * axes)
    order = [0, 1 + axes, *[n for a in range(axes) for n in (1 + a, 2 + axes + a)]]
    return x.permute(order).reshape(batch, channels, *grid)


def _attention_bias(
    mask: Tensor | None, token_mask: Tensor | None, patch: int, tokens: Tensor
) -> Tensor | None:
    """Additive key mask `[batch, 1, 1, length]`: 0 where attended to, a large negative number elsewhere."""
    if mask is None and token_mask is None:
        return None
    batch, length = tokens.shape[:2]
    if mask is None:
        present = torch.ones(batch, length - token_mask.shape[1], dtype=torch.bool, device=tokens.device)  # type: ignore[union-attr]
    else:
        present = _patchify(mask[:, None], patch).any(dim=-1)
    if token_mask is not None:
        present = torch.cat([token_mask, present], dim=1)
    return torch.where(present, 0.0, -1e4)[:, None, None, :]


def _prefix_rotary(rotary: tuple[Tensor, Tensor], extra: int) -> tuple[Tensor, Tensor]:
    """Condition tokens have no place on the grid: they are not rotated."""
    cos, sin = rotary
    return (
        torch.cat([cos.new_ones(extra, *cos.shape[1:]), cos]),
        torch.cat([sin.new_zeros(extra, *sin.shape[1:]), sin]),
    )
