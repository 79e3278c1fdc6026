"""What `featurise` returns, and how it is kept on disk."""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd
from jaxtyping import Int64

from sciLDM.domains.molecules.graphs import GraphTable, write_npz
from sciLDM.domains.molecules.vocabulary import Vocabulary
from sciLDM.errors import DataError

__all__ = ["Featurised"]


@final
@dataclass(frozen=True, eq=False)
class Featurised:
    """What became of a list of SMILES.

    Args:
        graphs: the molecules that could be represented.
        vocabulary: the atoms they are made of (the one passed in, or the one learned here).
        kept: for each graph, the row of the input it came from; ascending.
        smiles: for each graph, its canonical isomeric SMILES.
        rejected: the other rows: ``row``, ``smiles`` as given, ``reason``.
        changed: rows kept in altered form: ``row``, ``smiles`` as given, ``change``.
    """

    graphs: GraphTable
    vocabulary: Vocabulary
    kept: Int64[np.ndarray, " molecules"]
    smiles: list[str]
    rejected: pd.DataFrame
    changed: pd.DataFrame

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one compressed ``.npz``, without pickle; the file appears whole or not at all."""
        text = {
            "vocabulary": self.vocabulary.to_dict(),
            "smiles": self.smiles,
            "rejected": self.rejected.astype({"smiles": str}).to_dict("list"),
            "changed": self.changed.to_dict("list"),
        }
        arrays = {field.name: getattr(self.graphs, field.name) for field in fields(GraphTable)}
        arrays["kept"] = self.kept
        arrays["text"] = np.frombuffer(json.dumps(text).encode(), dtype=np.uint8)
        write_npz(Path(path), arrays)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Featurised":
        """Read what :meth:`save` wrote.

        Raises:
            DataError: absent or damaged.
        """
        graphs = GraphTable.load(path)
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
                kept, text = stored["kept"], json.loads(stored["text"].tobytes())
            if not len(kept) == len(text["smiles"]) == len(graphs):
                raise ValueError("its parts do not belong together")
            rejected = pd.DataFrame(text["rejected"], columns=["row", "smiles", "reason"])
            changed = pd.DataFrame(text["changed"], columns=["row", "smiles", "change"])
            return Featurised(
                graphs, Vocabulary.from_dict(text["vocabulary"]), kept, text["smiles"], rejected, changed
            )
        except Exception as error:  # zip, zlib, JSON, missing keys: all mean the same to the user
            raise DataError(
                f"{path} does not hold featurised molecules ({error}); featurise again"
            ) from error
