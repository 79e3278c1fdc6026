r"""How much a trained denoiser would miss each attention head and each hidden unit.

A gate `g_u` (1) multiplies the output of every unit `u`. With `J_u = d D(x_t) / d g_u`, setting `g_u = 0` moves the
estimate by

    I_u = E[ w(lmbda) |J_u|^2 ]

to first order in the estimate: the Fisher information of the gate in the model `N(D(x_t), w^-1 I)` (Kwon et al. 2022,
arXiv:2204.09656, after LeCun et al. 1989, "Optimal brain damage", and Molchanov et al. 2019, arXiv:1906.10771). As
`|J_u|^2 = E_v (v . J_u)^2` for white `v`, one backward pass serves all units. The clean latents enter by their noisy
states alone.

Scores of single units leave out what removed ones have in common. A second term for that, `-2 r . J_u` with `r` what
was removed so far, made qm9-small worse in eight rounds (distance to the unpruned estimate at half the parameters: 0.40
instead of 0.16). Units that each make up for the same `r` overshoot together.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.conditions import Condition
from sciLDM.denoiser import NetDenoiser
from sciLDM.nets import DiT
from sciLDM.objectives import DiffusionObjective
from sciLDM.parametrisation import expand
from sciLDM.schedules import LMBDA_LIMIT

__all__ = ["BlockImportance", "unit_importance"]

Latents = tuple[Tensor, Tensor | None, Mapping[str, Tensor]]


@final
@dataclass(frozen=True)
class BlockImportance:
    """`I_u` of one block's units; empty where it has none.

    Attributes:
        heads: Of its attention heads.
        hidden: Of its perceptron's hidden units.
    """

    heads: Float[Tensor, "heads"]
    hidden: Float[Tensor, "hidden"]


def unit_importance(
    denoiser: NetDenoiser,
    batches: Iterable[Latents],
    objective: DiffusionObjective,
    conditions: tuple[Condition, ...],
    *,
    seed: int = 0,
) -> list[BlockImportance]:
    """`I_u` of every unit of the denoiser's network, block by block.

    Args:
        denoiser: With a `DiT` inside.
        batches: Normalised latents, masks and labels.
        objective: Its noise levels, weights, dropped conditions and self-conditioning are those of the mean.
        conditions: Declared conditions.
        seed: Of noise and projections.
    """
    net = denoiser.net
    assert isinstance(net, DiT)
    generator = torch.Generator().manual_seed(seed)
    totals, count = [], 0
    with _gates(net) as gates:
        for z, mask, cond in batches:
            part = _of_batch(denoiser, (z, mask, cond), objective, conditions, gates, generator)
            totals = part if not totals else [a + b for a, b in zip(totals, part, strict=True)]
            count += len(z)
    means = iter([total / count for total in totals])
    nothing = torch.zeros(0)
    return [
        BlockImportance(
            nothing if block.attention is None else next(means), nothing if block.mlp is None else next(means)
        )
        for block in net.blocks
    ]


def _of_batch(
    denoiser: NetDenoiser,
    latents: Latents,
    objective: DiffusionObjective,
    conditions: tuple[Condition, ...],
    gates: list[Tensor],
    generator: torch.Generator,
) -> list[Tensor]:
    """Sums of `I_u` over a batch, one tensor for each gate."""
    z, mask, cond = latents
    draw = objective.draw(z, len(conditions), generator)
    labels, scored = objective.given(z, draw, cond=cond, conditions=conditions, mask=mask)
    t = objective.times(draw.u, denoiser.schedule)
    alpha, sigma = denoiser.schedule(t)
    x_t = expand(alpha, z) * z + expand(sigma, z) * draw.eps
    with torch.no_grad():
        previous = denoiser(x_t, t, labels, mask) if draw.self_condition else None
    cells = torch.ones_like(z) if scored is None else scored[:, None].expand_as(z).to(z)
    lmbda = denoiser.schedule.lmbda(t).clamp(-LMBDA_LIMIT, LMBDA_LIMIT)
    weight = objective.weighting(lmbda) / cells.flatten(1).sum(dim=1).clamp_min(1)
    scale = expand(weight.sqrt(), z) * cells
    v = torch.randn(z.shape, generator=generator).to(z)
    gates.clear()
    estimate = denoiser(x_t, t, labels, mask, previous)
    # Each sample has gates of its own: derivatives are squared before they are summed.
    return [
        g.double().square().flatten(1).sum(dim=0)
        for g in torch.autograd.grad((scale * v * estimate).sum(), gates)
    ]


@contextmanager
def _gates(net: DiT) -> Iterator[list[Tensor]]:
    """Inside this block every unit of the network has a gate; each call appends those it used, in order."""
    used: list[Tensor] = []

    def opened(x: Tensor, units: int) -> Tensor:
        gate = torch.ones(len(x), 1, units, 1, dtype=x.dtype, device=x.device, requires_grad=True)
        used.append(gate)
        return (x.unflatten(-1, (units, -1)) * gate).flatten(-2)

    def heads(module: nn.Module, args: tuple[Any, ...], count: int) -> tuple[Tensor]:
        return (opened(args[0], count),)

    def hidden(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return opened(output, output.shape[-1])

    hooks: Sequence[Any] = []
    try:
        for block in net.blocks:
            if block.attention is not None:
                count = block.attention.heads
                hook = lambda module, args, count=count: heads(module, args, count)  # noqa: E731
                hooks.append(block.attention.out.register_forward_pre_hook(hook))
            if block.mlp is not None:
                hooks.append(block.mlp[1].register_forward_hook(hidden))
        yield used
    finally:
        for hook in hooks:
            hook.remove()
