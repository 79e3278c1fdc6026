"""What both networks promise: only cells inside the mask count, conditions act unless missing, and they learn."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sciLDM.conditions import Category, Condition, FieldMap, Scalar, Tokens, Vector, drop_conditions
from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.nets import DiT, UNet

Build = Callable[..., nn.Module]


def dit(channels: int, shape: Sequence[int], **options: Any) -> DiT:
    return DiT(channels, shape, **{"width": 24, "depth": 2, "heads": 2, **options})


def rotary(channels: int, shape: Sequence[int], **options: Any) -> DiT:
    return dit(channels, shape, positions="rotary", **options)


def patched(channels: int, shape: Sequence[int], **options: Any) -> DiT:
    return dit(channels, shape, patch=2, **options)


def unet(channels: int, shape: Sequence[int], **options: Any) -> UNet:
    return UNet(channels, shape, **{"widths": (8, 8), "blocks_per_level": 1, "heads": 2, **options})


NETWORKS = [dit, rotary, patched, unet]
GRIDS = [(8,), (4, 6), (2, 4, 2)]
every_network = pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
every_grid = pytest.mark.parametrize("shape", GRIDS, ids=lambda shape: f"{len(shape)}d")
either_family = pytest.mark.parametrize("build", [dit, unet], ids=lambda build: build.__name__)


def stirred(net: nn.Module) -> nn.Module:
    """Networks start at zero, where every invariance holds; random weights make the test mean something."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def noise(*size: int) -> Tensor:
    return torch.randn(*size)


def inside(y: Tensor, mask: Tensor) -> Tensor:
    return y.movedim(1, -1)[mask]


# --- masks ----------------------------------------------------------------------------------------------------


@every_network
@every_grid
@pytest.mark.parametrize("garbage", [1e3, float("nan"), float("inf")])
def test_nothing_outside_the_mask_matters(build: Build, shape: tuple[int, ...], garbage: float) -> None:
    net = stirred(build(3, shape, conditions=[FieldMap("f", channels=2)]))
    x, previous, field = noise(3, 3, *shape), noise(3, 3, *shape), noise(3, 2, *shape)
    mask = torch.rand(3, *shape) > 0.4
    mask[2] = False  # a sample with a single cell
    mask[2].view(-1)[-1] = True
    spoil = [
        torch.where(mask[:, None], part, torch.full_like(part, garbage)) for part in (x, previous, field)
    ]
    level = torch.rand(3)
    clean = net(x, level, {"f": field}, mask, previous)
    spoiled = net(spoil[0], level, {"f": spoil[2]}, mask, spoil[1])
    assert clean.std() > 0.01
    torch.testing.assert_close(inside(spoiled, mask), inside(clean, mask), atol=1e-5, rtol=1e-5)


@every_network
@every_grid
def test_a_masked_longer_grid_is_the_shorter_grid(build: Build, shape: tuple[int, ...]) -> None:
    longer = tuple(n + 2 * k for k, n in enumerate(shape, start=1))
    net = stirred(build(3, longer))
    x, level = noise(2, 3, *shape), torch.rand(2)
    padded = torch.full((2, 3, *longer), 7.0)
    mask = torch.zeros(2, *longer, dtype=torch.bool)
    window = tuple(slice(0, n) for n in shape)
    padded[(..., *window)], mask[(..., *window)] = x, True
    short = net(x, level)
    torch.testing.assert_close(net(padded, level, mask=mask)[(..., *window)], short, atol=1e-5, rtol=1e-5)
    everywhere = torch.ones(2, *shape, dtype=torch.bool)
    torch.testing.assert_close(net(x, level, mask=everywhere), short, atol=1e-5, rtol=1e-5)


@every_network
def test_samples_do_not_see_each_other(build: Build) -> None:
    net = stirred(build(3, (8,), conditions=[Scalar("s"), Tokens("t", size=2)]))
    x, level, mask = noise(3, 3, 8), torch.rand(3), torch.rand(3, 8) > 0.2
    cond = {"s": noise(3), "t": noise(3, 4, 2)}
    together = net(x, level, cond, mask)
    for k in range(3):
        alone = net(
            x[k : k + 1], level[k : k + 1], {n: v[k : k + 1] for n, v in cond.items()}, mask[k : k + 1]
        )
        torch.testing.assert_close(
            inside(alone, mask[k : k + 1]), inside(together, mask)[_rows(mask, k)], atol=1e-5, rtol=1e-5
        )


def _rows(mask: Tensor, sample: int) -> Tensor:
    return mask.nonzero()[:, 0] == sample


# --- conditions -----------------------------------------------------------------------------------------------

