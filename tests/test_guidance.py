"""Guidance on Gaussians, where guided distributions are known in closed form."""

import pytest
import torch
from torch import Tensor, nn

from sciLDM.denoiser import NetDenoiser
from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.guidance import Autoguidance, ClassifierFree, Conditioned, reset_self_conditioning
from sciLDM.oracles import GaussianDenoiser
from sciLDM.parametrisation import X0, expand
from sciLDM.rng import NoiseSource
from sciLDM.samplers import DDPM, Heun, ReverseSDE
from sciLDM.schedules import CosineSchedule, EDMSchedule
from sciLDM.types import Cond

F64 = torch.float64
SCHEDULE = EDMSchedule()


class GaussianNet(nn.Module):
    """Exact x0-network of `x | c ~ N(sum of the known conditions, v_known^known)`; NaN is unknown, -1 too.

    `x` has mean `a + kind + offset` (whichever are known) and variance 1 if nothing is known, else `variance`.
    """

    def __init__(self, variance: float = 1.0) -> None:
        super().__init__()
        self.variance = variance
        self.rows: list[int] = []
        self.seen: list[Tensor | None] = []

    def forward(
        self, x: Tensor, c_noise: Tensor, cond: Cond | None, mask: Tensor | None, previous: Tensor | None
    ) -> Tensor:
        self.rows.append(len(x))
        self.seen.append(previous)
        sigma = torch.exp(-4 * c_noise)[:, None]
        x_t = x * (1 + sigma**2).sqrt()
        mean, known = torch.zeros_like(sigma), torch.zeros_like(sigma, dtype=torch.bool)
        for label in (cond or {}).values():
            present = label.isfinite() if label.is_floating_point() else label >= 0
            mean = mean + label.to(x).nan_to_num(0.0).clamp_min(0.0)[:, None] * present[:, None]
            known = known | present[:, None]
        variance = torch.where(known, self.variance, 1.0)
        return mean + variance / (variance + sigma**2) * (x_t - mean)


def trained(variance: float = 1.0) -> NetDenoiser:
    return NetDenoiser(GaussianNet(variance), SCHEDULE, X0())


def some(rows: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 2, dtype=F64), torch.linspace(0.1, 0.9, rows, dtype=F64)


def labels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


COND = {"a": labels(0.3, 0.6, 0.9), "kind": torch.tensor([1, 0, 2]), "offset": labels(0.1, 0.2, 0.3)}


def given(*names: str) -> dict[str, Tensor]:
    return {name: COND[name] for name in names}


def test_joint_scale_extrapolates_from_the_unconditional_in_one_call() -> None:
    denoiser, (x, t) = trained(0.5), some()
    with_all, with_none = denoiser(x, t, COND), denoiser(x, t)
    net = denoiser.net
    net.rows.clear()
    guided = ClassifierFree(denoiser, COND, scale=2.5)(x, t)
    assert net.rows == [6]
    assert torch.allclose(guided, with_none + 2.5 * (with_all - with_none))


def test_conditions_that_are_always_on_are_never_dropped() -> None:
    denoiser, (x, t) = trained(0.5), some()
    guided = ClassifierFree(denoiser, COND, scale=2.5, always=frozenset({"offset", "size"}))(x, t)
    base = denoiser(x, t, given("offset"))
    assert torch.allclose(guided, base + 2.5 * (denoiser(x, t, COND) - base))


def test_scale_per_condition() -> None:
    denoiser, (x, t) = trained(0.5), some()
    full = denoiser(x, t, COND)
    guided = ClassifierFree(denoiser, COND, scale={"a": 3.0, "kind": 0.5, "offset": 1.0})
    denoiser.net.rows.clear()
    expected = full + 2.0 * (full - denoiser(x, t, given("kind", "offset")))
    expected = expected - 0.5 * (full - denoiser(x, t, given("a", "offset")))
    denoiser.net.rows.clear()
    assert torch.allclose(guided(x, t), expected)
    assert denoiser.net.rows == [9]  # nothing is spent on the condition of scale 1


def test_scale_one_is_the_conditional_model_at_its_cost() -> None:
    denoiser, (x, t) = trained(0.5), some()
    for scale in (1.0, {"a": 1.0}, {}):
        denoiser.net.rows.clear()
        assert torch.equal(ClassifierFree(denoiser, COND, scale=scale)(x, t), denoiser(x, t, COND))
        assert denoiser.net.rows == [3, 3]
    assert torch.equal(ClassifierFree(denoiser, {}, scale=4.0)(x, t), denoiser(x, t))


def test_guidance_acts_inside_its_interval_sample_by_sample() -> None:
    denoiser, (x, t) = trained(0.5), some()  # times 0.1, 0.5, 0.9
    guided = ClassifierFree(denoiser, COND, scale=3.0, interval=(0.2, 0.6))
    everywhere, plain = ClassifierFree(denoiser, COND, scale=3.0)(x, t), denoiser(x, t, COND)
    assert torch.allclose(guided(x, t), torch.stack([plain[0], everywhere[1], plain[2]]))
    denoiser.net.rows.clear()
    guided(x, torch.full_like(t, 0.9))
    assert denoiser.net.rows == [3]


