"""What a reconstruction keeps of its samples, and the posterior that it makes of them."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from sciLDM.guidance.posterior.problem import Problem
from sciLDM.operators import Operator
from sciLDM.posterior.ensemble import Ensemble, data_chi2
from sciLDM.posterior.noise_level import NoiseLevel
from sciLDM.posterior.result import Posterior

__all__ = ["Totals"]

_POOR_RESIDUAL, _POOR_CHI2, _LITTLE_REDUNDANCY = 0.3, 2.0, 0.2


@final
class Totals:
    """Samples, their mean and what else is summed over them; on the CPU, filled batch by batch.

    Args:
        cases: Number of cases.
        samples: Samples of each.
        paired: Their noise comes in pairs of opposite sign.
    """

    def __init__(self, cases: int, samples: int, *, paired: bool = False) -> None:
        self.cases, self.samples, self.paired = cases, samples, paired
        self.perturbed, self.plain = torch.empty(0), torch.empty(0)
        self.prior: Tensor | None = None
        self.chi2 = torch.zeros(cases, samples)
        self.evaluations: list[Mapping[str, int]] = []
        self.iterations, self.residual = 0, 0.0

    def add(self, ids: range, made: Ensemble, chi2: Tensor, prior: Tensor | None) -> None:
        """Take in samples `ids`: corrected fields, chi-square of the perturbed ones, prior variance about them."""
        plain, perturbed = made.plain.x.cpu(), made.perturbed.x.cpu()
        shape = perturbed.shape[1:]
        if not self.perturbed.numel():
            self.perturbed = torch.zeros(self.cases, self.samples, *shape)
            self.plain = torch.zeros(self.cases, *shape)
            self.prior = None if prior is None else torch.zeros(self.cases, *shape)
        case = torch.tensor([i // self.samples for i in ids])
        self.perturbed.view(-1, *shape)[ids.start : ids.stop] = perturbed
        # Rows are added in the order of their ids, so the sum does not depend on the batches.
        self.plain.index_add_(0, case, plain / self.samples)
        if self.prior is not None and prior is not None:
            self.prior.index_add_(0, case, prior.cpu() / self.samples)
        self.chi2.view(-1)[ids.start : ids.stop] = chi2.cpu()
        for part in (made.plain, made.perturbed):
            self.iterations = max(self.iterations, int(part.iterations.max()))
            self.residual = max(self.residual, float(part.residual.max()))

    def posterior(self, problem: Problem, operator: Operator, level: NoiseLevel | None) -> Posterior:
        """Mean, spread, chi-square and share of generated variance.

        Args:
            problem: Values and weights of each case.
            operator: What was observed.
            level: The estimated noise, or None where it was given.
        """
        # The mean of pairs hardly scatters, so no degree of freedom is lost to it.
        std = self.perturbed.std(dim=1, correction=0 if self.paired else 1)
        null = torch.full_like(std, torch.nan)
        if self.prior is not None:
            share = std.square() / self.prior.clamp(min=torch.finfo(std.dtype).tiny)
            null = torch.where(self.prior > 0, share, (std > 0).to(std)).clamp(0, 1)
        values, weights = problem.values, problem.weights
        mean_chi2 = data_chi2(self.plain.to(values.device), operator, values, weights)
        chi2 = self.chi2.mean(dim=1)
        present = (weights > 0).flatten(1)
        variances = torch.where(present, 1 / weights.flatten(1).clamp(min=1e-30).square(), 0.0)
        used = (variances.sum(dim=1) / present.sum(dim=1)).sqrt()
        details: dict[str, Any] = {
            "evaluations": dict(max(self.evaluations, key=lambda e: sum(e.values()))),
            "noise_std": used.tolist(),
            "noise_estimated": level is not None,
            "noise_redundancy": None if level is None else level.redundancy.tolist(),
            "chi2_mean": mean_chi2.tolist(),
            "data_step_iterations": self.iterations,
            "data_step_residual": self.residual,
            "warnings": self._warnings(chi2, level),
        }
        return Posterior(self.plain, std, self.perturbed, chi2, null, details=details)

    def _warnings(self, chi2: Tensor, level: NoiseLevel | None) -> list[str]:
        """Lines that a user must see."""
        lines = []
        if self.prior is None:
            lines.append(
                "the model holds no variance of the autoencoder's error, so what the autoencoder loses is missing from "
                "the spread and the data are not put back; `scildm fit` measures it"
            )
        if self.residual > _POOR_RESIDUAL:
            lines.append(
                f"the final data step stopped {self.residual:.2g} standard deviations of the noise short of the "
                "data; raise max_iterations of its Correction, or check the operator's adjoint"
            )
        if level is not None and bool((level.redundancy < _LITTLE_REDUNDANCY).any()):
            lines.append(
                "too few values to tell noise from signal: the estimated noise level rests on the prior"
            )
        if level is not None and not bool(level.settled.all()):
            lines.append("the estimated noise level had not settled; give noise_std if it is known")
        if bool((chi2 > _POOR_CHI2).any()) and self.residual <= _POOR_RESIDUAL:
            lines.append(
                f"samples miss the data by more than their noise (chi-square {float(chi2.max()):.3g}): noise_std may "
                "be too small, units may differ, or the data may be unlike those the model was trained on"
            )
        return lines
