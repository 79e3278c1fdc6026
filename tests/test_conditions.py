"""Labels: what is refused, and that exactly the labels that chance picks are dropped."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sciLDM.conditions import (
    Category,
    Condition,
    FieldMap,
    Scalar,
    Tokens,
    Vector,
    check_conditions,
    drop_conditions,
)
from sciLDM.errors import ConfigError, ShapeMismatch

BATCH = 6
DECLARED: list[Condition] = [
    Scalar("scalar", dropout=0.1),
    Vector("vector", dropout=0.3, size=2),
    Category("category", dropout=0.5, classes=3),
    FieldMap("field", dropout=0.7, channels=2),
    Tokens("tokens", dropout=0.9, size=2),
]


def labels(batch: int = BATCH) -> dict[str, torch.Tensor]:
    return {
        "scalar": torch.randn(batch),
        "vector": torch.randn(batch, 2),
        "category": torch.arange(batch) % 3,
        "field": torch.randn(batch, 2, 4, 5),
        "tokens": torch.randn(batch, 3, 2),
    }


def missing(label: torch.Tensor) -> torch.Tensor:
    """Which rows hold no label at all; rows are dropped whole."""
    flat = label.reshape(len(label), -1)
    gone = flat.isnan() if label.is_floating_point() else flat == -1
    assert (gone.all(dim=1) == gone.any(dim=1)).all()
    return gone.all(dim=1)


uniform = st.floats(1e-6, 1 - 1e-6)


@given(
    rows=st.lists(st.lists(uniform, min_size=6, max_size=6), min_size=BATCH, max_size=BATCH),
    all_together=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_exactly_the_labels_picked_by_u_are_dropped(rows: list[list[float]], all_together: float) -> None:
    u, given_labels = torch.tensor(rows), labels()
    before = {name: label.clone() for name, label in given_labels.items()}
    dropped = drop_conditions(given_labels, DECLARED, u, all_together=all_together)
    for k, condition in enumerate(DECLARED):
        expected = (u[:, 0] < all_together) | (u[:, 1 + k] < condition.dropout)
        got = dropped[condition.name]
        assert torch.equal(missing(got), expected), condition.name
        assert torch.equal(got[~expected], before[condition.name][~expected])
        assert got.dtype == before[condition.name].dtype
        assert torch.equal(
            given_labels[condition.name], before[condition.name]
        )  # the caller's labels are left alone


def test_rates_of_dropping_are_those_declared() -> None:
    """On a regular grid of u the counts are exact, not statistical."""
    n = 1000
    u = ((torch.arange(n) + 0.5) / n)[:, None].expand(-1, 6)
    dropped = drop_conditions(labels(n), DECLARED, u)
    rates = [missing(dropped[c.name]).double().mean().item() for c in DECLARED]
    assert rates == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=1e-9)
    together = drop_conditions(
        labels(n), DECLARED, torch.cat([u[:, :1], u[:, 1:].flip(0)], dim=1), all_together=0.2
    )
    everything = torch.stack([missing(together[c.name]) for c in DECLARED]).all(dim=0)
    assert everything[: n // 5].all()


def test_entries_that_must_stay_stay_and_absent_ones_stay_absent() -> None:
    always = [Scalar("scalar", dropout=0.0), Scalar("other", dropout=1.0)]
    given_labels = {"scalar": torch.randn(BATCH), "undeclared": torch.randn(BATCH)}
    dropped = drop_conditions(given_labels, always, torch.full((BATCH, 3), 1e-6), all_together=1.0)
    assert set(dropped) == {"scalar", "undeclared"}
    assert all(torch.equal(dropped[name], given_labels[name]) for name in dropped)


def test_labels_that_fit_are_accepted() -> None:
    check_conditions(labels(), DECLARED, BATCH)
    check_conditions({}, DECLARED, BATCH)
    check_conditions({}, (), BATCH)


@pytest.mark.parametrize("name", [c.name for c in DECLARED])
def test_a_wrong_batch_is_refused(name: str) -> None:
    with pytest.raises(ShapeMismatch, match=rf"'{name}': expected 5 labels"):
        check_conditions({name: labels()[name]}, DECLARED, 5)


@pytest.mark.parametrize("name", ["scalar", "vector", "category", "tokens"])
def test_a_wrong_rank_is_refused(name: str) -> None:
    with pytest.raises(
        ShapeMismatch, match=rf"'{name}': expected {BATCH} labels with \d trailing axes, got shape"
    ):
        check_conditions({name: labels()[name][..., None]}, DECLARED, BATCH)


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown condition 'scaler'; .*\['category', .*did you mean 'scalar'\?"
    ):
        check_conditions({"scaler": torch.zeros(BATCH)}, DECLARED, BATCH)
    with pytest.raises(ConfigError, match=r"unknown condition 'gap'; this model knows none$"):
        check_conditions({"gap": torch.zeros(BATCH)}, (), BATCH)