@pytest.mark.parametrize(
    "sampler", [Heun(steps=64), ReverseSDE(steps=64, eta=0.0)], ids=["Heun", "ReverseSDE"]
)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 4.0])
def test_guided_samples_of_a_gaussian(sampler: Heun | ReverseSDE, scale: float) -> None:
    """Equal variances: the mean is extrapolated, the spread kept. Equal means: variance `v_0^(1-w) v_1^w`.

    With `v_i = d/dtheta log sqrt(S_i)`, `S_i = a^2 v_i + s^2`, the guided flow is linear with growth
    `prod_i S_i^(w_i / 2)`, and `S_i = 1` at pure noise.
    """
    z, ids = labels(-1.0, 0.0, 1.0), [0, 1, 2]
    noise = NoiseSource(0)
    for mean, variance in [(0.8, 1.0), (0.0, 0.36)]:
        guided = ClassifierFree(trained(variance), {"a": torch.full_like(z, mean)}, scale=scale)
        x = sampler(guided, (1,), noise=noise, ids=ids, dtype=F64)[:, 0]
        start = noise.normal(ids, (1,), stream="start", dtype=F64)[:, 0]
        slope = (x[2] - x[0]) / (start[2] - start[0])
        assert float(slope) == pytest.approx(variance ** (scale / 2), rel=0.02)
        assert float(x[1] - slope * start[1]) == pytest.approx(scale * mean, abs=0.02)


def test_autoguidance() -> None:
    (x, t), schedule = some(), CosineSchedule()
    eye = torch.eye(2, dtype=F64)
    good, bad = (
        GaussianDenoiser(torch.ones(2), 0.5 * eye, schedule),
        GaussianDenoiser(torch.zeros(2), eye, schedule),
    )
    assert torch.allclose(Autoguidance(good, bad, 3.0)(x, t), bad(x, t) + 3.0 * (good(x, t) - bad(x, t)))
    assert torch.equal(Autoguidance(good, bad, 1.0)(x, t), good(x, t))
    with pytest.raises(ConfigError, match="one schedule"):
        Autoguidance(good, GaussianDenoiser(torch.zeros(2), eye, EDMSchedule()))


def test_self_conditioning_remembers_within_a_trajectory_only() -> None:
    denoiser, (x, t) = trained(), some()
    wrapped = Conditioned(denoiser, COND, self_condition=True)
    first = wrapped(x, t)
    second = wrapped(x + 1, t)
    wrapped(x, t)
    seen = denoiser.net.seen
    assert seen[0] is None
    assert torch.equal(seen[1], first)
    assert torch.equal(seen[2], second)
    with pytest.raises(ShapeMismatch, match=r"reset\(\)"):
        wrapped(*some(2))
    wrapped.reset()
    wrapped(x, t)
    assert seen[-1] is None
    reset_self_conditioning(nn.ModuleList([wrapped]))
    wrapped(x, t)
    assert seen[-1] is None
    Conditioned(denoiser, COND)(x, t)
    assert seen[-1] is None


def test_each_branch_of_guidance_remembers_its_own_estimate() -> None:
    denoiser, (x, t) = trained(0.5), some()
    guided = ClassifierFree(denoiser, COND, scale=2.0, interval=(0.0, 0.6), self_condition=True)
    late, early = torch.full_like(t, 0.9), torch.full_like(t, 0.5)
    outside = guided(x, late)
    guided(x, early)
    guided(x, early)
    assert torch.equal(
        denoiser.net.seen[1], outside.repeat(2, 1)
    )  # no past of its own: it borrows the conditional one
    assert torch.allclose(denoiser.net.seen[2], torch.cat([denoiser(x, early, COND), denoiser(x, early)]))


def test_wrappers_pass_the_mask_and_samplers_stay_inside_it() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    net = nn.Module()
    net.forward = lambda x, c_noise, cond, mask, previous: 0.3 * x + 0.1  # type: ignore[method-assign]
    guided = ClassifierFree(NetDenoiser(net, SCHEDULE, X0()), {"a": torch.zeros(2)}, mask, scale=2.0)
    for sampler in (DDPM(steps=5), Heun(steps=5)):
        x = sampler(guided, (4, 3), noise=NoiseSource(0), ids=[0, 1])
        assert torch.equal(x.abs().sum(1) > 0, mask)


def test_guidance_of_an_absent_or_fixed_condition_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot guide \['b'\].*\['a', 'kind', 'offset'\]"):
        ClassifierFree(trained(), COND, scale={"b": 2.0})
    with pytest.raises(ConfigError, match="cannot guide"):
        ClassifierFree(trained(), COND, scale={"a": 2.0}, always=frozenset({"a"}))


def test_padding_may_hold_anything() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, cond: object, mask: Tensor, previous: object) -> Tensor:
            return torch.where(mask[:, None], x * expand(c_noise, x), float("nan"))

    mask = torch.tensor([[True, False]])
    x0 = NetDenoiser(Broken(), SCHEDULE, X0())(torch.randn(1, 3, 2), torch.tensor([0.5]), mask=mask)
    assert bool(x0.isfinite().all())
    assert torch.equal(x0[0, :, 1], torch.zeros(3))
