r"""Molecules around a given scaffold, with the substructure guaranteed.

The scaffold's atoms are given a place in the sequence (`design_scaffold`). Their types and bonds are an observation `y`
of the latent through the decoder's heads, and each clean estimate `x0` of the denoiser is moved towards it,

    max_x  w log p(y | decode(x)) - |x - x0|^2 / (2 r_t^2),     r_t^2 = sigma^2 / (alpha^2 + sigma^2),

`r_t^2` being the variance of a standard normal latent given its noisy version (PiGDM, Song et al., ICLR 2023), by a few
gradient steps through the decoder, none through the denoiser. About half of the molecules then have the scaffold by
themselves. The others are drawn anew some times; what is left is decoded around the scaffold (`design_decode`), which
cannot fail to have it. A substructure match checks all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from rdkit import Chem
from torch import Tensor

from sciLDM.autoencoders import Autoencoder, LatentStats
from sciLDM.denoiser import Denoiser
from sciLDM.domain import Request
from sciLDM.domains.molecules.codec import ATOMS, MoleculeCodec
from sciLDM.domains.molecules.completion import asked_for
from sciLDM.domains.molecules.decode import Decoded
from sciLDM.domains.molecules.design_decode import decode_around, scaffold_likelihood
from sciLDM.domains.molecules.design_scaffold import Placement, Scaffold, draw_placements
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import ConfigError
from sciLDM.parametrisation import expand
from sciLDM.rng import NoiseSource

__all__ = ["AroundScaffold", "Scaffold", "decorate"]

_SPARE = 4
"""Further rounds for what even the clamp did not give the scaffold."""


@final
class AroundScaffold(Denoiser):
    """A denoiser whose estimates decode to the scaffold; see the module's docstring.

    Args:
        denoiser: The model's.
        autoencoder: Its autoencoder.
        stats: Of its latents.
        mask: Atoms that exist.
        placements: One for each sample.
        steps: Gradient steps at each estimate; 0 leaves the denoiser alone.
        rate: Length of the first step, in units of `r_t` for each number of the latent; later ones are shorter.
        weight: Of the observation; above 1, since `r_t^2` is too small where the posterior has several modes.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        autoencoder: Autoencoder[Any, Any],
        stats: LatentStats,
        mask: Tensor,
        placements: Sequence[Placement],
        *,
        steps: int = 4,
        rate: float = 1.0,
        weight: float = 30.0,
    ) -> None:
        super().__init__(denoiser.schedule)
        self.denoiser, self.autoencoder, self.stats = denoiser, autoencoder, stats
        self.mask, self.steps, self.rate, self.weight = mask, steps, rate, weight
        self._facts = _facts(placements, mask)

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """`x0_hat`, moved towards the scaffold."""
        x0 = self.denoiser(x_t, t)
        alpha, sigma = self.schedule(t)
        radius = expand((sigma / torch.hypot(alpha, sigma)).to(x0), x0)
        x = x0
        for k in range(self.steps):
            with torch.enable_grad():
                free = x.detach().requires_grad_()
                logits = self.autoencoder.decode(self.stats.denormalise(free), self.mask)
                likelihood = scaffold_likelihood(logits, *self._facts)
                (gradient,) = torch.autograd.grad(likelihood.sum(), free)
            move = self.weight * radius**2 * gradient - (x - x0)
            # The decoder is steep where it is wrong: steps are no longer than `rate` of what is uncertain, and shrink.
            length = move.flatten(1).norm(dim=1).clamp_min(1e-12)
            limit = self.rate * (1 - k / self.steps) * radius.flatten(1)[:, 0] * move[0].numel() ** 0.5
            x = x + expand((limit / length).clamp_max(0.5), move) * move
        return x.detach().masked_fill(~self.mask.unsqueeze(1), 0.0)


