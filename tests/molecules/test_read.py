"""Users' files, as they come."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("rdkit")

from rdkit import Chem
from rdkit.Chem import AllChem

from sciLDM.domains.molecules.read import merge_duplicates, read_table
from sciLDM.errors import DataError

BASE = "smiles,logP,pIC50\nCCO,-0.1,5.5\nc1ccccc1,2.1,\nCC(=O)O,-0.2,6.5\n"


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def check_base(table: pd.DataFrame) -> None:
    assert table.smiles.tolist() == ["CCO", "c1ccccc1", "CC(=O)O"]
    assert table.logP.tolist() == [-0.1, 2.1, -0.2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", BASE),
        ("a.csv.gz", BASE),
        ("a.tsv", BASE.replace(",", "\t")),
        ("semicolon.csv", BASE.replace(",", ";")),
        ("bar.txt", BASE.replace(",", "|")),
        ("german.csv", BASE.replace(",", ";").replace(".", ",")),
        ("blanks.smi", "smiles logP\nCCO -0.1\nc1ccccc1   2.1\nCC(=O)O -0.2\n"),
        ("bom.csv", "\ufeff" + BASE),
        ("excel_unicode.txt", BASE.replace(",", "\t").encode("utf-16")),
        ("windows.csv", BASE.replace("\n", "\r\n")),
        ("blank_lines.csv", "\n" + BASE.replace("\n", "\n\n")),
        ("upper.csv", BASE.replace("smiles", "SMILES")),
        ("canonical.csv", BASE.replace("smiles", "Canonical_Smiles")),
        ("bace.csv", BASE.replace("smiles", "mol")),
        ("odd_name.csv", BASE.replace("smiles", "Verbindung")),
        (
            "quoted.csv",
            'smiles,name,logP\nCCO,"ethanol, pure",-0.1\nc1ccccc1,benzene,2.1\nCC(=O)O,"acid ""x""",-0.2\n',
        ),
        ("row_numbers.csv", ",smiles,logP\n0,CCO,-0.1\n1,c1ccccc1,2.1\n2,CC(=O)O,-0.2\n"),
    ],
)
def test_one_table_in_many_dresses(tmp_path: Path, name: str, content: str | bytes) -> None:
    table = read_table(put(tmp_path, name, content))
    check_base(table)
    assert set(table.columns) <= {"smiles", "logP", "pIC50"}


def test_missing_values_become_nan(tmp_path: Path) -> None:
    rows = "".join(
        f"C,{text},{k}\n" for k, text in enumerate(["1", "", "NA", "n/a", "-", "nan", "None", "#N/A", "2"])
    )
    table = read_table(put(tmp_path, "a.csv", "smiles,p,q\n" + rows))
    np.testing.assert_array_equal(table.p, [1] + [np.nan] * 7 + [2])
    absent = read_table(put(tmp_path, "b.csv", "smiles,p\nC,1\n,2\nCC\n"))
    assert absent.smiles.tolist() == ["C", "", "CC"]
    np.testing.assert_array_equal(absent.p, [1, 2, np.nan])


@pytest.mark.parametrize(
    "content",
    [
        "CCO\nc1ccccc1\nCC(=O)O\n",
        "CCO ethanol\nc1ccccc1\nCC(=O)O acetic acid, pure\n",
        "CCO\tZ1\nc1ccccc1\tZ2\nCC(=O)O\tZ3\n",
        "SMILES Name\nCCO a\nc1ccccc1 b\nCC(=O)O c\n",
        "CCO,17\nc1ccccc1,18\nCC(=O)O,19\n",
    ],
)
@pytest.mark.parametrize("name", ["a.smi", "a.smiles.gz", "a.txt"])
def test_smiles_files(tmp_path: Path, name: str, content: str) -> None:
    table = read_table(put(tmp_path, name, content))
    assert table.smiles.tolist() == ["CCO", "c1ccccc1", "CC(=O)O"]
    assert list(table.columns) == ["smiles"]


def test_single_molecule_files(tmp_path: Path) -> None:
    assert read_table(put(tmp_path, "a.smi", "C")).smiles.tolist() == ["C"]
    assert read_table(put(tmp_path, "a.csv", "smiles\nC\n")).smiles.tolist() == ["C"]


def test_numbers_of_a_file_without_header_are_read_when_asked(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "CCO,17\nc1ccccc1,18\n")
    assert any(note.startswith("no header: column_2 left out") for note in read_table(path).attrs["notes"])
    assert read_table(path, columns=["column_2"]).column_2.tolist() == [17, 18]


def test_columns_by_name(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "id,smiles,prodrug_smiles,A,B\n7,C,CC,1,2\n8,CC,CCC,3,4\n")
    table = read_table(path)
    assert list(table.columns) == ["smiles", "A", "B"]
    assert any("id" in note for note in table.attrs["notes"])
    assert any("taken from column 'smiles'" in note for note in table.attrs["notes"])
    assert list(read_table(path, columns=["B"]).columns) == ["smiles", "B"]
    assert read_table(path, columns=["id", "a"]).id.tolist() == [7, 8]
    assert read_table(path, smiles_column="prodrug_smiles").smiles.tolist() == ["CC", "CCC"]
    with pytest.raises(DataError, match=r"no column 'AB'.*its columns are id, smiles, prodrug_smiles, A, B"):
        read_table(path, columns=["AB"])
    with pytest.raises(DataError, match="did you mean 'smiles'"):
        read_table(path, smiles_column="smile")
    with pytest.raises(DataError, match="column 'A' does not hold SMILES; it begins 1, 3"):
        read_table(path, smiles_column="A")


