"""Variants of an object at a similarity that is asked for."""

import pytest
import torch
from torch import Tensor

from sciLDM import explore
from sciLDM.errors import ConfigError, DataError
from tests.explore_domain import plain_model


def nearness(lead: Tensor, made: Tensor) -> list[float]:
    """1 for the same six numbers, less the further away."""
    return torch.exp(-0.2 * (made - lead).norm(dim=1)).tolist()


def names(made: Tensor) -> list[str]:
    return [str([round(v, 3) for v in row]) for row in made.tolist()]


def test_the_similarity_asked_for_comes() -> None:
    model = plain_model()
    lead = model.sample(1, seed=3)
    means = []
    for strength in (0.4, 0.9):  # what edits of such a strength give is what is asked for
        free = torch.tensor(nearness(lead, explore.edit(model, lead, strength, samples=40, seed=7)))
        wanted = float(free.median())
        made = explore.variants(model, lead, wanted, measure=nearness, keys=names, count=5, draws=80)
        found = torch.tensor(nearness(lead, made))
        assert len(set(names(made))) == 5
        off = (found - wanted).abs()
        assert float(off.mean()) < 0.5 * float((free - wanted).abs().mean())
        assert bool((off.diff() >= -1e-5).all())
        means.append(float(found.mean()))
    assert means[0] > means[1]
    again = explore.variants(model, lead, wanted, measure=nearness, keys=names, count=5, draws=80)
    assert torch.equal(again, made)


def test_the_lead_itself_is_no_variant() -> None:
    model = plain_model()
    lead = model.sample(1, seed=3)
    with pytest.raises(DataError, match="none differs"):
        explore.variants(model, lead, 1.0, measure=nearness, keys=lambda made: ["same"] * len(made), draws=8)
    with pytest.raises(DataError, match="one lead, got 2"):
        explore.variants(model, model.sample(2), 1.0, measure=nearness, keys=names)
    with pytest.raises(ConfigError, match="a draw for each strength"):
        explore.variants(model, lead, 1.0, measure=nearness, keys=names, draws=2)
