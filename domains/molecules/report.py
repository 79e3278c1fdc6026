"""The molecular part of a report: pictures, key figures, distributions, requests, rejected rows."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rdkit import Chem, rdBase

from sciLDM.domains.molecules._pictures import card, cards
from sciLDM.domains.molecules.codec import MoleculeCodec
from sciLDM.domains.molecules.descriptors import DESCRIPTORS, describe
from sciLDM.domains.molecules.reference import Reference, find_reference
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import DataError
from sciLDM.evaluate.figures import bars, histogram, panels, scatter, svg
from sciLDM.evaluate.hooks import Material, Section
from sciLDM.evaluate.html import details, escape, number, paragraph, table, tiles

__all__ = ["read_samples", "sections"]

_USUAL = ("logP", "QED", "TPSA", "MW", "SA", "rings")
_AT_MOST = 5000
"""Molecules per histogram; the descriptors of more would take longer than the eye can tell."""

_KEY = {
    "validity": "validity",
    "validity_raw": "validity, uncorrected",
    "uniqueness": "uniqueness",
    "novelty": "novelty",
    "nspdk/test": "NSPDK MMD",
    "fcd/test": "Fréchet ChemNet distance",
}


def read_samples(path: Path) -> MoleculeSamples:
    """Molecules from a table written by `MoleculeSamples.write`, or any CSV with a column `smiles`.

    Raises:
        DataError: No such file, or no column `smiles`.
    """
    try:
        found = pd.read_csv(path, keep_default_na=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read samples from {path}: {error}; expected a .csv written by `scildm sample`"
        ) from error
    if "smiles" not in found.columns:
        raise DataError(f"{path}: expected a column `smiles`, got {', '.join(map(str, found.columns[:8]))}")
    found["smiles"] = found["smiles"].astype(object).where(found["smiles"].notna(), None)
    with rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(s) if s else None for s in found["smiles"]]
    # A table from elsewhere has no record of the decoder; its molecules stand as they are.
    for flag, otherwise in (("valid_raw", [m is not None for m in mols]), ("changed", [False] * len(mols))):
        found[flag] = found[flag].astype(bool) if flag in found.columns else otherwise
    return MoleculeSamples(found, mols)


def sections(material: Material) -> list[Section]:
    """All sections that the run's files allow, in reading order."""
    codec = material.codec
    assert isinstance(codec, MoleculeCodec)
    reference = find_reference(material.reference, codec.state["source"])
    samples = read_samples(material.samples).table if material.samples is not None else None
    points = pd.read_csv(material.points) if material.points is not None else None
    found = [_key_figures(material.evaluation)]
    if samples is not None:
        found.append(_gallery(samples, codec))
    if points is not None:
        found += [_series(points), _requests(points, material.evaluation)]
    if samples is not None:
        found += [_distributions(samples, codec, reference), _sizes(samples, codec), _similarity(samples)]
    if material.reference is not None:
        found.append(_rejected(material.reference))
    return [section for section in found if section is not None]


def _key_figures(evaluation: Mapping[str, Any]) -> Section | None:
    rows = {r["metric"]: r for r in (evaluation.get("unconditional") or {}).get("rows", [])}
    shown = [
        (label, _share(name, rows[name]["value"]), f"real data: {_share(name, rows[name]['floor'])}")
        for name, label in _KEY.items()
        if name in rows
    ]
    return Section("Key figures", tiles(shown), "opening") if shown else None


def _share(name: str, value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, float) and "/" not in name else number(value)


def _gallery(samples: pd.DataFrame, codec: MoleculeCodec) -> Section | None:
    valid = samples[samples["smiles"].notna()].drop_duplicates("smiles").head(12)
    if valid.empty:
        return None
    names = [p.name for p in codec.properties if f"realised_{p.name}" in samples.columns]
    items = []
    for _, row in valid.iterrows():
        values = [(n, float(row[f"realised_{n}"]), _asked(row.to_dict(), n)) for n in names[:5]]
        items.append(card(row.to_dict(), values))
    text = paragraph(
        "The first distinct molecules of the evaluated set, as they came: nothing was picked.", kind="soft"
    )
    return Section("Molecules", text + cards(items), "opening")


def _asked(row: Mapping[Any, Any], name: str) -> float | None:
    wanted = row.get(f"requested_{name}")
    return float(wanted) if wanted is not None and np.isfinite(wanted) else None


def _series(points: pd.DataFrame) -> Section | None:
    """For each property, one molecule per target: the first that decoded."""
    parts = []
    good = points[points["smiles"].notna() & points["realised"].notna()]
    for name, group in good.groupby("property", sort=False):
        firsts = group.groupby("requested", sort=True).head(1).sort_values("requested")
        items = [
            card(row.to_dict(), [(str(name), float(row["realised"]), float(row["requested"]))])
            for _, row in firsts.iterrows()
        ]
        parts.append(details(f"{name}: {len(items)} targets", cards(items)))
    if not parts:
        return None
    text = paragraph(
        "The first molecule of each target, from the lowest to the highest: nothing was picked.", kind="soft"
    )
    opened = parts[0].replace("<details>", "<details open>", 1)
    return Section("Molecules on request", text + opened + "".join(parts[1:]))


