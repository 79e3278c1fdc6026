"""What users really bring: every file ends in a model, a reported skip, or one sentence on what to do."""

from pathlib import Path

import pandas as pd
import pytest

from sciLDM.domains.molecules import MoleculeSamples
from sciLDM.errors import ConfigError, DataError, SciLDMError
from tests.molecules.molecules import QM9_LIKE
from tests.tiny import config, run, stage, write_table

SHORT = {"autoencoder_stage": stage(2), "denoiser_stage": stage(2)}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def trains(path: Path, *conditions: str, **changes: object) -> tuple[list[str], pd.DataFrame]:
    """Lines said, and rejected rows, of a run over both stages that ends in samples."""
    said: list[str] = []
    folder = path.parent / "run"
    model = run(config(path, conditions=conditions, **{**SHORT, **changes}), folder, say=said.append)
    samples = model.sample(3)
    assert isinstance(samples, MoleculeSamples)
    assert all(samples.table["smiles"])
    return said, pd.read_csv(folder / "reference" / "rejected.csv", keep_default_na=False)


def refused(path: Path, *conditions: str, match: str, error: type[SciLDMError] = DataError) -> None:
    """Refused before anything is trained, in one sentence."""
    folder = path.parent / "run"
    with pytest.raises(error, match=match) as caught:
        run(config(path, conditions=conditions, **SHORT), folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "autoencoder").exists()


def test_broken_smiles_are_skipped_and_listed(tmp_path: Path) -> None:
    bad = {"C(": "unparsable", "c1ccccc": "unparsable", "C(C)(C)(C)(C)C": "unparsable", "": "empty",
           "hello": "unparsable", "CC.Cl": "salt or mixture", "*C": "wildcard", "[CH3]": "radical", "[2H]C": "isotope",
           "[NH3]->[Cu]": "unsupported bond", "[H][H]": "no heavy atom", "Ün": "unparsable"}  # fmt: skip
    path = write_table(
        tmp_path / "t.csv", [*QM9_LIKE[:20], *bad, *QM9_LIKE[20:]], gap=range(len(QM9_LIKE) + len(bad))
    )
    said, rejected = trains(path, "gap")
    assert rejected["row"].tolist() == list(range(20, 20 + len(bad)))
    assert rejected["smiles"].tolist() == list(bad)
    for reason, expected in zip(rejected["reason"], bad.values(), strict=True):
        assert reason.startswith(expected), reason
    assert any(
        line.startswith(f"data: {len(bad)} of {len(QM9_LIKE) + len(bad)} rows rejected") for line in said
    )


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "is empty"),
        (" \n \n", "is empty"),
        ("smiles,gap\n", "holds a header and no rows"),
        ("name,gap\nethanol,1\nmethane,2\n", "no column holds SMILES; its columns are name, gap"),
        ("smiles,gap\nC(,1\nc1cc,2\nXx,3\n", r"no column holds SMILES|none of the 3 SMILES can be used"),
        ("smiles,gap\nCCO,1\n", r"expected at least 3 different molecules.*got 1; add molecules"),
        ("smiles,gap\nCCO,1\nOCC,2\nC(C)O,3\n", r"expected at least 3 different molecules.*got 1"),
        ("smiles,gap\nCC,1,2\nCCO,2,3\nCCC,1\n", r"row 2 has 3 cells, the header 2"),
        ('smiles,gap\nCC,"1\nCCO,2\n', r"not a regular table"),
        ("PK\x03\x04rest", "is a workbook or zip archive, not text; save the sheet as 'CSV UTF-8'"),
    ],
    ids=[
        "empty",
        "blank",
        "header only",
        "no SMILES",
        "all broken",
        "one",
        "one in three spellings",
        "ragged",
        "quote",
        "xlsx",
    ],
)
def test_files_without_usable_molecules(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content, newline="")
    refused(path, match=match)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    write_table(tmp_path / "table.csv")
    refused(tmp_path / "tabel.csv", match=r"there is no file .*tabel.csv; did you mean 'table.csv'\?")
    refused(tmp_path, match="expected a file, got the folder")
    for name in ("qm8", "zinc"):
        with pytest.raises(DataError, match=rf"data: expected a file or one of qm9, .*, got '{name}'"):
            run(config(Path(name)), tmp_path / "run2")


def test_one_molecule_too_few_for_a_split_is_enough_at_three(tmp_path: Path) -> None:
    _, rejected = trains(write_table(tmp_path / "t.csv", ["CCN", "CCO", "CCC"], gap=[1, 2, 3]))
    assert len(rejected) == 0


def test_columns_that_cannot_be_asked_for(tmp_path: Path) -> None:
    n = len(QM9_LIKE)
    path = write_table(
        tmp_path / "t.csv",
        Gap=[k % 5 for k in range(n)],
        name=[f"compound {k}" for k in range(n)],
        half=["" if k % 2 else k for k in range(n)],
        nothing=["" for _ in range(n)],
        same=[7 for _ in range(n)],
        mostly=["n.d." if k == 4 else k for k in range(n)],
    )
    refused(
        path,
        "gapp",
        match=r"cannot condition on 'gapp': did you mean 'Gap'.*\? expected a numeric column .*\(Gap, half\)",
    )
    for column, reason in {
        "name": r"'name': 60 of 60 values are not finite numbers \('compound 0'",
        "nothing": "'nothing' has no values",
        "same": r"'same' is constant \(7\)",
        "mostly": r"'mostly': 1 of 60 values are not finite numbers \('n.d.'\)",
    }.items():
        refused(path, column, match=f"cannot condition on '{column}': .*{reason}")


