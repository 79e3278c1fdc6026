"""The benchmarks by name, and samples of any program as they take them."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rdkit import Chem, rdBase

from sciLDM.domains.molecules.bench import Context, MoleculeBenchmark
from sciLDM.domains.molecules.bench_gdss import Qm9Benchmark, Zinc250kBenchmark
from sciLDM.domains.molecules.bench_guacamol import GuacamolBenchmark
from sciLDM.domains.molecules.bench_moses import MosesBenchmark
from sciLDM.domains.molecules.report import read_samples
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import ConfigError, DataError

__all__ = ["BENCHMARKS", "make_benchmark", "read_generated"]

BENCHMARKS: Mapping[str, type[MoleculeBenchmark]] = {
    b.name: b for b in (Qm9Benchmark, Zinc250kBenchmark, MosesBenchmark, GuacamolBenchmark)
}
"""The benchmarks by name."""


def make_benchmark(
    name: str,
    *,
    source: Mapping[str, Any] | None = None,
    run: Path | None = None,
    context: Context = Context(),  # noqa: B008 - frozen
) -> MoleculeBenchmark:
    """A benchmark by name.

    Args:
        name: One of `BENCHMARKS`.
        source: `source` of the scored model's codec, which says on what, and on which split, it was trained.
        run: Folder with that split's molecules.
        context: How scores are computed.

    Raises:
        ConfigError: An unknown name.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"expected a benchmark of molecules ({', '.join(BENCHMARKS)}), got {name!r}")
    return BENCHMARKS[name](context, run=run, source=source)


def read_generated(path: Path) -> MoleculeSamples:
    """Samples of any program: a table of ours, a CSV with a column of SMILES, or one SMILES a line.

    Without a column `valid_raw` every molecule that RDKit reads counts as valid before correction, which is only true
    of a program that corrects nothing.

    Raises:
        DataError: No such file, or nothing in it.
    """
    if not path.is_file():
        raise DataError(f"expected a file of SMILES, got {path}, which is none")
    if path.suffix.lower() == ".csv":
        columns = list(pd.read_csv(path, nrows=0).columns)
        if "smiles" in columns:
            return read_samples(path)
        named = next((c for c in columns if str(c).lower() in ("smiles", "smi")), None)
        lines = pd.read_csv(path)[named].tolist() if named else _lines(path)
    else:
        lines = _lines(path)
    smiles = [s if isinstance(s, str) and s else None for s in lines]
    if not smiles:
        raise DataError(f"{path}: expected one SMILES a line, got an empty file")
    with rdBase.BlockLogs():
        mols = [Chem.MolFromSmiles(s) if s else None for s in smiles]
    table = pd.DataFrame({"smiles": pd.Series(smiles, dtype=object)})
    table["valid_raw"] = [m is not None for m in mols]
    return MoleculeSamples(table, mols)


def _lines(path: Path) -> list[str]:
    """First word of every line, the header of a table left out; an empty line is an invalid sample."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as stream:
        lines = [line.strip().replace(",", " ").split(" ")[0] for line in stream.read().splitlines()]
    return lines[1:] if lines and lines[0].lower() in ("smiles", "smi") else lines
