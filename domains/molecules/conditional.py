r"""Do molecules have the properties that were asked for?

For each property, targets are spread evenly between the 5th and 95th percentile of the training split. Let `c_i` be the
request and `y_i` what RDKit computes for the molecule that came back. The score is `MAE = mean |y_i - c_i|`, beside the
same error of molecules `u_j` that were asked for nothing, `mean_{ij} |u_j - c_i|`: their ratio says what
asking achieves. Only molecules that decoded count, so validity is given too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from sciLDM.domains.molecules.codec import MoleculeCodec, Property
from sciLDM.errors import ConfigError
from sciLDM.evaluate.hooks import ConditionalEvaluation, ConditionalSampling

__all__ = ["conditional_table", "targets_of"]

_KEPT = ("smiles", "in_train", "nearest_train_smiles", "similarity")


def conditional_table(
    model_sample: ConditionalSampling,
    codec: MoleculeCodec,
    names: Sequence[str] | None = None,
    *,
    per_target: int = 100,
    targets: int = 10,
) -> ConditionalEvaluation:
    """Requested against realised values, one property at a time.

    Args:
        model_sample: Draws `MoleculeSamples` of the model.
        codec: Its codec, which knows the training quantiles.
        names: Properties to ask for; None takes all that RDKit can compute.
        per_target: Molecules per target.
        targets: Targets per property; fewer where a property takes few whole numbers.

    Raises:
        ConfigError: A property that the model does not know or RDKit cannot compute, or too few molecules.
    """
    if per_target < 2 or targets < 2:
        raise ConfigError(f"per_target and targets must be at least 2, got {per_target} and {targets}")
    properties = _chosen(codec, names)
    asked = {p.name: targets_of(p, targets) for p in properties}
    most = max(len(values) for values in asked.values())
    free = model_sample(per_target * most, {}).table
    rows, points = [], []
    for p in properties:
        requested = np.repeat(asked[p.name], per_target)
        table = model_sample(len(requested), {p.name: requested.tolist()}).table
        rows.append(_row(p.name, requested, table, free))
        points += _points(p.name, requested, table)
    notes = [
        f"{r['property']}: only {r['validity']:.1%} of the conditional samples decode; the error covers those alone."
        for r in rows
        if r["validity"] < 0.9
    ]
    left_out = [p.name for p in codec.properties if not p.descriptor]
    if names is None and left_out:
        notes.append(
            f"RDKit cannot compute {', '.join(left_out)}: whether those requests are met was not measured."
        )
    return ConditionalEvaluation(rows, points, notes)


def targets_of(p: Property, count: int) -> np.ndarray:
    """Targets between the 5th and 95th percentile of training; whole numbers for a property that counts things."""
    low, high = p.quantiles[1], p.quantiles[5]
    values = np.linspace(low, high, count)
    if all(float(q).is_integer() for q in p.quantiles):
        values = np.unique(np.round(values))
    return values


def _chosen(codec: MoleculeCodec, names: Sequence[str] | None) -> list[Property]:
    known = {p.name: p for p in codec.properties}
    measurable = [p.name for p in codec.properties if p.descriptor]
    for name in names or ():
        if name not in known:
            folded = {k.lower(): k for k in known}.get(name.lower())
            hint = f"; did you mean {folded!r}?" if folded else ""
            raise ConfigError(
                f"cannot ask for {name!r}; this model knows {', '.join(known) or 'no properties'}{hint}"
            )
        if name not in measurable:
            raise ConfigError(
                f"{name!r} cannot be measured on a new molecule, expected what RDKit computes "
                f"({', '.join(measurable) or 'none of the conditions of this model'}); compute it with your own program"
            )
    chosen = [known[name] for name in (measurable if names is None else names)]
    if not chosen:
        raise ConfigError("this model has no condition that RDKit can compute: there is nothing to measure")
    return chosen


def _row(name: str, requested: np.ndarray, table: pd.DataFrame, free: pd.DataFrame) -> dict[str, Any]:
    realised = table[f"realised_{name}"].to_numpy(dtype=float)
    good = np.isfinite(realised)
    others = free[f"realised_{name}"].to_numpy(dtype=float)
    others = others[np.isfinite(others)]
    wanted = np.unique(requested)
    mae = float(np.abs(realised[good] - requested[good]).mean()) if good.any() else float("nan")
    base = float(np.abs(others[:, None] - wanted[None]).mean()) if len(others) else float("nan")
    smiles = [s for s in table["smiles"] if isinstance(s, str) and s]
    varied = good.sum() > 2 and len(np.unique(realised[good])) > 1
    return {
        "property": name,
        "mae": mae,
        "mae_unconditional": base,
        "ratio": mae / base if base > 0 else float("nan"),
        "spearman": float(spearmanr(requested[good], realised[good]).statistic) if varied else float("nan"),
        "validity": len(smiles) / len(table),
        "uniqueness": len(set(smiles)) / len(smiles) if smiles else float("nan"),
        "unconditional_mean": float(others.mean()) if len(others) else float("nan"),
        "samples": len(table),
        "targets": [float(t) for t in wanted],
    }


def _points(name: str, requested: np.ndarray, table: pd.DataFrame) -> list[dict[str, Any]]:
    kept = table[[c for c in _KEPT if c in table.columns]].copy()
    kept.insert(0, "property", name)
    kept.insert(1, "requested", requested)
    kept.insert(2, "realised", table[f"realised_{name}"].to_numpy())
    return [{str(k): v for k, v in row.items()} for row in kept.to_dict("records")]
