"""Directions and saliency against answers in closed form."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sciLDM import explore
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.explore import Encoded
from sciLDM.model import LatentDiffusion
from sciLDM.rng import NoiseSource
from tests.explore_domain import (
    CELLS,
    CHANNELS,
    COVARIANCE,
    DIM,
    EFFECTS,
    F64,
    MIX,
    fields_of,
    fixed,
    plain_model,
)


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return plain_model()


def latents(model: LatentDiffusion, z: Tensor) -> Encoded:
    return explore.encode(model, fields_of(model, z))


def generated(count: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Latents `D a + N u` with two correlated attributes, and `D`; `N` spans what neither attribute touches."""
    directions = fixed(DIM, 2, "generating")
    rest = torch.linalg.qr(torch.cat([directions, fixed(DIM, DIM - 2, "rest")], 1)).Q[:, 2:]
    draws = NoiseSource(5).normal(range(count), (DIM,))
    a = draws[:, :2] @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    known = torch.cat([torch.ones(count, 1), a], 1)
    free = (
        draws[:, 2:DIM] - known @ torch.linalg.lstsq(known, draws[:, 2:DIM]).solution
    )  # not correlated by chance
    z = a @ directions.mT + free @ rest.mT
    labels = {"first": a[:, 0], "second": 10 * a[:, 1] + 3}
    return z, labels, directions


def test_the_direction_is_the_one_that_generates_the_attribute(model: LatentDiffusion) -> None:
    z, labels, directions = generated(2000)
    encoded = latents(model, z)
    first = explore.attribute_direction(model, "first", encoded, labels, shrinkage=0.0)
    assert first.held == ("second",)
    assert torch.allclose(first.vector.flatten(), directions[:, 0], atol=2e-3)
    assert first.r2 > 0.999
    second = explore.attribute_direction(model, "second", encoded, labels, shrinkage=0.0)
    assert torch.allclose(second.vector.flatten(), directions[:, 1] / 10, atol=2e-4)
    # Shrinkage chosen from the data costs next to nothing where objects are many.
    chosen = explore.attribute_direction(model, "first", encoded, labels)
    assert torch.allclose(chosen.vector, first.vector, atol=0.02)
    alone = explore.attribute_direction(model, "first", encoded, labels, hold=(), shrinkage=0.0)
    assert alone.held == ()
    with_it = directions[:, 0] + 0.8 * directions[:, 1]  # free, the correlated one comes along
    assert torch.allclose(alone.vector.flatten(), with_it, atol=0.08)


def test_few_objects_in_many_dimensions_give_the_same_by_the_other_route(model: LatentDiffusion) -> None:
    z, labels, _ = generated(2000)
    few = 18
    wide = torch.cat([z[:few], 0.3 * fixed(few, 40, "more")], 1)
    encoded = Encoded(wide.view(few, 2, 23), explore.encode_fields(model, fields_of(model, z[:few])).request)
    labels = {n: v[:few] for n, v in labels.items()}
    got = explore.attribute_direction(model, "first", encoded, labels, shrinkage=0.2)
    x = wide.to(F64) - wide.to(F64).mean(0)
    a = torch.stack([labels["first"], labels["second"]], 1).to(F64)
    a = a - a.mean(0)
    s = x.mT @ x / few
    sigma = 0.8 * s + 0.2 * s.trace() / 46 * torch.eye(46, dtype=F64)
    b = x.mT @ a / few
    gram = b.mT @ torch.linalg.solve(sigma, b)
    exact = b @ torch.linalg.inv(gram)[:, 0]
    assert torch.allclose(got.vector.flatten().to(F64), exact, atol=1e-5)
    assert got.length == pytest.approx(float(torch.linalg.inv(gram)[0, 0].sqrt()), rel=1e-5)


def test_noise_alone_explains_nothing(model: LatentDiffusion) -> None:
    encoded = latents(model, fixed(200, DIM, "z"))
    chance = {"luck": NoiseSource(8).normal(range(200), ())}
    assert abs(explore.attribute_direction(model, "luck", encoded, chance).r2) < 0.15


