"""Properties asked for as ranges."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

import sciLDM
from sciLDM.cli._models import parse_cond
from sciLDM.cli._parser import UsageError
from sciLDM.conditions import Scalar
from sciLDM.domains.molecules.codec import Property
from sciLDM.domains.molecules.design import decorate
from sciLDM.domains.molecules.ranges import draw_targets, read_ranges
from sciLDM.errors import ConfigError
from sciLDM.model import LatentDiffusion
from sciLDM.rng import NoiseSource
from tests.tiny import tiny_run

SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
IDS = range(4000)


def of_uniform() -> Property:
    """A property that is uniform on [0, 10] in training."""
    return Property("p", True, 5.0, 2.9, [10 * s for s in SHARES])


def of_steps() -> Property:
    """Half of the training data at 0 to 1, half at 3 to 4, nothing between."""
    return Property("p", True, 2.0, 1.6, [0.0, 0.1, 0.5, 1.0, 3.5, 3.9, 4.0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    return sciLDM.load(tiny_run(tmp_path_factory))


def test_targets_follow_the_training_distribution_inside_the_range() -> None:
    drawn = draw_targets({"p": (2.0, 5.0)}, [of_uniform()], NoiseSource(1), IDS)["p"]
    assert kstest(drawn, "uniform", args=(2.0, 3.0)).pvalue > 0.01
    steps = draw_targets({"p": (0.5, 3.5)}, [of_steps()], NoiseSource(1), IDS)["p"]
    assert np.mean(steps < 1.0) == pytest.approx(0.5, abs=0.03)  # a quarter of the data each
    assert steps.min() >= 0.5
    assert steps.max() <= 3.5
    again = draw_targets({"p": (2.0, 5.0)}, [of_uniform()], NoiseSource(1), [7, 3])["p"]
    assert again.tolist() == [drawn[7], drawn[3]]


@pytest.mark.parametrize(
    ("ends", "low", "high"),
    [
        ((9.0, np.inf), 9.0, 10.0),
        ((-np.inf, 1.0), 0.0, 1.0),
        ((20.0, 30.0), 20.0, 30.0),  # nothing there in training: spread evenly
        ((20.0, np.inf), 20.0, 20.0),  # and an open range ends where it begins
    ],
)
def test_open_ranges_and_ranges_beyond_the_data(ends: tuple[float, float], low: float, high: float) -> None:
    drawn = draw_targets({"p": ends}, [of_uniform()], NoiseSource(0), IDS)["p"]
    assert drawn.min() == pytest.approx(low, abs=0.02)
    assert drawn.max() == pytest.approx(high, abs=0.02)


def test_a_property_that_counts_has_repeated_quantiles() -> None:
    counts = Property("n", True, 1.0, 1.0, [0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 3.0])
    drawn = draw_targets({"n": (0.0, 1.0)}, [counts], NoiseSource(0), IDS)["n"]
    assert np.isfinite(drawn).all()
    assert ((drawn >= 0) & (drawn <= 1)).all()


def test_samples_tell_whether_they_lie_within(model: LatentDiffusion) -> None:
    made = model.sample(12, cond={"logP": (0.0, 1.0), "gap": (None, 2.0)}, seed=3).table
    assert made["requested_logP"].between(0.0, 1.0).all()
    assert (made["requested_gap"] <= 2.0).all()
    assert made["requested_logP"].nunique() > 6
    assert (made["within_logP"] == made["realised_logP"].between(0.0, 1.0)).all()
    assert "within_gap" not in made  # no program here computes it
    later = model.sample(4, cond={"logP": (0.0, 1.0), "gap": (None, 2.0)}, seed=3, first=8).table
    assert later["smiles"].tolist() == made["smiles"].tolist()[8:]


def test_of_the_candidates_any_inside_the_range_will_do(model: LatentDiffusion) -> None:
    """The first candidate inside is kept, though another may be nearer to the target drawn for it."""
    asked = {"logP": (-0.5, 0.8), "atoms": 4}
    kept = model.sample(8, cond=asked, candidates=4, seed=5)
    targets = kept.table["requested_logP"].to_numpy()
    every = model.sample(32, cond={"logP": np.repeat(targets, 4), "atoms": 4}, seed=5).table
    inside = every["realised_logP"].between(-0.5, 0.8).to_numpy().reshape(8, 4)
    assert kept.table["within_logP"].tolist() == inside.any(1).tolist()
    first = [4 * k + int(row.argmax()) for k, row in enumerate(inside) if row.any()]
    chosen = kept.table["smiles"][inside.any(1)].tolist()
    assert chosen == every["smiles"].iloc[first].tolist()


def test_a_scaffold_may_be_asked_for_with_a_range(model: LatentDiffusion) -> None:
    made = decorate(model, "C*", 2, cond={"logP": (0.0, 1.0)}, steps=2, rounds=1)
    assert made.table["requested_logP"].between(0.0, 1.0).all()
    assert made.table["within_logP"].dtype == bool


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((2.0, 1.0), "low < high"),
        ((1.0, 2.0, 3.0), r"a range \(low, high\)"),
        (("a", 2.0), r"a range \(low, high\)"),
        ((None, None), "asks for nothing"),
        ((float("nan"), 1.0), "low < high"),
    ],
)
def test_ranges_that_are_none(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_ranges({"logP": value})


def test_an_unknown_property_is_refused_with_a_range_too(model: LatentDiffusion) -> None:
    with pytest.raises(ConfigError, match="cannot condition on 'logQ'"):
        model.sample(2, cond={"logQ": (0.0, 1.0)})


def command_line(*entries: str, takes_ranges: bool = True) -> dict[str, Any]:
    codec = SimpleNamespace(conditions=(Scalar("logP", mean=1.0, std=1.0),), takes_ranges=takes_ranges)
    model = SimpleNamespace(codec=codec, experiment=None, card={}, reference=None, sample=None)
    return parse_cond(entries, model)


def test_ranges_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line("logP=1..2.5") == {"logP": (1.0, 2.5)}
    assert command_line("logP=-1e-1..") == {"logP": (-0.1, None)}
    assert command_line("logP=..2") == {"logP": (None, 2.0)}
    assert capsys.readouterr().err == ""
    command_line("logP=9..12")
    assert "logP=9 is 8.0 standard deviations" in " ".join(capsys.readouterr().err.split())
    for wrong in ("logP=..", "logP=2..1", "logP=1..2..3", "logP=a..2"):
        with pytest.raises(UsageError, match="--cond"):
            command_line(wrong)
    with pytest.raises(UsageError, match="finite number"):
        command_line("logP=1..2", takes_ranges=False)
