"""The climate part of a run's report: samples beside real fields, maps of their statistics, spectra, studies."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sciLDM.domains.climate.codec import ClimateCodec
from sciLDM.domains.climate.evaluation import FieldSet, read_reference, sampled_fields
from sciLDM.domains.climate.maps import draw_maps
from sciLDM.domains.climate.outputs import read_dataset
from sciLDM.domains.climate.scores_spectra import isotropic_spectrum
from sciLDM.evaluate.figures import lines, panels, svg
from sciLDM.evaluate.hooks import Material, Section
from sciLDM.evaluate.html import paragraph, table

__all__ = ["FORECASTS", "GAPS", "report_sections"]

GAPS, FORECASTS = "gap_filling.json", "forecasts.json"
"""Where studies are looked for in a run folder; `gap_filling(..., output=run / GAPS)`."""

_FEW = 4
_STUDIES = {
    GAPS: (
        "Gap filling",
        "Held-out states from few observations; scores at unobserved places. The CRPS ratio is ours over "
        "theirs, case by case: below 1 is better.",
        (
            "mask",
            "fraction",
            "method",
            "calibrated",
            "rmse",
            "crps",
            "crps_ratio",
            "spread_skill",
            "coverage",
            "chi2",
        ),
    ),
    FORECASTS: (
        "Forecasts",
        "Ensemble forecasts of the test period. The CRPS is fair; its ratio is ours over theirs, case by case.",
        ("lead", "method", "calibrated", "rmse", "crps", "crps_ratio", "spread_skill", "coverage"),
    ),
}


def report_sections(material: Material) -> Sequence[Section]:
    """Maps, spectra, studies."""
    codec = material.codec
    assert isinstance(codec, ClimateCodec)
    found: list[Section] = []
    test = None if material.reference is None else read_reference(codec, material.reference, "runs")
    if material.samples is not None and material.samples.exists():
        drawn = sampled_fields(codec, read_dataset(material.samples))
        found += [_gallery(codec, drawn, test), *_statistics(codec, drawn, test)]
    found += _studies(material.run)
    if material.reference is not None:
        found += _notes(material.reference)
    return found


def _field(codec: ClimateCodec, row: np.ndarray, channel: int = 0) -> np.ndarray:
    exists = codec.exists.numpy()
    field = np.full(exists.shape, np.nan)
    field[exists] = row
    return field[channel]


def _gallery(codec: ClimateCodec, drawn: FieldSet, test: FieldSet | None) -> Section:
    variable = codec.template.variables[0]
    at = np.linspace(0, len(drawn.values) - 1, min(_FEW, len(drawn.values))).astype(int)
    shown = {f"sample, {drawn.times.take([k]).text()[0]}": _field(codec, drawn.values[k]) for k in at}
    if test is not None:
        rows = np.linspace(0, len(test.values) - 1, min(_FEW, len(test.values))).astype(int)
        shown |= {f"real, {test.times.take([k]).text()[0]}": _field(codec, test.values[k]) for k in rows}
    figure = draw_maps(shown, codec.template.grid, units=variable.units or "", columns=_FEW)
    text = paragraph("Samples spread evenly over the evaluated set, and real fields of the test period: nothing was "
                     "picked.", kind="soft")  # fmt: skip
    alt = f"Maps of {variable.name}: samples above, real fields below"
    return Section(f"Maps of {variable.name}", text + svg(figure, alt), "opening")


def _statistics(codec: ClimateCodec, drawn: FieldSet, test: FieldSet | None) -> list[Section]:
    if test is None:
        return []
    variable, sections = codec.template.variables[0], []
    shown = {}
    for name, of in (("mean", np.nanmean), ("std", np.nanstd)):
        for label, part in (("samples", drawn), ("test", test)):
            shown[f"{name}, {label}"] = _field(codec, of(part.values, axis=0))
    spread = tuple(k for k in shown if k.startswith("std"))
    figure = draw_maps(shown, codec.template.grid, units=variable.units or "", columns=4, spread=spread)
    sections.append(
        Section("Mean and standard deviation", svg(figure, "Maps of mean and standard deviation"))
    )
    if codec.exists.numpy().all():
        curves = {}
        for label, part in (("samples", drawn), ("test", test)):
            found = isotropic_spectrum(part.anomalies.reshape(-1, *codec.exists.shape))
            curves[label] = (found.wavenumber.tolist(), found.power.tolist())
        figure, axes = panels(1, width=5.5, height=3.2)
        lines(axes[0], curves, x="half waves along the shorter side", y="variance of anomalies", log=True)
        sections.append(Section("Spectrum", svg(figure, "Power spectra of samples and test period")))
    return sections


def _studies(run: Path) -> list[Section]:
    found = []
    for file, (title, text, columns) in _STUDIES.items():
        path = run / file
        if not path.exists():
            continue
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        protocol = content.get("protocol", {})
        told = ", ".join(
            f"{k}: {protocol[k]}" for k in ("members", "windows", "cases", "noise_std") if k in protocol
        )
        found.append(
            Section(title, paragraph(text) + paragraph(told, kind="soft") + table(content["rows"], columns))
        )
    return found


def _notes(reference: Path) -> list[Section]:
    index = reference / "reference.json"
    if not index.exists():
        return []
    notes = json.loads(index.read_text(encoding="utf-8")).get("notes", [])
    return (
        [Section("What was found in the data", "".join(paragraph(n) for n in notes), "data")] if notes else []
    )
