"""The stream of batches: complete, reproducible, shared out without overlap."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.training import BatchPlan, LatentData
from sciLDM.training.data import make_loader, to_device
from sciLDM.training.plan import StepSampler
from tests.training.toys import PointData, Points

SIZES = st.integers(1, 40)


@given(seed=st.integers(0, 9), count=SIZES, batch_size=SIZES, epochs=st.integers(1, 3))
def test_every_epoch_holds_every_sample_once(seed: int, count: int, batch_size: int, epochs: int) -> None:
    plan = BatchPlan(seed, count, batch_size)
    steps = -(-epochs * count // plan.batch_size)
    stream = np.concatenate([plan.indices(step) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(seed=st.integers(0, 9), count=SIZES, batch_size=SIZES, step=st.integers(0, 200))
def test_a_batch_depends_on_its_step_alone(seed: int, count: int, batch_size: int, step: int) -> None:
    walked = BatchPlan(seed, count, batch_size)
    for before in range(max(0, step - 3), step):
        walked.indices(before)
    assert np.array_equal(walked.indices(step), BatchPlan(seed, count, batch_size).indices(step))
    assert len(walked.indices(step)) == min(batch_size, count)


def test_epochs_and_seeds_differ() -> None:
    plan = BatchPlan(0, 100, 100)
    assert not np.array_equal(plan.indices(0), plan.indices(1))
    assert not np.array_equal(plan.indices(0), BatchPlan(1, 100, 100).indices(0))


@given(world=st.integers(1, 4), share=st.integers(1, 5), start=st.integers(0, 5))
def test_processes_together_see_the_one_batch(world: int, share: int, start: int) -> None:
    plan = BatchPlan(0, 60, world * share)
    parts = [list(StepSampler(plan, start, 8, rank=rank, world=world)) for rank in range(world)]
    for step, planned in zip(range(start, 8), zip(*parts, strict=True), strict=True):
        assert all(p.step == step and len(p.indices) == share for p in planned)
        assert sorted(np.concatenate([p.indices for p in planned])) == sorted(plan.indices(step))


def test_uneven_share_is_refused_with_a_number_that_works() -> None:
    with pytest.raises(ConfigError, match="use 9"):
        StepSampler(BatchPlan(0, 60, 10), 0, 5, world=3)
    with pytest.raises(ConfigError, match="training split empty"):
        BatchPlan(0, 0, 10)


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_yields_the_plan_in_order_and_leaves_the_global_generator_alone(workers: int) -> None:
    data, plan, before = PointData(10), BatchPlan(0, 10, 4), torch.get_rng_state()
    batches = list(make_loader(data, StepSampler(plan, 3, 7), workers=workers))
    assert [b.step for b in batches] == [3, 4, 5, 6]
    for batch in batches:
        assert torch.equal(batch.fields.x, data.x[torch.from_numpy(plan.indices(batch.step))])
    assert torch.equal(torch.get_rng_state(), before)


def test_nested_fields_move() -> None:
    meta = torch.device("meta")
    fields = {"a": [torch.ones(2), (torch.ones(1), "text")], "b": Points(torch.ones(3)), "c": None}
    moved = to_device(fields, meta)
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["b"].x.is_meta
    assert moved["a"][1][1] == "text"
    assert moved["c"] is None


def test_latents_and_labels_must_belong_together() -> None:
    with pytest.raises(ShapeMismatch, match="10 latents, but 9 of 'gap'"):
        LatentData(torch.zeros(10, 2, 3), None, {"gap": torch.zeros(9)})
