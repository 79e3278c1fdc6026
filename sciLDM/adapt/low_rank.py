r"""Low-rank adaptation (LoRA; Hu et al. 2022, arXiv:2106.09685): `W + (a / r) B A` in place of each matrix `W`.

`W` is frozen; `A` (`r x in`) starts random and `B` (`out x r`) at zero, so that training starts from the network as it
was. Merging writes the sum into `W`: nothing of the adaptation is left to be stored or computed.
"""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sciLDM.errors import ConfigError

__all__ = ["add_low_rank", "merge_low_rank"]


@final
class _LowRank(nn.Module):
    """What is added to one matrix."""

    def __init__(
        self, outputs: int, inputs: int, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.a = nn.Parameter(torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator))
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale

    def forward(self, weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
        return torch.addmm(weight, self.b, self.a, alpha=self.scale)


def add_low_rank(network: nn.Module, rank: int, *, scale: float = 2.0, seed: int = 0) -> int:
    """Freeze a network, but for a low-rank term on each of its linear layers.

    Args:
        network: Changed in place.
        rank: `r`; a layer whose smaller side is less gets that.
        scale: `a / r`.
        seed: Of the initial `A`.

    Returns:
        Number of trainable parameters.

    Raises:
        ConfigError: A rank below 1, or a network without linear layers.
    """
    if rank < 1:
        raise ConfigError(f"the rank of low-rank adaptation must be at least 1, got {rank}")
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigError(
            f"{type(network).__name__} has no linear layers to adapt; train all of its weights (--full)"
        )
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        size = min(rank, layer.in_features, layer.out_features)
        term = _LowRank(layer.out_features, layer.in_features, size, scale, generator).to(layer.weight.device)
        parametrize.register_parametrization(layer, "weight", term)
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def merge_low_rank(network: nn.Module) -> None:
    """Write each term into its matrix, and let all weights be trained again."""
    for module in network.modules():
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    network.requires_grad_(True)