def _facts(placements: Sequence[Placement], mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Types, orders, and where the scaffold decides them: among its atoms, and that closed ones bond to no other."""
    shape = tuple(mask.shape)
    types, order = np.zeros(shape, dtype=np.int64), np.zeros((*shape, shape[1]), dtype=np.int64)
    known, pairs = np.zeros(shape, dtype=bool), np.zeros((*shape, shape[1]), dtype=bool)
    for k, p in enumerate(placements):
        types[k, p.positions], known[k, p.positions] = p.types, True
        order[k][np.ix_(p.positions, p.positions)] = p.order
        pairs[k][np.ix_(p.positions, p.positions)] = True
        closed = p.positions[~p.open]
        pairs[k, closed, : p.atoms] = pairs[k, : p.atoms, closed] = True
    found = (torch.as_tensor(x, device=mask.device) for x in (types, order, known, np.triu(pairs, 1)))
    first, second, third, fourth = found
    return first, second, third, fourth


def decorate(
    model: Any,
    scaffold: str | Scaffold,
    count: int,
    *,
    cond: Mapping[str, Any] | None = None,
    guidance: float | Mapping[str, float] | None = None,
    steps: int | None = None,
    seed: int = 0,
    insist: int = 4,
    rounds: int = 4,
    batch_size: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> MoleculeSamples:
    """New molecules that contain a scaffold.

    Args:
        model: A trained model of molecules (`sciLDM.load`).
        scaffold: SMILES, `*` where something may be attached (without any: wherever a hydrogen is), or a `Scaffold`.
        count: How many.
        cond: What else to ask for, as in `model.sample`; `atoms` counts the scaffold's too.
        guidance: As in `model.sample`.
        steps: Denoiser calls for each sample.
        seed: Sample `i` depends on `(seed, i)` alone.
        insist: Gradient steps towards the scaffold at each call; 0 leaves all to the decoder's clamp.
        rounds: How often a sample is drawn in the hope that it needs no clamp, the first time included.
        batch_size: Samples computed at once.
        progress: `progress(done, total)` in denoiser calls of the round.

    Returns:
        As `model.sample`, with a column `contains`, true for each, and `contains_raw`: whether the model's plain argmax
        had the scaffold, before clamp and constraint.

    Raises:
        DataError: A scaffold that the model cannot write, or no SMILES.
        ConfigError: Settings out of range, or molecules that after several rounds do not contain the scaffold.
    """
    codec = model.codec
    if not isinstance(codec, MoleculeCodec):
        raise ConfigError(f"decorate: expected a model of molecules, got one with a {type(codec).__name__}")
    if min(count, batch_size, rounds) < 1 or insist < 0:
        raise ConfigError(
            "decorate: expected count, batch_size and rounds from 1 and insist from 0, "
            f"got {count}, {batch_size}, {rounds} and {insist}"
        )
    scaffold = scaffold if isinstance(scaffold, Scaffold) else Scaffold(scaffold)
    found: list[Decoded | None] = [None] * count
    draw = partial(
        _draw, model, codec, scaffold, count, cond=cond or {}, guidance=guidance, steps=steps, insist=insist,
        batch_size=batch_size, progress=progress,
    )  # fmt: skip
    request: Request | None = None
    waiting = list(range(count))
    for attempt in range(rounds + _SPARE):
        # Each round has its own noise; which round serves a sample depends on that sample alone.
        decoded, asked = draw(
            waiting, NoiseSource(seed) if attempt == 0 else NoiseSource(seed).fork(f"round {attempt}")
        )
        request = request or asked
        for index, one in zip(waiting, decoded, strict=True):
            if scaffold.is_in(one.mol) and (found[index] is None or not one.changed):
                found[index] = one
        settled = [one is not None and (attempt + 1 >= rounds or not one.changed) for one in found]
        waiting = [index for index in waiting if not settled[index]]
        if not waiting:
            break
    if waiting or request is None:
        raise ConfigError(
            f"decorate: {len(waiting)} of {count} molecules do not contain {scaffold.smiles!r} after "
            f"{rounds + _SPARE} rounds; ask for larger molecules (cond={{'atoms': ...}}) or another attachment point"
        )
    return _samples(model, codec, scaffold, [one for one in found if one is not None], request)


def _draw(
    model: Any,
    codec: MoleculeCodec,
    scaffold: Scaffold,
    count: int,
    waiting: Sequence[int],
    noise: NoiseSource,
    *,
    cond: Mapping[str, Any],
    guidance: float | Mapping[str, float] | None,
    steps: int | None,
    insist: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Decoded], Request]:
    """Samples `waiting`, decoded; and their request."""
    part = _rows(cond, waiting, count)
    request = _larger(codec, part, noise, waiting, len(scaffold))
    assert request.mask is not None
    generators = [
        np.random.default_rng([int(u * 2**32) for u in row])
        for row in noise.uniform(waiting, (2,), stream="placement", dtype=torch.float64).tolist()
    ]
    placements = draw_placements(scaffold, request.cond[ATOMS].tolist(), codec.vocabulary, generators)
    sampler = model.experiment.sampler if steps is None else model.experiment.sampler.with_steps(steps)
    shape = (model.autoencoder.latent_channels, *request.shape)
    decoded: list[Decoded] = []
    starts = range(0, len(waiting), batch_size)
    for k, start in enumerate(starts):
        rows = slice(start, start + batch_size)
        mask = request.mask[rows].to(model.device)
        denoiser = AroundScaffold(
            model.guided(request, rows, guidance),
            model.autoencoder,
            model.stats,
            mask,
            placements[rows],
            steps=insist,
        )
        report = None
        if progress is not None:
            report = lambda step, total, _x0, k=k: progress(k * total + step, len(starts) * total)  # noqa: E731
        z = sampler(denoiser, shape, noise=noise, ids=waiting[rows], device=model.device, callback=report)
        with torch.no_grad():
            logits = model.autoencoder.decode(model.stats.denormalise(z), mask)
        decoded += decode_around(logits, placements[rows], codec.vocabulary)
    return decoded, request


def _rows(cond: Mapping[str, Any], waiting: Sequence[int], count: int) -> dict[str, Any]:
    """Requests of some samples: one value for all stays, and a range; one for each is picked."""
    ranges = {name: value for name, value in cond.items() if isinstance(value, tuple)}
    values = {name: np.asarray(value, dtype=float) for name, value in cond.items() if name not in ranges}
    return {n: v[list(waiting)] if v.shape == (count,) else v for n, v in values.items()} | ranges


def _larger(
    codec: MoleculeCodec, cond: Mapping[str, Any], noise: NoiseSource, ids: Sequence[int], smallest: int
) -> Request:
    """A request for molecules of more than `smallest` atoms; sizes that are left open are drawn among those."""
    request = codec.plan(len(ids), cond, noise, ids)
    counts = request.cond[ATOMS]
    if ATOMS in cond:
        return request
    if smallest >= codec.vocabulary.max_atoms:
        return codec.plan(len(ids), {**cond, ATOMS: codec.vocabulary.max_atoms}, noise, ids)
    for attempt in range(20):
        small = counts <= smallest
        if not bool(small.any()):
            break
        again = codec.plan(len(ids), cond, noise.fork(f"size {attempt}"), ids).cond[ATOMS]
        counts = torch.where(small, again, counts)
    counts = torch.where(counts <= smallest, codec.vocabulary.max_atoms, counts)
    return codec.plan(len(ids), {**cond, ATOMS: counts.numpy()}, noise, ids)


def _samples(
    model: Any, codec: MoleculeCodec, scaffold: Scaffold, decoded: list[Decoded], request: Request
) -> MoleculeSamples:
    requested, ranges = asked_for(request)
    made = MoleculeSamples.build(
        decoded,
        requested,
        descriptors=[p.name for p in codec.properties if p.descriptor],
        reference=model.reference,
        source=codec.state["source"],
        ranges=ranges,
    )
    made.table["contains"] = [scaffold.is_in(one.mol) for one in decoded]
    made.table["contains_raw"] = [
        one.raw_smiles is not None and scaffold.is_in(Chem.MolFromSmiles(one.raw_smiles)) for one in decoded
    ]
    return made
