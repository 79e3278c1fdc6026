"""`p(n | c)` against Bayes' rule done by hand."""

import json
import math
from itertools import chain, combinations

import numpy as np
import pytest

from sciLDM.domains.molecules.sizes import SizePrior

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Sizes from 3 to 9, one size rare, two properties that grow with size and one with missing values."""
    rng = np.random.default_rng(0)
    sizes = np.concatenate([rng.integers(3, 9, 600), [9, 9]])
    properties = {
        "a": sizes + rng.normal(0, 0.5, len(sizes)),
        "b": -2.0 * sizes + rng.normal(0, 3.0, len(sizes)),
        "c": np.where(rng.random(len(sizes)) < 0.5, np.nan, rng.normal(0, 1, len(sizes)) + (sizes == 4)),
    }
    return sizes, properties


def by_hand(sizes: np.ndarray, properties: dict[str, np.ndarray], wanted: dict[str, float]) -> np.ndarray:
    """Posterior over sizes with the documented shrinkage: ten pseudo-observations of the overall distribution."""
    posterior = []
    for n in np.unique(sizes):
        p = float((sizes == n).mean())
        for name, value in wanted.items():
            known = properties[name][np.isfinite(properties[name])]
            here = properties[name][(sizes == n) & np.isfinite(properties[name])]
            w = len(here) / (len(here) + 10)
            mean = (w * here.mean() if len(here) else 0) + (1 - w) * known.mean()
            std = (w * here.std() if len(here) else 0) + (1 - w) * known.std()
            p *= math.exp(-0.5 * ((value - mean) / std) ** 2) / std
        posterior.append(p)
    return np.array(posterior) / sum(posterior)


@pytest.mark.parametrize(
    "subset", list(chain.from_iterable(combinations(NAMES, r) for r in range(4))), ids=str
)
def test_any_subset_of_properties(subset: tuple[str, ...], data: tuple) -> None:
    sizes, properties = data
    prior = SizePrior.fit(sizes, properties)
    wanted = {name: {"a": 6.2, "b": -11.0, "c": 0.7}[name] for name in subset}
    count = 20_001
    u = (np.arange(count) + 0.5) / count  # a grid: shares are exact to 1 / count
    drawn = prior.draw({name: np.full(count, value) for name, value in wanted.items()}, u)
    shares = np.array([(drawn == n).mean() for n in np.unique(sizes)])
    assert np.abs(shares - by_hand(sizes, properties, wanted)).max() < 2e-4


def test_nan_leaves_a_property_open_for_that_sample_alone(data: tuple) -> None:
    prior = SizePrior.fit(*data)
    u = np.linspace(0.01, 0.99, 50)
    large = np.full(50, 8.0)
    mixed = np.where(np.arange(50) % 2 == 0, np.nan, large)
    drawn = prior.draw({"a": mixed}, u)
    assert (drawn[::2] == prior.draw({}, u)[::2]).all()
    assert (drawn[1::2] == prior.draw({"a": large}, u)[1::2]).all()


@pytest.mark.parametrize("value", [1e3, -1e3, 1e38, -1e38, 1e300])
def test_targets_far_outside_the_data_pick_a_size_that_was_seen(value: float, data: tuple) -> None:
    sizes, properties = data
    prior = SizePrior.fit(sizes, properties)
    drawn = prior.draw({"a": np.full(9, value), "b": np.full(9, value)}, np.linspace(0.001, 0.999, 9))
    assert np.isin(drawn, np.unique(sizes)).all()


def test_a_larger_target_never_gives_a_smaller_molecule_on_average(data: tuple) -> None:
    prior = SizePrior.fit(*data)
    u = np.linspace(0.005, 0.995, 100)
    means = [prior.draw({"a": np.full(100, value)}, u).mean() for value in np.linspace(2, 10, 9)]
    assert (np.diff(means) >= 0).all()


def test_extreme_uniform_numbers_stay_inside(data: tuple) -> None:
    prior = SizePrior.fit(*data)
    drawn = prior.draw({}, np.array([2.0**-24, 1 - 2.0**-24]))
    assert drawn.tolist() == [3, 9]


def test_one_size_and_json(data: tuple) -> None:
    single = SizePrior.fit(np.array([5, 5]), {"a": np.array([1.0, np.nan])})
    assert single.draw({"a": np.array([3.0])}, np.array([0.5])).tolist() == [5]
    prior = SizePrior.fit(*data)
    again = SizePrior.from_dict(json.loads(json.dumps(prior.to_dict())))
    u = np.linspace(0.01, 0.99, 99)
    assert (again.draw({"a": np.full(99, 6.0)}, u) == prior.draw({"a": np.full(99, 6.0)}, u)).all()


def test_a_prior_refitted_to_few_molecules_keeps_what_they_do_not_tell() -> None:
    sizes = np.repeat([7, 8, 9], [10, 30, 60])
    prior = SizePrior.fit(sizes, {"logP": 0.1 * sizes, "gap": sizes - 5.0})
    own = np.repeat([8, 11], [5, 15])
    new = prior.refitted(own, {"logP": np.repeat([1.0, 3.0], [5, 15]), "gap": np.full(20, np.nan)})
    assert (new.atoms, new.counts) == ([8, 11], [5, 15])
    assert new.means["logP"][1] > new.means["logP"][0]
    # No item has a gap: that of the nearest size known before.
    assert new.means["gap"] == [prior.means["gap"][1], prior.means["gap"][2]]
    u = (np.arange(1000) + 0.5) / 1000
    assert np.mean(new.draw({}, u) == 11) == pytest.approx(0.75, abs=0.002)
    # Asked for a low logP, the smaller ones are likelier.
    assert np.mean(new.draw({"logP": np.full(1000, 0.5)}, u) == 8) > 0.5
