r"""What both stages share: one optimiser step, its randomness, its guard, and the state to continue from.

Optimisation is manual in Lightning's sense and steps are counted here. So a step is a function of the weights, the
optimiser's state and the step's number alone: its batch, its noise and its learning rate follow from the number.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from sciLDM.errors import ArtefactError
from sciLDM.training.adversarial import Opponent
from sciLDM.training.data import Batch, to_device
from sciLDM.training.ema import EMA
from sciLDM.training.guard import diverged
from sciLDM.training.optim import learning_rate_factor, make_optimiser
from sciLDM.training.settings import StageSettings

__all__ = ["Stage"]


class Stage(LightningModule, ABC):
    """One training stage of one network. Write `loss_terms` and `scores`; `run_stage` does the rest.

    Attributes:
        name: Folder name of the stage.
        network: What is trained, averaged and exported.
        step: Optimiser steps made so far, over resumed runs too.
        seconds: Wall-clock time so far, over resumed runs too.
        progress: Share of the stage done, by steps or by time.
        validation: Scores of the last validation.
    """

    name: str
    network: nn.Module

    def __init__(self, name: str, network: nn.Module, adversary: Opponent | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.name, self.network, self.adversary = name, network, adversary
        self.settings = StageSettings()
        self.step, self.seconds, self.progress = 0, 0.0, 0.0
        self.validation: dict[str, float] = {}
        self.ema: EMA | None = None
        self.latest: dict[str, float] = {}
        self.stop_requested = self.stop_agreed = False
        self._started = 0.0
        self._restored: dict[str, Any] | None = None
        self._window: list[dict[str, Tensor]] = []

    @abstractmethod
    def loss_terms(self, fields: Any, generator: torch.Generator) -> dict[str, Float[Tensor, "batch"]]:
        """Named loss terms, one value a sample; those starting with `_` are reported, not trained on."""

    @abstractmethod
    def scores(self, fields: Any, indices: np.ndarray) -> dict[str, Float[Tensor, "batch"]]:
        """What validation averages. Its noise must depend on `indices` and the seed alone."""

    # --- one step -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimiser step on the weighted sum of the loss terms, averaged over the batch."""
        rate = self.settings.learning_rate * learning_rate_factor(self.settings, self.step, self.progress)
        with self._seeded(batch.step) as generator:
            terms = self.loss_terms(batch.fields, generator)
            trained = [values for name, values in terms.items() if not name.startswith("_")]
            loss = torch.stack([values.float().mean() for values in trained]).sum()
            self._update(0, self.network, loss, terms, batch, rate)
            if self.adversary is not None and self.adversary.active(batch.step):
                own_rate = self.adversary.learning_rate or self.settings.learning_rate
                own, name = self.adversary.own_loss(), self.adversary.name
                terms = {**terms, f"_{name}": own}
                scale = own_rate / self.settings.learning_rate
                self._update(1, self.adversary, own.mean(), {name: own}, batch, rate * scale)
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        means = {name: values.detach().float().mean() for name, values in terms.items()}
        self._window.append({"loss": loss.detach(), **means})
        self._agree()

    def _update(
        self, index: int, module: nn.Module, loss: Tensor, terms: dict[str, Tensor], batch: Batch, rate: float
    ) -> None:
        optimisers = self.optimizers()
        optimiser = optimisers[index] if isinstance(optimisers, list) else optimisers
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # Averaged over processes, so that all of them see a bad number and all of them stop.
        loss_value, norm_value = self._mean_over_processes(torch.stack([loss.detach().float(), norm.float()]))
        if not (np.isfinite(loss_value) and np.isfinite(norm_value)):
            raise diverged(module, terms, step=batch.step, indices=batch.indices, learning_rate=rate)
        if self.settings.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.clip_norm, norm)
        # Lightning counts the steps of its own wrapper; the opponent's are made behind its back, so that its
        # count is that of the network.
        (optimiser if index == 0 else optimiser.optimizer).step()
        if index == 0:
            self.latest = {"loss": loss_value, "grad_norm": norm_value, "lr": rate}

    def _agree(self) -> None:
        # One decision for all processes: a process that stopped alone would leave the others waiting for ever.
        self.seconds = time.monotonic() - self._started
        stop, seconds = float(self.stop_requested), self.seconds
        if self.trainer.world_size > 1:
            stop, seconds = self._mean_over_processes(torch.tensor([stop, seconds], device=self.device))
        self.progress = self._progress(seconds)
        self.stop_agreed = stop > 0 or self.progress >= 1.0

    def _progress(self, seconds: float) -> float:
        limit = self.settings.max_minutes
        by_time = 0.0 if limit is None else seconds / (60 * limit)
        return min(1.0, max(self.step / self.settings.max_steps, by_time))

    def _mean_over_processes(self, values: Tensor) -> list[float]:
        if self.trainer.world_size > 1:
            values = self.trainer.strategy.reduce(values, reduce_op="mean")  # type: ignore[assignment]
        return values.tolist()

    @contextmanager
    def _seeded(self, step: int) -> Iterator[torch.Generator]:
        seed = step_seed(self.settings.seed, self.name, step, self.global_rank)
        devices = [self.device] if self.device.type == "cuda" else []
        # Dropout layers only know the global generator: lend it to the step and give it back as it was.
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield torch.Generator(device=self.device).manual_seed(seed)

    def window_means(self) -> dict[str, float]:
        """Means of the loss terms since the last call."""
        names = {name: None for terms in self._window for name in terms}
        means = {
            n: float(torch.stack([terms[n] for terms in self._window if n in terms]).mean()) for n in names
        }
        self._window = []
        return means

    # --- averaged weights ---------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside this block the network holds the averaged weights, if an average is kept."""
        with ExitStack() as stack:
            if self.ema is not None:
                stack.enter_context(self.ema.average())
            yield

    def finished_network(self) -> nn.Module:
        """The network to export: in evaluation mode, holding the averaged weights for good, if an average is kept."""
        if self.ema is not None:
            self.ema.copy_to_module()
        return self.network.eval()

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything to continue from: tensors, numbers and strings only; the same during validation as after."""
        return {
            "stage": self.name,
            "global_step": self.step,
            "seconds": self.seconds,
            "validation": dict(self.validation),
            "state_dict": self._trained_state_dict(self.state_dict()),
            "optimizer_states": [optimiser.state_dict() for optimiser in self._optimisers()],
            "ema": None if self.ema is None else self.ema.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`; optimiser and average follow when the fit starts.

        Raises:
            ArtefactError: The state belongs to another network or stage.
        """
        if state["stage"] != self.name:
            raise ArtefactError(f"this checkpoint is of stage {state['stage']!r}, expected {self.name!r}")
        try:
            self.load_state_dict(state["state_dict"])
        except RuntimeError as error:
            raise ArtefactError(
                f"the checkpoint holds another network than the one configured; resume with the configuration of the "
                f"run, or start a new run. {error}"
            ) from error
        self.step, self.seconds, self.validation = (
            state["global_step"],
            state["seconds"],
            dict(state["validation"]),
        )
        self.progress = self._progress(self.seconds)
        self._restored = state
        if state["ema"] is not None and self.settings.ema_decay is not None:
            self.ema = EMA(self.network, self.settings.ema_decay)
            self.ema.load(state["ema"])

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        optimisers = self.optimizers(use_pl_optimizer=False)
        return optimisers if isinstance(optimisers, list) else [optimisers]

    def _trained_state_dict(self, weights: dict[str, Any]) -> dict[str, Any]:
        if self.ema is None or not self.ema.swapped:
            return weights
        return {**weights, **{f"network.{name}": p for name, p in self.ema.trained_weights().items()}}

    # --- Lightning's hooks --------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One for the network, and AdamW for its opponent if there is one."""
        optimisers: list[torch.optim.Optimizer] = [make_optimiser(self.network, self.settings)]
        if self.adversary is not None:
            plain = replace(self.settings, optimiser="adamw")
            optimisers.append(
                make_optimiser(self.adversary, plain, learning_rate=self.adversary.learning_rate)
            )
        return optimisers

    def on_fit_start(self) -> None:
        """The weights are on their device now: bring optimiser and average there too."""
        if self.settings.ema_decay is not None:
            previous = self.ema
            self.ema = EMA(self.network, self.settings.ema_decay)
            if previous is not None:
                self.ema.load(previous.state())
        if self._restored is not None:
            for optimiser, saved in zip(self._optimisers(), self._restored["optimizer_states"], strict=True):
                optimiser.load_state_dict(saved)
            self._restored = None
        self.stop_requested = self.stop_agreed = False
        self._window = []
        self._started = time.monotonic() - self.seconds

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint that Lightning writes, say from a user's callback, holds the weights under training as well."""
        checkpoint["state_dict"] = self._trained_state_dict(checkpoint["state_dict"])

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the fields; step and indices stay on the host."""
        return Batch(batch.step, batch.indices, to_device(batch.fields, device))


def step_seed(seed: int, stage: str, step: int, rank: int) -> int:
    """A 63-bit seed for one step of one process."""
    digest = blake2b(repr((seed, stage, step, rank)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
