"""`scildm doctor`: on a tiny run, on what is left of one, on a model without data, and on the shipped one."""

import csv
import json
import math
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sciLDM.artefact import shipped_artefacts
from sciLDM.cli import main
from sciLDM.data.latent_cache import LatentCache
from sciLDM.errors import ConfigError
from sciLDM.evaluate.doctor import diagnose
from sciLDM.evaluate.doctor_gaussian import LatentGaussian
from sciLDM.evaluate.doctor_run import calibration_findings, gate_rows, loader_facts, training_findings
from sciLDM.evaluate.doctor_sources import CARD_ENTRY, EncodesReference, find_cache, find_source
from sciLDM.posterior.conformal import Conformal
from sciLDM.posterior.result import Posterior

SETTINGS = SimpleNamespace(max_steps=1000, max_minutes=None, batch_size=64)


def said(findings: Sequence[object]) -> str:
    return " / ".join(f"{f.kind}: {f.text}" for f in findings)  # pyright: ignore[reportAttributeAccessIssue]


def curves(run: Path, losses: Sequence[float]) -> Path:
    (run / "denoiser").mkdir(parents=True)
    with (run / "denoiser" / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "val/loss", "seconds"])
        writer.writerows([100 * (k + 1), loss, 10.0 * (k + 1)] for k, loss in enumerate(losses))
    return run


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([1 / (k + 1) for k in range(10)], "note: the held-out loss still fell"),
        ([0.5 + math.exp(-k) for k in range(20)], "good: the held-out loss has settled"),
        ([0.9, 0.6, 0.5, 0.55, 0.6], "problem: the held-out loss has risen from 0.5 (step 300) to 0.6"),
        ([1.0, 0.9], "too few validations"),
    ],
)
def test_training_is_judged_by_its_held_out_loss(tmp_path: Path, losses: list[float], words: str) -> None:
    summary = {"denoiser": {"steps": 1000, "seconds": 10.0}}
    finished = "too few" not in words
    assert words in said(training_findings(curves(tmp_path, losses), summary, SETTINGS, finished=finished))


def test_why_training_ended() -> None:
    summary = {"denoiser": {"steps": 400}}
    timed = SimpleNamespace(max_steps=1000, max_minutes=5.0, batch_size=64)
    assert "step 400 of 1,000 by the limit of 5 minutes" in said(
        training_findings(None, summary, timed, finished=True)
    )
    assert "problem: training has not finished" in said(training_findings(None, {}, timed, finished=False))


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (
            {"validation": {"exact": 0.95}, "test": {"exact": 0.94}},
            "good: reconstruction gate passed: exact 0.94",
        ),
        (
            {"validation": {"exact": 0.95}, "test": {"exact": 0.8}},
            "problem: reconstruction gate missed: exact 0.8",
        ),
        ({}, "note: reconstruction gate: not recorded"),
    ],
)
def test_the_gate(stage: dict[str, object], words: str) -> None:
    assert words in said(gate_rows({"autoencoder": stage}, {"exact": 0.9})[1])
    assert "sets no gate" in said(gate_rows({"autoencoder": stage}, {})[1])


def test_the_loader_is_compared_with_the_training(tmp_path: Path) -> None:
    z, index = torch.randn(640, 2, 4), np.arange(640)
    cache = LatentCache.write(tmp_path / "latents", "key", [(z, None, {"index": index})], 640)
    slow, fast = ({"denoiser": {"steps": steps, "seconds": 1.0}} for steps in (1, 10**9))
    assert "no bottleneck" in said(loader_facts(None, cache, slow, SETTINGS, 0)[1])
    assert "problem: loader" in said(loader_facts(None, cache, fast, SETTINGS, 0)[1])
    facts, findings = loader_facts(curves(tmp_path, [1.0, 0.5]), None, {}, SETTINGS, 0)
    assert facts == {"training [samples/s]": 200 * 64 / 20.0}
    assert "not measured" in said(findings)


def test_calibration_is_told_from_its_absence() -> None:
    assert calibration_findings(None, fields=False) == ([], [])
    assert "not called calibrated" in said(calibration_findings(None, fields=True)[1])
    g = torch.Generator().manual_seed(0)
    std = torch.full((30, 1, 4), 0.1)
    zero = torch.zeros(30, 1, 4)
    posterior = Posterior(zero, std, torch.zeros(30, 2, 1, 4), torch.ones(30), zero)
    known = Conformal.fit(
        [posterior], [torch.randn(30, 1, 4, generator=g)], family="ThickSlice", levels=(0.9,)
    )
    rows, findings = calibration_findings(known, fields=True)
    assert rows[0]["factor"] == pytest.approx(10, rel=0.3)
    assert "more than twofold for ThickSlice (region 0)" in said(findings)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run, to be taken apart."""
    pytest.importorskip("rdkit")
    pytest.importorskip("torch_geometric")
    from tests.tiny import tiny_run

    return Path(shutil.copytree(tiny_run(tmp_path_factory), tmp_path_factory.mktemp("doctor") / "run"))


class Tags(HTMLParser):
    """Fails on tags that do not match."""

    VOID = frozenset({"meta", "br", "path", "use", "rect", "line"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open += [] if tag in self.VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """Nothing is opened."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_run_is_examined_from_its_latents(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tiny), "--steps", "3", "40"]) == 0
    text = capsys.readouterr().out
    count = json.loads((tiny / "data.json").read_text())["sizes"]["train"]
    assert f"{count} of {count} training latents in the run's cache" in text
    assert "could not be checked" not in text
    assert "too narrow" in text
    assert "no bottleneck" in text or "loader" in text
    page = (tiny / "doctor.html").read_text(encoding="utf-8")
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    for heading in (
        "Verdict",
        "Steps",
        "Temperature",
        "Guidance",
        "Latents",
        "Reconstruction gate",
        "Loader",
    ):
        assert f">{heading}</h2>" in page


