"""What is removed, and what is left: exact where nothing of use goes, and scored by what a removal does."""

import math

import pytest
import torch
from torch import nn

from sciLDM.compress.importance import BlockImportance, unit_importance
from sciLDM.compress.pruning import GROUP, Kept, choose_units, count_parameters, pruned_recipe, pruned_weights
from sciLDM.conditions import Scalar, Tokens
from sciLDM.denoiser import NetDenoiser
from sciLDM.errors import ConfigError
from sciLDM.nets import DiT, DiTNetwork
from sciLDM.objectives import DiffusionObjective
from sciLDM.parametrisation import V
from sciLDM.schedules import CosineSchedule

RECIPE = DiTNetwork(width=16, depth=3, heads=4)
CONDITIONS = (Scalar("gap"), Tokens("text", size=3))


def stirred(recipe: DiTNetwork = RECIPE) -> DiT:
    net = recipe.build(2, (6,), CONDITIONS)
    assert isinstance(net, DiT)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.eval()


def smaller(net: DiT, kept: Kept, recipe: DiTNetwork = RECIPE) -> DiT:
    small = pruned_recipe(recipe, kept).build(2, (6,), CONDITIONS)
    small.load_state_dict(pruned_weights(net, kept))
    assert isinstance(small, DiT)
    return small.eval()


def answer(net: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x, previous = torch.randn(2, 5, 2, 6, generator=generator).unbind()
    cond = {"gap": torch.tensor([0.3, math.nan, 1.0, -1.0, 2.0]), "text": torch.ones(5, 2, 3)}
    mask = torch.arange(6) < torch.tensor([6, 5, 4, 3, 2])[:, None]
    with torch.no_grad():
        return net(x, torch.linspace(-1, 1, 5), cond, mask, previous)


def without_use(net: DiT, block: int, heads: list[int], hidden: list[int]) -> None:
    """Those units say nothing."""
    part = net.blocks[block]
    out = part.attention.out.weight.data.unflatten(1, (part.attention.heads, -1))
    out[:, heads] = 0.0
    part.mlp[2].weight.data[:, hidden] = 0.0


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_removing_what_says_nothing_changes_nothing(positions: str) -> None:
    recipe = DiTNetwork(width=16, depth=3, heads=4, positions=positions)  # type: ignore[arg-type]
    net = stirred(recipe)
    without_use(net, 0, [1, 3], list(range(5, 40)))
    without_use(net, 2, [0], [63])
    kept = Kept.all_of(net).without("heads", 0, [1, 3]).without("hidden", 0, range(5, 40))
    kept = kept.without("heads", 2, [0]).without("hidden", 2, [63])
    assert torch.allclose(answer(smaller(net, kept, recipe)), answer(net), atol=1e-6)
    wrong = Kept.all_of(net).without("heads", 0, [0, 2])
    assert not torch.allclose(answer(smaller(net, wrong, recipe)), answer(net), atol=1e-3)


def test_parts_and_blocks_that_say_nothing_can_go_altogether() -> None:
    net = stirred()
    for block, parts in ((0, ("attention",)), (1, ("attention", "mlp")), (2, ("mlp",))):
        for name in parts:
            last = net.blocks[block].attention.out if name == "attention" else net.blocks[block].mlp[2]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    everything = Kept.all_of(net)
    kept = Kept((), ())
    kept = Kept(((), (), everything.heads[2]), (everything.hidden[0], (), ()))
    small = smaller(net, kept)
    assert pruned_recipe(RECIPE, kept) == DiTNetwork(
        width=16, depth=2, heads=4, block_heads=(0, 4), block_hidden=(64, 0)
    )
    assert torch.allclose(answer(small), answer(net), atol=1e-6)


def test_parameters_are_counted_right() -> None:
    net = stirred()
    kept = Kept(((0, 2), (), ()), ((1, 5, 9), (), (4,)))
    for each in (kept, Kept.all_of(net), kept.without("hidden", 0, [1, 5, 9])):
        assert count_parameters(net, each) == sum(p.numel() for p in smaller(net, each).parameters())
    assert Kept.from_state(kept.state()) == kept


def latents(count: int) -> tuple[torch.Tensor, None, dict[str, torch.Tensor]]:
    z = torch.randn(count, 2, 6, generator=torch.Generator().manual_seed(1))
    return z, None, {"gap": z[:, 0, 0]}


def scores(net: DiT, count: int = 2048) -> list[BlockImportance]:
    denoiser = NetDenoiser(net, CosineSchedule(), V())
    return unit_importance(denoiser, [latents(count)], DiffusionObjective(), CONDITIONS)


def test_scores_are_what_a_removal_does_to_the_estimate() -> None:
    """Small contributions act linearly: there the score is the squared change, but for the error of its mean."""
    net = stirred()
    for block in net.blocks:
        block.attention.out.weight.data *= 0.02
        block.mlp[2].weight.data *= 0.02
    found = scores(net)
    objective, whole = DiffusionObjective(self_condition=0.0), NetDenoiser(net, CosineSchedule(), V())
    z, _, cond = latents(2048)
    draw = objective.draw(z, len(CONDITIONS), torch.Generator().manual_seed(0))
    for kind, block, unit in (("heads", 0, 1), ("heads", 2, 3), ("hidden", 1, 7), ("hidden", 2, 40)):
        student = NetDenoiser(
            smaller(net, Kept.all_of(net).without(kind, block, [unit])), CosineSchedule(), V()
        )
        with torch.no_grad():
            change = objective(student, z, draw, cond=cond, conditions=CONDITIONS, teacher=whole).mean()
        assert float(getattr(found[block], kind)[unit]) == pytest.approx(float(change), rel=0.25)


def test_planted_useless_units_score_nothing_and_go_first() -> None:
    net = stirred()
    without_use(net, 1, [2], list(range(16, 32)))
    without_use(net, 0, [0, 1], [])
    found = scores(net, 256)
    assert (found[1].heads == 0).tolist() == [False, False, True, False]
    assert (found[1].hidden == 0).nonzero().flatten().tolist() == list(range(16, 32))
    planted = Kept.all_of(net).without("heads", 1, [2]).without("heads", 0, [0, 1])
    planted = planted.without("hidden", 1, range(16, 32))
    assert choose_units(net, found, count_parameters(net, planted)) == planted


def test_what_is_left_has_the_size_asked_for_and_groups_stay_together() -> None:
    net = stirred()
    found, whole = scores(net, 128), count_parameters(net, Kept.all_of(net))
    least = count_parameters(net, Kept(((),) * 3, ((),) * 3))
    for share in (0.9, 0.7, 0.5):
        target = int(share * whole)
        kept = choose_units(net, found, target)
        largest_group = max(16 * 33 + 22, 4 * 67 + 24) + 6 * 16
        assert target - largest_group <= count_parameters(net, kept) <= target
        assert all(len(units) % GROUP == 0 for units in kept.hidden)
    with pytest.raises(ConfigError, match="is not pruned"):
        choose_units(net, found, least)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_heads": (2,)}, r"block_heads: expected 3 numbers of at least 0, one a block, got \[2\]"),
        ({"block_hidden": (1, 2, -3)}, r"block_hidden: expected 3 numbers"),
    ],
)
def test_sizes_of_blocks_must_fit(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiTNetwork(width=16, depth=3, heads=4, **options).build(2, (6,), ())
