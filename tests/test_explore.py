"""Edits, interpolation and moves on a Gaussian whose every answer is known."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sciLDM import explore
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.explore.interpolation import spherical
from sciLDM.explore.native import joined, rows_of
from sciLDM.model import LatentDiffusion
from sciLDM.samplers import (
    DDIM,
    DPMSolverPP2M,
    DPMSolverPP2MSDE,
    Euler,
    Heun,
    LogSNRGrid,
    ReverseSDE,
    Sampler,
)
from sciLDM.schedules import CosineSchedule, EDMSchedule, RectifiedSchedule, Schedule, VESchedule, VPSchedule
from tests.explore_domain import (
    COVARIANCE,
    DIM,
    EFFECTS,
    F64,
    MEAN,
    conditional_mean,
    fields_of,
    fixed,
    plain_model,
)

GRID = LogSNRGrid(-5.0, 5.0)
SCHEDULES = [VPSchedule(), CosineSchedule(), CosineSchedule(shift=-1.0), RectifiedSchedule(), EDMSchedule()]


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return plain_model()


def flow_root(a: float, s: float) -> Tensor:
    """`C^(1/2) (a^2 C + s^2)^(-1/2)`: what the flow makes of the noise's deviation at a level."""
    variances, axes = torch.linalg.eigh(COVARIANCE.to(F64))
    return axes @ torch.diag((variances / (a**2 * variances + s**2)).sqrt()) @ axes.mT


def test_objects_become_normalised_latents_and_come_back(model: LatentDiffusion) -> None:
    z = fixed(5, DIM, "z")
    objects = fields_of(model, z)
    encoded = explore.encode(model, objects)
    assert torch.allclose(encoded.z.flatten(1), z, atol=1e-5)
    assert torch.allclose(explore.decode(model, encoded), objects, atol=1e-4)
    assert explore.encode(model, encoded) is encoded
    bare = explore.encode_fields(model, objects)
    assert torch.equal(bare.z, encoded.z)
    assert bare.request.cond == {}
    assert torch.equal(encoded.rows([3, 3, 0]).z, encoded.z[[3, 3, 0]])


@pytest.mark.parametrize(
    ("sampler", "stochastic", "strength"),
    [
        (ReverseSDE(steps=20, grid=GRID), True, 0.35),
        (DPMSolverPP2MSDE(steps=36, grid=GRID), True, 0.7),
        (Heun(steps=20, grid=GRID), False, 0.7),
        (DPMSolverPP2M(steps=24, grid=GRID), False, 0.35),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Sampler) else "",
)
def test_edits_have_the_exact_mean_and_covariance(
    model: LatentDiffusion, sampler: Sampler, stochastic: bool, strength: float
) -> None:
    count, x = 1000, fixed(1, DIM, "object")
    encoded = explore.encode(model, fields_of(model, x), cond={"level": 1.5})
    made = explore.edit_latents(
        model, encoded, strength, keep=("level",), samples=count, sampler=sampler, batch_size=count
    )
    got = made.z.flatten(1).to(F64)
    a, s = math.cos(math.pi / 2 * strength), math.sin(math.pi / 2 * strength)
    mean, c = (MEAN + 1.5 * EFFECTS["level"]).to(F64), COVARIANCE.to(F64)
    total = torch.linalg.inv(a**2 * c + s**2 * torch.eye(DIM, dtype=F64))
    if stochastic:
        gain = a * c @ total
        centre, spread = mean + a * gain @ (x[0].to(F64) - mean), c - a * gain @ c
        # The noise that was added moves the posterior's mean as well.
        spread = spread + s**2 * gain @ gain.mT
    else:
        root = flow_root(a, s)
        centre, spread = mean + a * root @ (x[0].to(F64) - mean), s**2 * root @ root.mT
    error = (got.mean(0) - centre) / spread.diagonal().sqrt()
    assert float(error.abs().max()) < 4 / math.sqrt(count) + 0.02
    # In the exact covariance's own coordinates the sampled one should be the identity.
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(spread), (got - centre).mT, upper=False)
    assert float((white @ white.mT / count - torch.eye(DIM, dtype=F64)).abs().max()) < 5 / math.sqrt(count)


