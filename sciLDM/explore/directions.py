r"""Directions in latent space that change one attribute and hold the others.

With latents of covariance `Sigma`, attributes `a_k` and `B = Cov(z, a)`, the linear estimate of the attributes is
`W^T z`, `W = Sigma^-1 B`. Of all shifts that move the estimate of attribute `k` by 1 and those of the held ones by 0,
the one that stays nearest to the data, in the metric `Sigma^-1`, is

    d_k = Sigma W (W^T Sigma W)^-1 e_k = B (B^T Sigma^-1 B)^-1 e_k:

Gram-Schmidt of the patterns `B` (Haufe et al. 2014, doi:10.1016/j.neuroimage.2013.10.067) against those of the held
attributes. Where attributes are exact linear functions of latents this is the direction that generates them. `Sigma` is
shrunk towards a multiple of the identity (Chen et al. 2010, doi:10.1109/TSP.2010.2053029), which matters only where
objects are few.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, DataError
from sciLDM.explore.editing import edit_latents
from sciLDM.explore.native import Encoded, decode, encode, told
from sciLDM.model import LatentDiffusion
from sciLDM.rng import NoiseSource

__all__ = ["Direction", "attribute_direction", "move"]

_FEWEST = 16
_FOLDS = 5
_FOLLOWS = 1e-3
"""Share of an attribute's linear estimate that the held ones must leave open."""


@final
@dataclass(frozen=True)
class Direction:
    """A shift of normalised latents that raises one attribute.

    Attributes:
        name: The attribute.
        vector: Shift for one unit of the attribute, 0 in cells that never exist.
        held: Attributes whose linear estimates do not change.
        r2: Share of the attribute's variance that latents explain linearly, on objects left out of the fit. Below
            about 0.3 the direction says little.
        length: Standard deviations of the latents (Mahalanobis distance) in one unit of the attribute.
        count: Objects used.
    """

    name: str
    vector: Float[Tensor, "channel *shape"]
    held: tuple[str, ...]
    r2: float
    length: float
    count: int


def attribute_direction(
    model: LatentDiffusion,
    attribute: str,
    objects: Any,
    labels: Mapping[str, Any] | None = None,
    *,
    hold: Sequence[str] | None = None,
    shrinkage: float | None = None,
) -> Direction:
    """The direction of an attribute, with others held.

    Args:
        model: A trained model.
        attribute: Name of a label.
        objects: Native objects (or `Encoded`), some times as many as latents have directions.
        labels: Attributes by name, one number an object, NaN where missing; the labels that the codec tells when
            None. Any attribute will do, not only the model's conditions.
        hold: Attributes to hold; all others that vary when None.
        shrinkage: Of the latents' covariance, in [0, 1]; chosen from the data when None.

    Raises:
        ConfigError: An unknown attribute, or one that the held ones determine.
        DataError: Fewer than 16 objects with all labels, or an attribute that does not vary.
    """
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ConfigError(f"shrinkage: expected a number from 0 to 1, got {shrinkage}")
    encoded = encode(model, objects)
    known = _labels(encoded, labels)
    held = tuple(hold) if hold is not None else tuple(n for n in known if n != attribute)
    if wrong := [n for n in (attribute, *held) if n not in known] or [n for n in held if n == attribute]:
        raise ConfigError(f"no attribute {wrong[0]!r} to move or hold; known: {', '.join(known) or 'none'}")
    if hold is None:  # what is nowhere known, or the same everywhere, is not there to be held
        held = tuple(n for n in held if _varies(known[n][_present(known, (attribute, n))]))
    there = _present(known, (attribute, *held))
    if int(there.sum()) < _FEWEST:
        raise DataError(
            f"a direction needs at least {_FEWEST} objects with {', '.join((attribute, *held))}, got {int(there.sum())}"
        )
    held = tuple(n for n in held if _varies(known[n][there]))
    if not _varies(known[attribute][there]):
        raise DataError(
            f"attribute {attribute!r} is the same for all {int(there.sum())} objects; give some that differ"
        )
    a = torch.stack([known[n][there] for n in (attribute, *held)], dim=1)
    x = encoded.z[there.to(encoded.z.device)].flatten(1).double().cpu()
    unit = a.std(0, correction=0)
    fit = _Regression.fit(x, a / unit, shrinkage)
    gram = fit.patterns.mT @ fit.weights
    # Held attributes may determine each other (pinv), but not the one that moves.
    others = torch.linalg.pinv(gram[1:, 1:], rtol=1e-9, hermitian=True) @ gram[1:, 0]
    left = float(gram[0, 0] - gram[0, 1:] @ others)
    if not left > _FOLLOWS * float(gram[0, 0]):
        raise ConfigError(
            f"{attribute!r} cannot change while {', '.join(held)} do not: they determine its estimate; hold fewer"
        )
    vector = (fit.patterns[:, 0] - fit.patterns[:, 1:] @ others) / left / unit[0]
    return Direction(
        name=attribute,
        vector=vector.to(encoded.z).view(encoded.z.shape[1:]),
        held=held,
        r2=_left_out(x, a[:, :1], shrinkage),
        length=left**-0.5 / float(unit[0]),
        count=len(x),
    )


