"""The medical benchmark: its arithmetic, and that its peers get what ours gets (nothing is trained to any use)."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("nibabel")

from sciLDM.autoencoders.grid import GridFields
from sciLDM.domains.medical.study_result import OURS, Study
from sciLDM.domains.medical.volume import from_array
from sciLDM.model import LatentDiffusion
from sciLDM.posterior.conformal import Conformal
from tests.medical.model import tiny_model

FOLDER = Path(__file__).parents[2] / "benchmarks"
if not (FOLDER / "medical.py").exists():
    pytest.skip("benchmarks come with a clone only", allow_module_level=True)


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, Any]]:
    """The benchmark's modules, which import each other by plain names."""
    sys.path.insert(0, str(FOLDER))
    try:
        import medical
        import medical_cost

        yield {"study": medical, "cost": medical_cost}
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    return tiny_model(tmp_path_factory)


def study(psnr: Mapping[str, float], coverage: float) -> Study:
    records = [
        {"task": "hole", "method": m, "volume": f"v{k}", "psnr": p + k, "ssim": 0.9, "mae": 0.1, "crps": 0.1,
         "chi2": 1.1, "seconds": 2.0, **({"coverage": coverage, "coverage_raw": 0.6} if m == OURS else {})}
        for m, p in psnr.items()
        for k in range(3)
    ]  # fmt: skip
    return Study(tuple(records), {}, Conformal(), {})


def test_verdicts(bench: dict[str, Any]) -> None:
    found = study({"nearest": 20.0, "cubic": 30.5, "TV": 29.0, "supervised U-Net": 30.2, OURS: 30.0}, 0.95)
    rows = {r.name: r for r in bench["study"].rows(found)}
    assert rows["hole: cubic, PSNR"].value == pytest.approx(31.5)
    assert rows["hole: ours above cubic"].verdict == ">= 0 MISSED"
    assert rows["hole: ours above TV"].verdict == ">= 0 met"
    assert rows["hole: ours above supervised U-Net"].verdict == ">= -0.3 met"
    assert "MISSED" in rows[f"hole: {OURS}, coverage of 90 %"].note
    assert rows[f"hole: {OURS}, chi-square"].note.endswith(" met")


def test_our_contender_trains_as_the_model_does(bench: dict[str, Any], model: LatentDiffusion) -> None:
    """Loss and rebuilding are the autoencoder's own; a few steps lower the error."""
    cost = bench["cost"]
    contender = cost.ours(model)
    assert cost.count(contender.autoencoder) == cost.count(model.autoencoder)
    fields = GridFields(torch.randn(3, 1, *model.codec.grid, generator=torch.Generator().manual_seed(0)))  # type: ignore[attr-defined]
    before = cost._psnr(contender, fields)
    clock = iter(range(1000))
    steps = cost._train(
        contender.autoencoder, lambda _: contender.loss(fields), 2e-3, 20, lambda: next(clock)
    )
    assert steps == 19  # the clock is read once before the first step
    assert cost._psnr(contender, fields) > before + 0.1


def test_slabs_take_every_patient_once_before_any_twice(bench: dict[str, Any]) -> None:
    tall, low = (from_array(np.zeros((4, 4, z), np.float32), np.eye(4), name=f"z{z}") for z in (9, 5))
    found = bench["study"].slabs([tall, low], 3)
    assert [(v.name, v.shape[2], v.affine[2, 3]) for v in found] == [
        ("z9", 3, 0),
        ("z5", 5, 0),
        ("z9", 3, 3),
        ("z9", 3, 6),
    ]


def test_part_goes_round(bench: dict[str, Any]) -> None:
    fields = GridFields(torch.arange(6.0).view(6, 1, 1, 1, 1))
    assert bench["cost"]._part(fields, 4).values.flatten().tolist() == [4, 5, 0, 1]


def test_peers_have_our_size_and_grid(bench: dict[str, Any], model: LatentDiffusion) -> None:
    pytest.importorskip("monai")
    cost = bench["cost"]
    net = cost.MonaiDenoiser(4, 8)
    x = torch.randn(1, 4, 3, 4, 5)
    assert net(x, torch.zeros(1)).shape == x.shape
    found = cost._of_size(lambda w: cost.MonaiDenoiser(4, w), cost.MonaiDenoiser(4, 24))
    assert cost.count(found) == cost.count(cost.MonaiDenoiser(4, 24))
    peer = cost.monai_autoencoder(4, 8)
    assert peer.encode(torch.zeros(1, 1, 8, 8, 8))[0].shape == (1, 4, 2, 2, 2)
    flat = GridFields(torch.zeros(1, 1, *model.codec.grid))  # type: ignore[attr-defined]
    assert cost.monai(model).loss(flat).isfinite()
