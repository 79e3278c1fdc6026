"""Where metrics go: always to `metrics.csv`, on request to Weights & Biases."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from sciLDM.errors import MissingExtra
from sciLDM.training.settings import TrainerSettings

__all__ = ["CsvLogger", "make_loggers"]


@final
class CsvLogger(Logger):
    """One line per step that has something to say; columns are added when a new metric turns up.

    An existing file is continued after step `start`: lines of later steps, which are about to be made again, go.

    Args:
        path: The file.
        start: Step that training starts from.
    """

    def __init__(self, path: Path, start: int) -> None:
        super().__init__()
        self.path, self._start = path, start
        self._rows: list[dict[str, str]] = []
        self._columns: list[str] = ["step"]
        self._opened = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run's configuration is saved by the caller."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add to the line of this step."""
        self._open()
        row = {"step": str(step), **{name: f"{value:.7g}" for name, value in metrics.items()}}
        known = all(name in self._columns for name in row)
        if self._rows and self._rows[-1]["step"] == row["step"]:
            self._rows[-1].update(row)
            known = False
        else:
            self._rows.append(row)
        self._columns += [name for name in row if name not in self._columns]
        if known:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns, restval="").writerow(row)
        else:
            self._write_all()

    def _open(self) -> None:
        if self._opened:
            return
        self._opened = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._start > 0 and self.path.exists():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or ["step"])
                # A crash may have cut the last line short.
                whole = [r for r in reader if None not in r.values() and (r.get("step") or "").isdigit()]
            self._rows = [{k: v for k, v in r.items() if v} for r in whole if int(r["step"]) <= self._start]
        self._write_all()

    def _write_all(self) -> None:
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(partial, self.path)


def make_loggers(settings: TrainerSettings, folder: Path, start: int) -> list[Logger]:
    """The loggers of a stage that continues at step `start`.

    Raises:
        MissingExtra: Weights & Biases was asked for and is not installed.
    """
    loggers: list[Logger] = [CsvLogger(folder / "metrics.csv", start)]
    if settings.wandb:
        try:
            import wandb  # noqa: F401  # type: ignore[import-not-found]
        except ImportError as error:
            raise MissingExtra(
                'wandb: true needs Weights & Biases: pip install "sciLDM[wandb]", or set wandb: false'
            ) from error
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(
            WandbLogger(
                name=f"{folder.parent.name}-{folder.name}",
                save_dir=folder,
                project=settings.wandb_project,
                offline=settings.wandb_mode == "offline",
            )
        )
    return loggers
