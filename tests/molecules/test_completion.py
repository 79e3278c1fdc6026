"""Requests are completed: drawn from the conditional distribution, and what reaches network and table."""

import json

import numpy as np
import pytest
import torch

import sciLDM
from sciLDM.domains.molecules.codec import MoleculeCodec
from sciLDM.domains.molecules.completion import LabelTable
from sciLDM.model import LatentDiffusion
from sciLDM.rng import NoiseSource
from tests.tiny import tiny_run

COUNT = 40_000


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Two kinds of molecules: five atoms without rings, seven with two; x and y follow the kind and each other."""
    rng = np.random.default_rng(0)
    kind = rng.random(COUNT) < 0.25
    x = np.where(kind, 2.0, -1.0) + rng.normal(0, 0.5, COUNT)
    y = np.where(kind, 1.0, -1.0) * x + rng.normal(0, 0.3, COUNT)
    return np.where(kind, 7, 5), {"x": x, "y": y, "rings": np.where(kind, 2.0, 0.0)}


@pytest.fixture(scope="module")
def labels(data: tuple) -> LabelTable:
    found = LabelTable.of(*data)
    assert found is not None
    return LabelTable(**json.loads(json.dumps(found.to_dict())))  # it travels as text


def draw(labels: LabelTable, count: int, *, atoms: float = np.nan, **wanted: float) -> tuple:
    u = np.random.default_rng(1).random(count)
    return labels.complete({n: np.full(count, v) for n, v in wanted.items()}, np.full(count, atoms), u)


def test_what_is_open_is_drawn_from_its_conditional_distribution(labels: LabelTable) -> None:
    sizes, found = draw(labels, 20_000, y=1.4)
    # Bayes by hand: y is Gaussian in each kind, with mean 2 or 1 and variance 0.5^2 + 0.3^2.
    spread = 0.5**2 + 0.3**2
    weights = np.array([0.75, 0.25]) * np.exp(-0.5 * (np.array([1.0, 2.0]) - 1.4) ** 2 / spread)
    assert np.mean(sizes == 7) == pytest.approx(weights[1] / weights.sum(), abs=0.07)  # 2,048 rows
    assert (found["y"] == 1.4).all()
    assert ((found["rings"] == 2.0) == (sizes == 7)).all()
    plain = found["x"][sizes == 5]
    gain = -(0.5**2) / spread
    assert plain.mean() == pytest.approx(-1.0 + gain * (1.4 - 1.0), abs=0.05)
    assert plain.std() == pytest.approx(np.sqrt(0.5**2 + gain * 0.5**2), rel=0.15)


def test_counts_and_sizes_that_are_asked_for_choose_the_kind(labels: LabelTable) -> None:
    for asked in ({"rings": 2.0}, {"atoms": 7.0}, {"rings": 1.6}):
        sizes, found = draw(labels, 2000, **asked)
        assert ((sizes == 7) | (found["x"] > 0)).all()
        assert found["x"].mean() == pytest.approx(2.0, abs=0.05)
        assert np.corrcoef(found["x"], found["y"])[0, 1] == pytest.approx(0.86, abs=0.03)


def test_impossible_and_far_requests_get_several_of_the_nearest(labels: LabelTable) -> None:
    for asked in ({"x": 1e30}, {"rings": 40.0, "x": -3.0}, {"x": -1.0, "y": 5.0, "rings": 2.0, "atoms": 5.0}):
        sizes, found = draw(labels, 50, **asked)
        assert np.isin(sizes, [5, 7]).all()
        assert all(np.isfinite(values).all() for values in found.values())
    rare = draw(labels, 200, x=max(float(row.split()[1]) for row in labels.rows))[1]["y"]
    assert len(np.unique(rare)) >= 5


def test_several_ranges_are_met_by_molecules_that_have_all_of_it(labels: LabelTable) -> None:
    u = np.random.default_rng(2).random(4000)
    found = labels.within({"x": (-1.0, 2.0), "y": (0.5, np.inf)}, u)
    assert found is not None
    assert found["x"].min() >= -1.0
    assert found["y"].min() >= 0.5
    # Of molecules with y above 0.5 nearly all have x near -1 or near 2; drawn alone, x would lie anywhere.
    kinds = np.abs(np.abs(found["x"]) - np.abs(found["y"]))
    assert kinds.max() < 1.3
    assert labels.within({"x": (-1.0, -0.9), "y": (-3.0, -1.0)}, u) is None


def test_too_little_to_draw_from(data: tuple) -> None:
    sizes, labels = data
    assert LabelTable.of(sizes, {"x": labels["x"]}) is None
    assert LabelTable.of(sizes[:50], {k: v[:50] for k, v in labels.items()}) is None
    missing = {**labels, "y": np.where(np.arange(COUNT) % 200, np.nan, labels["y"])}
    found = LabelTable.of(sizes, missing)
    assert found is not None
    assert len(found.rows) == COUNT // 200


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    """A tiny model, with a completion made up for its properties."""
    model = sciLDM.load(tiny_run(tmp_path_factory))
    codec = model.codec
    assert isinstance(codec, MoleculeCodec)
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 6, 400)
    labels = {p.name: p.mean + p.std * rng.normal(size=400) for p in codec.properties}
    codec.completion = LabelTable.of(sizes, labels)
    assert codec.completion is not None
    return model


def test_the_network_is_asked_for_everything_and_the_table_says_what_the_user_asked(
    model: LatentDiffusion,
) -> None:
    codec = model.codec
    first, other = "logP", "gap"  # RDKit computes the first
    wanted = [0.5, float("nan"), 0.2]
    request = codec.plan(3, {first: wanted}, NoiseSource(4), range(3))
    assert torch.equal(request.cond[first].isnan(), torch.tensor([False, True, False]))
    assert torch.equal(
        request.cond[other].isnan(), torch.tensor([False, True, False])
    )  # nothing asked, nothing drawn
    assert request.cond[first][[0, 2]].tolist() == pytest.approx([0.5, 0.2])
    later = codec.plan(1, {first: 0.2}, NoiseSource(4), [2])
    assert later.cond[other][0] == request.cond[other][2]  # sample 2 depends on its number alone
    table = model.sample(3, cond={first: wanted}, candidates=2, seed=1).table
    assert table[f"requested_{first}"].iloc[[0, 2]].tolist() == pytest.approx([0.5, 0.2])
    assert f"requested_{other}" not in table


def test_asking_for_nothing_changes_nothing(model: LatentDiffusion) -> None:
    request = model.codec.plan(5, {}, NoiseSource(0), range(5))
    assert set(request.cond) == {"atoms"}
    sized = model.codec.plan(5, {"atoms": 4}, NoiseSource(0), range(5))
    assert set(sized.cond) == {"atoms"}
