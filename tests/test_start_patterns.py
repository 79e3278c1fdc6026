"""How many patterns a Gaussian start of large latents has, and which covariance then weighs the data."""

from pathlib import Path

import pytest

import sciLDM
from sciLDM.gaussian_start import FactorStart
from sciLDM.guidance.posterior import GaussNewtonSolver, MeasuredCovariance, StartGaussian
from tests.test_factor_start import settings


def test_patterns_are_as_many_as_asked_for_and_large_latents_use_measured_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sciLDM.assembly.LARGEST_START", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sciLDM.fit(settings(start_patterns=1), tmp_path / "run", say=lambda _: None)
    model = sciLDM.load(tmp_path / "run")
    start = model.denoiser.start
    assert isinstance(start, FactorStart)
    assert start.loadings.shape[0] == 1
    for largest, kind in ((len(start.mean), StartGaussian), (1, MeasuredCovariance)):
        monkeypatch.setattr("sciLDM.assembly.LARGEST_BY_CELLS", largest)
        solver = model.solver
        assert isinstance(solver, GaussNewtonSolver)
        assert isinstance(solver.covariance, kind)
