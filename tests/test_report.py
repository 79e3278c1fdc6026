"""The report: one file that needs nothing else, tells what is there, and cannot be broken by what data hold."""

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sciLDM.evaluate import Section, Stored, record_command, write_report
from sciLDM.evaluate.curves import read_metrics
from sciLDM.evaluate.figures import histogram, lines, panels, svg
from sciLDM.evaluate.html import duration, number, table
from sciLDM.evaluate.store import plain

pytest.importorskip("rdkit")
pytest.importorskip("torch_geometric")

from sciLDM.domains.molecules.codec import MoleculeCodec, Property
from sciLDM.domains.molecules.conditional import conditional_table, targets_of
from sciLDM.domains.molecules.reference import Reference
from sciLDM.domains.molecules.report import read_samples, sections
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import ConfigError, DataError
from sciLDM.evaluate.hooks import Material

TRAIN = ["CCO", "CCN", "CCC", "c1ccccc1", "CC(=O)O", "CCOC"]
METRICS = [{"metric": "validity", "value": 0.75, "floor": 1.0, "samples": 4, "note": "parsed"}]


class Wellformed(HTMLParser):
    """Fails on tags that do not match; collects ids and addresses."""

    VOID = frozenset({"meta", "br", "path", "use", "rect", "line", "ellipse"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")]


def check(text: str) -> Wellformed:
    """Well formed, and nothing in it is fetched."""
    page = Wellformed()
    page.feed(text)
    assert not page.open
    assert all(a.startswith("#") for a in page.addresses), page.addresses
    assert "<script" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    return page


def properties() -> list[dict[str, Any]]:
    logp = {
        "name": "logP",
        "descriptor": True,
        "mean": 0.5,
        "std": 1.0,
        "quantiles": [-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0],
    }
    rings = {
        "name": "rings",
        "descriptor": True,
        "mean": 1.0,
        "std": 1.0,
        "quantiles": [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 6.0],
    }
    gap = {**logp, "name": "gap", "descriptor": False}
    return [logp, rings, gap]


@pytest.fixture(scope="module")
def codec() -> MoleculeCodec:
    from sciLDM.domains.molecules.featurise import featurise

    found = featurise(TRAIN, workers=1)
    sizes = {"atoms": [3, 6], "counts": [3, 1], "means": {}, "stds": {}}
    return MoleculeCodec(
        {
            "vocabulary": found.vocabulary.to_dict(), "properties": properties(), "sizes": sizes, "autoencoder": {},
            "dropout": 0.1, "source": {"name": "mine.csv", "fingerprint": "f", "max_molecules": None, "salt": 0},
        }
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as training and evaluation leave it, with hostile text in the data."""
    Reference.write(tmp_path / "reference", TRAIN, TRAIN[:3])
    rejected = {
        "row": [3, 9, 11],
        "smiles": ["<b>x</b>", "C(", "[Xx]"],
        "reason": ["does not parse: a", "does not parse: b", "other"],
    }
    pd.DataFrame(rejected).to_csv(tmp_path / "reference" / "rejected.csv", index=False)
    samples = pd.DataFrame(
        {
            "smiles": ["CCO", None, "CCCC", "CCO"], "realised_logP": [0.0, np.nan, 1.8, 0.0],
            "valid_raw": [True, False, True, True],
            "changed": [False] * 4, "in_train": [True, False, False, True],
            "nearest_train_smiles": ["CCO", None, "CCC", "CCO"], "similarity": [1.0, np.nan, 0.6, 1.0],
        }
    )  # fmt: skip
    samples.to_csv(tmp_path / "samples.csv", index=False)
    stored = Stored(tmp_path)
    stored.write_points(
        [
            {"property": "logP", "requested": t, "realised": t + 0.1, "smiles": "CCO"}
            for t in (0.0, 0.0, 1.0, 1.0)
        ]
    )
    failures = ["<script>alert(1)</script> & few samples"]
    stored.add(
        "unconditional", {"rows": METRICS, "protocol": {"rdkit": "1"}, "failures": failures}, weights="w"
    )
    stored.add(
        "conditional",
        {"rows": [{"property": "logP", "mae": 0.1, "ratio": 0.2, "targets": [0.0, 1.0]}]},
        weights="w",
    )
    for stage in ("autoencoder", "denoiser"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.csv").write_text(
            "step,train/loss,val/loss,val/exact,val/loss_lmbda_0,val/loss_lmbda_1\n50,2.0,2.5,0.5,1.0,0.5\n100,1.0,1.5,0.9,0.8,0.3\n15"
        )
    (tmp_path / "config.yaml").write_text("domain: {class_path: x, note: '<i>'}\n")
    record_command(tmp_path, "fit", 75.0)
    return tmp_path


def test_the_report_is_whole_and_needs_nothing(run: Path, codec: MoleculeCodec) -> None:
    stored = Stored(run)
    material = Material(run, stored.samples, stored.points, stored.read(), codec, run / "reference")
    own = sections(material)
    text = write_report(
        run, card={"created": "now"}, gate={"exact": 0.95}, sections=own, name="<run>"
    ).read_text()
    page = check(text)
    doubled = {i for i in page.ids if page.ids.count(i) > 1 and i.startswith("s")}
    assert not doubled
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert "<i>'" not in text
    for part in (
        "75.0 %",
        "does not parse",
        "1 min 15 s",
        "is a training molecule",
        "Tanimoto 0.60",
        "asked 1",
        "gate",
    ):
        assert part in text, part


def test_rejected_rows_are_counted_by_reason(run: Path, codec: MoleculeCodec) -> None:
    material = Material(run, None, None, {}, codec, run / "reference")
    [rejected] = [s for s in sections(material) if s.place == "data"]
    assert "3 rows were left out" in rejected.html
    assert re.search(r"does not parse</td><td class=\"n\">2<", rejected.html)
    assert re.search(r"other</td><td class=\"n\">1<", rejected.html)


@pytest.mark.parametrize("keep", [(), ("config.yaml",), ("config.yaml", "autoencoder/metrics.csv")])
def test_parts_of_a_run_give_parts_of_a_report(
    keep: tuple[str, ...], run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("partial")
    for name in keep:
        (other / name).parent.mkdir(exist_ok=True)
        (other / name).write_text((run / name).read_text())
    text = write_report(other).read_text()
    check(text)
    assert "Training has not finished" in text
    assert ("Stage 1" in text) == ("autoencoder/metrics.csv" in keep)


def test_a_domain_places_its_sections(run: Path) -> None:
    own = [
        Section("Late", "<p>c</p>", "data"),
        Section("Early", "<p>a</p>", "opening"),
        Section("Middle", "<p>b</p>"),
    ]
    text = write_report(run, sections=own).read_text()
    order = [
        text.index(f"<h2>{t}</h2>") for t in ("Early", "Metrics", "Middle", "Stage 1: autoencoder", "Late")
    ]
    assert order == sorted(order)


def test_metrics_survive_a_crash(run: Path) -> None:
    found = read_metrics(run / "denoiser" / "metrics.csv")
    assert found["train/loss"] == ([50.0, 100.0], [2.0, 1.0])
    assert read_metrics(run / "nowhere.csv") == {}


def test_figures_follow_the_page_and_repeat_exactly() -> None:
    def draw() -> str:
        figure, axes = panels(2)
        lines(axes[0], {"a < b": ([0.0, 1.0], [1.0, 2.0])}, x="step", y="loss", log=True)
        histogram(axes[1], {"x": np.arange(50.0)}, x="size")
        return svg(figure, 'say "a"')

    first = draw()
    check(first)
    assert first == draw()
    assert "var(--c0)" in first
    assert "#0072b2" not in first
    assert "DejaVu" not in first
    assert ">step</text>" in first, "text stays text"


def test_histogram_heights_are_densities() -> None:
    _, [ax] = panels(1)
    values = np.random.default_rng(0).uniform(0.0, 1.0, 20_000)
    histogram(ax, {"uniform": values}, x="u")
    heights = ax.patches[0].get_data().values
    assert np.allclose(heights, 1.0, atol=0.15)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (12345, "12\u202f345"),
        (0.123456, "0.1235"),
        (2e-5, "2.00e-05"),
        (True, "yes"),
    ],
)
def test_numbers_for_people(value: Any, text: str) -> None:
    assert number(value) == text


def test_durations_and_tables() -> None:
    assert [duration(s) for s in (3.0, 65.4, 3725.0)] == ["3.0 s", "1 min 5 s", "1 h 2 min"]
    assert "&lt;a&gt;" in table([{"x": "<a>"}], ("x",))


def test_json_has_no_nan() -> None:
    assert plain({"a": [np.float64("nan"), np.int64(2)], 3: (1.5, Path("x"))}) == {
        "a": [None, 2],
        "3": [1.5, "x"],
    }


def fake_sampler(realise: Any, names: tuple[str, ...] = ("logP", "rings")) -> Any:
    """Molecules whose value for each property is `realise(requested)`; `requested` is None where left open."""

    def sample(count: int, cond: Mapping[str, Any]) -> MoleculeSamples:
        frame = pd.DataFrame({"smiles": [f"C{'C' * (i % 7)}" for i in range(count)]})
        for name in names:
            wanted = np.asarray(cond[name], dtype=float) if name in cond else None
            frame[f"realised_{name}"] = realise(wanted, count)
        return MoleculeSamples(frame, [None] * count)

    return sample


def test_a_model_that_obeys_scores_zero(codec: MoleculeCodec) -> None:
    result = conditional_table(
        fake_sampler(lambda c, n: np.zeros(n) if c is None else c), codec, ["logP"], per_target=7
    )
    [row] = result.rows
    assert row["targets"] == pytest.approx(np.linspace(-1.0, 2.0, 10))
    assert (row["mae"], row["ratio"]) == (0.0, 0.0)
    assert row["spearman"] == pytest.approx(1.0)
    assert row["mae_unconditional"] == pytest.approx(np.abs(np.linspace(-1.0, 2.0, 10)).mean())
    assert row["uniqueness"] == pytest.approx(7 / 70)
    assert len(result.points) == 70


def test_a_model_that_ignores_requests_scores_one(codec: MoleculeCodec) -> None:
    generator = np.random.default_rng(0)
    [row] = conditional_table(
        fake_sampler(lambda c, n: generator.normal(0.5, 1.0, n)), codec, ["logP"], per_target=2000
    ).rows
    assert row["ratio"] == pytest.approx(1.0, abs=0.02)
    assert abs(row["spearman"]) < 0.03


def test_invalid_molecules_count_against_validity_alone(codec: MoleculeCodec) -> None:
    def sample(count: int, cond: Mapping[str, Any]) -> MoleculeSamples:
        found = fake_sampler(lambda c, n: np.zeros(n) if c is None else c + 1.0)(count, cond)
        found.table.loc[::4, "smiles"] = None
        found.table.loc[::4, "realised_logP"] = np.nan
        return found

    result = conditional_table(sample, codec, ["logP"], per_target=8)
    assert result.rows[0]["mae"] == pytest.approx(1.0)
    assert result.rows[0]["validity"] == pytest.approx(0.75)
    assert "75.0%" in result.notes[0]


def test_what_cannot_be_measured_is_said(codec: MoleculeCodec) -> None:
    sampler = fake_sampler(lambda c, n: np.zeros(n))
    result = conditional_table(sampler, codec, None, per_target=2)
    assert [r["property"] for r in result.rows] == ["logP", "rings"]
    assert any("gap" in note for note in result.notes)
    with pytest.raises(ConfigError, match="cannot be measured"):
        conditional_table(sampler, codec, ["gap"])
    with pytest.raises(ConfigError, match="did you mean 'logP'"):
        conditional_table(sampler, codec, ["logp"])


def test_counts_are_asked_for_in_whole_numbers() -> None:
    rings = Property(**properties()[1])
    assert targets_of(rings, 10).tolist() == [0.0, 1.0, 2.0, 3.0]


def test_samples_are_read_back(run: Path, tmp_path: Path) -> None:
    read = read_samples(run / "samples.csv")
    assert read.smiles == ["CCO", "CCCC", "CCO"]
    assert read.table["valid_raw"].tolist() == [True, False, True, True]
    again = read_samples(read.write(tmp_path / "again.csv"))
    assert again.table.equals(read.table)
    foreign = tmp_path / "foreign.csv"
    foreign.write_text("smiles\nCCO\nnonsense\n")
    assert read_samples(foreign).table["valid_raw"].tolist() == [True, False]
    foreign.write_text("SMI\nCCO\n")
    with pytest.raises(DataError, match="column `smiles`"):
        read_samples(foreign)
