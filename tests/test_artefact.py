"""A saved model: what goes in comes out, and whatever is wrong with a folder is said in plain words."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from safetensors.torch import load_file

import sciLDM.artefact as module
from sciLDM.artefact import Artefact, find_artefact, load_artefact, save_artefact, shipped_artefacts
from sciLDM.errors import ArtefactError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "card.json"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {"net.weight": torch.randn(16, 16), "net.bias": torch.randn(16)}
    return save_artefact(tmp_path / "model", tensors=tensors, config={"width": 16}, card={"data": "QM9"})


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    raw = tensor.contiguous().flatten().view(torch.uint8)
    return tensor.dtype, tuple(tensor.shape), raw.numpy().tobytes()


integers = st.integers(-(2**60), 2**60)
plain = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
mapping = st.dictionaries(st.text(max_size=6), plain, max_size=4)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    raw = draw(st.binary(min_size=8 * math.prod(shape), max_size=8 * math.prod(shape)))
    if dtype == torch.bool:
        return torch.tensor([b % 2 == 1 for b in raw[: math.prod(shape)]], dtype=torch.bool).reshape(shape)
    width = torch.empty(0, dtype=dtype).element_size()
    return torch.tensor(list(raw[: width * math.prod(shape)]), dtype=torch.uint8).view(dtype).reshape(shape)


@given(weights=st.dictionaries(st.text("abc.xyz", min_size=1), tensors(), max_size=4), config=mapping)
def test_what_is_saved_is_loaded_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, weights: dict[str, torch.Tensor], config: dict
) -> None:
    """Any bit pattern, NaN payloads included, and any plain configuration."""
    folder = tmp_path_factory.mktemp("save") / "model"
    save_artefact(folder, tensors=weights, config=config, card={})
    got = load_artefact(folder)
    assert {k: bits(v) for k, v in got.tensors.items()} == {k: bits(v) for k, v in weights.items()}
    assert got.config == config


@given(card=mapping)
def test_the_card_keeps_the_users_entries(tmp_path_factory: pytest.TempPathFactory, card: dict) -> None:
    folder = tmp_path_factory.mktemp("card") / "model"
    save_artefact(folder, tensors={}, config={}, card={"mine": card})
    finite = json.loads(json.dumps(card), parse_constant=lambda _: None)
    assert load_artefact(folder).card["mine"] == finite


def test_the_card_says_what_it_is(model: Path) -> None:
    card = json.loads((model / CARD).read_text())
    assert (card["format"], card["format_version"], card["data"]) == ("sciLDM", 1, "QM9")
    assert card["created"].endswith("+00:00")
    assert card["libraries"]["torch"] == torch.__version__
    assert card["files"][WEIGHTS]["bytes"] == (model / WEIGHTS).stat().st_size
    assert sorted(path.name for path in model.iterdir()) == sorted([WEIGHTS, CONFIG, CARD])


def test_a_loaded_card_can_be_saved_again_and_cannot_lie(model: Path) -> None:
    old = load_artefact(model)
    forged = {**old.card, "format_version": 99, "files": {}}
    save_artefact(model, tensors={"a": torch.ones(3)}, config={}, card=forged)
    new = load_artefact(model)
    assert new.card["format_version"] == 1
    assert new.card["data"] == "QM9"


def test_matrices_are_cast_and_vectors_keep_their_type(tmp_path: Path) -> None:
    weights = {
        "w": torch.randn(8, 8),
        "b": torch.randn(8),
        "n": torch.tensor(3),
        "i": torch.arange(4).view(2, 2),
    }
    save_artefact(tmp_path / "m", tensors=weights, config={}, card={}, dtype=torch.bfloat16)
    got = load_artefact(tmp_path / "m").tensors
    assert torch.equal(got["w"], weights["w"].bfloat16())
    assert all(torch.equal(got[k], weights[k]) and got[k].dtype == weights[k].dtype for k in "bni")


def test_a_cast_that_overflows_is_refused(tmp_path: Path) -> None:
    large = {"w": torch.full((2, 2), 1e5)}
    with pytest.raises(ArtefactError, match=r"w reaches 1e\+05.*bfloat16"):
        save_artefact(tmp_path / "m", tensors=large, config={}, card={}, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_tied_and_strided_weights_and_numpy_scalars_are_stored_as_values(tmp_path: Path) -> None:
    tied = torch.randn(4, 4)
    save_artefact(
        tmp_path / "m",
        tensors={"a": tied, "b": tied, "c": tied.T, "d": torch.nn.Parameter(tied[:, 1])},
        config={"lr": np.float32(0.5), "size": (np.int64(3), 4), "root": Path("x")},
        card={"score": float("nan"), "scores": [1.0, math.inf]},
    )
    got = load_artefact(tmp_path / "m")
    assert torch.equal(got.tensors["b"], tied)
    assert torch.equal(got.tensors["c"], tied.T)
    assert torch.equal(got.tensors["d"], tied[:, 1])
    assert got.config == {"lr": 0.5, "size": [3, 4], "root": "x"}
    assert (got.card["score"], got.card["scores"]) == (None, [1.0, None])


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"config\.net\.layers\[1\] is a Tensor, expected plain values"):
        save_artefact(tmp_path / "m", tensors={}, config={"net": {"layers": [1, torch.ones(2)]}}, card={})


# --- writing whole or not at all -------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["save_file", "_describe", "_to_disk", "rename"])
def test_a_save_that_fails_leaves_the_old_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "rename":
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda a, b: full() if a.suffix == ".tmp" else rename(a, b))
    else:
        monkeypatch.setattr(module, step, full)
    with pytest.raises(ArtefactError, match=r"No space left on device; what was there before is untouched"):
        save_artefact(model, tensors={"a": torch.ones(3)}, config={}, card={})
    monkeypatch.undo()
    assert set(load_artefact(model).tensors) == {"net.weight", "net.bias"}
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_a_save_killed_between_its_renames_leaves_the_old_model(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def killed(source: Path, target: Path) -> Path:
        if source.suffix == ".tmp":
            raise KeyboardInterrupt  # not an OSError: nothing may tidy up
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save_artefact(model, tensors={"a": torch.ones(3)}, config={}, card={})
    monkeypatch.undo()
    assert not model.exists()
    assert set(load_artefact(find_artefact(model)).tensors) == {"net.weight", "net.bias"}
    save_artefact(model, tensors={"a": torch.ones(3)}, config={}, card={})
    assert set(load_artefact(model).tensors) == {"a"}


def test_other_files_beside_the_model_are_kept(model: Path) -> None:
    (model / "README.md").write_text("mine")
    (model / "figures").mkdir()
    (model / "figures" / "a.txt").write_text("1")
    save_artefact(model, tensors={"a": torch.ones(3)}, config={}, card={})
    assert set(load_artefact(model).tensors) == {"a"}
    assert (model / "README.md").read_text() == "mine"
    assert (model / "figures" / "a.txt").read_text() == "1"


def test_a_folder_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("mine: 1")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtefactError, match=r"no sciLDM model yet holds config\.yaml"):
        save_artefact(tmp_path, tensors={}, config={}, card={})
    with pytest.raises(ArtefactError, match="is a file, expected a folder"):
        save_artefact(tmp_path / "notes.txt", tensors={}, config={}, card={})
    assert (tmp_path / CONFIG).read_text() == "mine: 1"


def test_no_pickle_anywhere(model: Path) -> None:
    assert set(load_file(model / WEIGHTS)) == {"net.weight", "net.bias"}
    assert yaml.safe_load((model / CONFIG).read_text()) == {"width": 16}


# --- what can be wrong with a folder ---------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 60, 0.25, 0.5, 0.999, -1])
def test_truncated_weights(model: Path, keep: float) -> None:
    data = (model / WEIGHTS).read_bytes()
    cut = int(keep * len(data)) if isinstance(keep, float) else (keep if keep >= 0 else len(data) + keep)
    (model / WEIGHTS).write_bytes(data[:cut])
    with pytest.raises(ArtefactError, match=rf"truncated: expected {len(data)} bytes, got {cut}; copy or"):
        load_artefact(model)


@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_one_wrong_byte_is_found_wherever_it_is(
    tmp_path_factory: pytest.TempPathFactory, position: float, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("flip") / "model"
    save_artefact(folder, tensors={"w": torch.arange(16.0)}, config={"a": 1}, card={})
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[int(position * len(data))] ^= flip
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(ArtefactError, match=r"is damaged: |was changed after it was saved: expected sha"):
        load_artefact(folder)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def edit_card(model: Path, **changes: object) -> None:
    card = json.loads((model / CARD).read_text())
    (model / CARD).write_text(json.dumps({**card, **changes}))


def lay_checkpoint(model: Path) -> None:
    (model / CARD).unlink()
    (model / "last.ckpt").write_bytes(b"\x80\x04")


def lay_hugging_face(model: Path) -> None:
    (model / CARD).unlink()
    (model / "config.json").write_text("{}")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda m: (m / WEIGHTS).unlink(), r"model\.safetensors is missing, expected .* \d+ bytes"),
    "no config": (lambda m: (m / CONFIG).unlink(), r"config\.yaml is missing"),
    "no card": (lambda m: (m / CARD).unlink(), r"holds no card\.json \(it holds config\.yaml, model\.saf"),
    "longer weights": (lambda m: append(m / WEIGHTS), r"is damaged: expected \d+ bytes, got \d+"),
    "edited config": (lambda m: (m / CONFIG).write_text("net: {}"), r"config\.yaml was changed .* sha256"),
    "broken config": (lambda m: (m / CONFIG).write_text("a: [1"), r"config\.yaml is no valid YAML"),
    "binary config": (lambda m: (m / CONFIG).write_bytes(b"\xff\xfe\x00"), r"config\.yaml is no valid YAML"),
    "list config": (lambda m: (m / CONFIG).write_text("- 1"), r"expected a mapping, got list"),
    "code in config": (
        lambda m: (m / CONFIG).write_text("a: !!python/object/apply:os.getcwd []"),
        r"config\.yaml is no valid YAML",
    ),
    "broken card": (lambda m: (m / CARD).write_text("{"), r"card\.json is no valid JSON.*copy or download"),
    "binary card": (lambda m: (m / CARD).write_bytes(b"\xff\xfe"), r"card\.json is no valid JSON"),
    "list card": (lambda m: (m / CARD).write_text("[]"), r"is not ours.*got 'list'"),
    "foreign card": (lambda m: edit_card(m, format="other"), r"expected format 'sciLDM', got 'other'"),
    "newer": (
        lambda m: edit_card(m, format_version=3, sciLDM="9.0"),
        r"saved by sciLDM 9\.0: expected a format_version up to 2, got 3; upgrade with `pip install -U sciLDM`",
    ),
    "no version": (lambda m: edit_card(m, format_version=None), r"a format_version from 1, got None"),
    "bool version": (lambda m: edit_card(m, format_version=True), r"a format_version from 1, got True"),
    "no checksums": (lambda m: edit_card(m, files={}), r"expected the bytes of model\.safetensors in it"),
    "odd checksums": (lambda m: edit_card(m, files=[1]), r"expected the bytes of model\.safetensors in it"),
    "checkpoint": (lay_checkpoint, r"holds a checkpoint \(last\.ckpt\) but no finished model"),
    "hugging face": (lay_hugging_face, r"is a Hugging Face model folder.*only models that it saved"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(model: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    damage(model)
    with pytest.raises(ArtefactError, match=message):
        load_artefact(model)


def test_paths_that_are_no_model_folder(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ArtefactError, match=r"nowhere does not exist, expected a folder with model\."):
        load_artefact(tmp_path / "nowhere")
    with pytest.raises(ArtefactError, match=r"is a run folder.*load .*model"):
        load_artefact(tmp_path)
    with pytest.raises(ArtefactError, match=r"is a file.*name the folder it lies in"):
        load_artefact(model / WEIGHTS)
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.raises(ArtefactError, match=r"is a checkpoint for resuming training"):
        load_artefact(tmp_path / "last.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=r"it holds nothing"):
        load_artefact(tmp_path / "empty")
    with pytest.raises(OSError, match="does not exist"):  # also a builtin
        load_artefact(tmp_path / "nowhere")


# --- finding ---------------------------------------------------------------------------------------------


def test_finds_models_by_path_run_and_name(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = {name: tmp_path / "shelf" / name for name in ("molecules-qm9", "molecules-zinc")}
    monkeypatch.setattr(module, "shipped_artefacts", lambda: shelf)
    monkeypatch.chdir(tmp_path)
    assert find_artefact(model) == model
    assert find_artefact(str(tmp_path)) == model  # a run folder
    assert find_artefact("molecules-qm9") == shelf["molecules-qm9"]
    (tmp_path / "molecules-qm9").mkdir()  # a folder of that name which holds no model
    assert find_artefact("molecules-qm9") == shelf["molecules-qm9"]
    save_artefact(tmp_path / "molecules-qm9", tensors={}, config={}, card={})
    assert find_artefact("molecules-qm9") == Path("molecules-qm9")
    with pytest.raises(
        ArtefactError, match=r"\(molecules-qm9, molecules-zinc\).*did you mean 'molecules-zinc'"
    ):
        find_artefact("molecule-zinc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=r"holds no card\.json"):
        find_artefact(tmp_path / "empty")


def test_shipped_models_load() -> None:
    for name, folder in shipped_artefacts().items():
        assert isinstance(load_artefact(folder), Artefact), name
        assert find_artefact(name) == folder
        assert os.listdir(folder)