def test_little_strength_gives_the_object_back(model: LatentDiffusion) -> None:
    objects = fields_of(model, fixed(4, DIM, "z"))
    for strength, most in ((1e-4, 2e-3), (0.01, 0.2), (0.5, 20.0)):
        change = (explore.edit(model, objects, strength, cond={"level": -2.0}) - objects).abs().max()
        assert float(change) < most
    assert float(change) > 0.5


def test_full_strength_is_a_free_sample(model: LatentDiffusion) -> None:
    objects = fields_of(model, fixed(3, DIM, "z"))
    sampler = DPMSolverPP2MSDE(steps=6)
    edited = explore.edit(model, objects, 1.0, cond={"level": 1.0}, samples=2, sampler=sampler, seed=4)
    free = model.sample(6, cond={"level": 1.0}, sampler=sampler, seed=4)
    assert torch.allclose(edited, free, atol=1e-5)


def test_an_edit_depends_on_its_number_and_object_alone(model: LatentDiffusion) -> None:
    encoded = explore.encode(model, fields_of(model, fixed(3, DIM, "z")))
    options: dict[str, Any] = {"samples": 2, "sampler": DPMSolverPP2MSDE(steps=6), "seed": 9}
    whole = explore.edit_latents(model, encoded, 0.6, **options).z
    assert torch.allclose(
        explore.edit_latents(model, encoded, 0.6, batch_size=1, **options).z, whole, atol=1e-5
    )
    first = explore.edit_latents(model, encoded.rows([0]), 0.6, **options).z
    assert torch.allclose(first, whole[:2], atol=1e-5)
    assert not torch.allclose(whole[0], whole[1], atol=0.05)
    assert not torch.equal(explore.edit_latents(model, encoded, 0.6, **{**options, "seed": 8}).z, whole)


def test_labels_are_left_open_unless_asked_for_or_held(model: LatentDiffusion) -> None:
    x = fixed(2, DIM, "z")
    objects = torch.cat([fields_of(model, x), torch.tensor([[1.0, 2.0], [3.0, 4.0]])], dim=1)
    encoded = explore.encode(model, objects, cond={"level": [5.0, 6.0]})
    assert encoded.request.cond["level"].tolist() == [5.0, 6.0]
    told = explore.edit_latents(model, encoded, 0.2, keep=("level",)).request.cond
    assert told["level"].tolist() == [5.0, 6.0]
    assert bool(told["tilt"].isnan().all())
    # Far above all noise only the mean given the labels counts: those held must be in it.
    sampler = DDIM(steps=1)
    got = explore.edit(model, objects, 0.999, cond={"level": 0.5}, hold=["tilt"], sampler=sampler)
    mean = conditional_mean({"level": torch.tensor([0.5, 0.5]), "tilt": torch.tensor([2.0, 4.0])}, 2)
    assert torch.allclose(got, fields_of(model, mean), atol=0.05)


