"""The molecular adapter: a CSV of SMILES (or QM9, ZINC250k, MOSES) in, candidate molecules out."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

from sciLDM.domain import Codec, Corpus, Domain, Evaluation, Progress
from sciLDM.domains.molecules.codec import ATOMS, AutoencoderSettings, MoleculeCodec
from sciLDM.domains.molecules.corpus import KNOWN_SOURCES, DataSettings, MoleculeCorpus
from sciLDM.domains.molecules.read import read_table
from sciLDM.domains.molecules.reference import find_reference
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import ConfigError, DataError
from sciLDM.evaluate import ConditionalEvaluation, Material, Section

__all__ = ["Molecules"]


@final
class Molecules(Domain):
    """Molecular graphs.

    Args:
        data: A CSV, TSV, SMILES or SDF file, or one of `qm9`, `zinc250k`, `moses`.
        conditions: What samples can be asked for: numeric columns of the file and RDKit descriptors (logP, QED,
            TPSA, SA, MW, rings, ...). Missing values are allowed.
        autoencoder: Size of the graph autoencoder.
        exact_graph: Smallest share of held-out molecules rebuilt exactly before the denoiser may train.
        label_dropout: Share of training samples whose label is hidden, per property.
        settings: How the table is read and split.
    """

    name: ClassVar[str] = "molecules"
    formats: ClassVar[tuple[str, ...]] = (".csv", ".smi", ".smiles", ".sdf")

    def __init__(
        self,
        data: str = "qm9",
        *,
        conditions: Sequence[str] = (),
        autoencoder: AutoencoderSettings = AutoencoderSettings(),  # noqa: B008 - frozen
        exact_graph: float = 0.99,
        label_dropout: float = 0.2,
        settings: DataSettings = DataSettings(),  # noqa: B008 - frozen
    ) -> None:
        if len(set(conditions)) != len(conditions):
            raise ConfigError(f"conditions must differ, got {list(conditions)}")
        if ATOMS in conditions:
            raise ConfigError(
                f"conditions: every model takes {ATOMS!r} (heavy atoms) as it is; rename your column {ATOMS!r}"
            )
        if not 0 <= label_dropout < 1:
            raise ConfigError(f"label_dropout must be in [0, 1), got {label_dropout}")
        if not 0 <= exact_graph <= 1:
            raise ConfigError(f"exact_graph must be in [0, 1], got {exact_graph}")
        self.data, self.conditions = data, tuple(conditions)
        self.autoencoder, self.label_dropout, self.settings = autoencoder, label_dropout, settings
        self.gate = {"exact_graph": exact_graph}

    def prepare(self, cache: Path, progress: Progress) -> Corpus:
        if self.data in KNOWN_SOURCES:
            table, name = MoleculeCorpus.load_source(self.data), self.data
        else:
            path = Path(self.data).expanduser()
            if not path.exists() and path.suffix == "":
                raise DataError(
                    f"data: expected a file or one of {', '.join(KNOWN_SOURCES)}, got {self.data!r}"
                )
            with warnings.catch_warnings():
                # All of them are notes of the corpus too, and `fit` says those once.
                warnings.simplefilter("ignore", UserWarning)
                table, name = read_table(path, smiles_column=self.settings.smiles_column), path.name
        return MoleculeCorpus(
            table,
            name=name,
            conditions=self.conditions,
            cache=cache,
            autoencoder=self.autoencoder,
            label_dropout=self.label_dropout,
            settings=self.settings,
            progress=progress,
        )

    def codec(self, state: Mapping[str, Any]) -> Codec:
        return MoleculeCodec(state)

    def evaluate(self, samples: Any, codec: Codec, reference: Path | None, progress: Progress) -> Evaluation:
        from sciLDM.data.cards import cache_root
        from sciLDM.domains.molecules.metrics import evaluate_set

        assert isinstance(samples, MoleculeSamples)
        assert isinstance(codec, MoleculeCodec)
        known = find_reference(reference, codec.state["source"])
        if known is None:
            raise DataError(
                "evaluation needs the training and test molecules: evaluate a run folder made by `scildm fit`"
            )
        table = samples.table
        scored = evaluate_set(
            [s if isinstance(s, str) else None for s in table["smiles"]],
            train=known.train,
            test=known.test,
            raw_valid=table["valid_raw"].tolist(),
            changed=table["changed"].tolist(),
            fcd_cache=cache_root() / "fcd",
            n_jobs=self.settings.workers,
            progress=progress,
        )
        stored = scored.to_dict()
        rows = [
            {
                "metric": r["metric"],
                "value": r["value"],
                "floor": r["floor"],
                "samples": r["sample_size"],
                "note": r["protocol"],
            }
            for r in stored["metrics"]
        ]
        protocol = {
            "samples": len(table),
            "train": len(known.train),
            "test": len(known.test),
            **stored["versions"],
        }
        return Evaluation(rows, protocol, tuple(stored["notes"]))

    def evaluate_conditional(
        self,
        sample: Callable[[int, Mapping[str, Any]], MoleculeSamples],
        codec: Codec,
        names: Sequence[str] | None,
        *,
        per_target: int,
    ) -> ConditionalEvaluation:
        """Ask for properties and compare with what RDKit finds; `logP+QED` asks for both at once."""
        from sciLDM.domains.molecules.conditional import conditional_table
        from sciLDM.domains.molecules.design_joint import joint_tables

        if names is not None and any("+" in name for name in names):
            return joint_tables(sample, codec, names, per_target=per_target)
        return conditional_table(sample, codec, names, per_target=per_target)

    def report_sections(self, material: Material) -> Sequence[Section]:
        """Pictures, histograms and requests for the report."""
        from sciLDM.domains.molecules.report import sections

        return sections(material)

    @staticmethod
    def decorate(
        model: Any,
        scaffold: str,
        count: int,
        *,
        cond: Mapping[str, Any],
        guidance: float | Mapping[str, float] | None,
        steps: int | None,
        seed: int,
        batch_size: int,
        progress: Callable[[int, int], None],
    ) -> MoleculeSamples:
        """Molecules that contain a scaffold; see `design.decorate`."""
        from sciLDM.domains.molecules.design import decorate

        return decorate(
            model, scaffold, count, cond=cond, guidance=guidance, steps=steps, seed=seed, batch_size=batch_size,
            progress=progress,
        )  # fmt: skip

    @staticmethod
    def likeness(lead: Any, samples: MoleculeSamples) -> Sequence[float]:
        """Tanimoto similarity to a lead; see `likeness.tanimoto_to`."""
        from sciLDM.domains.molecules.likeness import tanimoto_to

        return tanimoto_to(lead, samples)

    @staticmethod
    def names(samples: MoleculeSamples) -> Sequence[str]:
        """Canonical SMILES; empty where decoding failed."""
        return [s if isinstance(s, str) else "" for s in samples.table["smiles"]]

    @staticmethod
    def read_labelled(path: Path, target: str | None, codec: Any) -> Any:
        """Molecules with a measured quantity; see `labelled.read_labelled`."""
        from sciLDM.domains.molecules.labelled import read_labelled

        return read_labelled(path, target, codec)

    @staticmethod
    def benchmark(name: str, codec: Any, reference: Path | None, *, device: str = "cpu") -> Any:
        """A published benchmark: `qm9`, `zinc250k` or `moses`; see `benchmarks.make_benchmark`."""
        from sciLDM.domains.molecules.bench import Context
        from sciLDM.domains.molecules.benchmarks import make_benchmark

        source = codec.state["source"] if isinstance(codec, MoleculeCodec) else None
        return make_benchmark(name, source=source, run=reference, context=Context(None, device))

    @staticmethod
    def read_generated(path: Path) -> MoleculeSamples:
        """Samples of any program; see `benchmarks.read_generated`."""
        from sciLDM.domains.molecules.benchmarks import read_generated

        return read_generated(path)

    @staticmethod
    def read_items(path: Path, codec: Any) -> tuple[list[str], dict[str, Any]]:
        """Molecules of a user's file for `sciLDM.adapt.finetune`, and the labels that the file has for them.

        As in training, a column of the file goes before what RDKit computes.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about columns that no label is taken from
            table = read_table(path)
        names = [p.name for p in codec.properties if p.name in table.columns]
        return table["smiles"].tolist(), {name: table[name].to_numpy(copy=True) for name in names}

    def read_samples(self, path: Path) -> MoleculeSamples:
        """Samples written earlier by `MoleculeSamples.write`."""
        from sciLDM.domains.molecules.report import read_samples

        return read_samples(path)
