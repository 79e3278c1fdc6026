"""The molecular adapter: a CSV of SMILES (or QM9, ZINC250k, MOSES) in, candidate molecules out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

from sciLDM.domain import Codec, Corpus, Domain, Evaluation, Progress
from sciLDM.domains.molecules.codec import AutoencoderSettings, MoleculeCodec
from sciLDM.domains.molecules.corpus import KNOWN_SOURCES, MoleculeCorpus
from sciLDM.domains.molecules.read import read_table
from sciLDM.domains.molecules.reference import find_reference
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import ConfigError, DataError

__all__ = ["Molecules"]


@final
class Molecules(Domain):
    """Molecular graphs.

    Args:
        data: A CSV, TSV, SMILES or SDF file, or one of `qm9`, `zinc250k`, `moses`.
        smiles_column: Column holding SMILES; guessed when left out.
        conditions: What samples can be asked for: numeric columns of the file and RDKit descriptors (logP, QED,
            TPSA, SA, MW, rings, ...). Missing values are allowed.
        autoencoder: Size of the graph autoencoder.
        exact_graph: Smallest share of held-out molecules rebuilt exactly before the denoiser may train.
        label_dropout: Share of training samples whose label is hidden, per property.
        fractions: Shares of training, validation and test molecules.
        salt: Another number gives another split.
        largest_fragment: Keep the largest part of a salt or mixture instead of rejecting it.
        max_molecules: Use only this many molecules; all when left out.
        workers: Processes for featurising; one per core when left out.
    """

    name: ClassVar[str] = "molecules"

    def __init__(
        self,
        data: str = "qm9",
        *,
        smiles_column: str | None = None,
        conditions: Sequence[str] = (),
        autoencoder: AutoencoderSettings = AutoencoderSettings(),  # noqa: B008 - frozen
        exact_graph: float = 0.99,
        label_dropout: float = 0.2,
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        salt: int = 0,
        largest_fragment: bool = False,
        max_molecules: int | None = None,
        workers: int | None = None,
    ) -> None:
        if max_molecules is not None and max_molecules < 3:
            raise ConfigError(f"max_molecules must be at least 3, got {max_molecules}")
        if len(set(conditions)) != len(conditions):
            raise ConfigError(f"conditions must differ, got {list(conditions)}")
        self.data, self.smiles_column = data, smiles_column
        self.conditions, self.autoencoder = tuple(conditions), autoencoder
        self.gate = {"exact_graph": exact_graph}
        self.label_dropout, self.fractions, self.salt = label_dropout, fractions, salt
        self.largest_fragment, self.max_molecules, self.workers = largest_fragment, max_molecules, workers

    def prepare(self, cache: Path, progress: Progress) -> Corpus:
        if self.data in KNOWN_SOURCES:
            table, name = MoleculeCorpus.load_source(self.data), self.data
        else:
            path = Path(self.data).expanduser()
            if not path.exists() and path.suffix == "":
                raise DataError(f"data: expected a file or one of {', '.join(KNOWN_SOURCES)}, got {self.data!r}")
            table, name = read_table(path, smiles_column=self.smiles_column), path.name
        return MoleculeCorpus(
            table,
            name=name,
            conditions=self.conditions,
            cache=cache,
            autoencoder=self.autoencoder,
            dropout=self.label_dropout,
            fractions=self.fractions,
            salt=self.salt,
            largest_fragment=self.largest_fragment,
            max_molecules=self.max_molecules,
            workers=self.workers,
            progress=progress,
        )

    def codec(self, state: Mapping[str, Any]) -> Codec:
        return MoleculeCodec(state)

    def evaluate(self, samples: Any, codec: Codec, reference: Path | None, progress: Progress) -> Evaluation:
        from sciLDM.data.cards import cache_root
        from sciLDM.domains.molecules.metrics import evaluate_set

        assert isinstance(samples, MoleculeSamples) and isinstance(codec, MoleculeCodec)
        known = find_reference(reference, codec.state["source"])
        if known is None:
            raise DataError("evaluation needs the training and test molecules: evaluate a run folder made by `scildm fit`")
        table = samples.table
        scored = evaluate_set(
            table["smiles"].tolist(),
            train=known.train,
            test=known.test,
            raw_valid=table["valid_raw"].tolist(),
            changed=table["changed"].tolist(),
            fcd_cache=cache_root() / "fcd",
            n_jobs=self.workers,
            progress=progress,
        )
        stored = scored.to_dict()
        rows = [
            {"metric": r["metric"], "value": r["value"], "floor": r["floor"], "samples": r["sample_size"], "note": r["protocol"]}
            for r in stored["metrics"]
        ]
        protocol = {"samples": len(table), "train": len(known.train), "test": len(known.test), **stored["versions"]}
        return Evaluation(rows, protocol, tuple(stored["notes"]))