@pytest.mark.parametrize("schedule", [*SCHEDULES, VESchedule()], ids=lambda s: type(s).__name__)
def test_strength_is_an_angle_under_every_schedule(schedule: Schedule) -> None:
    for strength in (0.05, 0.3, 0.5, 0.9):
        t = torch.tensor(explore.noise_time(schedule, strength), dtype=F64)
        alpha, sigma = schedule(t)
        assert float(sigma / alpha) == pytest.approx(math.tan(math.pi / 2 * strength), rel=1e-6)
    assert explore.noise_time(schedule, 1.0) == 1.0
    assert explore.noise_time(CosineSchedule(), 0.3) == pytest.approx(0.3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_flow_is_the_exact_map_and_its_own_inverse(schedule: Schedule) -> None:
    model = plain_model(schedule)
    encoded = explore.encode(model, fields_of(model, fixed(4, DIM, "z")))
    denoiser, flow = model.guided(encoded.request, slice(0, 4)), explore.ProbabilityFlow(16)
    y = flow.to_noise(denoiser, encoded.z)
    assert torch.allclose(flow.to_latents(denoiser, y), encoded.z, atol=5e-3)
    ends = schedule.lmbda(torch.tensor([1.0, 0.0], dtype=F64))
    low = max(-5.0, float(ends[0]))
    a, s = 1 / math.hypot(1, math.exp(-low)), 1 / math.hypot(1, math.exp(low))
    exact = a * MEAN.to(F64) + (encoded.z.flatten(1).to(F64) - MEAN) @ torch.linalg.inv(flow_root(a, s))
    assert torch.allclose(y.flatten(1).to(F64), exact, atol=5e-3)


def test_paths_end_at_the_objects_and_are_great_circles_of_noise(model: LatentDiffusion) -> None:
    x = fixed(4, DIM, "z")
    labels = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, float("nan")], [0.5, 1.0]])
    a, b = (
        explore.encode(model, torch.cat([fields_of(model, x), labels], 1)).rows(r) for r in ([0, 1], [2, 3])
    )
    path = explore.NoisePath(explore.ProbabilityFlow(12))
    made = explore.interpolate_latents(model, a, b, 5, path=path)
    z = made.z.view(2, 5, DIM)
    assert torch.equal(z[:, 0], a.z.flatten(1))
    assert torch.equal(z[:, 4], b.z.flatten(1))
    assert made.request.cond["level"].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 1.0, 0.875, 0.75, 0.625, 0.5]
    assert torch.isnan(made.request.cond["tilt"][1:5]).all()
    assert torch.allclose(
        explore.interpolate_latents(model, a, b, 5, path=path, batch_size=1).z, made.z, atol=1e-5
    )
    level = math.exp(-5.0)
    low_a, low_s = level / math.hypot(1, level), 1 / math.hypot(1, level)
    root = flow_root(low_a, low_s)
    second = [end.rows([1]) for end in (a, b)]
    middle = made.rows([7])
    means = [conditional_mean(e.request.cond, 1).to(F64) for e in (*second, middle)]
    noise = [
        low_a * m + (e.z.flatten(1).to(F64) - m) @ torch.linalg.inv(root)
        for e, m in zip(second, means, strict=False)
    ]
    y = spherical(noise[0], noise[1], torch.tensor([0.5], dtype=F64))
    exact = means[2] + (y - low_a * means[2]) @ root
    assert torch.allclose(middle.z.flatten(1).to(F64), exact, atol=5e-3)


def test_a_coarse_flow_leaves_no_jump_at_the_ends(model: LatentDiffusion) -> None:
    a, b = (explore.encode(model, fields_of(model, fixed(2, DIM, "z")[[k]])) for k in (0, 1))
    coarse = explore.ProbabilityFlow(2)
    denoiser = model.guided(a.request, slice(0, 1))
    assert float((coarse.to_latents(denoiser, coarse.to_noise(denoiser, a.z)) - a.z).abs().max()) > 0.01
    z = explore.interpolate_latents(model, a, b, 101, path=explore.NoisePath(coarse)).z.flatten(1)
    assert float(z.diff(dim=0).diff(dim=0).abs().max()) < 2e-3  # a jump at an end would show here alone


def test_a_path_in_the_latents_keeps_to_the_sphere(model: LatentDiffusion) -> None:
    one, two = torch.eye(DIM)[0], 2 * torch.eye(DIM)[1]
    a, b = (explore.encode(model, fields_of(model, v)) for v in (one, two))
    z = explore.interpolate_latents(model, a, b, 3, path=explore.LatentPath()).z.flatten(1)
    assert torch.allclose(z[1], (one + two) / math.sqrt(2), atol=1e-5)
    line = spherical(one[None], 3 * one[None], torch.tensor([0.25]))
    assert torch.allclose(line, 1.5 * one[None])


def test_the_same_object_under_another_label_is_shifted_by_the_label_s_effect(model: LatentDiffusion) -> None:
    z, own = fixed(2, DIM, "z"), torch.tensor([[0.5, 1.0], [-1.0, 0.0]])
    native = torch.cat([fields_of(model, z), own], 1)
    flow = explore.ProbabilityFlow(12)
    same = explore.counterfactual(model, native, {"level": [0.5, -1.0]}, flow=flow)
    assert torch.allclose(same, native[:, :DIM], atol=1e-4)
    got = explore.counterfactual(model, native, {"level": 2.0}, flow=flow)
    shift = (2.0 - own[:, :1]) * EFFECTS["level"]
    assert torch.allclose(explore.encode(model, got).z.flatten(1), z + shift, atol=0.03)
    with pytest.raises(ConfigError, match="at least one condition to change"):
        explore.counterfactual(model, native, {})