def _requests(points: pd.DataFrame, evaluation: Mapping[str, Any]) -> Section | None:
    names = list(dict.fromkeys(points["property"]))
    if not names:
        return None
    rows = {r["property"]: r for r in (evaluation.get("conditional") or {}).get("rows", [])}
    figure, axes = panels(len(names), width=3.7, height=3.2)
    for k, (ax, name) in enumerate(zip(axes, names, strict=True)):
        part = points[points["property"] == name]
        mean = rows.get(name, {}).get("unconditional_mean")
        unit = DESCRIPTORS[name].unit.replace("angstrom^2", "Å²") if name in DESCRIPTORS else "1"
        label = name if unit == "1" else f"{name} [{unit}]"
        scatter(
            ax,
            part["requested"].to_numpy(float),
            part["realised"].to_numpy(float),
            name=label,
            unconditional=mean,
            legend=k == 0,
        )
    alt = f"Realised against requested values of {', '.join(names)}, with the line of perfect agreement"
    return Section("Requested against realised", svg(figure, alt))


def _distributions(
    samples: pd.DataFrame, codec: MoleculeCodec, reference: Reference | None
) -> Section | None:
    own = [p.name for p in codec.properties if p.descriptor]
    names = list(dict.fromkeys([*own, *_USUAL]))[:6]
    sets = {"samples": _some([s for s in samples["smiles"] if isinstance(s, str)])}
    if reference is not None:
        sets |= {"training": _some(reference.train), "test": _some(reference.test)}
    sets = {label: smiles for label, smiles in sets.items() if smiles}
    values = {label: describe(smiles, names, workers=None) for label, smiles in sets.items()}
    if not values:
        return None
    figure, axes = panels(len(names))
    for k, (ax, name) in enumerate(zip(axes, names, strict=True)):
        unit = DESCRIPTORS[name].unit.replace("angstrom^2", "Å²") if name in DESCRIPTORS else "1"
        histogram(
            ax,
            {k: v[name].to_numpy(float) for k, v in values.items()},
            x=name if unit == "1" else f"{name} [{unit}]",
            legend=k == 0,
        )
    text = paragraph(
        "RDKit's values of generated molecules beside those of training and test; "
        + ", ".join(f"{len(s):,} {label}" for label, s in sets.items()),
        kind="soft",
    )
    return Section(
        "Property distributions",
        text + svg(figure, "Histograms of molecular properties: samples, training, test"),
    )


def _some(smiles: list[str]) -> list[str]:
    """At most `_AT_MOST`, spread over the list."""
    return [
        smiles[i] for i in np.unique(np.linspace(0, len(smiles) - 1, min(len(smiles), _AT_MOST)).astype(int))
    ]


def _sizes(samples: pd.DataFrame, codec: MoleculeCodec) -> Section | None:
    with rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(s) for s in samples["smiles"] if isinstance(s, str)]
    sizes = Counter(m.GetNumHeavyAtoms() for m in mols if m is not None)
    if not sizes:
        return None
    total, known = sum(sizes.values()), sum(codec.sizes.counts)
    train = {int(n): c / known for n, c in zip(codec.sizes.atoms, codec.sizes.counts, strict=True)}
    figure, axes = panels(1, width=6.5, height=2.8)
    bars(
        axes[0],
        {"samples": {n: c / total for n, c in sizes.items()}, "training": train},
        x="heavy atoms",
        y="share",
    )
    return Section("Sizes", svg(figure, "Histogram of heavy atoms: samples and training"))


def _similarity(samples: pd.DataFrame) -> Section | None:
    if "similarity" not in samples.columns or bool(samples["similarity"].isna().all()):
        return None
    figure, axes = panels(1, width=6.5, height=2.8)
    histogram(
        axes[0],
        {"samples": samples["similarity"].to_numpy(float)},
        x="Tanimoto similarity to the nearest training molecule",
    )
    copies = ""
    if "in_train" in samples.columns:
        share = float(samples.loc[samples["smiles"].notna(), "in_train"].astype(bool).mean())
        copies = f" {share:.1%} of the valid samples are training molecules."
    text = paragraph(
        "Molecules at 1 have the same fingerprint as a training molecule; many of them would mean that training "
        "data are recited." + copies,
        kind="soft",
    )
    return Section(
        "Distance to the training data",
        text + svg(figure, "Histogram of similarity to the nearest training molecule"),
    )


def _rejected(reference: Path) -> Section | None:
    parts = []
    for file, what, column in (
        ("rejected.csv", "left out", "reason"),
        ("changed.csv", "changed on reading", "change"),
    ):
        path = reference / file
        rows = pd.read_csv(path) if path.exists() else pd.DataFrame()
        if rows.empty:
            continue
        kinds = rows[column].astype(str).str.partition(":")[0]
        counted = [
            {column: kind, "rows": int(count), "example": str(rows.loc[kinds == kind, "smiles"].iloc[0])[:80]}
            for kind, count in kinds.value_counts().head(20).items()
        ]
        parts.append(
            f"<h3>{escape(f'{len(rows):,} rows were {what}')}</h3>"
            + table(counted, (column, "rows", "example"))
        )
        parts.append(paragraph(f"All of them: reference/{file}", kind="soft"))
    if not parts:
        parts.append(paragraph("Every row of the data could be used as it was."))
    return Section("Rows left out of the data", "".join(parts), "data")
