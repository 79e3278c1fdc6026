"""What every posterior solver is: a rule for turning a denoiser into one that has seen an observation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from sciLDM.denoiser import Denoiser
from sciLDM.guidance.posterior.problem import Problem

__all__ = ["Evaluations", "PosteriorDenoiser", "PosteriorSolver"]


@dataclass
class Evaluations:
    """Work done since the solver was built, in passes over the whole batch.

    Attributes:
        denoiser: Calls of the denoiser, with or without a graph.
        denoiser_vjp: Backward passes through the denoiser; each costs about two calls.
        decoder: Calls of the decoder.
        decoder_derivatives: Forward- and reverse-mode derivatives of decoder and operator.
        encoder: Calls of the encoder.
        operator: Calls of the operator or its adjoint on their own.
    """

    denoiser: int = 0
    denoiser_vjp: int = 0
    decoder: int = 0
    decoder_derivatives: int = 0
    encoder: int = 0
    operator: int = 0

    @property
    def network(self) -> int:
        """Calls and backward passes of the denoiser together."""
        return self.denoiser + self.denoiser_vjp


class PosteriorDenoiser(Denoiser, ABC):
    """`E[z | z_t, y]`, without a graph. Each row is on its own: no result depends on the batch.

    Args:
        denoiser: The prior's `E[z | z_t]`, conditioned and guided as wished.
        problem: The observation of each row.

    Attributes:
        evaluations: Work done so far.
    """

    def __init__(self, denoiser: Denoiser, problem: Problem) -> None:
        super().__init__(denoiser.schedule)
        self.denoiser = denoiser
        self.problem = problem
        self.evaluations = Evaluations()

    @abstractmethod
    def reset(self) -> None:
        """A new trajectory begins: what was remembered here, and by what is wrapped, is forgotten."""


class PosteriorSolver(ABC):
    """Options of a solver, to be applied to any denoiser and problem."""

    correlated: ClassVar[bool] = False
    """Whether it understands `Problem.whitener`."""

    @abstractmethod
    def guide(self, denoiser: Denoiser, problem: Problem) -> PosteriorDenoiser:
        """The denoiser of the posterior."""