def test_latents_of_one_end_alone_do_not_mix_into_the_other() -> None:
    """With cells that exist at one end only, the ends stay exact and the nearer end's cells are used."""
    model = plain_model()
    z = fixed(2, DIM, "z").view(2, 2, 3)
    masks = torch.tensor([[True, True, False], [True, True, True]])
    a, b = (
        explore.Encoded(
            z[[k]] * masks[[k], None],
            explore.encode_fields(model, fields_of(model, z[[k]].flatten(1))).request.__class__(
                (3,), {}, masks[[k]]
            ),
        )
        for k in (0, 1)
    )
    made = explore.interpolate_latents(model, a, b, 4, path=explore.NoisePath(explore.ProbabilityFlow(4)))
    assert torch.equal(made.z[0], a.z[0])
    assert torch.equal(made.z[3], b.z[0])
    assert made.request.mask is not None
    assert made.request.mask.sum(1).tolist() == [2, 2, 3, 3]
    assert bool((made.z[1, :, 2] == 0).all())
    with pytest.raises(ShapeMismatch, match=r"same latent cells.*NoisePath"):
        explore.interpolate_latents(model, a, b, 3, path=explore.LatentPath())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: explore.edit(m, x, 0.0), ConfigError, "strength: expected a number above 0"),
        (lambda m, x: explore.edit(m, x, 1.5), ConfigError, "up to 1 .* got 1.5"),
        (lambda m, x: explore.edit(m, x, float("nan")), ConfigError, "got nan"),
        (lambda m, x: explore.edit(m, x, 0.5, samples=0), ConfigError, "samples and batch_size"),
        (lambda m, x: explore.edit(m, x, 0.5, cond={"levle": 1}), ConfigError, "did you mean 'level'"),
        (lambda m, x: explore.edit(m, x, 0.5, cond={"level": [1, 2]}), ConfigError, "2 values"),
        (lambda m, x: explore.edit(m, x, 0.5, hold=["weight"]), ConfigError, "cannot hold 'weight'"),
        (lambda m, x: explore.edit(m, [[1.0, 2.0]], 0.5), DataError, "expected 6 numbers, got 2"),
        (lambda m, x: explore.edit(m, x * torch.nan, 0.5), DataError, "latents of object 0 are not finite"),
        (lambda m, x: explore.edit(m, x, 0.5, sampler=Euler(steps=9, churn=3.0)), ConfigError, "churn"),
        (lambda m, x: explore.edit(m, explore.encode(m, x), 0.5, cond={"level": 1}), ConfigError, "not their lat"),
        (lambda m, x: explore.interpolate(m, x, x, 1), ConfigError, "at least its 2 ends"),
        (lambda m, x: explore.interpolate(m, x[[0, 1]], x, 3), ConfigError, "got 2 and 3"),
        (lambda m, x: explore.ProbabilityFlow(0), ConfigError, "steps >= 1"),
    ],
)  # fmt: skip
def test_mistakes_are_told(model: LatentDiffusion, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(model, fields_of(model, fixed(3, DIM, "z")))


def test_a_codec_that_reads_nothing_says_so(model: LatentDiffusion) -> None:
    class Silent:
        conditions = ()

    reader, model.codec = model.codec, Silent()  # type: ignore[assignment]
    try:
        with pytest.raises(ConfigError, match=r"Silent has no from_native.*encode_fields"):
            explore.encode(model, [[0.0] * DIM])
    finally:
        model.codec = reader


def test_requests_with_more_in_a_row_must_say_how_to_take_rows(model: LatentDiffusion) -> None:
    request = explore.encode(model, fields_of(model, fixed(2, DIM, "z"))).request

    class Dated(type(request)):  # type: ignore[misc]
        pass

    dated = Dated(request.shape, request.cond)
    with pytest.raises(ConfigError, match=r"Dated holds more than conditions and mask"):
        rows_of(dated, [0])
    with pytest.raises(ConfigError, match="Dated"):
        joined(dated, dated)
