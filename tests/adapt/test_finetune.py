"""Adapting a tiny molecular model: samples of the new one move, the old one and the autoencoder do not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rdkit import Chem

import sciLDM
from sciLDM.adapt import FineTune, finetune
from sciLDM.cli import main
from sciLDM.domains.molecules.reference import find_reference
from sciLDM.errors import ConfigError, DataError
from sciLDM.explore import encode
from sciLDM.model import LatentDiffusion
from sciLDM.objectives import DiffusionObjective
from tests.tiny import silent, tiny_run

ITEMS = ["CCO", "CCCO", "CC(C)O", "OCCO", "CCN", "CCCN", "CC(N)O", "NCCO", "NCCN", "CNCC", "COC", "CCOC"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    return sciLDM.load(tiny_run(tmp_path_factory))


def short(**options: object) -> FineTune:
    stage = replace(FineTune().stage, max_steps=30, batch_size=16, learning_rate=1e-2, ema_decay=None)
    return FineTune(**{"stage": stage, "decoder_steps": 0, **options})  # type: ignore[arg-type]


def loss(model: LatentDiffusion, items: list[str]) -> float:
    """Training loss on items, with the same noise each time."""
    encoded = encode(model, items * 8)
    objective = DiffusionObjective(self_condition=0.0)
    draw = objective.draw(encoded.z, len(model.codec.conditions), torch.Generator().manual_seed(3))
    options = {"cond": encoded.request.cond, "conditions": model.codec.conditions, "mask": encoded.mask}
    with torch.no_grad():
        return float(objective(model.denoiser, encoded.z, draw, **options).mean())


def nll(model: LatentDiffusion, fields: Any) -> float:
    """Of items under their noise-free latents [nats a molecule]."""
    autoencoder = model.autoencoder
    with torch.no_grad():
        terms = autoencoder.reconstruction_loss(fields, autoencoder.decode(*autoencoder.code(fields)))
    return sum(float(x.mean()) for name, x in terms.items() if not name.startswith("_"))


def heavy_atoms(smiles: str) -> int:
    return Chem.MolFromSmiles(smiles).GetNumAtoms()


@pytest.mark.parametrize("options", [{"rank": 4}, {"rank": None, "held_out": 0.0}])
def test_the_new_model_fits_the_items_and_is_an_ordinary_one(
    model: LatentDiffusion, tmp_path: Path, options: dict[str, object]
) -> None:
    before = {name: x.clone() for name, x in model.denoiser.state_dict().items()}
    old = loss(model, ITEMS)
    new = finetune(model, ITEMS, tmp_path / "new", short(**options), say=silent)
    assert loss(new, ITEMS) < 0.97 * old
    assert all(torch.equal(x, before[name]) for name, x in model.denoiser.state_dict().items())
    for name, x in model.autoencoder.state_dict().items():
        assert torch.equal(x, new.autoencoder.state_dict()[name])
    # Samples are to have the items' sizes, and are compared with the items.
    assert set(new.sample(40).table["smiles"].map(heavy_atoms)) <= set(map(heavy_atoms, ITEMS))
    assert {Chem.CanonSmiles(item) for item in ITEMS} <= set(find_reference(new.reference, {}).train)
    assert new.parameters == model.parameters
    assert new.config == model.config
    assert new.card["finetuned"]["items"] == len(ITEMS)
    # The same call again finds it finished; another is refused.
    again = finetune(model, ITEMS, tmp_path / "new", short(**options), say=silent)
    assert all(torch.equal(x, again.denoiser.state_dict()[n]) for n, x in new.denoiser.state_dict().items())
    with pytest.raises(ConfigError, match="other data"):
        finetune(model, ITEMS[:-1], tmp_path / "new", short(**options), say=silent)


def test_what_cannot_work_is_refused_before_the_folder_is_touched(
    model: LatentDiffusion, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="at least 10 items"):
        finetune(model, ITEMS[:3], tmp_path / "new", say=silent)
    with pytest.raises(DataError, match="cannot be represented"):
        finetune(model, [*ITEMS, "[U]"], tmp_path / "new", say=silent)
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        finetune(model, ITEMS, tmp_path, say=silent)
    with pytest.raises(ConfigError, match="held_out"):
        FineTune(held_out=1.0)
    with pytest.raises(ConfigError, match="decoder_steps"):
        FineTune(decoder_steps=-1)


def test_the_decoder_learns_the_items_and_the_encoder_stays(model: LatentDiffusion, tmp_path: Path) -> None:
    said: list[str] = []
    settings = short(decoder_steps=60, stage=replace(short().stage, max_steps=1))
    new = finetune(model, ITEMS, tmp_path / "new", settings, say=said.append)
    fields, _ = model.codec.from_native(ITEMS)
    losses = [nll(each, fields) for each in (model, new)]
    assert losses[1] < 0.9 * losses[0]
    (z, _), (same, _) = (each.autoencoder.code(fields) for each in (model, new))
    assert torch.equal(z, same)
    assert any("rebuilds the items with exact_graph" in line for line in said)


def test_the_command_leaves_a_model_that_samples(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "mine.csv", tmp_path / "new"
    data.write_text("smiles,gap\n" + "".join(f"{item},{k / 4}\n" for k, item in enumerate(ITEMS)))
    run = str(tiny_run(tmp_path_factory))
    command = [
        "finetune",
        run,
        "-o",
        str(output),
        "--max-steps",
        "3",
        "--decoder-steps",
        "2",
        "--device",
        "cpu",
    ]
    assert main([*command, "--data", str(data)]) == 0
    assert "labels from the file: gap" in capsys.readouterr().err
    assert len(sciLDM.load(output).sample(4)) == 4
    assert main([*command, "--data", str(tmp_path / "no.smi")]) == 2
    assert main([*command, "--data", str(data), "--full", "--lora-rank", "4"]) == 2