def test_moving_changes_the_attribute_by_the_amount_and_holds_the_rest(model: LatentDiffusion) -> None:
    z, labels, directions = generated(2000)
    direction = explore.attribute_direction(model, "first", latents(model, z), labels, shrinkage=0.0)
    objects = fields_of(model, z[:3])
    moved = explore.encode(model, explore.move(model, objects, direction, [0.0, 1.0, -2.0])).z.flatten(1)
    recovered = torch.linalg.lstsq(directions, (moved - z[:3]).mT).solution.mT
    assert torch.allclose(recovered, torch.tensor([[0.0, 0.0], [1.0, 0.0], [-2.0, 0.0]]), atol=5e-3)


def test_the_codec_tells_labels_and_a_move_can_settle(model: LatentDiffusion) -> None:
    z, labels, _ = generated(64)
    native = torch.cat([fields_of(model, z), labels["first"][:, None], labels["second"][:, None]], 1)
    native[:4, DIM] = float("nan")
    direction = explore.attribute_direction(model, "level", native)
    assert direction.count == 60
    assert direction.held == ("tilt",)
    settled = explore.move(model, native[4:6], direction, 1.0, settle=1e-4)
    assert torch.allclose(settled, explore.move(model, native[4:6], direction, 1.0), atol=0.01)
    far = explore.move(model, native[4:6], direction, 1.0, settle=0.7)
    assert not torch.allclose(far, settled, atol=0.3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attribute": "third"}, ConfigError, "no attribute 'third'.*known: first, second"),
        ({"hold": ["first"]}, ConfigError, "no attribute 'first' to move or hold"),
        ({"hold": ["double"], "extra": "double"}, ConfigError, "they determine its estimate"),
        ({"count": 12}, DataError, "at least 16 objects with first, second, got 12"),
        ({"extra": "same", "attribute": "same"}, DataError, "the same for all"),
        ({"extra": "short"}, ConfigError, r"one number for each of 64 objects, got shape \(3,\)"),
        ({"extra": "words"}, ConfigError, "expected numbers"),
        ({"shrinkage": 2.0}, ConfigError, "from 0 to 1, got 2"),
    ],
)
def test_directions_that_do_not_exist(
    model: LatentDiffusion, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = dict(options)
    count = options.pop("count", 64)
    z, labels, _ = generated(count)
    extra = options.pop("extra", None)
    more: dict[str, Any] = {
        "double": 2 * labels["first"] + 1,
        "same": torch.ones(count),
        "short": [1.0, 2.0, 3.0],
        "words": ["a"] * count,
    }
    labels |= {extra: more[extra]} if extra else {}
    with pytest.raises(error, match=message):
        explore.attribute_direction(
            model, options.pop("attribute", "first"), latents(model, z), labels, **options
        )


def test_a_wrong_amount_or_a_foreign_direction(model: LatentDiffusion) -> None:
    z, labels, _ = generated(64)
    direction = explore.attribute_direction(model, "first", latents(model, z), labels)
    objects = fields_of(model, z[:3])
    for amount in ([1.0, 2.0], float("nan")):
        with pytest.raises(ConfigError, match="amount: expected a finite number, or one for each of 3"):
            explore.move(model, objects, direction, amount)
    foreign = explore.Direction("first", torch.zeros(2, 4), (), 1.0, 1.0, 64)
    with pytest.raises(ConfigError, match="find it with this model"):
        explore.move(model, objects, foreign, 1.0)


def weights_in_latents(model: LatentDiffusion, w: Tensor) -> Tensor:
    """Gradient of `w . fields` in normalised latents."""
    return (2 * w @ MIX).view(CHANNELS, CELLS) * model.stats.std[:, None]


@pytest.mark.parametrize("method", [explore.GradientTimesInput(), explore.IntegratedGradients(3)])
def test_saliency_of_a_linear_function_is_its_weights(
    model: LatentDiffusion, method: explore.Attribution
) -> None:
    w = fixed(1, DIM, "weights")[0]
    z = fixed(3, DIM, "z")
    objects, exact = fields_of(model, z), weights_in_latents(model, w)
    plain = explore.saliency(model, objects, lambda x: x @ w, method=explore.Gradient())
    assert torch.allclose(plain.contributions, exact.expand(3, -1, -1), atol=1e-4)
    got = explore.saliency(model, objects, lambda x: x @ w, method=method, batch_size=2)
    assert torch.allclose(got.contributions, z.view(3, CHANNELS, CELLS) * exact, atol=1e-3)
    assert got.difference is not None
    assert torch.allclose(got.total, got.difference, atol=1e-3)
    assert torch.allclose(got.per_cell, (z.view(3, CHANNELS, CELLS) * exact).sum(1), atol=1e-3)


def test_integrated_gradients_are_complete(model: LatentDiffusion) -> None:
    objects = fields_of(model, fixed(3, DIM, "z"))
    got = explore.saliency(model, objects, lambda x: x.pow(3).sum(1) + x[:, 0] * x[:, 3])
    assert got.difference is not None
    assert torch.allclose(got.total, got.difference, rtol=1e-3)
    crude = explore.saliency(model, objects, lambda x: x.pow(3).sum(1), method=explore.GradientTimesInput())
    assert crude.difference is not None
    assert not torch.allclose(crude.total, crude.difference, rtol=0.05)


def test_what_the_conditional_estimate_depends_on_is_the_implicit_classifier(model: LatentDiffusion) -> None:
    """For a Gaussian, `D(x_t, c) - D(x_t) = (1 - a K) shift`, whatever the noise."""
    strength, level = 0.4, 1.7
    a, s = math.cos(math.pi / 2 * strength), math.sin(math.pi / 2 * strength)
    c = COVARIANCE.to(F64)
    shrink = torch.eye(DIM, dtype=F64) - a**2 * c @ torch.linalg.inv(
        a**2 * c + s**2 * torch.eye(DIM, dtype=F64)
    )
    exact = (a / s) ** 2 * shrink @ (level * EFFECTS["level"].to(F64))
    objects = fields_of(model, fixed(2, DIM, "z"))
    quantity = explore.Conditional("level", level, strength=strength, draws=2)
    got = explore.saliency(model, objects, quantity, method=explore.Gradient())
    assert torch.allclose(got.contributions.flatten(1).to(F64), exact.expand(2, -1), rtol=1e-3, atol=1e-3)
    assert got.difference is None
    told = torch.cat([objects, torch.full((2, 2), level)], 1)
    named = explore.saliency(model, told, "level", method=explore.Gradient())
    # The other label is held in both estimates, and has no effect on their difference here.
    assert torch.allclose(named.contributions, got.contributions, rtol=1e-3, atol=1e-3)


def test_cells_that_do_not_exist_have_no_saliency_and_maps_can_be_laid_on_a_grid() -> None:
    mask = torch.tensor([[True, True, False]])
    found = explore.Saliency(torch.tensor([[[1.0, -2.0, 0.0], [0.5, 1.0, 0.0]]]), mask)
    assert np.array_equal(found.per_cell.numpy(), [[1.5, -1.0, np.nan]], equal_nan=True)
    assert found.importance[0, 1] == pytest.approx(math.sqrt(5))
    assert found.on_grid((6,))[0, :4].tolist() == [1.5, 1.5, -1.0, -1.0]
    with pytest.raises(ShapeMismatch, match="1 axes expected"):
        found.on_grid((6, 6))


@pytest.mark.parametrize(
    ("quantity", "error", "message"),
    [
        (lambda x: x.argmax(1).float(), ConfigError, "does not depend differentiably"),
        (lambda x: x.sum(), ShapeMismatch, "one number for each of 2 objects"),
        ("levle", ConfigError, "cannot ask about 'levle'; conditions that may be left open: level, tilt"),
        ("level", ConfigError, r"do not tell their 'level'; give Conditional\('level', value\)"),
    ],
)
def test_questions_without_an_answer(
    model: LatentDiffusion, quantity: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        explore.saliency(model, fields_of(model, fixed(2, DIM, "z")), quantity)


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="strength below 1 and draws"):
        explore.Conditional("level", strength=1.0)
    with pytest.raises(ConfigError, match="at least 1 point"):
        explore.IntegratedGradients(0)
