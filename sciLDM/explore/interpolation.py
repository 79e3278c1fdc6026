r"""Paths between two objects, on a sphere: in the noise of the probability flow, or in the latents themselves.

    y_w = sin((1 - w) Omega) / sin(Omega) y_a + sin(w Omega) / sin(Omega) y_b,    cos(Omega) = <y_a, y_b> / |y_a||y_b|

(Shoemake 1985). Noise between two normal draws is as likely as they are, so what the flow makes of it is as likely as
the ends (Song et al. 2021, arXiv:2010.02502); a straight line would go through the mean. What the flow's round trip
loses of the ends is put back in proportion, and the ends are the objects' own latents.

Labels of numbers are interpolated as well; grid, mask and other labels are those of the nearer end. A cell that exists
at one end alone comes from noise of its own at the other.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.explore.flow import ProbabilityFlow
from sciLDM.explore.native import Encoded, conditioned, decode, encode
from sciLDM.model import LatentDiffusion
from sciLDM.rng import NoiseSource

__all__ = ["LatentPath", "NoisePath", "Path", "interpolate", "interpolate_latents", "spherical"]


class Path(ABC):
    """A way from one object to another."""

    @abstractmethod
    def between(
        self,
        model: LatentDiffusion,
        a: Encoded,
        b: Encoded,
        at: Encoded,
        pair: Int[Tensor, "point"],
        weight: Float[Tensor, "point"],
    ) -> Float[Tensor, "point channel *shape"]:
        """Latents of points on some paths.

        Args:
            model: A trained model.
            a: Where each path begins.
            b: Where it ends.
            at: Grid, mask and labels of the points; its latents are not used.
            pair: Which path each point is on.
            weight: 0 at `a`, 1 at `b`.
        """


@final
class LatentPath(Path):
    """Spherical in the latents: costs nothing, and leaves what the model considers likely. Needs equal masks."""

    def between(
        self,
        model: LatentDiffusion,
        a: Encoded,
        b: Encoded,
        at: Encoded,
        pair: Int[Tensor, "point"],
        weight: Float[Tensor, "point"],
    ) -> Float[Tensor, "point channel *shape"]:
        if a.mask is not None and b.mask is not None and not torch.equal(a.mask, b.mask):
            raise ShapeMismatch(
                "a LatentPath needs objects with the same latent cells (molecules of one size); use NoisePath()"
            )
        return spherical(a.z[pair], b.z[pair], weight)


@final
class NoisePath(Path):
    """Spherical in the noise that the probability flow makes of the objects.

    Args:
        flow: How it is integrated; `n` steps take `4 n` calls of the denoiser for a point, `16 n` for the two ends.
        seed: Of the noise for cells that one end does not have.
    """

    def __init__(self, flow: ProbabilityFlow | None = None, *, seed: int = 0) -> None:
        self.flow, self.noise = flow or ProbabilityFlow(), NoiseSource(seed)

    def between(
        self,
        model: LatentDiffusion,
        a: Encoded,
        b: Encoded,
        at: Encoded,
        pair: Int[Tensor, "point"],
        weight: Float[Tensor, "point"],
    ) -> Float[Tensor, "point channel *shape"]:
        (y_a, lost_a), (y_b, lost_b) = self._end(model, a, "a"), self._end(model, b, "b")
        z = self.flow.to_latents(conditioned(model, at), spherical(y_a[pair], y_b[pair], weight))
        w = weight.view(-1, *[1] * (z.ndim - 1))
        return _inside(z + (1 - w) * lost_a[pair] + w * lost_b[pair], at)

    def _end(self, model: LatentDiffusion, end: Encoded, name: str) -> tuple[Tensor, Tensor]:
        """Noise of objects, and what the round trip loses of them."""
        denoiser = conditioned(model, end)
        y = self.flow.to_noise(denoiser, end.z)
        lost = _inside(end.z - self.flow.to_latents(denoiser, y), end)
        if end.mask is None:
            return y, lost
        # One draw for all paths: it belongs to the cell and the end, so a path does not depend on its company.
        own = self.noise.normal([0], tuple(y.shape[1:]), stream=f"cells missing in {name}", device=y.device)
        return torch.where(end.mask[:, None], y, own.to(y.dtype)), lost


def interpolate(
    model: LatentDiffusion, a: Any, b: Any, count: int, *, path: Path | None = None, batch_size: int = 256
) -> Any:
    """Objects on the way from `a` to `b`, both included.

    Args:
        model: A trained model.
        a: One native object or several.
        b: As many, or one.
        count: Points of each path, the ends included.
        path: `NoisePath()` when None.
        batch_size: Points computed at once.

    Returns:
        Native objects, path by path. The ends are the round trips of `a` and `b` through the autoencoder alone.

    Raises:
        ConfigError: Fewer than two points, or numbers of objects that do not match.
        DataError: Objects that the model cannot represent.
        ShapeMismatch: Objects on different grids.
    """
    made = interpolate_latents(
        model, encode(model, a), encode(model, b), count, path=path, batch_size=batch_size
    )
    return decode(model, made)


@torch.no_grad()
def interpolate_latents(
    model: LatentDiffusion,
    a: Encoded,
    b: Encoded,
    count: int,
    *,
    path: Path | None = None,
    batch_size: int = 256,
) -> Encoded:
    """As `interpolate`, on latents."""
    if count < 2:
        raise ConfigError(f"a path has at least its 2 ends, got count={count}")
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ConfigError(
            f"as many objects at both ends expected (or one at one of them), got {len(a)} and {len(b)}"
        )
    pairs, path, parts = max(len(a), len(b)), path or NoisePath(), []
    a, b = (end if len(end) == pairs else end.rows([0] * pairs) for end in (a, b))
    together = max(1, batch_size // count)
    for first in range(0, pairs, together):
        rows = range(first, min(first + together, pairs))
        parts.append(_paths(model, a.rows(rows), b.rows(rows), count, path))
    return functools.reduce(Encoded.joined, parts)


def _paths(model: LatentDiffusion, a: Encoded, b: Encoded, count: int, path: Path) -> Encoded:
    """Whole paths between the rows of `a` and `b`."""
    pair = torch.arange(len(a), device=a.z.device).repeat_interleave(count)
    weight = torch.linspace(0, 1, count).repeat(len(a))
    at, w = _points(a, b, pair.tolist(), weight), weight.to(a.z)
    z = path.between(model, a, b, at, pair, w)
    ends = w.view(-1, *[1] * (z.ndim - 1))
    z = torch.where(ends == 0, a.z[pair], torch.where(ends == 1, b.z[pair], z))
    return Encoded(z, at.request)


def spherical(
    a: Float[Tensor, "batch *shape"], b: Float[Tensor, "batch *shape"], weight: Float[Tensor, "batch"]
) -> Float[Tensor, "batch *shape"]:
    """Points on the great circle through `a` and `b`; on the line where they are (nearly) parallel."""
    one, two = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(one, two, dim=1).clamp(-1, 1)
    omega = cosine.acos()
    straight = omega.sin() < 1e-4
    sine = torch.where(straight, 1.0, omega.sin())
    w_a = torch.where(straight, 1 - weight, ((1 - weight) * omega).sin() / sine)
    w_b = torch.where(straight, weight, (weight * omega).sin() / sine)
    return (w_a[:, None] * one + w_b[:, None] * two).view_as(a)


def _points(a: Encoded, b: Encoded, pair: Sequence[int], weights: Tensor) -> Encoded:
    """Grid, mask and labels at every point."""
    both, shift = a.joined(b), len(a)
    near = [p if w < 0.5 else p + shift for p, w in zip(pair, weights.tolist(), strict=True)]
    at, cond = both.rows(near), {}
    for name, label in at.request.cond.items():
        if label.is_floating_point() and label.ndim == 1:
            first, second = (end.request.cond[name][torch.as_tensor(pair)] for end in (a, b))
            label = torch.lerp(first, second, weights.to(label))
        cond[name] = label
    return Encoded(at.z, replace(at.request, cond=cond))


def _inside(z: Tensor, encoded: Encoded) -> Tensor:
    return z if encoded.mask is None else z * encoded.mask[:, None]
