r"""Do molecules have several properties that were asked for at once?

Targets are the values of real molecules outside the training set, so that every combination exists. For a property,
with request `c_i`, realised value `y_i` and values `u_j` of molecules that were asked for nothing,

    mae = mean |y_i - c_i|,    mae_unconditional = mean_ij |u_j - c_i|,    ratio = mae / mae_unconditional.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from sciLDM.domain import Codec
from sciLDM.domains.molecules.codec import MoleculeCodec
from sciLDM.domains.molecules.conditional import conditional_table
from sciLDM.domains.molecules.descriptors import describe
from sciLDM.domains.molecules.reference import find_reference
from sciLDM.errors import ConfigError, DataError
from sciLDM.evaluate.hooks import ConditionalEvaluation, ConditionalSampling

__all__ = ["joint_table", "joint_tables"]


def joint_tables(
    sample: ConditionalSampling, codec: Codec, names: Sequence[str], *, per_target: int
) -> ConditionalEvaluation:
    """Tables of single properties and of combinations such as `logP+QED`, one after the other.

    Args:
        sample: Draws `MoleculeSamples` of the model.
        codec: Its codec.
        names: Properties, those asked for together joined by `+`.
        per_target: Molecules per target of a single property; a combination has ten times as many in all.

    Raises:
        DataError: No molecules at hand from which combinations could be taken.
        ConfigError: A property that the model does not know or RDKit cannot compute.
    """
    assert isinstance(codec, MoleculeCodec)
    rows, points, notes = [], [], []
    for name in names:
        if "+" in name:
            known = find_reference(None, codec.state["source"])
            if known is None:
                raise DataError(f"{name}: no held-out molecules at hand whose values could be asked for")
            measurable = [p.name for p in codec.properties if p.descriptor]
            found = joint_table(sample, measurable, name.split("+"), known.test, samples=10 * per_target)
        else:
            found = conditional_table(sample, codec, [name], per_target=per_target)
        rows, points, notes = [*rows, *found.rows], [*points, *found.points], [*notes, *found.notes]
    return ConditionalEvaluation(rows, points, notes)


def joint_table(
    sample: ConditionalSampling,
    measurable: Sequence[str],
    names: Sequence[str],
    pool: Sequence[str],
    *,
    samples: int = 1000,
    targets: int = 100,
) -> ConditionalEvaluation:
    """One row for each property asked for together with the others.

    Args:
        sample: Draws `MoleculeSamples` of the model.
        measurable: What the model can be asked for and RDKit can measure.
        names: Properties, two or more.
        pool: SMILES of real molecules, some of whose values are asked for.
        samples: Molecules to draw.
        targets: Different requests.

    Raises:
        ConfigError: A property that the model does not know or RDKit cannot compute, or fewer than two of them.
    """
    names = [name.strip() for name in names]
    if len(set(names)) < 2 or set(names) - set(measurable):
        raise ConfigError(
            f"expected two or more of {', '.join(measurable) or 'no properties'} (what this model can be asked for and "
            f"RDKit can measure), got {' + '.join(names)}"
        )
    chosen = np.random.default_rng(0).choice(len(pool), size=min(targets, len(pool), samples), replace=False)
    values = describe([pool[i] for i in chosen], names, workers=1)  # type: ignore[arg-type]
    wanted = {
        n: np.resize(np.repeat(values[n].to_numpy(float), -(-samples // len(chosen))), samples) for n in names
    }
    made = sample(samples, {n: v.tolist() for n, v in wanted.items()}).table
    free = sample(samples, {}).table
    smiles = [s for s in made["smiles"] if isinstance(s, str) and s]
    together = "+".join(names)
    rows = [
        {
            "property": f"{name} of {together}",
            **_errors(wanted[name], made[f"realised_{name}"], free[f"realised_{name}"]),
            "validity": len(smiles) / samples,
            "uniqueness": len(set(smiles)) / len(smiles) if smiles else float("nan"),
            "samples": samples,
            "targets": np.unique(wanted[name]).tolist(),
        }
        for name in names
    ]
    points = [
        {"property": f"{name} of {together}", "requested": asked, "realised": got, "smiles": text}
        for name in names
        for asked, got, text in zip(wanted[name], made[f"realised_{name}"], made["smiles"], strict=True)
    ]
    return ConditionalEvaluation(rows, points)


def _errors(wanted: np.ndarray, realised: pd.Series, free: pd.Series) -> dict[str, Any]:
    got, others = realised.to_numpy(float), free.to_numpy(float)
    good, others = np.isfinite(got), others[np.isfinite(others)]
    mae = float(np.abs(got[good] - wanted[good]).mean()) if good.any() else float("nan")
    base = float(np.abs(others[:, None] - np.unique(wanted)[None]).mean()) if len(others) else float("nan")
    varied = good.sum() > 2 and len(np.unique(got[good])) > 1
    return {
        "mae": mae,
        "mae_unconditional": base,
        "ratio": mae / base if base > 0 else float("nan"),
        "spearman": float(spearmanr(wanted[good], got[good]).statistic) if varied else float("nan"),
    }
