"""Properties RDKit computes from a structure: conditions for a model, and the oracle for its samples."""

import difflib
import functools
import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import QED, Crippen, Descriptors, rdMolDescriptors

from sciLDM.domains.molecules._parallel import CHUNK, Progress, parallel_map
from sciLDM.errors import DataError

__all__ = ["DESCRIPTORS", "Descriptor", "describe"]


@final
@dataclass(frozen=True)
class Descriptor:
    """A number computed from a molecule.

    Args:
        unit: its unit; ``"1"`` for a pure number.
        meaning: one line with its source.
        compute: RDKit molecule -> value.
    """

    unit: str
    meaning: str
    compute: Callable[[Chem.Mol], float]


def describe(
    molecules: Iterable[str | Chem.Mol | None],
    names: Sequence[str],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Compute descriptors of many molecules.

    Args:
        molecules: SMILES, RDKit molecules, or a mixture; ``None`` stands for a molecule that could not be
            made.
        names: keys of :data:`DESCRIPTORS`, in any case.
        workers: processes; ``None`` takes every core, 1 stays in this process.
        progress: told how far the work has come.

    Returns:
        One row a molecule, one column a name as given; NaN where there is no molecule or RDKit cannot say.

    Raises:
        DataError: unknown name; the message suggests near ones.
    """
    if isinstance(names, str):
        names = [names]
    keys = [_resolve(name) for name in names]
    molecules = list(molecules)
    chunks = [(molecules[start : start + CHUNK], keys) for start in range(0, len(molecules), CHUNK)]
    blocks = list(parallel_map(_describe_chunk, chunks, workers=workers, progress=progress))
    return pd.DataFrame(np.concatenate([np.empty((0, len(keys))), *blocks]), columns=list(names))


def _describe_chunk(molecules: Sequence[str | Chem.Mol | None], keys: Sequence[str]) -> np.ndarray:
    values = np.full((len(molecules), len(keys)), math.nan)
    with rdBase.BlockLogs():
        for row, given in enumerate(molecules):
            molecule = Chem.MolFromSmiles(given) if isinstance(given, str) else given
            if molecule is None or molecule.GetNumAtoms() == 0:
                continue
            for column, key in enumerate(keys):
                try:
                    values[row, column] = DESCRIPTORS[key].compute(molecule)
                except (ArithmeticError, RuntimeError, TypeError, ValueError):
                    continue  # not defined for this molecule: stays NaN
    return values


def _resolve(name: str) -> str:
    folded = {key.lower(): key for key in DESCRIPTORS}
    if name.lower() in folded:
        return folded[name.lower()]
    near = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(folded[key] for key in near)}? " if near else ""
    raise DataError(f"no descriptor is called {name!r}; {hint}known are {', '.join(DESCRIPTORS)}")


@functools.cache
def _sa_module() -> Any:
    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("_sciLDM_sascorer", path)
    if spec is None or spec.loader is None or not path.exists():
        raise DataError(f"RDKit's synthetic accessibility score is not at {path}; install rdkit from PyPI")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _synthetic_accessibility(molecule: Chem.Mol) -> float:
    return _sa_module().calculateScore(molecule)


@functools.lru_cache(maxsize=1)
def _qed_properties(molecule: Chem.Mol) -> Any:
    """What QED is made of; kept for the molecule that was asked for last, since the alerts take nearly all the time."""
    return QED.properties(molecule)


def _qed(molecule: Chem.Mol) -> float:
    return QED.qed(molecule, qedProperties=_qed_properties(molecule))


def _alerts(molecule: Chem.Mol) -> float:
    return float(_qed_properties(molecule).ALERTS)


DESCRIPTORS: dict[str, Descriptor] = {
    "logP": Descriptor(
        "1",
        "octanol-water partition coefficient, Wildman and Crippen 1999, doi:10.1021/ci990307l",
        Crippen.MolLogP,
    ),
    "QED": Descriptor("1", "drug-likeness in [0, 1], Bickerton et al. 2012, doi:10.1038/nchem.1243", _qed),
    "TPSA": Descriptor(
        "angstrom^2",
        "topological polar surface area, Ertl et al. 2000, doi:10.1021/jm000942e",
        rdMolDescriptors.CalcTPSA,
    ),
    "SA": Descriptor(
        "1",
        "synthetic accessibility, 1 easy to 10 hard, Ertl and Schuffenhauer 2009, doi:10.1186/1758-2946-1-8",
        _synthetic_accessibility,
    ),
    "MW": Descriptor("g/mol", "average molecular weight", Descriptors.MolWt),
    "alerts": Descriptor(
        "1", "structural alerts, as QED counts them, Bickerton et al. 2012, doi:10.1038/nchem.1243", _alerts
    ),
    "rings": Descriptor("1", "rings in the smallest set of smallest rings", rdMolDescriptors.CalcNumRings),
    "HBD": Descriptor("1", "hydrogen-bond donors", rdMolDescriptors.CalcNumHBD),
    "HBA": Descriptor("1", "hydrogen-bond acceptors", rdMolDescriptors.CalcNumHBA),
    "rotatable": Descriptor(
        "1", "rotatable bonds, amides not counted", rdMolDescriptors.CalcNumRotatableBonds
    ),
}
"""The descriptors by name."""
