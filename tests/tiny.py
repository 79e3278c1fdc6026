"""A molecular run that trains in seconds: sixty molecules, thirty and twenty steps, width 32."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sciLDM.fitting import fit
from sciLDM.model import LatentDiffusion
from tests.molecules.molecules import QM9_LIKE

AUTOENCODER_STEPS, DENOISER_STEPS = 30, 20
_RUNS: dict[int, Path] = {}


def write_table(path: Path, smiles: Sequence[str] = QM9_LIKE, **columns: Sequence[object]) -> Path:
    """A CSV with a column `gap` (a made-up number), unless other columns are given."""
    columns = columns or {"gap": [round(0.37 * k % 5, 3) for k in range(len(smiles))]}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["smiles", *columns])
        writer.writerows(zip(smiles, *columns.values(), strict=True))
    return path


def config(data: Path, *, conditions: Sequence[str] = ("gap", "logP"), **changes: Any) -> dict[str, Any]:
    """An experiment on `data`; `changes` replace whole groups."""
    return {
        "domain": {
            "class_path": "molecules",
            "init_args": {
                "data": str(data),
                "conditions": list(conditions),
                "exact_graph": 0.0,
                "settings": {"workers": 1},
                "autoencoder": {"channels": 4, "width": 32, "depth": 1, "heads": 2},
            },
        },
        "network": {"class_path": "DiTNetwork", "init_args": {"width": 32, "depth": 1, "heads": 2}},
        "sampler": {"class_path": "DPMSolverPP2MSDE", "init_args": {"steps": 4}},
        "autoencoder_stage": stage(AUTOENCODER_STEPS, learning_rate=5e-3),
        "denoiser_stage": stage(DENOISER_STEPS, ema_decay=0.9),
        "trainer": {"accelerator": "cpu", "progress_bar": False},
        **changes,
    }


def stage(max_steps: int, **options: Any) -> dict[str, Any]:
    """Settings of a short stage."""
    return {"max_steps": max_steps, "batch_size": 16, "warmup_steps": 2, "learning_rate": 1e-3, **options}


def silent(_line: str) -> None:
    """Where `fit` speaks to in tests."""


def run(
    settings: Mapping[str, Any], folder: Path, *, say: Callable[[str], None] = silent, **overrides: Any
) -> LatentDiffusion:
    """`fit` without a word; dots in the names of overrides are written as two underscores."""
    torch.set_num_threads(1)  # nets this small only wait for other threads
    return fit(settings, folder, overrides={k.replace("__", "."): v for k, v in overrides.items()}, say=say)


def tiny_run(factory: pytest.TempPathFactory) -> Path:
    """The run folder of the plain tiny configuration; trained once a session, to be read only."""
    if id(factory) not in _RUNS:
        folder = factory.mktemp("tiny")
        run(config(write_table(folder / "table.csv")), folder / "run")
        _RUNS[id(factory)] = folder / "run"
    return _RUNS[id(factory)]
