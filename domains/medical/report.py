"""The medical part of a report: samples, reconstructions with pictures, the autoencoder, groups of patients."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sciLDM.domains.medical.corpus import cases
from sciLDM.domains.medical.pictures import middle_of, orthogonal_slices
from sciLDM.domains.medical.samples import read_samples
from sciLDM.domains.medical.study_result import OURS, Study, read_study
from sciLDM.evaluate.figures import lines, panels, svg
from sciLDM.evaluate.hooks import Material, Section
from sciLDM.evaluate.html import number, paragraph, table, tiles

__all__ = ["AUDIT", "AUTOENCODER", "STUDY", "sections", "study_html"]

STUDY, AUTOENCODER, AUDIT = "study", "autoencoder.json", "audit.json"
"""Where a run folder keeps a study (`Study.save`), an autoencoder report and an audit."""

_SHOWN = 4
_COLUMNS = {
    "method": "method",
    "volumes": "volumes",
    "psnr": "PSNR [dB]",
    "ssim": "SSIM",
    "psnr_ahead": "we are ahead by [dB]",
    "interval": "95 % interval",
    "coverage": "coverage of 90 %",
    "coverage_family": "as shipped",
    "coverage_raw": "uncalibrated",
    "crps": "CRPS",
    "chi2": "chi-square",
    "seconds": "s a volume",
}


def sections(material: Material) -> list[Section]:
    """All sections that the run's files allow, in reading order."""
    found = []
    study = read_study(material.run / STUDY) if (material.run / STUDY / "study.json").is_file() else None
    if study is not None:
        found.append(_key_figures(study))
    if material.samples is not None and material.samples.is_file():
        found.append(_gallery(material.samples))
    if study is not None:
        found.append(Section("Reconstruction of held-out volumes", study_html(study)))
    autoencoder = _json(material.run / AUTOENCODER)
    if autoencoder is not None:
        found.append(_autoencoder(autoencoder))
    audit = _json(material.run / AUDIT)
    if audit is not None:
        found.append(_audit(audit))
    if material.reference is not None:
        found.append(_data(material.reference))
    return [section for section in found if section is not None]


def study_html(study: Study) -> str:
    """Tables and pictures of every task; rows where we lose are there like all others."""
    protocol = study.protocol
    parts = [
        paragraph(
            f"{protocol['volumes']['test']} test volumes; noise {number(protocol['noise'])} of the data range; "
            f"{protocol['samples']} posterior samples. PSNR and SSIM are relative to {protocol['data_range']}; SSIM: "
            f"{protocol['ssim']}. CRPS is a share of the range, and the mean absolute error for methods without a "
            "spread.",
            kind="soft",
        )
    ]
    rows = study.rows
    for task in dict.fromkeys(row["task"] for row in rows):
        note = protocol["tasks"].get(task, {})
        parts.append(f"<h3>{task}</h3>" if task.isalnum() else "")
        own = [r | {"interval": _interval(r)} for r in rows if r["task"] == task]
        used = {k: v for k, v in _COLUMNS.items() if any(r.get(k) not in (None, "") for r in own)}
        parts.append(paragraph(f"Compared: {note.get('compared', 'all voxels')}.", kind="soft"))
        parts.append(table(own, used))
        if task in study.examples:
            parts.append(_example(task, study.examples[task]))
    return "".join(parts)


def _interval(row: Mapping[str, Any]) -> str:
    if row.get("lower") is None or not np.isfinite(row["lower"]):
        return ""
    return f"{number(row['lower'])} to {number(row['upper'])}"


def _example(task: str, images: Mapping[str, np.ndarray]) -> str:
    truth, recon = images["truth"], images["recon"]
    shown = {"truth": truth, "input": images["input"]}
    shown |= {k: images[k] for k in ("cubic", "TV", "supervised U-Net") if k in images}
    shown |= {"reconstruction": recon, "error": recon - truth, "std": images["std"]}
    at = middle_of(images.get("scored"), truth.shape)
    low, high = np.percentile(truth, [0.0, 99.5]).tolist()
    alt = f"Orthogonal slices of the first test volume, task {task}: {', '.join(shown)}"
    return orthogonal_slices(shown, alt, at=at, window=(low, max(high, low + 1e-9)))


