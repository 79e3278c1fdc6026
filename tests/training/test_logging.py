"""What a user sees: one CSV that survives crashes, a speed check, no chatter."""

import builtins
import csv
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sciLDM.errors import MissingExtra
from sciLDM.training import StageSettings, TrainerSettings
from sciLDM.training.callbacks import ProgressBar
from sciLDM.training.loggers import CsvLogger, make_loggers
from sciLDM.training.trainer import run_stage
from tests.training.toys import QUIET, PointData, autoencoder_stage


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_grows_columns_and_merges_a_step(tmp_path: Path) -> None:
    log = CsvLogger(tmp_path / "metrics.csv", 0)
    log.log_metrics({"a": 1.0}, step=1)
    log.log_metrics({"a": 2.0}, step=2)
    log.log_metrics({"b": 3.0}, step=2)
    log.log_metrics({"a": 4.0}, step=3)
    want = [("1", "1", ""), ("2", "2", "3"), ("3", "4", "")]
    assert [(r["step"], r["a"], r["b"]) for r in read(tmp_path / "metrics.csv")] == want


def test_csv_continues_and_drops_what_will_be_redone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = CsvLogger(path, 0)
    for step in (1, 2, 3):
        first.log_metrics({"a": float(step)}, step=step)
    with path.open("a") as file:
        file.write("4")  # a line cut short by a crash
    second = CsvLogger(path, 2)
    second.log_metrics({"a": 30.0, "c": 1.0}, step=3)
    assert [(r["step"], r["a"], r["c"]) for r in read(path)] == [
        ("1", "1", ""),
        ("2", "2", ""),
        ("3", "30", "1"),
    ]
    CsvLogger(path, 0).log_metrics({"a": 5.0}, step=1)  # a new training starts a new file
    assert len(read(path)) == 1


def test_wandb_missing_names_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "wandb":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra, match=r'pip install "sciLDM\[wandb\]"'):
        make_loggers(TrainerSettings(wandb=True), tmp_path, 0)


def test_quiet_but_for_the_speed_check(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, level = PointData(), logging.getLogger("lightning.pytorch").level
    settings = StageSettings(max_steps=12, batch_size=8, warmup_steps=0)
    result = run_stage(autoencoder_stage(), data, data, settings, QUIET, tmp_path / "a")
    printed = capfd.readouterr()
    assert printed.out == ""
    assert " ".join(printed.err.split()) == result.throughput
    assert result.throughput.startswith("autoencoder: loader ")
    assert "is the bottleneck" in result.throughput
    assert logging.getLogger("lightning.pytorch").level == level
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["last.ckpt", "metrics.csv"]


def test_slow_loader_is_found_out(tmp_path: Path) -> None:
    import time

    class Slow(PointData):
        def fields(self, indices: Any) -> Any:
            time.sleep(0.3)
            return super().fields(indices)

    settings = StageSettings(max_steps=7, batch_size=8, warmup_steps=0)
    result = run_stage(autoencoder_stage(), Slow(), PointData(), settings, QUIET, tmp_path / "a")
    assert "the loader is the bottleneck; raise workers" in result.throughput


def test_bar_shows_step_and_loss(tmp_path: Path) -> None:
    console = Console(force_terminal=True, width=120, record=True, file=(tmp_path / "screen").open("w"))
    data, settings = PointData(), StageSettings(max_steps=5, batch_size=8, warmup_steps=0)
    run_stage(
        autoencoder_stage(), data, data, settings, QUIET, tmp_path / "a", callbacks=[ProgressBar(console)]
    )
    console.file.close()
    screen = console.export_text()
    assert "5/5 loss" in screen
    assert "it/s" in screen
    assert "val " in screen
