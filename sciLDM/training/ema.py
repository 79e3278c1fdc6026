r"""Running average of a module's parameters, in float32, and of nothing else.

`shadow <- d_n shadow + (1 - d_n) weight` with `d_n = min(decay, (1 + n) / (10 + n))` at update `n` (from 0): the first
updates forget the random initial weights, however slow the final decay is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from sciLDM.errors import ArtefactError

__all__ = ["EMA"]


@final
class EMA:
    """Average of the trainable parameters of `module`; frozen parameters and buffers are left alone.

    Args:
        module: Whose parameters are averaged. The average starts as a copy of them.
        decay: Largest decay per update.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        self._backup: dict[str, Tensor] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current weights; call after each optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        names = list(self.shadow)
        weights = [self._parameters[name].detach().float() for name in names]
        # One call for all parameters; torch has no public name for it.
        shadows = [self.shadow[name] for name in names]
        torch._foreach_lerp_(shadows, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.updates += 1

    @property
    def swapped(self) -> bool:
        """Whether the module holds the average at this moment."""
        return self._backup is not None

    @contextmanager
    def average(self) -> Iterator[None]:
        """Inside this block the module holds the averaged weights; afterwards its own, bit for bit."""
        if self._backup is not None:  # already inside: the outer block restores
            yield
            return
        self._backup = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.copy_to_module()
        try:
            yield
        finally:
            backup, self._backup = self._backup, None
            with torch.no_grad():
                for name, p in self._parameters.items():
                    p.copy_(backup[name])

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Overwrite the module's weights by the average, for good."""
        for name, p in self._parameters.items():
            p.copy_(self.shadow[name])

    def trained_weights(self) -> dict[str, Tensor]:
        """The weights under training, also while the module holds the average."""
        current = {name: p.detach() for name, p in self._parameters.items()}
        return current if self._backup is None else self._backup

    def state(self) -> dict[str, Any]:
        """Everything needed to continue, the same inside and outside of `average`."""
        return {"updates": self.updates, "shadow": {name: s.clone() for name, s in self.shadow.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`.

        Raises:
            ArtefactError: The state belongs to another network.
        """
        if state["shadow"].keys() != self.shadow.keys():
            other = sorted(state["shadow"].keys() ^ self.shadow.keys())[:3]
            raise ArtefactError(
                f"the saved average belongs to another network: it differs in {', '.join(other)}"
            )
        self.updates = state["updates"]
        for name, saved in state["shadow"].items():
            self.shadow[name].copy_(saved)
