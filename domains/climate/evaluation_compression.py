"""What the autoencoder keeps of held-out fields, beside principal components with as many numbers per state."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from sciLDM.domains.climate.baselines import EOFs
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.evaluation_data import Model, Period, StudyData
from sciLDM.domains.climate.evaluation_scoring import Study
from sciLDM.domains.climate.scores_spectra import spectral_ratio

__all__ = ["compression"]

_BATCH = 256


def compression(
    model: Model,
    data: xr.Dataset | str | None = None,
    *,
    output: str | Path | None = None,
) -> Study:
    """Reconstruction of the test period.

    Args:
        model: A loaded climate model.
        data: What to read the periods from; the model's own data when None.
        output: JSON file to write.

    Returns:
        Rows `method` (`autoencoder`, `PCA`), with `numbers` per state, `ratio` (values over numbers), `rmse` of
        anomalies in training standard deviations, `explained` variance, `error_99` (errors of the 1st and the 99th
        percentile over all values, root mean square), and the range of the `spectral_ratio` up to 0.7 of the largest
        wavenumber where no cell is missing.
    """
    study = StudyData.of(model, data)
    codec, test = study.codec, study.periods["test"]
    numbers = codec.settings.channels * int(np.prod(codec.shape)) // codec.frames
    eofs = EOFs.fit(study.history().anomalies, study.weights, numbers)
    methods: dict[str, Callable[[], np.ndarray]] = {
        "autoencoder": lambda: _coded(model, study, test),
        "PCA": lambda: eofs.reconstruct(test.anomalies.astype(np.float64)),
    }
    rows = []
    for name, run in methods.items():
        error = np.where(test.known, run() - test.anomalies, 0.0)
        rows.append(_row(study, test, name, numbers, error))
    protocol = {
        "study": "compression",
        "states": len(test.values),
        "periods": codec.state["source"]["periods"],
    }
    found = Study(rows, protocol)
    if output is not None:
        found.write(output)
    return found


def _row(study: StudyData, test: Period, name: str, numbers: int, error: np.ndarray) -> dict[str, Any]:
    weight = study.weights * test.known
    square = float((error**2 * weight).sum() / weight.sum())
    power = float((test.anomalies**2 * weight).sum() / weight.sum())
    made = (test.anomalies + error)[test.known]
    tails = np.quantile(made, [0.01, 0.99]) - np.quantile(test.anomalies[test.known], [0.01, 0.99])
    row = {
        "method": name, "numbers": numbers, "ratio": study.exists.sum() / numbers, "rmse": square**0.5,
        "explained": 1 - square / power, "error_99": float(np.sqrt((tails**2).mean())),
    }  # fmt: skip
    if study.exists.all() and test.known.all():
        grid, shape = study.codec.template.grid, (-1, *study.exists.shape)
        ratio = spectral_ratio(
            (test.anomalies + error).reshape(shape),
            test.anomalies.reshape(shape),
            periodic=grid.periodic,
            latitude=grid.latitude if grid.kind == "regular" else None,
        )
        row |= {
            "spectral_ratio_min": float(ratio.power.min()),
            "spectral_ratio_max": float(ratio.power.max()),
        }
    return row


@torch.no_grad()
def _coded(model: Any, study: StudyData, test: Period) -> Float[np.ndarray, "time value"]:
    """`D(E(x))` of each state: the autoencoder of trajectories is given the same state in all frames."""
    codec, found = study.codec, []
    frames, device = codec.frames, model.stats.mean.device
    for start in range(0, len(test.values), _BATCH):
        part = slice(start, start + _BATCH)
        x = torch.from_numpy(test.values[part])
        when = Times(test.times.seconds[part, None], test.times.calendar, test.times.dtype)
        phase = torch.from_numpy(when.phase).float()
        if frames > 1:
            x, phase = x[:, :, None].expand(-1, -1, frames, -1, -1), phase.expand(-1, frames)
        fields = codec.from_units(x, {"phase": phase})
        code, mask = model.autoencoder.code(fields.to(device) if hasattr(fields, "to") else fields)
        decoded = model.autoencoder.decode(code, mask).cpu()
        decoded = decoded[:, :, 0] if frames > 1 else decoded
        found.append(decoded.numpy()[:, study.exists])
    return np.concatenate(found)
