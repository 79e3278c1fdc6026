"""The command line: what it understands, what it says about mistakes, what it leaves on disk.

Models are stand-ins that record how they were called, so that nothing is trained here.
"""

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from sciLDM import __version__
from sciLDM.cli import main
from sciLDM.cli._near import near
from sciLDM.cli._options import COMMANDS
from sciLDM.cli._overrides import parse_overrides
from sciLDM.cli._parser import UsageError, _command_parser
from sciLDM.conditions import Scalar
from sciLDM.domain import Evaluation
from sciLDM.errors import ConfigError, MissingExtra
from sciLDM.evaluate.hooks import ConditionalEvaluation
from sciLDM.evaluate.store import Stored

FIT = importlib.import_module("sciLDM.fitting")
"""Where the function `sciLDM.fit` lives."""


class Samples:
    """Native samples with one property."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table

    def write(self, path: Path) -> Path:
        self.table.to_csv(path, index=False)
        return path


class StubDomain:
    name = "stub"
    gate: Mapping[str, float] = {"exact": 0.9}
    formats = (".csv",)

    def evaluate(self, samples: Any, codec: Any, reference: Any, progress: Any) -> Evaluation:
        progress("scoring", 1, 1)
        row = {"metric": "mean", "value": float(samples.table["realised_size"].mean()), "floor": math.nan}
        return Evaluation(
            [{**row, "samples": len(samples.table), "note": "exact"}],
            {"samples": len(samples.table)},
            ("few",),
        )

    def evaluate_conditional(
        self, sample: Any, codec: Any, names: Any, *, per_target: int
    ) -> ConditionalEvaluation:
        found = sample(per_target, {"size": 2.0}).table
        rows = [{"property": "size", "mae": 0.0, "samples": len(found), "targets": [2.0]}]
        return ConditionalEvaluation(rows, found.to_dict("records"))


class StubModel:
    """Records calls of `sample`; the first property comes out as asked."""

    def __init__(self, weights: str = "a") -> None:
        self.codec = SimpleNamespace(conditions=(Scalar("size", mean=2.0, std=1.0), Scalar("Mass")))
        sampler = SimpleNamespace(steps=50)
        self.experiment = SimpleNamespace(domain=StubDomain(), sampler=sampler, guidance=1.0)
        self.card = {
            "files": {"model.safetensors": {"sha256": weights, "bytes": 3}},
            "created": "2026-01-01T00:00:00+00:00",
        }
        self.reference = None
        self.calls: list[dict[str, Any]] = []

    def to(self, device: str, *, dtype: Any = None) -> "StubModel":
        return self

    def sample(self, count: int, **options: Any) -> Samples:
        progress = options.pop("progress")
        progress(1, 1)
        self.calls.append({"count": count, **options})
        got = float(options["cond"].get("size", 1.0))
        return Samples(
            pd.DataFrame({"name": [f"x{i}" for i in range(count)], "realised_size": [got] * count})
        )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> StubModel:
    stub = StubModel()
    monkeypatch.setattr("sciLDM.model.load", lambda name: stub)
    return stub


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Everything printed, on one line."""
    captured = capsys.readouterr()
    return " ".join((captured.out + " " + captured.err).split())


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["sampel", "run"], ["no command 'sampel'", "did you mean sample?"]),
        (["--vresion"], ["no option '--vresion'", "--version"]),
        (["sample", "run", "--stpes", "3"], ["no option '--stpes'", "did you mean --steps?"]),
        (["sample", "run", "-n", "0"], ["whole number from 1", "'0'"]),
        (["sample"], ["RUN"]),
        (["report", "run", "more"], ["unexpected argument 'more'"]),
        (["sample", "run", "--cond", "Size=1"], ["'Size'", "did you mean size?", "Mass"]),
        (["sample", "run", "--cond", "size"], ["NAME=NUMBER", "'size'"]),
        (["sample", "run", "--cond", "size=nan"], ["finite number"]),
        (["sample", "run", "--cond", "size=1", "--cond", "size=2"], ["twice"]),
        (["sample", "run", "--guidance", "2", "--guidance", "size=1"], ["--guidance", "mixture"]),
        (["sample", "run", "--guidance", "mass=1"], ["did you mean Mass?"]),
        (["sample", "run", "--output", "x.xlsx"], ["x.xlsx", ".csv"]),
        (["sample", "run", "--candidates", "4"], ["--candidates", "--cond"]),
        (["evaluate", "run", "--candidates", "4"], ["--candidates", "--targets"]),
        (["evaluate", "run", "-n", "3", "--samples", "x.csv"], ["not both"]),
        (["fit", "nowhere.yaml"], ["no configuration 'nowhere.yaml'"]),
    ],
)
def test_mistakes_name_what_is_right(
    argv: list[str], expected: list[str], model: StubModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    text = said(capsys)
    assert text.startswith("error: ")
    assert all(part in text for part in expected), text
    assert not model.calls, "a mistake must be found before any work"


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_option_is_explained(command: str) -> None:
    parser = _command_parser(command)
    unexplained = [a.dest for a in parser._actions if not a.help]
    assert not unexplained


def test_version_and_bare_call(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert main([]) == 0
    text = said(capsys)
    assert __version__ in text
    assert all(name in text for name in COMMANDS)


def test_three_spellings_of_an_override_are_one() -> None:
    expected = {"a.b": 0.001, "c": [1, 2], "d": None, "e": "qm9", "f": True, "g": -3}
    texts = {"a.b": "1e-3", "c": "[1, 2]", "d": "null", "e": "qm9", "f": "true", "g": "-3"}
    joined = [f"--{k}={v}" for k, v in texts.items()]
    parted = [token for k, v in texts.items() for token in (f"--{k}", v)]
    plain = [f"{k}={v}" for k, v in texts.items()]
    assert (
        parse_overrides(joined, []) == parse_overrides(parted, []) == parse_overrides(plain, []) == expected
    )


@pytest.mark.parametrize("tokens", [["--a.b"], ["--a.b", "--c=1"], ["word"], ["-x"], ["--a=[1"]])
def test_half_an_override_is_refused(tokens: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_overrides(tokens, ["--output"])


def test_near_ignores_case_and_far_names() -> None:
    assert near("QED", ["qed", "logP"]) == "; did you mean qed?"
    assert near("zzz", ["qed", "logP"]) == ""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("domain:\n  class_path: molecules\n  init_args:\n    data: qm9\n")
    return path


def test_fit_hands_over_config_and_overrides(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, Path]] = []
    monkeypatch.setattr(FIT, "fit", lambda full, output, **_: calls.append((full, output)))
    monkeypatch.chdir(tmp_path)
    argv = [
        "fit",
        str(config),
        "--denoiser_stage.max_steps=321",
        "--set",
        "seed=3",
        "--domain.init_args.data",
        "zinc250k",
    ]
    assert main(argv) == 0
    [(full, output)] = calls
    assert output == Path("runs/mine")
    assert (full["denoiser_stage"]["max_steps"], full["seed"]) == (321, 3)
    assert full["domain"]["init_args"]["data"] == "zinc250k"
    assert "scildm sample runs/mine" in said(capsys)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("denoiser_stage.max_stpes", "denoiser_stage.max_steps"),
        ("max_steps", "autoencoder_stage.max_steps"),
        ("domain.init_args.dta", "domain.init_args.data"),
    ],
)
def test_unknown_overrides_name_near_ones(
    option: str, hint: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(config), f"--{option}=3"]) == 2
    text = said(capsys)
    assert repr(option) in text
    assert hint in text


