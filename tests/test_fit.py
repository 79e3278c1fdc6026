"""Both stages in one call: what is left behind, what is continued, what is refused."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml

import sciLDM
from sciLDM.errors import ArtefactError, ConfigError, GateError
from sciLDM.model import LatentDiffusion
from tests.molecules.molecules import QM9_LIKE
from tests.tiny import AUTOENCODER_STEPS, DENOISER_STEPS, config, run, stage, tiny_run, write_table


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; read only."""
    return tiny_run(tmp_path_factory)


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """A finished run to play with."""
    return Path(shutil.copytree(done, tmp_path / "copy"))


@pytest.fixture
def settings(done: Path) -> dict:
    return config(done.parent / "table.csv")


def tensors(model: LatentDiffusion) -> dict[str, torch.Tensor]:
    return {f"{p}.{n}": t for p, part in model.parts.items() for n, t in part.state_dict().items()}


def test_what_a_run_leaves_behind(done: Path) -> None:
    names = {path.name for path in done.iterdir()}
    assert names >= {
        "config.yaml",
        "data.json",
        "reference",
        "autoencoder",
        "denoiser",
        "latents",
        "model",
        "summary.json",
    }
    summary = json.loads((done / "summary.json").read_text())
    assert summary["autoencoder"]["steps"] == AUTOENCODER_STEPS
    assert summary["denoiser"]["steps"] == DENOISER_STEPS
    assert sum(summary["data"]["sizes"].values()) == len(set(QM9_LIKE))
    stored = yaml.safe_load((done / "config.yaml").read_text())
    assert stored["network"]["init_args"]["width"] == 32
    assert (done / "reference" / "rejected.csv").read_text().strip() == "row,smiles,reason"


