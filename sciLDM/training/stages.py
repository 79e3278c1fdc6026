"""The two stages: autoencoder, then denoiser."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.autoencoders import Autoencoder
from sciLDM.conditions import Condition
from sciLDM.denoiser import NetDenoiser
from sciLDM.objectives import DiffusionObjective, Draw
from sciLDM.rng import NoiseSource
from sciLDM.training.adversarial import AdversarialSettings, Adversary
from sciLDM.training.stage import Stage, step_seed
from sciLDM.weighting import UniformV

__all__ = ["LMBDA_EDGES", "AutoencoderStage", "DenoiserStage", "half_precision"]

LMBDA_EDGES: tuple[float, ...] = (-6.0, -4.5, -3.0, -1.5, 0.0, 1.5, 3.0, 4.5, 6.0)
"""Borders of the noise levels that validation reports, the same for every schedule; `loss_lmbda_0` is the noisiest."""


def half_precision(stage: Stage) -> torch.autocast:
    """A block in bfloat16, if the stage's settings say so."""
    return torch.autocast(stage.device.type, dtype=torch.bfloat16, enabled=stage.settings.precision == "bf16")


@final
class AutoencoderStage(Stage):
    """Stage 1: `Autoencoder.loss`, with an optional adversarial term.

    Validation reports the loss terms (`loss`, `loss_<term>`; noise as in training, but fixed) and
    `Autoencoder.metrics` of noise-free codes, under the names the domain gave them.

    Args:
        autoencoder: What is trained.
        adversarial: Discriminator and its settings; None for none.
    """

    def __init__(self, autoencoder: Autoencoder, adversarial: AdversarialSettings | None = None) -> None:
        super().__init__("autoencoder", autoencoder, None if adversarial is None else Adversary(adversarial))

    @property
    def autoencoder(self) -> Autoencoder:
        """The network under its own name."""
        assert isinstance(self.network, Autoencoder)
        return self.network

    def loss_terms(self, fields: Any, generator: torch.Generator) -> dict[str, Float[Tensor, "batch"]]:
        with half_precision(self):
            adversary = self.adversary
            if not isinstance(adversary, Adversary) or not adversary.active(self.step):
                return self.autoencoder.loss(fields, generator)
            # The parts of `Autoencoder.loss`, since the discriminator must see what was decoded.
            latent = self.autoencoder.encode(fields)
            z, penalty = self.autoencoder.bottleneck(latent.mean, latent.log_std, latent.mask, generator)
            decoded = self.autoencoder.decode(z, latent.mask)
            terms = dict(self.autoencoder.reconstruction_loss(fields, decoded))
            if penalty is not None:
                terms["bottleneck"] = penalty
            return {**terms, "adversarial": adversary.decoder_loss(fields, decoded)}

    def scores(self, fields: Any, indices: np.ndarray) -> dict[str, Float[Tensor, "batch"]]:
        seed = step_seed(self.settings.seed, "autoencoder validation", int(indices[0]), 0)
        with half_precision(self):
            terms = self.autoencoder.loss(fields, torch.Generator(device=self.device).manual_seed(seed))
            z, mask = self.autoencoder.code(fields)
            metrics = self.autoencoder.metrics(fields, self.autoencoder.decode(z, mask))
        trained = [values.float() for name, values in terms.items() if not name.startswith("_")]
        scores = {"loss": torch.stack(trained).sum(dim=0)}
        scores |= {f"loss_{name.removeprefix('_')}": values.float() for name, values in terms.items()}
        for name, values in metrics.items():
            scores[name] = torch.as_tensor(values, dtype=torch.float32, device=self.device)
        return scores


@final
class DenoiserStage(Stage):
    """Stage 2: a `DiffusionObjective` on normalised latents. Batches are `(z, mask or None, cond)`.

    Validation adds to each held-out latent the same noise every time, once at a level inside each of eight fixed
    ranges of `lmbda`, and reports the `v` error there (`loss_lmbda_0` noisiest ... `loss_lmbda_7`) and its mean
    (`loss`). An untrained network scores 1 at every level, whatever schedule, parametrisation and training weight, so
    runs can be compared. Conditions are given in full and self-conditioning is off.

    Args:
        denoiser: What is trained.
        objective: The training loss.
        conditions: Declared conditions, for label dropout.
        teacher: Whose estimates are learned instead of the clean latents; stays as it is. Validation is the same.
    """

    def __init__(
        self,
        denoiser: NetDenoiser,
        objective: DiffusionObjective | None = None,
        conditions: Sequence[Condition] = (),
        *,
        teacher: NetDenoiser | None = None,
    ) -> None:
        super().__init__("denoiser", denoiser)
        self.objective = objective or DiffusionObjective()
        self.conditions = tuple(conditions)
        self._yardstick = DiffusionObjective(weighting=UniformV(), self_condition=0.0)
        self._teacher = (teacher,)  # in a tuple: no part of what is trained, averaged and stored

    @property
    def denoiser(self) -> NetDenoiser:
        """The network under its own name."""
        assert isinstance(self.network, NetDenoiser)
        return self.network

    def loss_terms(self, fields: Any, generator: torch.Generator) -> dict[str, Float[Tensor, "batch"]]:
        z, mask, cond = fields
        draw = self.objective.draw(z, len(self.conditions), generator)
        options = {"cond": cond, "conditions": self.conditions, "mask": mask, "progress": self.progress}
        teacher = self._teacher[0]
        if teacher is None:
            with self._precision(self.denoiser):
                return {"diffusion": self.objective(self.denoiser, z, draw, **options)}
        teacher.to(z.device)
        with self._precision(self.denoiser), self._precision(teacher):
            return {"distillation": self.objective(self.denoiser, z, draw, teacher=teacher, **options)}

    def scores(self, fields: Any, indices: np.ndarray) -> dict[str, Float[Tensor, "batch"]]:
        z, mask, cond = fields
        noise = NoiseSource(self.settings.seed).fork("denoiser validation")
        levels = [self._at_level(k, z, mask, cond, noise, indices) for k in range(len(LMBDA_EDGES) - 1)]
        return {
            "loss": torch.stack(levels).mean(dim=0),
            **{f"loss_lmbda_{k}": v for k, v in enumerate(levels)},
        }

    def _at_level(
        self,
        k: int,
        z: Tensor,
        mask: Tensor | None,
        cond: Mapping[str, Tensor],
        noise: NoiseSource,
        indices: np.ndarray,
    ) -> Tensor:
        ids, shape = [int(i) for i in indices], tuple(z.shape[1:])
        u = noise.uniform(ids, (1,), f"level {k}", device=z.device)[:, 0]
        eps = noise.normal(ids, shape, stream=f"noise {k}", device=z.device, dtype=z.dtype)
        lmbda = LMBDA_EDGES[k] + (LMBDA_EDGES[k + 1] - LMBDA_EDGES[k]) * u
        schedule = self.denoiser.schedule
        t = schedule.t_of_lmbda(lmbda).clamp(*schedule.t_range)
        draw = Draw(
            u=u, eps=eps, drops=torch.ones(len(z), 1 + len(self.conditions)).to(z), self_condition=False
        )
        with self._precision(self.denoiser):
            return self._yardstick.at(self.denoiser, z, t, draw, cond=cond, mask=mask)

    @contextmanager
    def _precision(self, denoiser: NetDenoiser) -> Iterator[None]:
        # Training's arithmetic is set for the call alone: sampling later has its own.
        before = denoiser.autocast_dtype
        denoiser.autocast_dtype = torch.bfloat16 if self.settings.precision == "bf16" else None
        try:
            yield
        finally:
            denoiser.autocast_dtype = before
