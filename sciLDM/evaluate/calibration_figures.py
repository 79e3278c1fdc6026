"""Figures of a calibration: reliability of intervals, rank histogram; SVG for pages, PNG for anything else."""

import io
import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from sciLDM.evaluate import html
from sciLDM.evaluate.calibration import Calibration
from sciLDM.evaluate.calibration_sbc import SBC
from sciLDM.evaluate.figures import INK, PALETTE, panels, svg
from sciLDM.evaluate.hooks import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # matplotlib is optional; annotations are read at run time under pytest
    Axes = Figure = Any

__all__ = ["calibration_figure", "calibration_section", "png", "sbc_figure"]


def calibration_figure(found: Calibration) -> Figure:
    """Reliability curve and rank histogram side by side.

    Raises:
        MissingExtra: matplotlib is absent.
    """
    figure, axes = panels(2, width=4.2, height=3.0)
    _reliability(axes[0], found)
    _ranks(axes[1], found.rank_histogram, found.cases)
    return figure


def sbc_figure(found: Mapping[str, SBC]) -> Figure:
    """One rank histogram for each quantity, with the band that a right sampler stays in.

    Raises:
        MissingExtra: matplotlib is absent.
    """
    figure, axes = panels(len(found), width=3.2, height=2.4)
    for ax, (name, result) in zip(axes, found.items(), strict=True):
        _ranks(ax, result.rank_histogram, len(result.positions), band=True)
        ax.set_title(f"{name} (p = {result.flat.p_value:.2g})", fontsize=9, color=INK)
    return figure


def png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as a PNG file on white."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, facecolor="white")
    return stream.getvalue()


def calibration_section(found: Mapping[str, Calibration], *, title: str = "Calibration") -> Section:
    """Table, verdict and figure for each region, as a piece of a report.

    Args:
        found: By the region's name.
        title: Heading.
    """
    parts = []
    for name, one in found.items():
        problems = one.problems()
        parts.append(f"<h3>{html.escape(name)}</h3>" if len(found) > 1 else "")
        parts.append(
            html.paragraph(
                f"{one.cases} held-out cases, {one.members} samples each; intervals are 95 % bootstrap intervals over "
                "cases.",
                kind="soft",
            )
        )
        if problems:
            parts.append(f'<ul class="notes">{"".join(f"<li>{html.escape(p)}</li>" for p in problems)}</ul>')
        parts.append(html.table(one.rows(), ("score", "ideal", "value", "lower", "upper")))
        parts.append(svg(calibration_figure(one), f"Calibration of {name}: reliability, rank histogram"))
    return Section(title, "".join(parts))


def _reliability(ax: Axes, found: Calibration) -> None:
    ax.plot([0, 1], [0, 1], color=INK, linewidth=1.0, linestyle="--", label="ideal")
    kinds = {"samples": found.coverage, "mean ± z std": found.gaussian_coverage}
    for k, (name, kind) in enumerate(kinds.items()):
        at = sorted(kind)
        values = [kind[level].value for level in at]
        below = [max(kind[level].value - kind[level].lower, 0.0) for level in at]
        above = [max(kind[level].upper - kind[level].value, 0.0) for level in at]
        known = [not math.isnan(b) for b in below]
        bars = [[b if k else 0.0 for b, k in zip(side, known, strict=True)] for side in (below, above)]
        ax.errorbar(
            at, values, yerr=bars, color=PALETTE[k], fmt="o-", markersize=3.5, linewidth=1.4, label=name
        )
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("nominal coverage")
    ax.set_ylabel("found coverage")
    ax.legend(fontsize=7.5, frameon=False, labelcolor=INK)


def _ranks(ax: Axes, shares: tuple[float, ...], count: int, *, band: bool = False) -> None:
    bins = len(shares)
    edges = [k / bins for k in range(bins + 1)]
    density = [s * bins for s in shares]
    ax.stairs(density, edges, color=PALETTE[0], linewidth=1.4)
    ax.stairs(density, edges, color=PALETTE[0], fill=True, alpha=0.3)
    ax.axhline(1.0, color=INK, linewidth=1.0, linestyle="--")
    if band:
        half = NormalDist().inv_cdf(0.995) * math.sqrt((bins - 1) / count)  # binomial, 99 %
        ax.axhspan(max(1 - half, 0), 1 + half, color=PALETTE[1], alpha=0.15, linewidth=0)
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel("rank of the truth among the samples")
    ax.set_ylabel("density")
