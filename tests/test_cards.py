"""Data cards: every shipped card is complete, and `locate` finds, unpacks, checks and refuses as promised."""

import csv
import gzip
import hashlib
import re
import zipfile
from pathlib import Path

import pytest
import yaml

from sciLDM.data import cards as module
from sciLDM.data.cards import card, cards, locate
from sciLDM.errors import DataError

TEXT = gzip.compress(b"SMILES\nCCO\nc1ccccc1\n", mtime=0)


def entry(content: bytes, **more: str) -> dict:
    return {
        "path": "molecules/toy/train.csv.gz",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "rows": 2,
        **more,
    }


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A card folder of our own with one card `toy`, an empty data folder and an empty cache."""
    content = {
        "name": "toy",
        "title": "Toy",
        "domain": "molecules",
        "source": "nowhere",
        "licence": "CC0",
        "citation": ["none"],
        "files": [entry(TEXT)],
        "columns": [{"name": "SMILES", "unit": "", "description": "a molecule"}],
        "splits": [{"name": "train", "rows": 2, "how": "by hand"}],
        "known_problems": ["small"],
    }
    for folder in ("cards/toy", "data", "cache"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(module, "cards_root", lambda: tmp_path / "cards")
    monkeypatch.setattr(module, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.setenv("SCILDM_DATA", str(tmp_path / "data"))
    card.cache_clear()
    yield content
    card.cache_clear()


def write(tmp_path: Path, content: dict) -> None:
    (tmp_path / "cards/toy/card.yaml").write_text(yaml.safe_dump(content))


def put(path: Path, content: bytes = TEXT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["moses", "qm9", "zinc250k"])
def test_shipped_card_is_consistent(name: str, root: Path) -> None:
    found = card(name)
    assert name in cards()
    assert min(map(len, (found.citation, found.known_problems, found.columns, found.splits))) > 0
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in found.files)
    assert len({file.path for file in found.files}) == len(found.files)
    assert len({column.name for column in found.columns}) == len(found.columns)
    assert sum(split.rows for split in found.splits) == sum(file.rows for file in found.files)
    assert (root / "datasets" / name / "README.md").is_file()


def test_qm9_header_and_units() -> None:
    pytest.importorskip("rdkit", reason="qm9pack comes with the molecules extra")
    found = card("qm9")
    for path in locate("qm9"):
        with path.open(newline="") as stream:
            assert next(csv.reader(stream)) == [column.name for column in found.columns]
    units = {column.name: column.unit for column in found.columns}
    assert {unit for name, unit in units.items() if name.endswith("_au") or name.endswith("K_au")} == {
        "hartree"
    }
    with locate("qm9")[0].open(newline="") as stream:
        methane = next(csv.DictReader(stream))
    assert methane["SMILES"] == "C"
    # Measured: Cp = 35.7 J/(mol K) at 298 K, so Cv = Cp - R = 6.54 cal/(mol K).
    assert float(methane["Heatcapacity_Cv_cal_mol_K"]) == pytest.approx((35.7 - 8.314) / 4.184, abs=0.1)
    # Measured: 2.6 angstrom^3 = 17.5 bohr^3; a basis without diffuse functions lies a quarter below.
    assert 12 < float(methane["Polarizability_bohr3"]) < 18
    # Five atoms, nine vibrations; the zero-point energy is half their sum. 219474.63 cm^-1 are one hartree.
    frequencies = [float(f) for f in methane["Harmonic_Freq_cmi"].strip("[]").split(",")]
    assert len(frequencies) == 9
    assert float(methane["ZPVE_au"]) == pytest.approx(sum(frequencies) / 2 / 219474.63, rel=1e-4)
    # The total energy of methane is -40.5 hartree.
    assert float(methane["InternalEnergy_0K_au"]) == pytest.approx(-40.5, abs=0.1)


def test_zinc_where_present(data_root: Path) -> None:
    if not (data_root / "molecules/zinc250k_train.smi.gz").is_file():
        pytest.skip("needs molecules/zinc250k_train.smi.gz")
    [path] = locate("zinc250k", verify=True)
    with gzip.open(path, "rt") as stream:
        assert sum(1 for _ in stream) == card("zinc250k").files[0].rows


def test_unknown_card_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"moses, .*qm9, .*zinc250k"):
        card("qm8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"license": "CC0"}, r"unknown entries \['license'\]"),
        ({"title": 3}, "title: expected str, got 3"),
        ({"name": "other"}, "the name of its folder"),
        ({"citation": "one"}, "citation: expected a list"),
        ({"files": [entry(TEXT) | {"rows": "2"}]}, r"files\[0\]: rows: expected int, got '2'"),
        ({"columns": [{"name": "x"}]}, r"columns\[0\]: missing entries \['description', 'unit'\]"),
        ({"package": {"requirement": "x"}}, "package: missing entries"),
    ],
)
def test_malformed_card_is_refused(toy: dict, tmp_path: Path, change: dict, message: str) -> None:
    write(tmp_path, toy | change)
    with pytest.raises(DataError, match=message):
        card("toy")


def test_missing_file_names_the_remedy(toy: dict, tmp_path: Path) -> None:
    write(tmp_path, toy)
    with pytest.raises(DataError, match=r"export SCILDM_DATA=.*molecules/toy/train\.csv\.gz"):
        locate("toy")


def test_environment_wins_over_cache(toy: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, toy)
    cached = put(tmp_path / "cache/molecules/toy/train.csv.gz")
    assert locate("toy") == [cached]
    named = put(tmp_path / "data/molecules/toy/train.csv.gz")
    assert locate("toy") == [named]
    monkeypatch.delenv("SCILDM_DATA")
    assert locate("toy") == [cached]
    monkeypatch.setenv("SCILDM_DATA", str(tmp_path / "typo"))
    with pytest.raises(DataError, match="correct or unset"):
        locate("toy")


def test_damaged_file_is_refused(toy: dict, tmp_path: Path) -> None:
    write(tmp_path, toy)
    path = put(tmp_path / "data/molecules/toy/train.csv.gz", TEXT[:-1])
    with pytest.raises(DataError, match=f"expected {len(TEXT)} bytes, got {len(TEXT) - 1}"):
        locate("toy")
    put(path, TEXT[:-1] + b"\x07")
    assert locate("toy") == [path]  # the right size: only a checksum can tell
    with pytest.raises(DataError, match="expected sha256"):
        locate("toy", verify=True)


@pytest.mark.parametrize("where", ["cache", "data", "data/molecules"])
def test_wheel_is_unpacked_into_the_cache(toy: dict, tmp_path: Path, where: str) -> None:
    package = {
        "requirement": "toy==1",
        "wheel": "toy-1.whl",
        "wheel_sha256": "0",
        "remedy": "pip download -d CACHE toy",
    }
    toy |= {"files": [entry(TEXT, member="toy_without_code/train.csv.gz")], "package": package}
    write(tmp_path, toy)
    with pytest.raises(DataError, match=re.escape(f"pip download -d {tmp_path / 'cache'} toy")):
        locate("toy")
    wheel = tmp_path / where / "toy-1.whl"
    wheel.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_without_code/train.csv.gz", TEXT)
    [unpacked] = locate("toy")
    assert unpacked == tmp_path / "cache/molecules/toy/train.csv.gz"
    assert unpacked.read_bytes() == TEXT
    assert list(unpacked.parent.iterdir()) == [unpacked]  # no partial file left behind


def test_installed_package_is_found_without_importing_it(
    toy: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, toy | {"files": [entry(TEXT, member="toy_that_explodes/data/train.csv.gz")]})
    put(tmp_path / "site/toy_that_explodes/__init__.py", b"raise RuntimeError('imported')")
    inside = put(tmp_path / "site/toy_that_explodes/data/train.csv.gz")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert locate("toy") == [inside]


def test_url_is_downloaded_and_checked(toy: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch

    served = put(tmp_path / "served/train.csv.gz")

    def copy(url: str, output_file: str, _pooch: object) -> None:  # stands in for HTTP, nothing else
        Path(output_file).write_bytes(served.read_bytes())

    monkeypatch.setattr(pooch.core, "choose_downloader", lambda url, progressbar: copy)
    write(tmp_path, toy | {"files": [entry(TEXT, url="https://example.org/train.csv.gz")]})
    put(served, TEXT + b"!")
    with pytest.raises((DataError, ValueError), match="hash of downloaded file"):
        locate("toy")
    put(served)
    [path] = locate("toy")
    assert path == tmp_path / "cache/molecules/toy/train.csv.gz"
    assert path.read_bytes() == TEXT