def _key_figures(study: Study) -> Section | None:
    entries = []
    for row in study.rows:
        if row["method"] != OURS or row["psnr"] is None:
            continue
        others = [r["psnr"] for r in study.rows if r["task"] == row["task"] and r["method"] != OURS]
        best = max((p for p in others if p is not None), default=None)
        entries.append(
            (f"{row['task']}: PSNR", f"{number(row['psnr'])} dB", f"best other: {number(best)} dB")
        )
    return Section("Key figures", tiles(entries), "opening") if entries else None


def _gallery(path: Path) -> Section | None:
    samples = read_samples(path)
    if not len(samples):
        return None
    first = samples.volumes[:_SHOWN]
    largest = np.max([v.shape for v in first], axis=0)
    shown = {v.name.removesuffix(".nii.gz"): _padded(v.data, largest) for v in first}
    text = paragraph("The first samples, as they came: nothing was picked.", kind="soft")
    picture = orthogonal_slices(
        shown, f"Orthogonal slices of {len(shown)} samples", spacing=first[0].spacing, window=samples.scale
    )
    return Section("Samples", text + picture, "opening")


def _padded(data: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """In the middle of a larger box, blank around it."""
    room = [((n - m) // 2, n - m - (n - m) // 2) for n, m in zip(shape.tolist(), data.shape, strict=True)]
    return np.pad(data.astype(np.float32), room, constant_values=np.nan)


def _autoencoder(content: Mapping[str, Any]) -> Section:
    heads = {
        "group": "group",
        "volumes": "volumes",
        "psnr": "PSNR [dB]",
        "ssim": "SSIM",
        "bias": "bias / range",
    }
    parts = [table(content["groups"], heads)]
    curve: dict[str, tuple[list[float], list[float]]] = {}
    for row in content["retention"]:
        xs, ys = curve.setdefault(f"contrast {row['contrast']:g}", ([], []))
        xs.append(row["radius"])
        ys.append(row["retention"])
    if curve:
        figure, axes = panels(1, width=5.5, height=2.8)
        lines(axes[0], curve, x="radius of the sphere [voxels]", y="retention")
        parts.append(
            paragraph(
                "Share of the contrast of inserted faint spheres that survives coding; 1 is all.", kind="soft"
            )
        )
        parts.append(svg(figure, "Retention of faint spheres against their radius, by contrast"))
    if content.get("seam") is not None:
        parts.append(paragraph(f"Tiled against whole: at most {content['seam']:.1e} of the range."))
    return Section("Autoencoder", "".join(parts))


def _audit(content: Mapping[str, Any]) -> Section | None:
    parts = []
    for task, audit in content.items():
        rows = [r | {"interval": _interval(r)} for r in audit["rows"]]
        heads: Sequence[str] = ("attribute", "group", "metric", "volumes", "value", "interval")
        parts.append(paragraph(f"{task}: by group of patients", kind="soft") + table(rows, heads))
        if audit["tests"]:
            parts.append(table(audit["tests"], ("attribute", "metric", "worst", "gap", "p", "p_holm")))
        parts += [paragraph(line, kind="soft") for line in audit["notes"]]
    return Section("Groups of patients", "".join(parts)) if parts else None


def _data(reference: Path) -> Section | None:
    found = cases(reference)
    if found is None:
        return None
    count = found.groupby("split", sort=False).agg(volumes=("name", "size"), patients=("patient", "nunique"))
    rows = [
        {"split": str(split), **{str(k): int(v) for k, v in row.items()}} for split, row in count.iterrows()
    ]
    return Section("Volumes", table(rows, ("split", "volumes", "patients")), "data")


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
