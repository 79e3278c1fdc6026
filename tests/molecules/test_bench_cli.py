"""`scildm bench`: what it draws, keeps, prints and refuses. Benchmark and model are stand-ins."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from sciLDM.cli import main
from sciLDM.domain import Evaluation
from sciLDM.errors import ConfigError, DataError


class Samples:
    def __init__(self, count: int) -> None:
        self.table = pd.DataFrame({"name": ["x"] * count})

    def write(self, path: Path) -> Path:
        self.table.to_csv(path, index=False)
        return path


class StubBenchmark:
    name = "toy"
    samples = 40
    tables = {"toy protocol": ("share", "FCD", "unheard")}  # noqa: RUF012 - a stand-in
    published = (
        SimpleNamespace(
            model="Theirs", values={"FCD": 0.25}, source="Somebody 2020", read="authors", samples=40
        ),
        SimpleNamespace(
            model="Others", values={"share": 0.5}, source="Somebody 2020", read="quoted", samples=None
        ),
    )
    ready = True

    def prepare(self) -> None:
        if not self.ready:
            raise DataError("no toys on this machine; buy some")

    def score(self, samples: Any, progress: Any) -> Evaluation:
        progress("scoring", 1, 1)
        count = len(samples.table)
        rows = [
            {"metric": "share", "value": 0.75, "floor": 1.0, "samples": count, "note": "theirs"},
            {
                "metric": "FCD",
                "value": count / 8,
                "floor": float("nan"),
                "samples": count,
                "note": "lower is better",
            },
        ]
        return Evaluation(rows, {"samples": count, "rdkit": "1"}, ("few samples",))


class StubDomain:
    name = "stub"
    formats = (".csv",)

    @staticmethod
    def benchmark(name: str, codec: Any, reference: Any, *, device: str) -> StubBenchmark:
        if name != "toy":
            raise ConfigError(f"expected a benchmark (toy), got {name!r}")
        return StubBenchmark()

    @staticmethod
    def read_generated(path: Path) -> Samples:
        return Samples(len(path.read_text().splitlines()))


class StubModel:
    def __init__(self) -> None:
        sampler = SimpleNamespace(steps=50)
        self.codec = SimpleNamespace(conditions=())
        self.experiment = SimpleNamespace(domain=StubDomain(), sampler=sampler, guidance=1.0)
        self.card = {"files": {"model.safetensors": {"sha256": "a"}}}
        self.reference = None
        self.calls: list[dict[str, Any]] = []

    def to(self, device: str, *, dtype: Any = None) -> "StubModel":
        return self

    def sample(self, count: int, **options: Any) -> Samples:
        options.pop("progress")(1, 1)
        self.calls.append({"count": count, **options})
        return Samples(count)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> StubModel:
    stub = StubModel()
    monkeypatch.setattr("sciLDM.model.load", lambda name: stub)
    monkeypatch.setattr("sciLDM.cli._bench.load_domain", lambda name: StubDomain())
    monkeypatch.setattr(StubBenchmark, "ready", True)
    return stub


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + " " + captured.err).split())


def test_samples_are_drawn_scored_and_kept(
    model: StubModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "toy", str(tmp_path), "--seed", "3"]) == 0
    assert model.calls[0]["count"] == 40
    assert model.calls[0]["seed"] == 3
    text = said(capsys)
    for part in (
        "toy protocol",
        "50 steps",
        "floor: real molecules",
        "Theirs",
        "0.25",
        "note: few samples",
        "rdkit 1",
    ):
        assert part in text, part
    assert "Somebody 2020: Theirs, Others" in text
    assert "unheard" not in text  # a column that nobody has
    stored = json.loads((tmp_path / "bench-toy.json").read_text())
    [result] = stored["results"]
    assert {r["metric"]: r["floor"] for r in result["rows"]} == {"share": 1.0, "FCD": None}
    assert result["sampling"]["steps"] == 50
    assert stored["published"][0]["source"] == "Somebody 2020"
    assert len(pd.read_csv(tmp_path / result["samples file"])) == 40


def test_settings_stand_side_by_side_and_weights_do_not(
    model: StubModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in ("4", "50", "4"):
        assert main(["bench", "toy", str(tmp_path), "-n", "8", "--steps", steps]) == 0
    text = said(capsys)
    assert "4 steps" in text
    results = json.loads((tmp_path / "bench-toy.json").read_text())["results"]
    assert [r["sampling"]["steps"] for r in results] == [50, 4]
    model.card["files"]["model.safetensors"]["sha256"] = "b"
    assert main(["bench", "toy", str(tmp_path), "--samples", "8"]) == 0
    assert len(json.loads((tmp_path / "bench-toy.json").read_text())["results"]) == 1


def test_a_file_is_scored_without_a_model(
    model: StubModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.smi").write_text("a\nb\n")
    assert main(["bench", "toy", str(tmp_path / "theirs.smi")]) == 0
    assert not model.calls
    assert "theirs.smi" in said(capsys)
    stored = json.loads((tmp_path / "bench-toy-theirs.json").read_text())
    assert stored["results"][0]["protocol"]["samples"] == 2
    assert main(["bench", "toy", str(tmp_path / "theirs.smi"), "-n", "3"]) == 2


def test_what_is_missing_is_said_before_sampling(
    model: StubModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StubBenchmark, "ready", False)
    assert main(["bench", "toy", str(tmp_path)]) == 2
    assert "buy some" in said(capsys)
    assert main(["bench", "toys", str(tmp_path)]) == 2
    assert "got 'toys'" in said(capsys)
    model.experiment.domain = SimpleNamespace(name="weather")
    assert main(["bench", "toy", str(tmp_path)]) == 2
    assert "weather has no benchmarks" in said(capsys)
    assert not model.calls
