"""Steering samples by a regression trained on latents, and optimisation, where everything is Gaussian."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sciLDM import explore
from sciLDM.errors import ArtefactError, ConfigError, DataError
from sciLDM.model import LatentDiffusion
from sciLDM.training import StageSettings
from tests.explore_domain import DIM, F64, fixed, plain_model

WEIGHTS = fixed(1, DIM, "quantity")[0]
SETTINGS = StageSettings(
    max_steps=250, batch_size=128, learning_rate=5e-3, warmup_steps=10, validate_every=250
)


def quantity(rows: Tensor) -> Tensor:
    """A linear function of the six numbers that no condition of the model tells."""
    return rows[:, :DIM].to(F64) @ WEIGHTS.to(F64)


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    torch.set_num_threads(1)
    return plain_model()


@pytest.fixture(scope="module")
def rows(model: LatentDiffusion) -> Tensor:
    return model.sample(1500, seed=1)


@pytest.fixture(scope="module")
def predictor(model: LatentDiffusion, rows: Tensor) -> explore.Predictor:
    return explore.fit_predictor(
        model, rows, {"quantity": quantity(rows).numpy()}, width=32, depth=1, settings=SETTINGS
    )


def test_samples_are_steered_to_a_quantity_the_model_does_not_know(
    model: LatentDiffusion, rows: Tensor, predictor: explore.Predictor
) -> None:
    values = quantity(rows)
    assert predictor.mae < 0.3
    wanted = float(values.mean() + values.std())
    free = quantity(model.sample(200, seed=2))
    steered = quantity(model.sample(200, seed=2, steer=predictor.steer(model, {"quantity": wanted})))
    assert float((steered - wanted).abs().mean()) < 0.4 * float((free - wanted).abs().mean())
    assert float(steered.mean()) == pytest.approx(wanted, abs=0.3 * float(values.std()))
    same = model.sample(4, seed=2, steer=predictor.steer(model, {"quantity": wanted}, scale=0.0))
    assert torch.equal(same, model.sample(4, seed=2))
    later = model.sample(2, seed=2, first=2, steer=predictor.steer(model, {"quantity": wanted}))
    assert torch.allclose(quantity(later), steered[2:4], atol=1e-3)


def test_without_targets_it_follows_the_conditions(
    model: LatentDiffusion, predictor: explore.Predictor
) -> None:
    """This one knows none of the model's conditions, so that nothing changes."""
    steered = model.sample(3, cond={"level": 1.0}, seed=0, steer=predictor.steer(model))
    assert torch.equal(steered, model.sample(3, cond={"level": 1.0}, seed=0))


def test_it_is_kept(model: LatentDiffusion, predictor: explore.Predictor, tmp_path: Path) -> None:
    again = explore.Predictor.load(predictor.save(tmp_path / "kept"))
    options: dict[str, Any] = {"targets": {"quantity": 1.0}}
    made = [model.sample(3, seed=0, steer=p.steer(model, **options)) for p in (predictor, again)]
    assert torch.equal(*made)
    (tmp_path / "kept" / "predictor.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"fit_predictor"):
        explore.Predictor.load(tmp_path / "kept")


def test_what_cannot_be_steered(model: LatentDiffusion, rows: Tensor, predictor: explore.Predictor) -> None:
    with pytest.raises(ConfigError, match="known: quantity"):
        predictor.steer(model, {"level": 1.0})
    with pytest.raises(DataError, match="values that differ"):
        explore.fit_predictor(model, rows, {"quantity": np.ones(len(rows))})
    with pytest.raises(DataError, match="one number for each of 1500"):
        explore.fit_predictor(model, rows, {"quantity": [1.0]})


def listed(made: Tensor) -> list[tuple[float, ...]]:
    return [tuple(row) for row in made.tolist()]


class Counting:
    """Minus the distance to a point two standard deviations out; counts its calls."""

    def __init__(self, rows: Tensor) -> None:
        self.aim, self.calls = rows.mean(0) + 1.5 * rows.std(0) * torch.sign(WEIGHTS), 0

    def __call__(self, objects: Sequence[Any]) -> list[float]:
        self.calls += len(objects)
        return [-float((torch.tensor(o) - self.aim).norm()) for o in objects]


def test_optimisation_beats_as_many_samples(model: LatentDiffusion, rows: Tensor) -> None:
    gains = []
    for seed in range(3):
        oracle = Counting(rows)
        found = explore.optimise(
            model, oracle, rounds=5, batch=10, parents=4, proposals=60, listed=listed, seed=seed
        )
        assert oracle.calls == len(found.values) == 60
        assert found.rounds == sorted(found.rounds)
        random = max(oracle(listed(model.sample(60, seed=100 + seed))))
        gains.append(found.best(1)[0][1] - random)
        best = [value for _, value in found.best(60)]
        assert best == sorted(found.values, reverse=True)
    assert min(gains) > 0
    assert float(np.mean(gains)) > 0.3 * float(rows.std(0).norm() / DIM**0.5)


def test_optimisation_repeats_and_never_asks_twice(model: LatentDiffusion, rows: Tensor) -> None:
    runs = [
        explore.optimise(
            model, Counting(rows), start=listed(rows[:12]), rounds=2, batch=5, proposals=20, listed=listed
        )
        for _ in range(2)
    ]
    assert runs[0].objects == runs[1].objects
    assert len({str(o) for o in runs[0].objects}) == len(runs[0].objects) == 22


def test_an_oracle_may_have_no_answer(model: LatentDiffusion, rows: Tensor) -> None:
    oracle = Counting(rows)
    found = explore.optimise(
        model,
        lambda objects: [v if k % 2 else float("nan") for k, v in enumerate(oracle(objects))],
        rounds=2, batch=8, proposals=20, listed=listed,
    )  # fmt: skip
    assert np.isfinite(found.best(1)[0][1])
    with pytest.raises(DataError, match="a value for each of 8 objects, got 1"):
        explore.optimise(model, lambda _: [1.0], rounds=1, batch=8, listed=listed)
    with pytest.raises(ConfigError, match="from 1"):
        explore.optimise(model, oracle, rounds=0, listed=listed)
    with pytest.raises(ConfigError, match="listed="):
        explore.optimise(model, oracle, batch=2, rounds=1)
