"""What others have scored on the benchmarks, with where each number was read.

Shares are in [0, 1]. A value absent here was not given, or could not be traced to more than memory. Rows compare only
with rows of the same test set and sample size: FCD of MOSES is about twice as large against the scaffold test set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

__all__ = ["GUACAMOL", "MOSES", "QM9", "ZINC250K", "Published"]


@final
@dataclass(frozen=True)
class Published:
    """One row of a table.

    Attributes:
        model: Name of the model.
        values: Metrics by the benchmark's names.
        source: Paper, or who computed it from what.
        read: `authors` in a table of the authors' own repository; `quoted` in a later paper's table, not compared with
            the original; `rescored` by us, from samples that the authors released.
        samples: Size of the generated set, where stated.
    """

    model: str
    values: Mapping[str, float]
    source: str
    read: Literal["authors", "quoted", "rescored"]
    samples: int | None = None


_MOSES_PAPER = "Polykovskiy et al. 2020, doi:10.3389/fphar.2020.565644, mean of three runs"
_SET = ("valid", "unique@1k", "unique@10k")
_DISTANCES = (
    "FCD/Test",
    "FCD/TestSF",
    "SNN/Test",
    "SNN/TestSF",
    "Frag/Test",
    "Frag/TestSF",
    "Scaf/Test",
    "Scaf/TestSF",
)
_REST = ("IntDiv", "IntDiv2", "Filters", "novel")


def _moses(model: str, *values: float) -> Published:
    names = (*_SET, *_DISTANCES, *_REST)
    return Published(model, dict(zip(names, values, strict=True)), _MOSES_PAPER, "authors", 30_000)


def _scaffold(
    model: str, source: str, samples: int | None = 25_000, *, read: Literal["quoted", "rescored"] = "quoted",
    valid: float | None = None, unique: float | None = None, novel: float | None = None, filters: float | None = None,
    fcd: float | None = None, snn: float | None = None, scaf: float | None = None,
    fcd_test: float | None = None, snn_test: float | None = None, scaf_test: float | None = None,
) -> Published:  # fmt: skip
    """A graph model's row: these papers give the columns of the scaffold test set."""
    values = {
        "valid raw": valid, "unique@10k": unique, "novel": novel, "Filters": filters, "FCD/TestSF": fcd,
        "SNN/TestSF": snn, "Scaf/TestSF": scaf, "FCD/Test": fcd_test, "SNN/Test": snn_test, "Scaf/Test": scaf_test,
    }  # fmt: skip
    return Published(model, {k: v for k, v in values.items() if v is not None}, source, read, samples)


