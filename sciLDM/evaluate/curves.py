"""Training curves from the `metrics.csv` of a stage."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sciLDM.evaluate.figures import INK, PALETTE, lines, panels, svg
from sciLDM.evaluate.hooks import Section
from sciLDM.evaluate.html import paragraph

__all__ = ["read_metrics", "training_sections"]

Curve = tuple[list[float], list[float]]


def read_metrics(path: Path) -> dict[str, Curve]:
    """Steps and values of every column; lines that a crash cut short are skipped."""
    if not path.exists():
        return {}
    found: dict[str, Curve] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                step = float(row.pop("step"))
            except (KeyError, TypeError, ValueError):
                continue
            for name, text in row.items():
                try:
                    value = float(text)
                except (TypeError, ValueError):
                    continue
                if math.isfinite(value):
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(step)
                    values.append(value)
    return found


def training_sections(run: Path, gate: Mapping[str, float]) -> list[Section]:
    """One section per stage that left metrics."""
    sections = []
    first = read_metrics(run / "autoencoder" / "metrics.csv")
    if first:
        sections.append(Section("Stage 1: autoencoder", _autoencoder(first, gate)))
    second = read_metrics(run / "denoiser" / "metrics.csv")
    if second:
        sections.append(Section("Stage 2: denoiser", _denoiser(second)))
    return sections


def _losses(metrics: Mapping[str, Curve]) -> dict[str, Curve]:
    names = {"training": "train/loss", "held out": "val/loss"}
    return {label: metrics[name] for label, name in names.items() if name in metrics}


def _autoencoder(metrics: Mapping[str, Curve], gate: Mapping[str, float]) -> str:
    scores = [n for n in metrics if n.startswith("val/") and not n.startswith("val/loss")]
    gated = [n for n in scores if n.removeprefix("val/") in gate]
    shown = [*gated, *[n for n in scores if n not in gated]][:5]
    count = 1 + len(shown)
    figure, axes = panels(count, width=4.4 if count in (2, 4) else 3.5, columns=2 if count == 4 else 3)
    lines(axes[0], _losses(metrics), x="step", y="loss", log=True)
    for ax, name in zip(axes[1:], shown, strict=True):
        short = name.removeprefix("val/")
        lines(ax, {"held out": metrics[name]}, x="step", y=short.replace("_", " "))
        if short in gate:
            ax.axhline(gate[short], color=PALETTE[1], linewidth=1.2, linestyle="--", label="gate")
            ax.legend(fontsize=7.5, frameon=False, labelcolor=INK)
    text = "Loss, and what is rebuilt of held-out data during training. What it cannot rebuild cannot be generated."
    return paragraph(text, kind="soft") + svg(figure, "Autoencoder: loss and held-out reconstruction by step")


def _denoiser(metrics: Mapping[str, Curve]) -> str:
    levels = sorted(
        (n for n in metrics if n.startswith("val/loss_lmbda_")), key=lambda n: int(n.rpartition("_")[2])
    )
    figure, axes = panels(2 if levels else 1, width=4.4, height=3.0)
    lines(axes[0], _losses(metrics), x="step", y="loss", log=True)
    if levels:
        lines(axes[1], _by_level(metrics, levels), x="noise level (0 noisiest)", y="held-out v error")
        axes[1].set_ylim(bottom=0.0)
    text = (
        "Held-out loss is the error of the predicted velocity, averaged over noise levels; an untrained network "
        "scores 1. The training loss has its own weights and dropped conditions, so the two curves need not meet."
    )
    return paragraph(text, kind="soft") + svg(
        figure, "Denoiser: loss by step, and held-out error by noise level"
    )


def _by_level(metrics: Mapping[str, Curve], levels: Sequence[str]) -> dict[str, Curve]:
    """Error by noise level at up to four moments of training."""
    steps = metrics[levels[0]][0]
    chosen = sorted({0, len(steps) // 3, 2 * len(steps) // 3, len(steps) - 1})
    curves: dict[str, Curve] = {}
    for k in chosen:
        if all(len(metrics[n][1]) > k for n in levels):
            at = [float(n.rpartition("_")[2]) for n in levels]
            curves[f"step {steps[k]:,.0f}"] = (at, [metrics[n][1][k] for n in levels])
    return curves
