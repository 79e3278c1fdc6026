"""Known data sets as tables: a column ``smiles`` and one column for each property, in the units stated here.

Where the files lie, and how to get them, is the business of the data cards (:mod:`sciLDM.data.cards`).
"""

import gzip
from typing import Literal

import pandas as pd

from sciLDM.data.cards import card, locate
from sciLDM.errors import ConfigError

__all__ = ["HARTREE_IN_EV", "QM9_UNITS", "moses", "qm9", "zinc250k"]

HARTREE_IN_EV = 27.211386245988
"""Hartree energy in electronvolt: CODATA 2018, doi:10.1103/RevModPhys.93.025010."""

QM9_UNITS = {
    "mu": "D",
    "alpha": "bohr^3",
    "homo": "eV",
    "lumo": "eV",
    "gap": "eV",
    "r2": "bohr^2",
    "zpve": "eV",
    "cv": "cal/(mol K)",
}
"""Units of the columns of :func:`qm9`; energies are converted from hartree with :data:`HARTREE_IN_EV`."""

_QM9_COLUMNS = {
    "SMILES": "smiles",
    "Dipole_debye": "mu",
    "Polarizability_bohr3": "alpha",
    "HOMO_au": "homo",
    "LUMO_au": "lumo",
    "HOMO_LUMO_gap_au": "gap",
    "R2_bohr2": "r2",
    "ZPVE_au": "zpve",
    "Heatcapacity_Cv_cal_mol_K": "cv",
}


def qm9() -> pd.DataFrame:
    """QM9: 130,831 small molecules (C, N, O, F; at most nine heavy atoms) with B3LYP/6-31G(2df,p) properties.

    Returns:
        ``smiles`` and ``mu`` (dipole moment, D), ``alpha`` (isotropic polarisability, bohr^3), ``homo``,
        ``lumo``, ``gap`` (eV), ``r2`` (electronic spatial extent, bohr^2), ``zpve`` (zero-point vibrational
        energy, eV), ``cv`` (heat capacity at 298.15 K, cal/(mol K)).

    Raises:
        DataError: the files are absent; the message says how to get them.
    """
    # The package's own `get_data` is not called: it reads every column, coordinates and spectra included.
    parts = [pd.read_csv(path, usecols=list(_QM9_COLUMNS)) for path in locate("qm9")]
    table = pd.concat(parts, ignore_index=True).rename(columns=_QM9_COLUMNS)
    for name in ("homo", "lumo", "gap", "zpve"):
        table[name] *= HARTREE_IN_EV
    return pd.DataFrame(table, columns=list(_QM9_COLUMNS.values()))


def moses(split: Literal["train", "test", "test_scaffolds"]) -> pd.DataFrame:
    """One part of the MOSES benchmark: lead-like molecules of ZINC, neutral, without stereochemistry;
    ``smiles`` alone.

    Args:
        split: ``test`` is random; the scaffolds of ``test_scaffolds`` occur in neither other part. Papers
            report both, often without saying which.

    Raises:
        ConfigError: no such split.
        DataError: the files are absent; the message says how to get them.
    """
    names = [part.name for part in card("moses").splits]
    if split not in names:
        raise ConfigError(f"expected one of the MOSES splits {', '.join(names)}, got {split!r}")
    path = next(path for path in locate("moses") if path.name == f"{split}.csv.gz")
    return pd.read_csv(path, usecols=["SMILES"]).rename(columns={"SMILES": "smiles"})


def zinc250k() -> pd.DataFrame:
    """ZINC250k without its published test molecules: drug-like, with charges and stereochemistry; ``smiles``
    alone.

    Raises:
        DataError: the file is absent; the message says how to get it.
    """
    (path,) = locate("zinc250k")
    with gzip.open(path, "rt", encoding="ascii") as stream:
        return pd.DataFrame({"smiles": stream.read().split()})
