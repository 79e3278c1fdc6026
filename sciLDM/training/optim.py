"""The optimiser and its learning rate, a function of the stage's progress alone."""

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import nn

from sciLDM.errors import ConfigError
from sciLDM.training.settings import StageSettings

__all__ = ["learning_rate_factor", "make_optimiser"]


def make_optimiser(
    network: nn.Module, settings: StageSettings, *, learning_rate: float | None = None
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), with weight decay on matrices alone, or Muon beside it.

    Args:
        network: Its trainable parameters are taken.
        settings: Which one, rates and decay.
        learning_rate: Replaces that of the settings.

    Raises:
        ConfigError: Muon, for a network without matrices that it is for, or with a version of torch that lacks it.
    """
    rate = settings.learning_rate if learning_rate is None else learning_rate
    hidden = _hidden_matrices(network) if settings.optimiser == "muon" else []
    if not hidden:
        if settings.optimiser == "muon":
            raise ConfigError(
                f"optimiser: muon is for linear layers inside a stack of blocks, {type(network).__name__} has none; "
                "use adamw"
            )
        return _adamw(network, settings, rate, without=())
    return _MuonAdamW(_muon(hidden, settings, rate), _adamw(network, settings, rate, without=hidden))


def _hidden_matrices(network: nn.Module) -> list[nn.Parameter]:
    """Weights of linear layers in the blocks of a network; what embeds its input and makes its output is not theirs."""
    stacks = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    linear = {
        layer.weight: None
        for stack in stacks
        for layer in stack.modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad
    }
    return list(linear)


def _adamw(
    network: nn.Module, settings: StageSettings, rate: float, *, without: "list[nn.Parameter] | tuple[()]"
) -> torch.optim.AdamW:
    other = {id(p) for p in without}
    trained = [p for p in network.parameters() if p.requires_grad and id(p) not in other]
    matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # One kernel for all parameters instead of a dozen each; elsewhere torch picks for itself.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trained) or None
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=settings.betas, fused=fused)


def _muon(matrices: list[nn.Parameter], settings: StageSettings, rate: float) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"optimiser: muon needs torch 2.9 or later, this is {torch.__version__}; use adamw, or update torch"
        )
    # Steps as long as AdamW's (Liu et al. 2025, arXiv:2502.16982, equation 4), so that one rate serves both.
    return torch.optim.Muon(
        matrices, lr=rate, weight_decay=settings.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )


@final
class _MuonAdamW(torch.optim.Optimizer):
    """Two optimisers of one network as one: they share its groups and its state, so that it is stored as any other."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state, first = self.param_groups[first:last], self.state, last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def learning_rate_factor(settings: StageSettings, step: int, progress: float) -> float:
    """Share of the peak learning rate: linear warm-up over steps, then constant, then decay over progress.

    Args:
        step: Step about to be made, from 0.
        progress: Share of the stage done, 0 to 1; the larger of steps and time.
    """
    # A short trial run of a long configuration must not end inside its warm-up.
    warmup_steps = min(settings.warmup_steps, settings.max_steps // 10)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    late = min(1.0, max(0.0, (progress - settings.decay_from) / (1 - settings.decay_from)))
    if settings.decay == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * late))
    return warmup * (1 - late if settings.decay == "linear" else 1.0)