def move(
    model: LatentDiffusion,
    objects: Any,
    direction: Direction,
    amount: float | Sequence[float],
    *,
    settle: float = 0.0,
    seed: int = 0,
) -> Any:
    """Objects moved along a direction.

    Args:
        model: A trained model.
        objects: Native objects (or `Encoded`).
        direction: From `attribute_direction` of the same model.
        amount: Change of the attribute in its own units, for all or for each object; 0 is the round trip through the
            autoencoder.
        settle: Strength of an edit after the move, under the moved value and the held ones where they are conditions
            of the model: what is moved far leaves the data, and this brings it back. 0 does without.
        seed: Of that edit.

    Returns:
        Native objects, one for each.

    Raises:
        ConfigError: A wrong number of amounts, or a direction of another model.
    """
    encoded = encode(model, objects)
    if direction.vector.shape != encoded.z.shape[1:]:
        raise ConfigError(
            f"the direction is for latents of shape {tuple(direction.vector.shape)}, these have "
            f"{tuple(encoded.z.shape[1:])}; find it with this model"
        )
    steps = torch.as_tensor(amount, dtype=torch.float32)
    if steps.ndim > 1 or (steps.ndim == 1 and len(steps) != len(encoded)) or not bool(steps.isfinite().all()):
        raise ConfigError(
            f"amount: expected a finite number, or one for each of {len(encoded)} objects, got {amount}"
        )
    steps = steps.expand(len(encoded))
    shift = steps.to(encoded.z).view(-1, *[1] * (encoded.z.ndim - 1)) * direction.vector.to(encoded.z)
    z = encoded.z + (shift if encoded.mask is None else shift * encoded.mask[:, None])
    cond = dict(encoded.request.cond)
    if direction.name in cond and cond[direction.name].is_floating_point():
        cond[direction.name] = cond[direction.name] + steps.to(cond[direction.name])
    moved = Encoded(z, replace(encoded.request, cond=cond))
    if settle > 0:
        keep = [n for n in (direction.name, *direction.held) if n in cond and told(cond[n])]
        moved = edit_latents(model, moved, settle, keep=keep, seed=seed)
    return decode(model, moved)


@final
@dataclass(frozen=True)
class _Regression:
    """`B = Cov(z, a)` and `W = Sigma^-1 B`, with the means."""

    patterns: Tensor
    weights: Tensor
    centre: Tensor
    offset: Tensor

    @staticmethod
    def fit(x: Tensor, a: Tensor, shrinkage: float | None) -> "_Regression":
        count, dim = x.shape
        centre, offset = x.mean(0), a.mean(0)
        x, a = x - centre, a - offset
        alive = x.square().mean(0) > 1e-12  # cells that none of these objects has
        used = x[:, alive]
        patterns = x.mT @ a / count
        small = used.mT @ used if int(alive.sum()) <= count else used @ used.mT
        total, square = float(small.trace()) / count, float((small / count).square().sum())
        level = total / max(int(alive.sum()), 1)
        rho = _shrinkage(count, int(alive.sum()), total, square) if shrinkage is None else shrinkage
        # A trace of the identity keeps the solve possible where latents lie in a plane and nothing is shrunk.
        ridge = max(rho, 1e-9) * level
        matrix = (1 - rho) * small / count + ridge * torch.eye(len(small), dtype=x.dtype)
        weights = torch.zeros(dim, a.shape[1], dtype=x.dtype)
        if int(alive.sum()) <= count:
            weights[alive] = torch.linalg.solve(matrix, patterns[alive])
        else:  # X^T (ridge + (1 - rho) X X^T / n)^-1 a / n, the same by the push-through identity
            weights[alive] = used.mT @ torch.linalg.solve(matrix, a) / count
        return _Regression(patterns, weights, centre, offset)

    def __call__(self, x: Tensor) -> Tensor:
        return self.offset + (x - self.centre) @ self.weights


def _shrinkage(count: int, dim: int, total: float, square: float) -> float:
    """Oracle-approximating shrinkage, Chen et al. 2010, Eq. 23, from `tr S` and `tr S^2`."""
    top = (1 - 2 / dim) * square + total**2
    bottom = (count + 1 - 2 / dim) * (square - total**2 / dim)
    return min(1.0, top / bottom) if bottom > 0 else 1.0


def _left_out(x: Tensor, a: Tensor, shrinkage: float | None) -> float:
    """Share of the variance explained on every fifth object by the fit to the others."""
    # Objects often come sorted by what is asked about; a fixed shuffle keeps the folds alike.
    order = NoiseSource(0).uniform(range(len(x)), (), "folds").argsort()
    fold = torch.empty(len(x), dtype=torch.long)
    fold[order] = torch.arange(len(x)) % _FOLDS
    rest = 0.0
    for k in range(_FOLDS):
        fit = _Regression.fit(x[fold != k], a[fold != k], shrinkage)
        rest += float((a[fold == k] - fit(x[fold == k])).square().sum())
    return 1 - rest / float((a - a.mean(0)).square().sum())


def _labels(encoded: Encoded, labels: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Numbers by name, one an object, NaN where missing."""
    if labels is None:
        found = {n: v for n, v in encoded.request.cond.items() if v.ndim == 1}
        return {
            n: (v if v.is_floating_point() else torch.where(v < 0, torch.nan, v.double())).double().cpu()
            for n, v in found.items()
        }
    numbers = {}
    for name, values in labels.items():
        try:
            numbers[name] = torch.as_tensor(values, dtype=torch.float64).cpu()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"labels[{name!r}]: expected numbers, got {values!r:.60}") from error
        if numbers[name].shape != (len(encoded),):
            raise ConfigError(
                f"labels[{name!r}]: expected one number for each of {len(encoded)} objects, got shape "
                f"{tuple(numbers[name].shape)}"
            )
    return numbers


def _present(known: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.stack([known[n].isfinite() for n in names]).all(0)


def _varies(values: Tensor) -> bool:
    return len(values) > 1 and float(values.std()) > 1e-9 * max(1.0, float(values.abs().max()))