def test_print_config_is_a_config(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(config), "--print-config", "--seed=5"]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert main(["fit", str(again), "--print-config"]) == 0
    assert capsys.readouterr().out == again.read_text()
    assert "seed: 5" in again.read_text()


def test_interruption_is_130_and_recorded(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_full: Any, output: Path, **_: Any) -> None:
        output.mkdir()
        (output / "config.yaml").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(FIT, "fit", stop)
    assert main(["fit", str(config), "--output", str(tmp_path / "run")]) == 130
    assert "interrupted; run the same command again to continue" in said(capsys)
    entry = json.loads((tmp_path / "run" / "commands.jsonl").read_text())
    assert entry["command"] == "fit (interrupted)"
    assert entry["peak_memory_gib"] > 0.01


def test_a_refused_fit_leaves_no_trace(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigError("no")

    monkeypatch.setattr(FIT, "fit", refuse)
    assert main(["fit", str(config), "--output", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_debug_shows_the_traceback(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_name: str) -> None:
        raise ConfigError("broken")

    monkeypatch.setattr("sciLDM.model.load", broken)
    assert main(["sample", "run"]) == 2
    if how == "environment":
        monkeypatch.setenv("SCILDM_DEBUG", "1")
    with pytest.raises(ConfigError, match="broken"):
        main(["sample", "run", *(["--debug"] if how == "flag" else [])])


def test_sample_passes_everything_on(
    model: StubModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.csv"
    argv = ["sample", "run", "-n", "7", "--cond", "size=-1.5", "--guidance", "size=2", "--guidance", "Mass=1"]
    assert (
        main(
            [*argv, "--steps", "9", "--seed", "4", "--batch-size", "3", "--candidates", "2", "-o", str(file)]
        )
        == 0
    )
    [call] = model.calls
    assert call == {
        "count": 7, "cond": {"size": -1.5}, "guidance": {"size": 2.0, "Mass": 1.0}, "steps": 9, "seed": 4,
        "batch_size": 3, "candidates": 2,
    }  # fmt: skip
    assert len(pd.read_csv(file)) == 7
    text = said(capsys)
    assert "7 samples, 7 valid, 7 distinct; size -1.5 ± 0" in text


def test_a_far_request_is_warned_about(model: StubModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "run", "--cond", "size=5"]) == 0
    assert "warning" not in said(capsys)
    assert main(["sample", "run", "--cond", "size=12"]) == 0
    assert "10.0 standard deviations" in said(capsys)


def test_evaluate_adds_parts_and_drops_those_of_other_weights(
    model: StubModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path)
    assert main(["evaluate", run, "-n", "5"]) == 0
    assert main(["evaluate", run, "--targets", "size", "--per-target", "3"]) == 0
    assert [c["count"] for c in model.calls] == [5, 3]
    both = json.loads((tmp_path / "evaluation.json").read_text())
    assert both["unconditional"]["rows"] == [
        {"metric": "mean", "value": 1.0, "floor": None, "samples": 5, "note": "exact"}
    ]
    assert both["unconditional"]["failures"] == ["few"]
    assert both["conditional"]["rows"][0]["mae"] == 0.0
    assert len(pd.read_csv(tmp_path / "samples.csv")) == 5
    assert len(pd.read_csv(tmp_path / "conditional.csv")) == 3
    assert "note: few" in said(capsys)
    monkeypatch.setattr("sciLDM.model.load", lambda name: StubModel("b"))
    assert main(["evaluate", run, "--targets", "size"]) == 0
    assert "unconditional" not in Stored(tmp_path).read()


def test_damaged_evaluation_is_an_error_with_a_remedy(
    model: StubModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.json").write_text('{"weights": ')
    assert main(["evaluate", str(tmp_path), "-n", "2"]) == 2
    assert "delete it" in said(capsys)


def test_demo_continues_where_it_was(
    model: StubModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fits: list[Any] = []
    monkeypatch.setattr(FIT, "fit", lambda *a, **_: fits.append(a))
    argv = ["demo", "--output", str(tmp_path), "-n", "4", "--per-target", "2"]
    assert main(argv) == 0
    assert (tmp_path / "report.html").exists()
    assert "peak memory" in said(capsys)
    assert main(argv) == 0
    assert len(fits) == 2, "fit itself knows what is finished"
    assert [c["count"] for c in model.calls] == [4, 2], "the second time nothing is sampled again"


def test_broken_adapters_are_listed_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise MissingExtra(f'domain {name!r} needs rdkit: pip install "sciLDM[{name}]"')

    monkeypatch.setattr("sciLDM.registry.load_domain", missing)
    assert main(["domains"]) == 0
    text = said(capsys)
    assert "molecules" in text
    assert 'pip install "sciLDM[molecules]"' in text


def test_shipped_models_are_listed_by_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = {"domain": "molecules", "state": {"source": {"name": "qm9"}, "properties": [{"name": "logP"}]}}
    (tmp_path / "card.json").write_text(
        json.dumps({**card, "files": {"model.safetensors": {"bytes": 2_500_000}}})
    )
    monkeypatch.setattr("sciLDM.cli._shipped.shipped_artefacts", lambda: {"qm9-tiny": tmp_path})
    assert main(["models"]) == 0
    text = said(capsys)
    assert all(part in text for part in ("qm9-tiny", "molecules", "logP", "2.5")), text


def test_help_and_mistakes_do_not_wait_for_torch(root: Path) -> None:
    code = "import sys; from sciLDM.cli import main; assert main(['sampel']) == 2; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=root)
