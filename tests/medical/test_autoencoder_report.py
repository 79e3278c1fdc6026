"""The autoencoder report: an identity keeps everything, a blur loses faint spheres and small ones first."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("nibabel")

from sciLDM.domains.medical.autoencoder_report import autoencoder_report, retention, seam, sphere
from sciLDM.domains.medical.codec import MedicalCodec
from sciLDM.domains.medical.sources import Entry
from sciLDM.domains.medical.volume import Volume, from_array
from sciLDM.errors import DataError
from sciLDM.model import LatentDiffusion
from tests.medical.model import tiny_model
from tests.medical.phantoms import blob, save


class Through:
    """An autoencoder that applies a function of the field."""

    def __init__(self, function: Any = lambda x: x) -> None:
        self.function = function

    def code(self, fields: Any) -> tuple[Tensor, None]:
        return self.function(fields.values), None

    def decode(self, z: Tensor, _mask: Tensor | None) -> Tensor:
        return z


def smoothed(x: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool3d(x, 5, stride=1, padding=2, count_include_pad=False)


def volume(seed: int = 0) -> Volume:
    data = blob((14, 13, 12), np.random.default_rng(seed))
    return from_array(data, np.diag([1, 1, 2, 1.0]), name=f"v{seed}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    return tiny_model(tmp_path_factory)


@pytest.fixture(scope="module")
def codec(model: LatentDiffusion) -> MedicalCodec:
    assert isinstance(model.codec, MedicalCodec)
    return model.codec


def with_function(codec: MedicalCodec, function: Any = lambda x: x) -> Any:
    return SimpleNamespace(codec=codec, autoencoder=Through(function))


def test_an_identity_keeps_everything(codec: MedicalCodec) -> None:
    report = autoencoder_report(with_function(codec), [volume(0), volume(1)], places=2)
    assert report.cases["psnr"].min() > 100
    assert np.allclose(report.cases["ssim"], 1)
    assert np.allclose(report.cases["slope"], 1)
    assert np.allclose(report.cases["bias"], 0, atol=1e-6)
    assert len(report.retention) == 9
    assert all(r["retention"] == pytest.approx(1, abs=1e-3) for r in report.retention)
    assert report.seam is None


def test_a_blur_loses_small_spheres_first(codec: MedicalCodec) -> None:
    report = autoencoder_report(with_function(codec, smoothed), [volume()], contrasts=(0.05,), places=3)
    kept = [r["retention"] for r in report.retention]
    assert kept == sorted(kept)
    assert kept[0] < 0.4
    assert kept[-1] > kept[0] + 0.2


def test_bias_and_slope_are_measured(codec: MedicalCodec) -> None:
    # In network units u -> 0.8 u + 0.1, and a range is 2 of them.
    found = autoencoder_report(with_function(codec, lambda x: 0.8 * x + 0.1), [volume()], radii=())
    assert found.cases["slope"].iloc[0] == pytest.approx(0.8, abs=1e-4)
    scale = codec.intensity.scale(volume().data, codec.modality)
    u = 2 * (volume().data - scale.low) / (scale.high - scale.low) - 1
    assert found.cases["bias"].iloc[0] == pytest.approx(float((-0.2 * u + 0.1).mean()) / 2, abs=1e-5)


def test_contrast_enters_linearly(codec: MedicalCodec) -> None:
    """A linear autoencoder keeps the same share of faint and strong spheres; clipping keeps less of strong ones."""
    linear = with_function(codec, smoothed)
    same = [retention(linear, volume(), 2.5, c, places=2) for c in (0.01, 0.2)]
    assert np.allclose(same[0], same[1], atol=1e-3)
    clipped = with_function(codec, lambda x: x.clamp(max=0.5))
    assert (
        np.mean(retention(clipped, volume(), 2.5, 0.9))
        < np.mean(retention(clipped, volume(), 2.5, 0.01)) + 1e-6
    )


def test_a_sphere_is_round_in_millimetres() -> None:
    found = sphere(volume(), (7, 6, 6), 3.0)
    extent = [int((found.max(axis=other) >= 0.5).sum()) for other in ((1, 2), (0, 2), (0, 1))]
    assert extent == [7, 7, 3]  # voxels of 1, 1 and 2 mm
    assert float(found.sum()) * 2 == pytest.approx(4 / 3 * np.pi * 3**3, rel=0.15)


def test_groups(codec: MedicalCodec, tmp_path: Path) -> None:
    entries = []
    for k in range(4):
        data = blob((12, 12, 12), np.random.default_rng(k))
        path = save(tmp_path / f"p{k}.nii.gz", data, np.eye(4))
        entries.append(Entry((path,), f"p{k}", {"site": "ab"[k % 2]}))
    report = autoencoder_report(with_function(codec, smoothed), entries, by="site", radii=())
    assert [(g["group"], g["volumes"]) for g in report.groups] == [("a", 2), ("b", 2)]
    a = report.cases[report.cases["site"] == "a"]["psnr"]
    assert report.groups[0]["psnr"] == pytest.approx(a.mean())
    written = json.loads(report.save(tmp_path / "autoencoder.json").read_text())
    assert written["groups"][1]["group"] == "b"
    with pytest.raises(DataError, match="no column 'sex'"):
        autoencoder_report(with_function(codec), entries, by="sex", radii=())


def test_no_seams(model: LatentDiffusion, codec: MedicalCodec) -> None:
    report = autoencoder_report(model, [volume()], radii=(1.5,), contrasts=(0.1,), places=1, tile=8)
    assert report.seam is not None
    assert report.seam < 1e-5
    with torch.no_grad():
        context = {k: torch.tensor([v]) for k, v in {"low": 0.0, "high": 1.0}.items()}
        context |= {"at": torch.zeros(1, 3), "size": torch.full((1, 3), 16.0)}
        fields = codec.from_units(torch.randn(1, 1, 16, 16, 16), context)
    assert seam(model.autoencoder, fields, 8) < 1e-5  # type: ignore[arg-type]


def test_no_volumes(codec: MedicalCodec) -> None:
    with pytest.raises(DataError, match="no volumes"):
        autoencoder_report(with_function(codec), [])