MOSES = (
    Published(
        "training set, all of it",
        {
            "valid": 1.0, "FCD/Test": 0.008, "FCD/TestSF": 0.4755, "SNN/Test": 0.6419, "SNN/TestSF": 0.5859,
            "Frag/Test": 1.0, "Frag/TestSF": 0.9986, "Scaf/Test": 0.9907, "Scaf/TestSF": 0.0, "IntDiv": 0.8567,
            "IntDiv2": 0.8508, "Filters": 1.0,
        },
        _MOSES_PAPER,
        "authors",
        1_584_663,
    ),
    _moses("CharRNN (SMILES)", 0.9748, 1.0, 0.9994, 0.0732, 0.5204, 0.6015, 0.5649, 0.9998, 0.9983, 0.9242, 0.1101,
           0.8562, 0.8503, 0.9943, 0.8419),
    _moses("VAE (SMILES)", 0.9767, 1.0, 0.9984, 0.099, 0.567, 0.6257, 0.5783, 0.9994, 0.9984, 0.9386, 0.0588,
           0.8558, 0.8498, 0.997, 0.6949),
    _moses("AAE (SMILES)", 0.9368, 1.0, 0.9973, 0.5555, 1.0572, 0.6081, 0.5677, 0.991, 0.9905, 0.9022, 0.0789,
           0.8557, 0.8499, 0.996, 0.7931),
    _moses("LatentGAN (SMILES)", 0.8966, 1.0, 0.9968, 0.2968, 0.8281, 0.5371, 0.5132, 0.9986, 0.9972, 0.8867, 0.1072,
           0.8565, 0.8505, 0.9735, 0.9498),
    _moses("JTN-VAE (graph)", 1.0, 1.0, 0.9996, 0.3954, 0.9382, 0.5477, 0.5194, 0.9965, 0.9947, 0.8964, 0.1009,
           0.8551, 0.8493, 0.976, 0.9143),
    _scaffold("DiGress", "Vignac et al. 2023, arXiv:2209.14734", valid=0.857, unique=1.0, novel=0.950, filters=0.971,
              fcd=1.19, snn=0.52, scaf=0.148),
    _scaffold("DiGress, released samples", "rescored with molsets and fcd_torch", 25_000, read="rescored", valid=0.860,
              unique=1.0, novel=0.944, filters=0.971, fcd=1.280, snn=0.523, scaf=0.118, fcd_test=0.618, snn_test=0.549,
              scaf_test=0.900),
    _scaffold("DisCo", "Xu et al. 2024, arXiv:2405.11416", valid=0.883, unique=1.0, novel=0.977, filters=0.956,
              fcd=1.44, snn=0.50, scaf=0.151),
    _scaffold("Cometh", "Siraudin et al. 2024, arXiv:2406.06449", valid=0.905, unique=0.999, novel=0.926, filters=0.991,
              fcd=1.27, snn=0.54, scaf=0.160),
    _scaffold("DeFoG, 500 steps", "Qin et al. 2025, arXiv:2410.04263", valid=0.928, unique=0.999, novel=0.921,
              filters=0.999, fcd=1.95, snn=0.55, scaf=0.144),
    _scaffold("GraphBSI", "2025, as quoted; valid at 50 steps, FCD at 500", None, valid=0.997, fcd=0.72),
    _scaffold("JODO, released samples", "rescored with molsets and fcd_torch", 10_000, read="rescored", valid=0.887,
              unique=0.999, novel=0.895, filters=0.985, fcd=1.122, snn=0.554, scaf=0.088, fcd_test=0.614,
              snn_test=0.588, scaf_test=0.841),
    _scaffold("G2PT base (autoregressive)", "Chen et al. 2025, arXiv:2501.01073", valid=0.964, unique=1.0, novel=0.860,
              filters=0.983, fcd=0.97, snn=0.55, scaf=0.033),
)  # fmt: skip
"""MOSES."""


def _gdss(
    model: str, source: str, *, read: Literal["quoted", "rescored"] = "quoted", valid: float | None = None,
    unique: float | None = None, novel: float | None = None, nspdk: float | None = None, fcd: float | None = None,
    scaf: float | None = None,
) -> Published:  # fmt: skip
    values = {
        "valid raw": valid,
        "unique": unique,
        "novel": novel,
        "NSPDK": nspdk,
        "FCD": fcd,
        "Scaf": scaf,
    }
    return Published(model, {k: v for k, v in values.items() if v is not None}, source, read, 10_000)


_GDSS_PAPER = "Jo, Lee & Hwang 2022, arXiv:2202.02514"
_GRUM = "Jo, Kim & Hwang 2024, arXiv:2302.03596"
_GGFLOW = "Hou et al. 2024, arXiv:2411.05676"
_HOG = "HOG-Diff, 2025, arXiv:2502.04308"
_CATFLOW = "Eijkelboom et al. 2024, arXiv:2406.04843"