def test_the_tables_are_those_of_the_library(tiny: Path) -> None:
    from sciLDM.model import load

    model = load(tiny)
    found = diagnose(model.experiment, model=model, run=tiny, steps=(3, 64))
    rows = {row["steps"]: row for row in found.solver}
    assert set(rows) == {3, 4, 64}  # the model's own is 4
    assert rows[64]["spread"] == pytest.approx(1.0, abs=0.01)
    assert found.biased_steps == [n for n in rows if abs(rows[n]["spread"] - 1) > 0.02]
    assert 3 in found.biased_steps
    assert found.temperature[0] == {"temperature": 1.0, "spread": rows[4]["spread"]}
    assert found.findings[0].kind == "problem"
    with pytest.raises(ConfigError, match="from 1"):
        diagnose(model.experiment, model=model, steps=(0,))


def test_a_model_without_latents_says_what_it_used(tiny: Path, tmp_path: Path) -> None:
    from sciLDM.model import load

    folder = shutil.copytree(tiny / "model", tmp_path / "alone")
    model = load(folder)
    del model.card["latents"]  # as in models made before cards described them
    found = diagnose(model.experiment, model=model, own=96)
    assert found.source is not None
    assert found.source.startswith("96 samples of the model itself (DPMSolverPP2M")
    assert found.solver
    assert "could not be checked" not in found.source
    assert found.loader["training [samples/s]"] is not None
    nothing = diagnose(model.experiment, model=model, own=0)
    assert nothing.source is None
    assert nothing.solver == ()
    assert "was not examined" in said(nothing.findings)


def test_a_card_may_describe_the_latents(tiny: Path) -> None:
    from sciLDM.model import load

    model = load(tiny)
    source = find_source(model, find_cache(tiny, model), count=500, own=0, seed=0, progress=lambda *_: None)
    assert source is not None
    model.card[CARD_ENTRY] = json.loads(json.dumps(source.gaussian.state()))
    with_run, with_card = (
        diagnose(model.experiment, model=model, run=tiny),
        diagnose(model.experiment, model=model, own=0),
    )
    assert with_card.source is not None
    assert "described in the model's card" in with_card.source
    for a, b in zip(with_run.solver, with_card.solver, strict=True):
        assert a["spread"] == pytest.approx(b["spread"], rel=1e-3)
    model.card[CARD_ENTRY] = {"format": 99}
    assert "problem: the sampler was not examined" in said(
        diagnose(model.experiment, model=model, own=0).findings
    )


def test_an_adapter_may_encode_its_reference(tiny: Path) -> None:
    from sciLDM.model import load

    model = load(tiny)
    z = torch.randn(200, model.autoencoder.latent_channels, 3)

    class Codec:
        conditions = ()

        def encode_reference(self, autoencoder: object, reference: Path, count: int) -> object:
            return z, None, {}

    stand_in = SimpleNamespace(
        codec=Codec(), reference=tiny, card={}, autoencoder=model.autoencoder, stats=model.stats,
        experiment=model.experiment, sample_latents=None,
    )  # fmt: skip
    assert isinstance(stand_in.codec, EncodesReference)
    source = find_source(stand_in, None, count=200, own=0, seed=0, progress=lambda *_: None)
    assert source is not None
    assert "encoded anew" in source.text
    expected = LatentGaussian.fit(model.stats.normalise(z))
    assert torch.equal(source.gaussian.variances, expected.variances)


def test_an_unfinished_run_is_examined_as_far_as_it_got(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(tiny, tmp_path / "unfinished"))
    shutil.rmtree(run / "model")
    (run / "summary.json").unlink()
    assert main(["doctor", str(run), "--steps", "10"]) == 0
    text = capsys.readouterr().out
    assert "training has not finished" in text
    assert "could not be checked" in text
    shutil.rmtree(run / "latents")
    assert main(["doctor", str(run)]) == 0
    assert "no latents yet" in capsys.readouterr().out


@pytest.mark.slow
def test_the_shipped_model_tells_which_steps_bias_its_spread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without training data, from a folder where nothing lies."""
    if "qm9-small" not in shipped_artefacts():
        pytest.skip("no shipped model")
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "qm9-small", "--samples", "512"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "steps that bias the spread by more than 2% at temperature 1: 5 (-1" in text
    assert "whatever the number of steps" in text
    assert "temperature 0.95 multiplies every standard deviation by 0.95" in text
    assert (tmp_path / "runs" / "qm9-small" / "doctor.html").exists()
