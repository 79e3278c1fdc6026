"""Generated molecules as scientists use them: a table, RDKit molecules, files, pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
from rdkit import Chem, rdBase
from rdkit.Chem import AllChem, Draw

from sciLDM.domains.molecules.decode import Decoded
from sciLDM.domains.molecules.descriptors import describe
from sciLDM.domains.molecules.reference import find_reference
from sciLDM.errors import ConfigError

__all__ = ["MoleculeSamples"]


@final
@dataclass(frozen=True)
class MoleculeSamples:
    """What `model.sample` returns for molecules.

    Attributes:
        table: One row a sample: `smiles`, `requested_<name>` (NaN where left open), `realised_<name>` for everything
            RDKit can compute, `valid_raw` and `connected_raw` (of the decoder's plain argmax), `changed` (the valence
            constraint altered the graph), `in_train`, `nearest_train_smiles`, `similarity` (Tanimoto, Morgan radius
            2, 2048 bits). `within_<name>` where a range was asked for: whether `realised_<name>` lies in it.
        mols: RDKit molecules, None where decoding failed.
        ranges: Ends of the ranges asked for, by property.
    """

    table: pd.DataFrame
    mols: list[Chem.Mol | None]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @staticmethod
    def build(
        decoded: Sequence[Decoded],
        requested: Mapping[str, np.ndarray],
        *,
        descriptors: Sequence[str],
        reference: Path | None,
        source: Mapping[str, Any],
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> "MoleculeSamples":
        """Assemble the table; `source` tells where the training molecules come from when there is no folder."""
        mols = [d.mol for d in decoded]
        # As objects: pandas would turn a failed molecule's None into NaN, which is true.
        table = pd.DataFrame({"smiles": pd.Series([d.smiles for d in decoded], dtype=object)})
        for name, values in requested.items():
            table[f"requested_{name}"] = values
        if descriptors:
            realised = describe(mols, list(descriptors), workers=1)  # type: ignore[arg-type]
            for name in descriptors:
                table[f"realised_{name}"] = realised[name].to_numpy()
        for name, (low, high) in (ranges or {}).items():
            if name in descriptors:
                table[f"within_{name}"] = table[f"realised_{name}"].between(low, high)
        for flag in ("valid_raw", "connected_raw", "changed"):
            table[flag] = [getattr(d, flag) for d in decoded]
        known = find_reference(reference, source)
        if known is not None:
            nearest = known.index.nearest(table["smiles"].tolist())
            train = set(known.train)
            table["in_train"] = [s in train for s in table["smiles"]]
            table["nearest_train_smiles"] = nearest["nearest_train_smiles"].to_numpy()
            table["similarity"] = nearest["similarity"].to_numpy()
        return MoleculeSamples(table, mols, dict(ranges or {}))

    def __len__(self) -> int:
        return len(self.table)

    def take(self, rows: Sequence[int] | np.ndarray) -> "MoleculeSamples":
        """These samples alone, in this order."""
        return MoleculeSamples(
            self.table.iloc[list(rows)].reset_index(drop=True), [self.mols[k] for k in rows], self.ranges
        )

    @property
    def smiles(self) -> list[str]:
        """Canonical isomeric SMILES of the samples that decoded."""
        return [s for s in self.table["smiles"] if isinstance(s, str)]

    def conformers(self, *, seed: int = 0) -> list[Chem.Mol | None]:
        """3-D structures with hydrogens: ETKDG embedding, then MMFF94 [Angstrom]; None where embedding fails."""
        return [_embed(mol, seed) for mol in self.mols]

    def write(self, path: str | Path, *, conformers: bool = False) -> Path:
        """Write `.csv` (the table), `.smi` (SMILES and number) or `.sdf` (structures with all columns).

        Args:
            path: The ending decides the format.
            conformers: For SDF: 3-D structures instead of flat ones.

        Raises:
            ConfigError: Another ending.
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending not in (".csv", ".smi", ".smiles", ".sdf"):
            raise ConfigError(f"cannot write {path.name!r}: expected an ending .csv, .smi or .sdf")
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == ".csv":
            self.table.to_csv(path, index=False)
        elif ending in (".smi", ".smiles"):
            path.write_text(
                "".join(f"{s} {k}\n" for k, s in enumerate(self.table["smiles"]) if isinstance(s, str))
            )
        else:
            self._write_sdf(path, conformers)
        return path

    def _write_sdf(self, path: Path, conformers: bool) -> None:
        mols = self.conformers() if conformers else self.mols
        with Chem.SDWriter(str(path)) as writer:
            for mol, (_, row) in zip(mols, self.table.iterrows(), strict=True):
                if mol is None:
                    continue
                mol = Chem.Mol(mol)
                for column, value in row.items():
                    mol.SetProp(str(column), str(value))
                writer.write(mol)

    def draw(self, count: int = 12, *, columns: int = 4) -> str:
        """SVG grid of the first molecules, with requested and realised values."""
        rows = [
            (m, row) for m, (_, row) in zip(self.mols, self.table.iterrows(), strict=True) if m is not None
        ][:count]
        if not rows:
            return '<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"></svg>'
        legends = [_legend(row) for _, row in rows]
        options = Draw.MolDrawOptions()
        options.legendFontSize = 14
        return Draw.MolsToGridImage(
            [m for m, _ in rows],
            molsPerRow=columns,
            subImgSize=(210, 180),
            legends=legends,
            useSVG=True,
            drawOptions=options,
        )

    def _repr_html_(self) -> str:
        picture = self.draw()
        return f"{getattr(picture, 'data', picture)}{self.table.head(12).to_html(index=False, float_format='%.3g')}"


def _legend(row: pd.Series) -> str:
    parts = []
    for column in row.index:
        if str(column).startswith("realised_"):
            name = str(column).removeprefix("realised_")
            asked = row.get(f"requested_{name}")
            wanted = f" (asked {asked:.3g})" if asked is not None and np.isfinite(asked) else ""
            if wanted or not any(str(c).startswith("requested_") for c in row.index):
                parts.append(f"{name} {row[column]:.3g}{wanted}")
    return "  ".join(parts[:3])


def _embed(mol: Chem.Mol | None, seed: int) -> Chem.Mol | None:
    if mol is None:
        return None
    with rdBase.BlockLogs():
        full = Chem.AddHs(mol)
        parameters = AllChem.ETKDGv3()  # type: ignore[attr-defined]
        parameters.randomSeed = seed
        if AllChem.EmbedMolecule(full, parameters) != 0:  # type: ignore[attr-defined]
            return None
        if AllChem.MMFFHasAllMoleculeParams(full):  # type: ignore[attr-defined]
            AllChem.MMFFOptimizeMolecule(full)  # type: ignore[attr-defined]
    return full