def test_text_columns_are_noted_and_refused_when_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "smiles,name,p\nC,methane,1\nCC,ethane,2\n")
    table = read_table(path)
    assert list(table.columns) == ["smiles", "p"]
    assert any("name" in note for note in table.attrs["notes"])
    with pytest.raises(DataError, match=r"column 'name': 2 of 2 values are not finite numbers .*'methane'"):
        read_table(path, columns=["name"])


def test_a_property_with_some_text_is_warned_of(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", "smiles,pIC50\nC,5.1\nCC,>10\nCCC,4\nCCCC,6\n")
    with pytest.warns(UserWarning, match="'pIC50': 1 of 4 values are not finite numbers \\('>10'\\)"):
        assert list(read_table(path).columns) == ["smiles"]


def test_thousands_are_not_taken_for_decimals(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", 'smiles;p\nC;"1,234"\nCC;"2,500"\n')
    assert list(read_table(path).columns) == ["smiles"]


@pytest.mark.parametrize(
    ("values", "words"), [(("3", "3"), "is constant \\(3\\)"), (("", "NA"), "has no values")]
)
def test_useless_properties_are_dropped_with_a_warning(
    tmp_path: Path, values: tuple[str, str], words: str
) -> None:
    path = put(tmp_path, "a.csv", f"smiles,p,q\nC,{values[0]},1\nCC,{values[1]},2\n")
    with pytest.warns(UserWarning, match=f"'p' {words}"):
        table = read_table(path)
    assert list(table.columns) == ["smiles", "q"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", "", "is empty"),
        ("blank.csv", " \n\n", "is empty"),
        ("header.csv", "smiles,logP\n", "a header and no rows .columns: smiles, logP"),
        ("none.csv", "name,p\nwater,1\nhexane,2\n", "no column holds SMILES; its columns are name, p"),
        ("latin.csv", b"smiles,name\nC,M\xe9thane\n", "line 2: byte 0xe9 is not utf-8; save it as UTF-8"),
        ("book.csv", b"PK\x03\x04" + bytes(30), "workbook"),
        ("binary.csv", b"\x00\x01\x02smiles\x00", "binary"),
        ("long_row.csv", "smiles,p,name\nC,1,x\nCC,2,2,3-dimethyl\n", "row 3 has 4 cells, the header 3"),
        ("bad.csv.gz", None, "damaged gzip"),
        ("bad.sdf", "not an sdf\n", "no structure RDKit can read"),
    ],
)  # fmt: skip
def test_unusable_files_say_why(tmp_path: Path, name: str, content: str | bytes | None, words: str) -> None:
    path = put(tmp_path, name, content or BASE)
    if content is None:
        path.write_bytes(path.read_bytes()[:-12])
    if content == "":
        path.write_bytes(b"")
    with pytest.raises(DataError, match=words):
        read_table(path)


def test_absent_files_and_folders(tmp_path: Path) -> None:
    put(tmp_path, "solubility.csv", BASE)
    with pytest.raises(DataError, match=r"did you mean 'solubility.csv'"):
        read_table(tmp_path / "solubilty.csv")
    with pytest.raises(DataError, match="no file"):
        read_table(tmp_path / "nowhere" / "x.csv")
    with pytest.raises(DataError, match=r"folder .*solubility\.csv"):
        read_table(tmp_path)


@pytest.mark.parametrize("name", ["a.sdf", "a.sdf.gz"])
def test_sdf_structures_stereo_and_tags(tmp_path: Path, name: str) -> None:
    """Stereochemistry read from 3-D coordinates equals that of the SMILES they were made from."""
    smiles = ["C[C@H](N)C(=O)O", "C/C=C\\C", "c1ccccc1[N+](=O)[O-]"]
    blocks = []
    for k, text in enumerate(smiles):
        molecule = Chem.AddHs(Chem.MolFromSmiles(text))
        assert AllChem.EmbedMolecule(molecule, randomSeed=7) == 0
        blocks.append(Chem.MolToMolBlock(molecule) + f">  <logS>\n{k / 2}\n\n>  <source>\nlab\n\n$$$$\n")
    table = read_table(put(tmp_path, name, "".join(blocks)))
    assert table.smiles.tolist() == [Chem.CanonSmiles(text) for text in smiles]
    assert table.logS.tolist() == [0, 0.5, 1]
    broken = "".join([blocks[0], blocks[1].replace("V2000", "V9999"), blocks[2]])
    with pytest.warns(UserWarning, match="1 of 3 records"):
        assert read_table(put(tmp_path, name, broken)).smiles.tolist()[1] == ""


def test_duplicates_are_averaged_and_reported() -> None:
    properties = pd.DataFrame(
        {"p": [1.0, 5.0, 3.0, np.nan], "q": [np.nan, 2.0, np.nan, np.nan]}, index=[4, 9, 2, 7]
    )
    merged = merge_duplicates(["CCO", "C", "CCO", "CC"], properties)
    assert merged.first.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(merged.properties.p, [2, 5, np.nan])
    np.testing.assert_array_equal(merged.properties.q, [np.nan, 2, np.nan])
    assert merged.report.to_dict("records")[0] | {"spread q": None} == {
        "smiles": "CCO", "copies": 2, "spread p": 2.0, "spread q": None,
    }  # fmt: skip
    assert len(merged.report) == 1
    assert merge_duplicates(["C", "C"], pd.DataFrame({"smiles": ["C", "[CH4]"]})).first.tolist() == [0]
    with pytest.raises(DataError, match=r"featurised.kept"):
        merge_duplicates(["C"], properties)
