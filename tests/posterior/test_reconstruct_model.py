"""`fit`, `save`, `load`, `reconstruct` and `scildm reconstruct` with a domain of fields on a grid."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import sciLDM
from sciLDM.cli import main
from sciLDM.errors import ArtefactError, ConfigError, DataError, ShapeMismatch
from sciLDM.fitting import fit
from sciLDM.model import LatentDiffusion
from sciLDM.posterior.conformal import Conformal
from sciLDM.posterior.hooks import OperatorSpec
from tests.posterior import line_domain
from tests.posterior.line_domain import POINTS, LineAutoencoder, Subset, curves
from tests.tiny import silent, stage

FIVE = Subset([0, 3, 6, 9, 12])


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "domain": {"class_path": "tests.posterior.line_domain.Line"},
        "network": {"class_path": "DiTNetwork", "init_args": {"width": 32, "depth": 1, "heads": 2}},
        "autoencoder_stage": stage(8, learning_rate=1e-3),
        "denoiser_stage": stage(60, learning_rate=3e-3, ema_decay=0.9),
        "trainer": {"accelerator": "cpu", "progress_bar": False},
        **changes,
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("line") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        fit(settings(), folder, say=silent)
    return folder


@pytest.fixture
def model(done: Path) -> LatentDiffusion:
    return sciLDM.load(done)


def observed(count: int = 2) -> torch.Tensor:
    return FIVE(280 + 10 * curves("test", list(range(count)))) + 0.1


def test_the_error_is_measured_on_held_out_fields_and_stored(model: LatentDiffusion) -> None:
    assert "autoencoder_error" in model.parts
    error = model.autoencoder_error
    assert error is not None
    x = curves("validation", list(range(48)))
    with torch.no_grad():
        rebuilt = model.autoencoder.decode(*model.autoencoder.code(x))
    assert float(error.typical) == pytest.approx(float((x - rebuilt).square().mean()), rel=1e-4)
    assert torch.allclose(error.prior[0], x.var(dim=0, correction=0)[0], rtol=1e-4)
    assert model.parameters["autoencoder_error"] == 0


def test_reconstruction_is_kept_by_saving_and_loading(model: LatentDiffusion, tmp_path: Path) -> None:
    options: dict[str, Any] = {"noise_std": 0.3, "samples": 6, "steps": 6, "seed": 2}
    got = model.reconstruct(observed(), FIVE, **options)
    model.calibration = Conformal.fit([got], [got.mean + 3 * got.std], family=FIVE.family)
    model.save(tmp_path / "copy")
    again = sciLDM.load(tmp_path / "copy")
    calibrated = again.reconstruct(observed(), FIVE, **options)
    assert torch.equal(calibrated.mean, got.mean)
    assert calibrated.calibrated
    factor = model.calibration.factor(FIVE.family)
    assert torch.allclose(calibrated.std, factor * got.std)
    assert "calibration" not in again.card
    card = json.loads((tmp_path / "copy" / "card.json").read_text())
    card["calibration"]["format"] = 99
    (tmp_path / "copy" / "card.json").write_text(json.dumps(card))
    with pytest.raises(ArtefactError, match="calibration of format 99"):
        sciLDM.load(tmp_path / "copy")


def test_a_model_without_the_error_still_loads_and_says_what_it_lacks(
    model: LatentDiffusion, tmp_path: Path
) -> None:
    model.autoencoder_error = None
    model.save(tmp_path / "old")
    old = sciLDM.load(tmp_path / "old")
    assert old.autoencoder_error is None
    got = old.reconstruct(observed(1), FIVE, noise_std=0.3, samples=2, steps=4)
    assert any("`scildm fit` measures it" in line for line in got.details["warnings"])


def test_the_data_are_met_and_the_spread_is_smaller_where_something_was_seen(model: LatentDiffusion) -> None:
    truth = 280 + 10 * curves("test", list(range(6)))
    got = model.reconstruct(FIVE(truth), FIVE, noise_std=0.05, samples=12, steps=10)
    seen = torch.zeros(POINTS, dtype=torch.bool)
    seen[FIVE.points] = True
    error = (got.mean - truth).abs()[:, 0]
    assert float(error[:, seen].mean()) < 0.15
    assert float(got.std[:, 0, seen].mean()) < 0.3 * float(got.std[:, 0, ~seen].mean())
    assert float(got.chi2.mean()) == pytest.approx(1.0, abs=0.5)
    assert float(got.null_space[:, 0, seen].max()) < 0.05


def test_mistakes_are_told(model: LatentDiffusion) -> None:
    with pytest.raises(ShapeMismatch, match="observed values have shape"):
        model.reconstruct(observed()[:, :3], FIVE, noise_std=0.1)
    with pytest.raises(DataError, match="no observed value"):
        model.reconstruct(observed() * torch.nan, FIVE, noise_std=0.1)
    with pytest.raises(ConfigError, match="at least 2 samples"):
        model.reconstruct(observed(), FIVE, noise_std=0.1, samples=1)
    with pytest.raises(ConfigError, match="no FieldCodec"):
        sciLDM.load("qm9-small").reconstruct(observed(), FIVE)


def test_preparation_happens_once_and_resume_is_exact(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stopped in stage 1 and continued ends with the same bits, and was prepared once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line_domain.PREPARED.clear()
    calls: list[int] = []
    plain = LineAutoencoder.reconstruction_loss

    def stopping(
        self: LineAutoencoder, fields: torch.Tensor, decoded: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, fields, decoded)

    with monkeypatch.context() as patch:
        patch.setattr(LineAutoencoder, "reconstruction_loss", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(settings(), tmp_path / "run", say=silent)
    assert len(calls) < 8
    assert line_domain.PREPARED == [96]
    resumed = fit(settings(), tmp_path / "run", say=silent)
    assert line_domain.PREPARED == [96]
    whole = sciLDM.load(done)
    for part, module in whole.parts.items():
        mine = resumed.parts[part].state_dict()
        assert all(torch.equal(mine[name], value) for name, value in module.state_dict().items()), part


def test_the_command_writes_what_the_domain_writes(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "observed.json"
    data.write_text(json.dumps((280 + 10 * curves("test", [0])[:, 0, ::4]).tolist()))
    argv = [
        "reconstruct",
        str(done),
        "--input",
        str(data),
        "--operator",
        "every:step=4",
        "--noise-std",
        "0.1",
    ]
    argv += [
        "--samples",
        "3",
        "--steps",
        "4",
        "--seed",
        "1",
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main(argv) == 0
    said = capsys.readouterr()
    assert "chi-square of the data" in said.out
    assert "not calibrated" in said.out
    written = torch.tensor(json.loads((tmp_path / "out" / "mean.json").read_text()))
    again = sciLDM.load(done).reconstruct(
        torch.tensor(json.loads(data.read_text())), Subset(range(0, POINTS, 4)), noise_std=0.1, samples=3, steps=4,
        seed=1,
    )  # fmt: skip
    assert torch.allclose(written, again.mean, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--input", "nowhere.json"], "no such file"),
        (["--operator", "every:4"], "NAME:KEY=VALUE"),
        (["--noise-std", "-1"], "at least 0"),
        (["--samples", "1"], "at least 2"),
    ],
)
def test_the_command_tells_mistakes(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], expected: str
) -> None:
    data = tmp_path / "observed.json"
    data.write_text("[[280, 281, 279, 280]]")
    assert main(["reconstruct", str(done), "--input", str(data), *changes]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())


def test_the_command_with_a_domain_that_reads_no_observations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "observed.json"
    data.write_text("[]")
    assert main(["reconstruct", "qm9-small", "--input", str(data), "--device", "cpu"]) == 2
    assert "the domain molecules reads no observations" in " ".join(capsys.readouterr().err.split())


def test_operators_by_name() -> None:
    spec = OperatorSpec.parse("thick:factor=4,axis=z")
    assert spec == OperatorSpec("thick", {"factor": 4.0, "axis": "z"})
    assert OperatorSpec.parse(" mask ") == OperatorSpec("mask")
    for wrong in ("", ":a=1", "a:", "a:b", "a:b=1,b=2", "a:=3"):
        with pytest.raises(ConfigError, match="expected NAME"):
            OperatorSpec.parse(wrong)
