"""Audits: a planted bad group is named, equal groups are not, patients are found by their names."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("nibabel")

from sciLDM.cli import main
from sciLDM.domains.medical.audit import audit, audit_files, group_labels, join_participants
from sciLDM.errors import ConfigError, DataError


def cases(count: int = 60, *, bad: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Volumes of three scanners; `c` has `bad` dB less."""
    rng = np.random.default_rng(seed)
    scanner = np.array(["a", "b", "c"])[np.arange(count) % 3]
    psnr = 30 + rng.standard_normal(count) - bad * (scanner == "c")
    coverage = np.clip(0.9 + 0.03 * rng.standard_normal(count) - 0.05 * bad * (scanner == "c"), 0, 1)
    return pd.DataFrame(
        {
            "volume": [f"sub-{k:03d}_T1w.nii.gz" for k in range(count)],
            "psnr": psnr,
            "coverage": coverage,
            "crps": 0.1 - 0.001 * psnr,
            "scanner": scanner,
            "age": rng.uniform(20, 80, count),
        }
    )


def test_a_planted_bad_group_is_found() -> None:
    found = audit(cases(bad=3.0), ["scanner", "age"], permutations=500)
    unfair = found.unfair()
    assert {(t["attribute"], t["worst"]) for t in unfair} == {("scanner", "c")}
    assert {t["metric"] for t in unfair} == {"psnr", "coverage", "crps"}
    psnr = next(t for t in unfair if t["metric"] == "psnr")
    assert psnr["gap"] == pytest.approx(3.0, abs=0.7)
    rows = {(r["group"], r["metric"]): r for r in found.rows if r["attribute"] == "scanner"}
    assert rows["c", "psnr"]["upper"] < rows["a", "psnr"]["lower"]
    assert rows["c", "coverage"]["value"] < 0.8
    assert all(r["lower"] <= r["value"] <= r["upper"] for r in found.rows)


def test_equal_groups_are_rarely_accused() -> None:
    p = [
        audit(cases(30, seed=k), ["scanner"], metrics=["psnr"], permutations=200, resamples=1).tests[0]["p"]
        for k in range(120)
    ]
    assert np.mean(np.array(p) < 0.1) == pytest.approx(0.1, abs=0.09)
    assert np.mean(p) == pytest.approx(0.5, abs=0.11)


def test_more_tests_need_stronger_evidence() -> None:
    found = audit(cases(bad=0.7), ["scanner", "age"], permutations=500)
    assert all(t["p_holm"] >= t["p"] for t in found.tests)
    best = min(found.tests, key=lambda t: t["p"])
    assert best["p_holm"] == pytest.approx(min(1, best["p"] * len(found.tests)))


def test_groups_of_numbers_are_thirds() -> None:
    labels = group_labels(pd.Series([*range(30), None]))
    assert sorted(labels.dropna().value_counts()) == [10, 10, 10]
    assert labels.isna().sum() == 1
    assert set(group_labels(pd.Series([1, 2, 2, 1]))) == {"1", "2"}
    assert set(group_labels(pd.Series(["m", "f"]))) == {"m", "f"}


def test_small_groups_are_noted_not_accused() -> None:
    table = cases(30)
    table.loc[0, "scanner"] = "rare"
    table.loc[0, "psnr"] = -100.0
    found = audit(table, ["scanner"], metrics=["psnr"], permutations=200)
    assert "rare" in found.notes[0]
    assert found.tests[0]["worst"] != "rare"
    assert any(r["group"] == "rare" for r in found.rows)


def test_patients_are_found_by_name() -> None:
    people = pd.DataFrame({"participant_id": [f"sub-{k:03d}" for k in range(59, -1, -1)]})
    people["sex"] = ["f" if k % 2 else "m" for k in range(59, -1, -1)]
    table = cases().drop(columns="scanner")
    joined = join_participants(table, people)
    assert joined["sex"].tolist() == ["f" if k % 2 else "m" for k in range(60)]
    with pytest.raises(DataError, match="none of the volumes"):
        join_participants(table, people.assign(participant_id="x").head(1))
    with pytest.raises(DataError, match="occurs twice"):
        join_participants(table, pd.concat([people, people]))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = cases(bad=3.0).drop(columns="scanner").assign(method="sciLDM", task="hole")
    other = table.assign(method="cubic", psnr=0.0)
    pd.concat([table, other]).to_csv(tmp_path / "cases.csv", index=False)
    people = pd.DataFrame({"participant_id": [f"sub-{k:03d}" for k in range(60)]})
    people["site"] = [("a", "b", "c")[k % 3] for k in range(60)]
    people.to_csv(tmp_path / "participants.tsv", sep="\t", index=False)
    argv = ["audit", str(tmp_path / "cases.csv"), "--groups", str(tmp_path / "participants.tsv")]
    assert main([*argv, "--by", "site", "-o", str(tmp_path / "audit.json")]) == 0
    said = capsys.readouterr().out
    assert "hole" in said
    assert "site" in said
    written = json.loads((tmp_path / "audit.json").read_text())["hole"]
    assert {t["worst"] for t in written["tests"] if t["p_holm"] < 0.05} == {"c"}
    assert main([*argv, "--by", "height"]) == 2
    assert "height" in capsys.readouterr().err


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected columns"):
        audit(cases(), ["height"])
    with pytest.raises(DataError, match="no volume has a value"):
        audit(cases().assign(sex=None), ["sex"])
    with pytest.raises(DataError, match="cannot be read"):
        audit_files(tmp_path / "absent.csv", None, ["sex"])