QM9 = (
    _gdss("GDSS", _GDSS_PAPER, valid=0.9572, nspdk=0.003, fcd=2.900),
    _gdss("CatFlow", _CATFLOW, valid=0.9981, fcd=0.441),
    _gdss("LGD (latent)", "Zhou et al. 2024, arXiv:2402.02518", valid=0.9846, unique=0.9753, novel=0.5635, nspdk=0.0004,
          fcd=0.32),
    _gdss("HOG-Diff", _HOG, valid=0.9874, nspdk=0.0003, fcd=0.172),
    _gdss("GGFlow", _GGFLOW, valid=0.9991, fcd=0.148),
    _gdss("DeFoG, 500 steps", "Qin et al. 2025, arXiv:2410.04263", valid=0.9930, fcd=0.12),
    _gdss("GruM", _GRUM, valid=0.9969, unique=0.9690, novel=0.2415, nspdk=0.0002, fcd=0.11),
    _gdss("GruM, released samples", "rescored; another 13,082 test molecules", read="rescored", unique=0.9688,
          novel=0.357, nspdk=0.00085, fcd=0.198),
    _gdss("GeoMancer (latent)", "2025, as quoted", valid=1.0, unique=0.9574, novel=0.9043, nspdk=0.0002, fcd=0.09),
    _gdss("VBFN", "2026, as quoted", valid=0.9998, fcd=0.083),
)  # fmt: skip
"""QM9 under the GDSS protocol."""

ZINC250K = (
    _gdss("GDSS", _GDSS_PAPER, valid=0.9701, nspdk=0.019, fcd=14.656),
    _gdss("CatFlow", _CATFLOW, valid=0.9921, fcd=13.211),
    _gdss("DiGress", "Vignac et al. 2023, arXiv:2209.14734", valid=0.9499, fcd=3.482, scaf=0.416),
    _gdss("GruM", _GRUM, valid=0.9865, fcd=2.26, scaf=0.530),
    _gdss("GruM, released samples", "rescored, published split", read="rescored", unique=0.9994, novel=0.9999,
          nspdk=0.00122, fcd=2.266),
    _gdss("HOG-Diff", _HOG, nspdk=0.001, fcd=1.633),
    _gdss("MELD", "2025, as quoted", valid=1.0, nspdk=0.0006, fcd=1.51, scaf=0.559),
    _gdss("GGFlow", _GGFLOW, valid=0.9963, fcd=1.455),
    _gdss("DeFoG, 500 steps", "Qin et al. 2025, arXiv:2410.04263", valid=0.9922, fcd=1.425),
    _gdss("SGT", "2026, as quoted", valid=0.981, fcd=0.85),
    _gdss("JODO, released samples", "rescored, published split; valid as parsed", read="rescored", valid=0.9991,
          unique=0.9997, novel=0.9995, nspdk=0.00039, fcd=0.657),
)  # fmt: skip
"""ZINC250k under the GDSS protocol."""


def _guacamol(
    model: str, source: str, valid: float, unique: float, novel: float, kl: float | None, fcd: float
) -> Published:
    values = {"valid": valid, "unique@10k": unique, "novel": novel, "KL": kl, "FCD score": fcd}
    return Published(model, {k: v for k, v in values.items() if v is not None}, source, "quoted", 10_000)


GUACAMOL = (
    _guacamol(
        "SMILES LSTM", "Brown et al. 2019, doi:10.1021/acs.jcim.8b00839", 0.959, 1.0, 0.912, 0.991, 0.913
    ),
    _guacamol("MoLeR", "Maziarz et al. 2022, arXiv:2103.03864", 1.0, 1.0, 0.991, 0.964, 0.625),
    _guacamol("DiGress", "Vignac et al. 2023, arXiv:2209.14734", 0.852, 1.0, 0.999, 0.929, 0.680),
    _guacamol("DisCo", "Xu et al. 2024, arXiv:2405.11416", 0.866, 0.866, 0.865, 0.926, 0.597),
    _guacamol("Cometh", "Siraudin et al. 2024, arXiv:2406.06449", 0.989, 0.989, 0.976, 0.967, 0.727),
    _guacamol("DeFoG, 500 steps", "Qin et al. 2025, arXiv:2410.04263", 0.990, 0.990, 0.979, 0.979, 0.738),
    _guacamol("FragFM", "2025, as quoted", 0.997, 0.993, 0.950, 0.974, 0.858),
    _guacamol(
        "G2PT base (autoregressive)", "Chen et al. 2025, arXiv:2501.01073", 0.946, 1.0, 0.995, 0.960, 0.934
    ),
)
"""GuacaMol's distribution learning on ChEMBL."""