CONDITIONS: dict[str, tuple[Condition, Callable[[Tensor], Tensor]]] = {
    "scalar": (Scalar("c", mean=5.0, std=2.0), lambda bit: 5.0 + 4.0 * bit - 2.0),
    "count": (Scalar("c", counts=3), lambda bit: 1.0 + bit),
    "vector": (Vector("c", size=3), lambda bit: bit[:, None] * torch.tensor([1.0, -1.0, 0.5])),
    "category": (Category("c", classes=2), lambda bit: bit.long()),
    "tokens": (Tokens("c", size=2), lambda bit: (2 * bit - 1)[:, None, None].expand(-1, 3, 2)),
    "field": (FieldMap("c", channels=1), lambda bit: (2 * bit - 1)[:, None, None].expand(-1, 1, 6)),
}
every_condition = pytest.mark.parametrize("kind", CONDITIONS)


@every_condition
@either_family
def test_null_absent_and_nan_are_the_same_and_differ_from_a_label(build: Build, kind: str) -> None:
    condition, label_of = CONDITIONS[kind]
    net = stirred(build(3, (6,), conditions=[condition]))
    x, level = noise(4, 3, 6), torch.rand(4)
    label = label_of(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    absent = net(x, level, {})
    torch.testing.assert_close(net(x, level), absent)
    torch.testing.assert_close(net(x, level, {"c": condition.null(label)}), absent)
    dropped = drop_conditions({"c": label}, [condition], torch.full((4, 2), 1e-6))
    torch.testing.assert_close(net(x, level, dropped), absent)
    given = net(x, level, {"c": label})
    # Labels 0 and 2 are kept, 1 and 3 are missing: each row is that of its own label.
    mixed = label.clone()
    mixed[1::2] = condition.null(label[1::2])
    got = net(x, level, {"c": mixed})
    torch.testing.assert_close(got[0::2], given[0::2])
    torch.testing.assert_close(got[1::2], absent[1::2])
    assert (given - absent).abs().amax(dim=(1, 2)).min() > 1e-3


@every_condition
@either_family
def test_a_condition_is_learnt_within_a_few_steps(build: Build, kind: str) -> None:
    """The target is the label's sign and the input says nothing about it: without a label the best loss is 1."""
    condition, label_of = CONDITIONS[kind]
    net = build(1, (6,), conditions=[condition])
    optimiser = torch.optim.Adam(net.parameters(), lr=8e-3)
    level = torch.zeros(16)

    def loss(missing: bool) -> Tensor:
        bit = torch.randint(2, (16,)).float()
        label = label_of(bit)
        label = condition.null(label) if missing else label
        return (net(noise(16, 1, 6), level, {"c": label}) - (2 * bit - 1)[:, None, None]).square().mean()

    for _ in range(50):
        optimiser.zero_grad()
        loss(False).backward()
        optimiser.step()
    with torch.no_grad():
        known = torch.stack([loss(False) for _ in range(4)]).mean()
        unknown = torch.stack([loss(True) for _ in range(4)]).mean()
    assert known < 0.3
    assert unknown > 0.6


@either_family
def test_padding_tokens_do_not_matter(build: Build) -> None:
    net = stirred(build(2, (6,), conditions=[Tokens("t", size=3), Tokens("u", size=2)]))
    x, level, tokens = noise(2, 2, 6), torch.rand(2), noise(2, 3, 3)
    padding = torch.full((2, 4, 3), float("nan"))
    short = net(x, level, {"t": tokens})
    torch.testing.assert_close(
        net(x, level, {"t": torch.cat([tokens, padding], dim=1)}), short, atol=1e-5, rtol=1e-5
    )
    nothing = net(x, level, {"t": padding, "u": torch.zeros(2, 0, 2)})
    torch.testing.assert_close(nothing, net(x, level), atol=1e-5, rtol=1e-5)


@either_family
def test_unknown_and_misshapen_conditions_are_refused(build: Build) -> None:
    net = build(2, (6,), conditions=[Scalar("gap")])
    x, level = noise(2, 2, 6), torch.rand(2)
    with pytest.raises(ConfigError, match="did you mean 'gap'"):
        net(x, level, {"gpa": torch.zeros(2)})
    with pytest.raises(ShapeMismatch, match="'gap': expected 2 labels"):
        net(x, level, {"gap": torch.zeros(3)})
    assert net.conditions == (Scalar("gap"),)


@either_family
def test_labels_of_the_wrong_size_are_refused(build: Build) -> None:
    declared = [Vector("v", size=3), Tokens("t", size=3), Category("k", classes=3), FieldMap("f", channels=2)]
    net = build(1, (6,), conditions=declared)
    wrong = {
        "v": (noise(2, 4), ShapeMismatch, "'v': expected 3 features, got 4"),
        "t": (noise(2, 5, 4), ShapeMismatch, "'t': expected 3 features, got 4"),
        "k": (
            torch.tensor([0, 3]),
            ConfigError,
            "'k': expected a class from 0 to 2, or -1 for missing, got 3",
        ),
        "f": (noise(2, 2, 5), ShapeMismatch, r"'f': expected \(2, 6\) per sample.*got \(2, 5\); resample it"),
    }
    for name, (label, error, message) in wrong.items():
        with pytest.raises(error, match=message):
            net(noise(2, 1, 6), torch.rand(2), {name: label})


@either_family
def test_classes_may_come_as_floats(build: Build) -> None:
    """A table's column of classes with gaps is one of floats, and NaN is a gap."""
    net = stirred(build(1, (6,), conditions=[Category("k", classes=3)]))
    x, level = noise(3, 1, 6), torch.rand(3)
    whole = net(x, level, {"k": torch.tensor([2, -1, 0])})
    torch.testing.assert_close(net(x, level, {"k": torch.tensor([2.0, float("nan"), 0.0])}), whole)


# --- inputs ---------------------------------------------------------------------------------------------------


@every_network
def test_self_conditioning(build: Build) -> None:
    net = stirred(build(2, (8,)))
    x, level = noise(2, 2, 8), torch.rand(2)
    torch.testing.assert_close(net(x, level, previous=torch.zeros_like(x)), net(x, level))
    assert (net(x, level, previous=noise(2, 2, 8)) - net(x, level)).abs().max() > 1e-3


@every_network
def test_the_noise_level_matters(build: Build) -> None:
    net = stirred(build(2, (8,)))
    x = noise(1, 2, 8).expand(3, -1, -1)
    a, b, c = net(x, torch.tensor([-2.0, 0.0, 2.0]))
    assert min((a - b).abs().max(), (b - c).abs().max()) > 1e-3


@every_network
@every_grid
def test_wrong_latents_are_refused(build: Build, shape: tuple[int, ...]) -> None:
    net = build(3, shape)
    for wrong in [noise(2, 4, *shape), noise(2, 3, *shape, 2), noise(2, 3, *shape[1:])]:
        with pytest.raises(ShapeMismatch, match=r"this network expects \[batch, 3, .*another autoencoder"):
            net(wrong, torch.rand(2))


# --- learning -------------------------------------------------------------------------------------------------

ALL = [
    Scalar("s"),
    Vector("v", size=2),
    Category("k", classes=3),
    FieldMap("f", channels=1),
    Tokens("t", size=2),
]


@every_network
@every_grid
def test_the_gradient_reaches_every_parameter(build: Build, shape: tuple[int, ...]) -> None:
    net = stirred(build(2, shape, conditions=ALL))
    nan = float("nan")
    cond = {
        "s": torch.tensor([1.0, nan, 0.0, 2.0]),
        "v": torch.tensor([[1.0, 2.0], [nan, nan], [0.0, 1.0], [2.0, 0.0]]),
        "k": torch.tensor([0, -1, 1, 2]),
        "f": noise(4, 1, *shape),
        "t": torch.tensor([[[1.0, 2.0]], [[nan, nan]], [[0.0, 1.0]], [[2.0, 0.0]]]),
    }
    mask = torch.rand(4, *shape) > 0.3
    mask[0] = True
    net(noise(4, 2, *shape), torch.randn(4), cond, mask, noise(4, 2, *shape)).square().sum().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    assert all(p.grad.isfinite().all() for p in net.parameters())


@every_network
def test_a_new_network_returns_zero(build: Build) -> None:
    assert build(2, (8,), conditions=ALL)(noise(2, 2, 8), torch.rand(2)).abs().max() == 0.0


@pytest.mark.parametrize("build", [dit, rotary, unet], ids=lambda build: build.__name__)
def test_eight_latents_are_learnt_by_heart(build: Build) -> None:
    """Denoising at a moderate noise level; a network that cannot overfit has a broken path."""
    net = build(3, (6,), **({"widths": (16, 16)} if build is unet else {"width": 32}))
    clean, eps = noise(8, 3, 6), noise(8, 3, 6)
    level = torch.linspace(-1.0, 1.0, 8)
    optimiser = torch.optim.Adam(net.parameters(), lr=6e-3)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = (net(0.7 * clean + 0.7 * eps, level) - clean).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.1 * losses[0]


@either_family
def test_autocast_stays_close(build: Build) -> None:
    net = stirred(build(2, (8,), conditions=ALL))
    x, level, mask = noise(2, 2, 8), torch.rand(2), torch.rand(2, 8) > 0.3
    cond = {"s": noise(2), "t": noise(2, 3, 2)}
    exact = inside(net(x, level, cond, mask), mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = inside(net(x, level, cond, mask), mask)
    assert (rough - exact).square().mean().sqrt() < 0.1 * exact.square().mean().sqrt()