def test_a_column_whose_values_all_fall_outside_the_training_split(tmp_path: Path) -> None:
    """Only molecules of the test split have a value; or all of the training split have the same one."""
    from tests.molecules.test_corpus import prepare

    corpus = prepare(write_table(tmp_path / "a.csv"))
    held_out = {corpus.smiles[k] for k in corpus._split["test"]}
    from rdkit import Chem

    inside = [Chem.CanonSmiles(s) in held_out for s in QM9_LIKE]
    assert any(inside)
    refused(
        write_table(tmp_path / "b.csv", gap=[k if known else "" for k, known in enumerate(inside)]),
        "gap",
        match="column 'gap' has no value in the training split; leave it out",
    )
    refused(
        write_table(tmp_path / "c.csv", gap=[k if known else 3 for k, known in enumerate(inside)]),
        "gap",
        match=r"column 'gap' is constant \(3\): nothing to learn",
    )


def test_missing_values_are_fine(tmp_path: Path) -> None:
    _, rejected = trains(
        write_table(tmp_path / "t.csv", gap=["" if k % 3 else k for k in range(len(QM9_LIKE))]), "gap", "QED"
    )
    assert len(rejected) == 0


def test_exotic_elements_and_charges(tmp_path: Path) -> None:
    exotic = [
        "[Na+]",
        "[Cl-]",
        "C[Se]C",
        "C[Si](C)(C)C",
        "OB(O)C",
        "C[As](C)C",
        "FS(F)(F)(F)(F)F",
        "O=[Pt]=O",
        "[Xe]",
        "CI",
        "C[Hg]C",
    ]
    _, rejected = trains(
        write_table(tmp_path / "t.csv", [*QM9_LIKE, *exotic], gap=range(len(QM9_LIKE) + len(exotic)))
    )
    assert set(rejected["smiles"]) <= set(exotic)


def test_a_salt_by_its_largest_fragment(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", [*QM9_LIKE, "CC(=O)[O-].[Na+]"], gap=range(len(QM9_LIKE) + 1))
    settings = config(path, conditions=(), **SHORT)
    settings["domain"]["init_args"]["settings"]["largest_fragment"] = True
    said: list[str] = []
    run(settings, tmp_path / "run", say=said.append)
    assert "kept the largest of 2 fragments" in (tmp_path / "run" / "reference" / "changed.csv").read_text()
    assert any("kept in altered form" in line for line in said)


def test_a_huge_molecule_among_small_ones(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", [*QM9_LIKE, "C" * 150], gap=range(len(QM9_LIKE) + 1))
    said, _ = trains(path)
    assert any("largest molecule has 150 heavy atoms" in line and "max_atoms=6" in line for line in said)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tabs.tsv", "SMILES\tgap\n" + "".join(f"{s}\t{k}\n" for k, s in enumerate(QM9_LIKE))),
        ("windows.csv", "smiles,gap\r\n" + "".join(f"{s},{k}\r\n" for k, s in enumerate(QM9_LIKE))),
        ("bom.csv", "\ufeffsmiles;gap\n" + "".join(f"{s};{k},5\n" for k, s in enumerate(QM9_LIKE))),
        ("Moleküle für später.csv", "smiles,gap\n" + "".join(f"{s},{k}\n" for k, s in enumerate(QM9_LIKE))),
        (
            "quoted.csv",
            '"name","Canonical SMILES","gap"\n'
            + "".join(f'"a, b","{s}","{k}"\n' for k, s in enumerate(QM9_LIKE)),
        ),
    ],
    ids=["tabs", "Windows", "byte order mark and decimal comma", "non-ASCII path", "quoted"],
)
def test_the_same_table_in_other_dress(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    _, rejected = trains(path, "gap")
    assert len(rejected) == 0


def test_a_smiles_file_without_header(tmp_path: Path) -> None:
    path = tmp_path / "plain.smi"
    path.write_text("".join(f"{s} molecule number {k}\n" for k, s in enumerate(QM9_LIKE)))
    said, _ = trains(path, "logP")
    assert any("no header" in line for line in said)


def test_a_smiles_column_that_is_named_wrongly(tmp_path: Path) -> None:
    settings = config(write_table(tmp_path / "t.csv"), conditions=(), **SHORT)
    for name, match in {
        "SMILE": r"no column 'SMILE'; did you mean 'smiles'\?",
        "gap": "column 'gap' does not hold SMILES",
    }.items():
        settings["domain"]["init_args"]["settings"]["smiles_column"] = name
        with pytest.raises(DataError, match=match):
            run(settings, tmp_path / name)


def test_a_refused_run_can_be_started_again_once_the_data_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("smiles,gap\nCCO,1\n")
    refused(path, match="at least 3 different molecules")
    write_table(path)
    trains(path)


def test_labels_named_atoms(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", atoms=[k % 7 for k in range(len(QM9_LIKE))])
    refused(path, "atoms", match="every model takes 'atoms'.*rename your column", error=ConfigError)