def test_fit_returns_what_load_gives_and_repeats_bit_for_bit(
    done: Path, settings: dict, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    model = run(settings, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    first = (done / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model" / "model.safetensors").read_bytes() == first
    loaded = sciLDM.load(done)
    options = {"cond": {"gap": 2.0}, "guidance": 1.5, "seed": 3}
    assert model.sample(6, **options).table["smiles"].equals(loaded.sample(6, **options).table["smiles"])
    other = run(settings, tmp_path / "other", seed=1)
    assert any(not torch.equal(t, tensors(loaded)[n]) for n, t in tensors(other).items())


def test_latents_are_normalised_on_the_training_split(done: Path) -> None:
    from sciLDM.data.latent_cache import LatentCache

    caches = [LatentCache.open(done / "latents", path.stem) for path in (done / "latents").glob("*.zarr")]
    train = max((c for c in caches if c is not None), key=len)
    z, mask, cond = train.fields(list(range(len(train))))
    assert mask is not None
    cells = sciLDM.load(done).stats.normalise_masked(z, mask).transpose(1, 2)[mask]
    assert cells.mean(0).abs().max() < 1e-4
    assert (cells.std(0) - 1).abs().max() < 0.05
    assert set(cond) == {"atoms", "gap", "logP"}
    assert torch.equal(cond["atoms"], mask.sum(1))


def test_a_finished_run_is_only_loaded(copy: Path, settings: dict) -> None:
    stamps = {p: (copy / p / "last.ckpt").stat().st_mtime_ns for p in ("autoencoder", "denoiser")}
    weights, said = (copy / "model" / "model.safetensors").read_bytes(), []
    run(settings, copy, say=said.append)
    assert {p: (copy / p / "last.ckpt").stat().st_mtime_ns for p in stamps} == stamps
    assert (copy / "model" / "model.safetensors").read_bytes() == weights
    assert said[0].startswith("continuing")
    assert not any(line.startswith("encoding") for line in said)


def test_an_interrupted_run_goes_on(settings: dict, tmp_path: Path) -> None:
    """Stopped within stage 1 (by the gate, for want of steps), then within stage 2, then finished."""
    settings["domain"]["init_args"]["exact_graph"] = 1.0
    folder = tmp_path / "run"
    short = {"autoencoder_stage__max_steps": 5, "denoiser_stage__max_steps": 4}
    with pytest.raises(GateError):
        run(settings, folder, **short)
    assert not (folder / "denoiser").exists()
    run(settings, folder, ignore_gate=True, **{**short, "autoencoder_stage__max_steps": 8})
    assert json.loads((folder / "summary.json").read_text())["autoencoder"]["steps"] == 8
    run(
        settings,
        folder,
        ignore_gate=True,
        **{**short, "autoencoder_stage__max_steps": 8, "denoiser_stage__max_steps": 9},
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["autoencoder"]["steps"], summary["denoiser"]["steps"]) == (8, 9)
    assert yaml.safe_load((folder / "config.yaml").read_text())["denoiser_stage"]["max_steps"] == 9


def test_the_autoencoder_may_not_move_under_a_trained_denoiser(copy: Path, settings: dict) -> None:
    with pytest.raises(
        ConfigError, match=r"autoencoder_stage.max_steps was 30, is 40, but the denoiser .* remove"
    ):
        run(settings, copy, autoencoder_stage__max_steps=40)
    shutil.rmtree(copy / "denoiser")
    run(settings, copy, autoencoder_stage__max_steps=40)
    assert json.loads((copy / "summary.json").read_text())["autoencoder"]["steps"] == 40


def test_another_configuration_is_refused(copy: Path, settings: dict) -> None:
    with pytest.raises(
        ConfigError, match=r"differs in network.init_args.width; network.init_args.width was 32, is 64"
    ):
        run(settings, copy, network__init_args__width=64)
    with pytest.raises(ConfigError, match=r"differs in autoencoder_stage.learning_rate"):
        run(settings, copy, autoencoder_stage__learning_rate=1.0)


def test_options_that_an_older_version_did_not_know_have_their_defaults(copy: Path, settings: dict) -> None:
    stored = yaml.safe_load((copy / "config.yaml").read_text())
    del stored["ignore_gate"], stored["gaussian_start"], stored["denoiser_stage"]["betas"]
    (copy / "config.yaml").write_text(yaml.safe_dump(stored))
    said: list[str] = []
    run(settings, copy, say=said.append)
    assert said[0].startswith("continuing")
    with pytest.raises(ConfigError, match=r"differs in gaussian_start"):
        run(settings, copy, gaussian_start=True)


def test_other_data_under_the_same_name_are_refused(copy: Path, settings: dict, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    settings["domain"]["init_args"]["data"] = str(table)
    folder = tmp_path / "run"
    write_table(table)
    short = {"autoencoder_stage__max_steps": 3, "denoiser_stage__max_steps": 3}
    run(settings, folder, **short)
    write_table(table, gap=[0.1 * k for k in range(len(QM9_LIKE))])
    with pytest.raises(ConfigError, match=r"the data are not those that .* was started with; restore"):
        run(settings, folder, **short)


def test_folders_that_are_no_runs(settings: dict, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not a run"):
        run(settings, tmp_path / "notes")
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        run(settings, tmp_path / "notes" / "thesis.txt")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("")
    (tmp_path / "broken" / "autoencoder").mkdir()
    with pytest.raises(ConfigError, match=r"config.yaml is damaged"):
        run(settings, tmp_path / "broken")
    with pytest.raises(ConfigError, match="cannot write to"):
        run(settings, tmp_path / "notes" / "thesis.txt" / "run")


def test_the_gate(settings: dict, tmp_path: Path) -> None:
    settings["domain"]["init_args"]["exact_graph"] = 1.0
    said: list[str] = []
    settings |= {"autoencoder_stage": stage(2), "denoiser_stage": stage(2)}
    with pytest.raises(
        GateError, match=r"exact_graph = 0\.\d+ on held-out data, the gate asks for 1.0.*ignore_gate"
    ):
        run(settings, tmp_path / "run")
    run({**settings, "ignore_gate": True}, tmp_path / "run", say=said.append)
    assert any(line.startswith("warning: the autoencoder reaches") for line in said)


def test_autoencoder_of_another_run(done: Path, settings: dict, tmp_path: Path) -> None:
    model = run({**settings, "autoencoder_from": str(done)}, tmp_path / "run", denoiser_stage__max_steps=3)
    theirs = tensors(sciLDM.load(done))
    mine = {n: t for n, t in tensors(model).items() if n.startswith("autoencoder")}
    assert mine
    assert all(torch.equal(t, theirs[n]) for n, t in mine.items())
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["autoencoder"]["steps"] == 0

    table = write_table(
        tmp_path / "sulphur.csv", ["CS", "CSC", "CCS", "CCCS", "SCCS", "CC(C)S"], gap=[1, 2, 3, 4, 5, 6]
    )
    with pytest.raises(
        ConfigError, match=r"autoencoder_from=.*another vocabulary .*'S'.*train one on these data"
    ):
        run({**config(table), "autoencoder_from": str(done)}, tmp_path / "sulphur")
    settings["domain"]["init_args"]["autoencoder"]["width"] = 48
    with pytest.raises(ConfigError, match=r"autoencoder_from=.*other settings"):
        run({**settings, "autoencoder_from": str(done)}, tmp_path / "wider")
    with pytest.raises(ArtefactError, match="no model 'nowhere'"):
        run({**settings, "autoencoder_from": "nowhere"}, tmp_path / "nowhere")


def test_denoiser_of_another_run(done: Path, settings: dict, tmp_path: Path) -> None:
    both = {**settings, "autoencoder_from": str(done), "denoiser_from": str(done)}
    rate = {
        "denoiser_stage__max_steps": 1,
        "denoiser_stage__learning_rate": 1e-9,
        "denoiser_stage__ema_decay": None,
    }
    model, theirs = run(both, tmp_path / "run", **rate), tensors(sciLDM.load(done))
    mine = {n: t for n, t in tensors(model).items() if n.startswith("denoiser.net")}
    assert mine
    assert all(torch.allclose(t, theirs[n], atol=1e-6) for n, t in mine.items())

    # With a condition more; here one that counts something, which has a table.
    more = deepcopy(both)
    more["domain"]["init_args"]["conditions"] = ["gap", "logP", "rings"]
    found = tensors(run(more, tmp_path / "more", **rate))
    added = {n for n in found if n.startswith("denoiser.net")} - set(mine)
    assert {n.split("labels.")[1] for n in added} == {"rings.null", "rings.embed.table"}
    assert all(torch.allclose(found[n], t, atol=1e-6) for n, t in mine.items())

    with pytest.raises(ConfigError, match="expected autoencoder_from to name the same model, got None"):
        run({**settings, "denoiser_from": str(done)}, tmp_path / "alone")
    wider = {
        **both,
        "network": {"class_path": "DiTNetwork", "init_args": {"width": 48, "depth": 1, "heads": 2}},
    }
    with pytest.raises(ConfigError, match=r"denoiser_from=.*another network"):
        run(wider, tmp_path / "wider")


def test_a_damaged_run_says_so(copy: Path, settings: dict) -> None:
    weights = copy / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ArtefactError, match=r"truncated: expected \d+ bytes, got 1000"):
        sciLDM.load(copy)
    run(settings, copy)  # the stages are whole, so running again mends the model
    assert len(sciLDM.load(copy).sample(2).table) == 2
    checkpoint = copy / "denoiser" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(ArtefactError, match=r"cannot read checkpoint .*Delete it"):
        run(settings, copy)


def test_a_yaml_file_is_the_same_as_a_mapping(done: Path, settings: dict, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    run_folder = Path(shutil.copytree(done, tmp_path / "copy"))
    sciLDM.fit(path, run_folder, say=lambda _line: None)  # refuses, were there any difference
