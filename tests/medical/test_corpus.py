"""A set of volumes as training sees it: scaled one by one, split by patient, placed, labelled; what was left out."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("pydicom")

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.domains.medical import DataSettings, IntensitySettings, Medical, write_series
from sciLDM.domains.medical.corpus import MedicalCorpus, split_patients
from sciLDM.domains.medical.labels import map_of
from sciLDM.domains.medical.volume import from_array
from sciLDM.errors import ConfigError, DataError
from tests.medical.phantoms import affines, blob, body, folder, save

AUTOENCODER = GridSettings(channels=4, widths=(8, 16), blocks=(1, 1))


def corpus(data: Path, cache: Path, **options: Any) -> MedicalCorpus:
    domain = Medical(str(data), **{"grid": (16, 16, 16), "autoencoder": AUTOENCODER, **options})
    made = domain.prepare(cache, lambda *_: None)
    assert isinstance(made, MedicalCorpus)
    return made


def every(made: MedicalCorpus, split: str) -> Any:
    return made.fields(split, np.arange(made.sizes[split]))


def test_each_volume_has_its_own_scale(tmp_path: Path) -> None:
    made = corpus(folder(tmp_path / "in"), tmp_path / "cache")
    for split in made.sizes:
        fields = every(made, split)
        inside = [v[w > 0] for v, w in zip(fields.values, fields.weight, strict=True)]
        for values in inside:  # scales differ by a factor of a thousand, network units do not
            assert float(values.min()) == -1
            assert 0.9 < float(values.max()) < 1.5
    table = made.found.table
    assert table["high"].max() / table["high"].min() > 500


def test_padding_repeats_the_edge_and_counts_nothing(tmp_path: Path) -> None:
    made = corpus(folder(tmp_path / "in"), tmp_path / "cache")
    fields = every(made, "train")
    for k, name in enumerate(made.names("train")):
        shape = nib.load(tmp_path / "in" / name).shape
        assert int(fields.weight[k].sum()) == np.prod(shape)
        start = [(16 - n) // 2 for n in shape]
        assert np.allclose(fields.values[k, 0, 0], fields.values[k, 0, start[0]])


@pytest.mark.parametrize("name", ["coronal", "sagittal", "flipped"])
def test_orientation_does_not_matter(name: str, tmp_path: Path) -> None:
    """The same patients stored on other axes are the same training data."""
    rng = np.random.default_rng(0)
    ras = [blob((10, 12, 14), rng) for _ in range(4)]
    affine = affines()[name]
    axes = nib.io_orientation(affine)
    for k, data in enumerate(ras):
        turned = nib.orientations.apply_orientation(
            data, nib.orientations.ornt_transform(np.c_[range(3), [1] * 3], axes)
        )
        sizes = np.sqrt((affine[:3, :3] ** 2).sum(0))
        save(tmp_path / "turned" / f"p{k}.nii.gz", turned, affine)
        order = np.empty(3)
        order[axes[:, 0].astype(int)] = sizes
        save(tmp_path / "plain" / f"p{k}.nii.gz", data, np.diag([*order, 1.0]))
    one, two = (corpus(tmp_path / n, tmp_path / "cache") for n in ("plain", "turned"))
    for split in one.sizes:
        assert np.array_equal(every(one, split).values, every(two, split).values)
        assert np.allclose(one.labels(split)["spacing"], two.labels(split)["spacing"], atol=1e-6)


def test_spacing_and_size_are_conditions(tmp_path: Path) -> None:
    made = corpus(folder(tmp_path / "in", spacing=(0.5, 1.0, 4.0)), tmp_path / "cache")
    labels = made.labels("train")
    assert np.allclose(np.exp(labels["spacing"]), [0.5, 1.0, 4.0], atol=1e-5)
    shapes = [nib.load(tmp_path / "in" / n).shape for n in made.names("train")]
    assert np.allclose(labels["shape"] * 16, shapes)


def test_patients_never_lie_on_both_sides(tmp_path: Path) -> None:
    patients = [f"sub-{k // 3}" for k in range(60)]
    split = split_patients(patients, (0.7, 0.2, 0.1), salt=0)
    parts = {name: {patients[k] for k in rows} for name, rows in split.items()}
    assert [len(parts[s]) for s in ("train", "validation", "test")] == [14, 4, 2]
    assert not parts["train"] & parts["test"]
    assert sum(len(rows) for rows in split.values()) == 60
    assert all(np.array_equal(split[s], split_patients(patients, (0.7, 0.2, 0.1), 0)[s]) for s in split)
    assert not np.array_equal(split["test"], split_patients(patients, (0.7, 0.2, 0.1), 1)["test"])
    with pytest.raises(DataError, match="at least three patients"):
        split_patients(["a", "b", "a"], (0.8, 0.1, 0.1), 0)


def test_table_gives_conditions(tmp_path: Path) -> None:
    place = folder(tmp_path / "in")
    rows = [
        {
            "path": f"in/{p.name}",
            "patient": p.name,
            "age": 30 + 5 * k,
            "sex": "FM"[k % 2],
            "site": "x",
            "id": f"n{k}",
        }
        for k, p in enumerate(sorted(place.iterdir()))
    ]
    rows[0]["age"], rows[1]["sex"] = None, None
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    made = corpus(tmp_path / "table.csv", tmp_path / "cache", conditions=["age", "sex"])
    told = {e.patient: e.columns for e in made.found.entries}
    for split in made.sizes:
        labels, patients = made.labels(split), [e.patient for e in made.files(split)]
        ages = [told[p]["age"] for p in patients]
        assert np.allclose(labels["age"], ages, equal_nan=True)
        sexes = [-1 if pd.isna(told[p]["sex"]) else "FM".index(told[p]["sex"]) for p in patients]
        assert labels["sex"].tolist() == sexes
    assert [c["name"] for c in made.state["columns"]] == ["age", "sex"]
    with pytest.raises(DataError, match="'id' has"):
        corpus(tmp_path / "table.csv", tmp_path / "cache", conditions=["id"])
    with pytest.raises(DataError, match="'weight': expected a column"):
        corpus(tmp_path / "table.csv", tmp_path / "cache", conditions=["weight"])
    with pytest.raises(ConfigError, match="its own 'spacing'"):
        corpus(tmp_path / "table.csv", tmp_path / "cache", conditions=["spacing"])


def test_large_volumes_become_patches(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(4):
        save(tmp_path / "in" / f"p{k}.nii.gz", blob((40, 20, 10), rng))
    made = corpus(tmp_path / "in", tmp_path / "cache")
    assert made.sizes["test"] == 3 * 2
    assert any("larger than the grid" in note for note in made.notes)
    positions = made.labels("test")["position"]
    assert positions.shape == (6, 6)
    assert positions[:, 0].min() < 0 < positions[:, 0].max()
    assert np.allclose(np.exp(positions[:, 3:]), [40 / 16, 20 / 16, 1], atol=1e-4)
    small = corpus(folder(tmp_path / "small"), tmp_path / "cache")
    assert "position" not in small.labels("train")


def test_mirrored_copies_are_for_training_only(tmp_path: Path) -> None:
    place = folder(tmp_path / "in")
    plain = corpus(place, tmp_path / "cache")
    made = corpus(place, tmp_path / "cache", settings=DataSettings(mirror=True))
    assert made.sizes == {**plain.sizes, "train": 2 * plain.sizes["train"]}
    values, weight = every(made, "train").values, every(made, "train").weight
    half = plain.sizes["train"]
    for k in range(half):
        one, two = (v[0][w[0] > 0] for v, w in ((values[k], weight[k]), (values[half + k], weight[half + k])))
        shape = tuple(np.rint(made.labels("train")["shape"][k] * 16).astype(int))
        assert np.array_equal(one.reshape(shape).flip(0), two.reshape(shape))
    assert made.fingerprint != plain.fingerprint


def test_label_map(tmp_path: Path) -> None:
    place = folder(tmp_path / "in")
    for path in sorted(place.iterdir()):
        data = nib.load(path).get_fdata()
        save(tmp_path / "seg" / path.name, (data > data.mean()).astype(np.uint8), np.diag([1, 1, 2, 1.0]))
    settings = DataSettings(labels=str(tmp_path / "seg"), label_map=True)
    made = corpus(place, tmp_path / "cache", settings=settings)
    maps = made.labels("train")["labels"]
    assert maps.shape[1:] == (2, 4, 4, 4)
    assert np.allclose(maps.sum(axis=1), 1)
    assert maps[:, 1, 1:3, 1:3, 1:3].mean() > maps[:, 1].mean()  # the bright spot is in the middle
    label = np.zeros((4, 4, 4), dtype=np.uint8)
    label[:2, :2, 0] = 1
    assert map_of(label, 2, (2, 2, 2))[1, 0, 0, 0] == 0.5


def test_cache_gives_the_same_and_notices_changes(tmp_path: Path) -> None:
    place = folder(tmp_path / "in")
    one, two = corpus(place, tmp_path / "cache"), corpus(place, tmp_path / "cache")
    assert one.fingerprint == two.fingerprint
    assert len(list((tmp_path / "cache").glob("volumes-*.npz"))) == 1
    assert np.array_equal(every(one, "train").values, every(two, "train").values)
    stored = next((tmp_path / "cache").glob("volumes-*.npz"))
    stored.write_bytes(stored.read_bytes()[:500])  # damaged: read again
    assert corpus(place, tmp_path / "cache").fingerprint == one.fingerprint
    save(place / "p00.nii.gz", blob((11, 11, 11), np.random.default_rng(9)))
    assert corpus(place, tmp_path / "cache").fingerprint != one.fingerprint


def test_dicom_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(3):
        write_series(
            from_array(body((8, 9, 10), rng), affines()["flipped"]), tmp_path / "in" / f"p{k}", modality="CT"
        )
    made = corpus(
        tmp_path / "in",
        tmp_path / "cache",
        modality="ct",
        intensity=IntensitySettings(window=(-1000.0, 1000.0)),
    )
    assert sorted(made.found.table["patient"]) == ["p0", "p1", "p2"]
    assert np.allclose(np.exp(made.labels("train")["spacing"]), [[1, 1, 2.5]], atol=1e-4)
    assert made.state["scale"] == [-1000, 1000]
    with pytest.raises(DataError, match="the DICOM header says CT, expected MR"):
        corpus(tmp_path / "in", tmp_path / "cache", modality="mr")


def test_state_and_reference(tmp_path: Path) -> None:
    made = corpus(folder(tmp_path / "in"), tmp_path / "cache")
    assert json.loads(json.dumps(made.state, allow_nan=False)) == made.state
    made.write_reference(tmp_path / "reference")
    cases = pd.read_csv(tmp_path / "reference" / "cases.csv")
    assert dict(cases["split"].value_counts()) == {s: n for s, n in made.sizes.items()}
    with np.load(tmp_path / "reference" / "volumes.npz") as stored:
        assert stored["train"].shape == (made.sizes["train"], 8, 8, 8)
    mirrored = corpus(folder(tmp_path / "in2"), tmp_path / "cache", settings=DataSettings(mirror=True))
    mirrored.write_reference(tmp_path / "again")
    with np.load(tmp_path / "again" / "volumes.npz") as stored:  # who looks for copies mirrors on his own
        assert 2 * len(stored["train"]) == mirrored.sizes["train"]


def test_hippocampus(data_root: Path, tmp_path: Path) -> None:
    if not (data_root / "medical/msd_hippocampus").is_dir():
        pytest.skip("needs medical/msd_hippocampus")
    settings = DataSettings(max_volumes=12, label_map=True)
    made = corpus(Path("msd_hippocampus"), tmp_path / "cache", grid=(44, 60, 48), settings=settings)
    assert sum(made.sizes.values()) == 12
    assert made.labels("train")["labels"].shape[1:] == (3, 11, 15, 12)
    share = made.labels("train")["labels"].mean(axis=(0, 2, 3, 4))
    assert 0.005 < share[1] < 0.2
    assert float(every(made, "train").values.max()) <= 2
