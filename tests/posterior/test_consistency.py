"""The final data step against dense linear algebra; perturb-and-correct against the exact conditional."""

import pytest
import torch
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.operators import Operator
from sciLDM.posterior.consistency import Correction, correct, observed_variance
from sciLDM.posterior.ensemble import data_chi2, perturb_and_correct
from sciLDM.posterior.error_model import ErrorCovariance
from sciLDM.rng import NoiseSource
from tests.posterior.linear import FIELD, POINTS, MatrixOperator, picking

NOISE = NoiseSource(1)
EXACT = Correction(tolerance=1e-4, max_iterations=200)
DENSE = MatrixOperator(NOISE.normal([0], (7, POINTS), stream="matrix")[0])


def setting(batch: int, observed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fields, standard deviations of their errors, values, and weights with one value missing."""
    x = NOISE.normal(range(batch), FIELD, stream="x")
    std = 0.1 + NOISE.uniform(range(batch), FIELD, "std")
    values = 3 * NOISE.normal(range(batch), (observed,), stream="y")
    weights = 1 / (0.05 + NOISE.uniform(range(batch), (observed,), "noise"))
    weights[:, 1], values[:, 1] = 0, 0
    return x, std, values, weights


def dense(
    operator: MatrixOperator, x: Tensor, c: Tensor, values: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """`x + K (y - A x)` and `(I - K A) C` of one row in float64, from `C` as a matrix."""
    there = weights > 0
    a, c = operator.matrix[there].double(), c.double()
    gain = c @ a.mT @ torch.linalg.inv(a @ c @ a.mT + weights[there].double().square().reciprocal().diag())
    flat = x.flatten().double()
    return flat + gain @ (values[there].double() - a @ flat), c - gain @ a @ c


def matrix(covariance: ErrorCovariance, row: int) -> Tensor:
    unit = torch.eye(POINTS).reshape(POINTS, *FIELD)
    return ErrorCovariance(covariance.std[row : row + 1].expand(POINTS, *FIELD), covariance.reach)(
        unit
    ).flatten(1)


@pytest.mark.parametrize("operator", [DENSE, picking(0, 2, 3, 8, 11)], ids=["dense", "points"])
@pytest.mark.parametrize("reach", [None, torch.tensor([1.2])], ids=["independent", "smooth"])
def test_the_step_is_the_formula(operator: MatrixOperator, reach: Tensor | None) -> None:
    x, std, values, weights = setting(5, operator.out_shape[0])
    covariance = ErrorCovariance(std, reach)
    got = correct(x, operator, values, weights, covariance, settings=EXACT)
    for row in range(5):
        expected, _ = dense(operator, x[row], matrix(covariance, row), values[row], weights[row])
        assert torch.allclose(got.x[row].flatten().double(), expected, atol=2e-3)
    assert float(got.residual.max()) < 1e-3
    if operator is not DENSE and reach is None:
        assert int(got.iterations.max()) == 1  # its diagonal is known exactly, so it is the preconditioner


def test_a_row_does_not_depend_on_its_batch() -> None:
    x, std, values, weights = setting(6, 7)
    whole = correct(x, DENSE, values, weights, ErrorCovariance(std)).x
    alone = correct(x[4:5], DENSE, values[4:5], weights[4:5], ErrorCovariance(std[4:5])).x
    assert torch.allclose(whole[4:5], alone, atol=1e-5)


def test_no_error_means_no_change() -> None:
    x, std, values, weights = setting(2, 7)
    assert torch.equal(correct(x, DENSE, values, weights, ErrorCovariance(0 * std)).x, x)


class Cubic(Operator):
    """`y = x + 0.3 x^3` at six points."""

    def __init__(self) -> None:
        super().__init__(FIELD, (6,))

    def forward(self, x: Tensor) -> Tensor:
        seen = x.flatten(1)[:, ::2]
        return seen + 0.3 * seen**3


def test_a_nonlinear_operator_ends_where_the_gradient_vanishes() -> None:
    operator = Cubic()
    x, std, _, weights = setting(4, 6)
    truth = x + std * NOISE.normal(range(4), FIELD, stream="error")
    values = operator(truth) * (weights > 0)
    steps = Correction(tolerance=1e-5, linearisations=12)
    got = correct(x, operator, values, weights, ErrorCovariance(std), settings=steps).x

    def loss(field: Tensor) -> Tensor:
        misfit, departure = weights * (values - operator(field)), (field - x) / std
        return 0.5 * misfit.square().sum() + 0.5 * departure.square().sum()

    gradient = torch.func.grad(loss)(got)
    start = torch.func.grad(loss)(x)
    assert float(gradient.norm()) < 1e-3 * float(start.norm())
    one = correct(x, operator, values, weights, ErrorCovariance(std), settings=Correction(linearisations=1)).x
    assert float(loss(got)) < float(loss(one))


def test_variance_that_the_error_gives_each_value() -> None:
    x, std, _, _ = setting(3, 7)
    for covariance in (ErrorCovariance(std), ErrorCovariance(std, torch.tensor([0.8]))):
        expected = torch.stack(
            [(DENSE.matrix @ matrix(covariance, r) @ DENSE.matrix.mT).diagonal() for r in range(3)]
        )
        got = observed_variance(DENSE, x, covariance, probes=600)
        assert torch.allclose(got, expected, rtol=0.2)
        assert torch.allclose(got.mean(1), expected.mean(1), rtol=0.08)
    points = picking(1, 5)
    assert torch.allclose(
        observed_variance(points, x, ErrorCovariance(std), probes=1), points(std.square()), rtol=1e-5
    )


def test_perturbed_samples_scatter_as_the_exact_conditional() -> None:
    count = 8000
    x, std, values, weights = setting(1, 7)
    covariance = ErrorCovariance(std)
    one, cov = dense(DENSE, x[0], matrix(covariance, 0), values[0], weights[0])
    made = perturb_and_correct(
        x.expand(count, *FIELD), DENSE, values.expand(count, -1), weights.expand(count, -1),
        ErrorCovariance(std.expand(count, *FIELD)), noise=NOISE, ids=range(count), settings=EXACT,
    )  # fmt: skip
    assert torch.allclose(made.plain.x[0].flatten().double(), one, atol=2e-3)
    samples = made.perturbed.x.flatten(1).double()
    deviation = cov.diagonal().sqrt()
    assert float(((samples.mean(0) - one) / deviation).abs().max()) < 0.05
    assert torch.allclose(samples.std(0), deviation, rtol=0.04)
    correlation = cov / deviation / deviation[:, None]
    assert float((torch.corrcoef(samples.mT) - correlation).abs().max()) < 0.05


def test_chi_square_is_one_whatever_the_size_of_error_and_noise() -> None:
    """Truth and data from the model itself: samples miss the data by just the noise, on average over truths."""
    cases = 600
    for size, noise in ((1.0, 0.05), (0.05, 0.3)):
        x = NOISE.normal(range(cases), FIELD, stream="centre")
        std = torch.full_like(x, size)
        truth = x + std * NOISE.normal(range(cases), FIELD, stream="truth")
        values = DENSE(truth) + noise * NOISE.normal(range(cases), (7,), stream="data")
        weights = torch.full_like(values, 1 / noise)
        made = perturb_and_correct(
            x, DENSE, values, weights, ErrorCovariance(std), noise=NOISE, ids=range(cases), settings=EXACT
        )
        assert float(data_chi2(made.perturbed.x, DENSE, values, weights).mean()) == pytest.approx(
            1.0, abs=0.05
        )
        if size == 1.0:  # the point estimate follows the data more closely than that
            assert float(data_chi2(made.plain.x, DENSE, values, weights).mean()) < 0.2


def test_settings_out_of_range() -> None:
    for options in ({"tolerance": 0.0}, {"max_iterations": 0}, {"linearisations": 0}):
        with pytest.raises(ConfigError, match="correction"):
            Correction(**options)
