"""Every shipped configuration is one runnable experiment: it parses, builds, and trains two steps of each stage."""

from pathlib import Path

import pytest
import yaml

import sciLDM
from sciLDM.experiment import read_config

pytest.importorskip("rdkit")
pytest.importorskip("torch_geometric")

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))
SMILES = (
    "CCO",
    "CC(=O)O",
    "c1ccccc1",
    "CCN",
    "CC#N",
    "OCC1CC1",
    "C1CCOC1",
    "NC(=O)C",
    "CC(C)O",
    "COC",
    "CCF",
    "O=CC=O",
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_config_runs_two_steps(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert text == text.strip() + "\n"
    data = yaml.safe_load(text)["domain"]["init_args"]["data"]
    overrides = {
        f"{stage}.{name}": value
        for stage in ("autoencoder_stage", "denoiser_stage")
        for name, value in {"max_steps": 2, "warmup_steps": 1, "batch_size": 4}.items()
    }
    overrides |= {"ignore_gate": True, "trainer.progress_bar": False}
    table = tmp_path / "mine.csv"
    table.write_text("smiles\n" + "\n".join(SMILES) + "\n", encoding="utf-8")
    # The file stands for the data set too: what is tested is the configuration, not the reading of 130,000 rows.
    overrides["domain.init_args.data"] = str(table)
    config = read_config(path, overrides)
    assert config["domain"]["init_args"]["data"] == str(table)
    assert data in ("qm9", "mine.csv", "moses", "zinc250k")
    model = sciLDM.fit(path, tmp_path / "run", overrides=overrides, say=lambda line: None)
    assert len(model.sample(3, steps=2)) == 3
