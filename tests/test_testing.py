"""The conformance helper passes the adapter we ship, and finds what is wrong with a broken one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciLDM.domain import Corpus
from sciLDM.domains.molecules import AutoencoderSettings, Molecules
from sciLDM.domains.molecules.corpus import DataSettings
from sciLDM.testing import check_domain
from tests.tiny import write_table


@pytest.fixture
def molecules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Molecules:
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Molecules(
        str(write_table(tmp_path / "table.csv")),
        conditions=["gap", "logP"],
        autoencoder=AutoencoderSettings(channels=4, width=32, depth=1, heads=2),
        settings=DataSettings(workers=1),
    )


def test_molecules_conform(molecules: Molecules, tmp_path: Path) -> None:
    model = check_domain(molecules, tmp_path / "check")
    assert {c.name for c in model.codec.conditions} == {"atoms", "gap", "logP"}


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lambda c: c.sizes.update(test=0), "an empty split"),
        (lambda c: c.state.update(extra=(1, 2)), "JSON does not give it back"),
        (lambda c: c._labels.update(mystery=np.zeros(len(c.smiles))), "labels are"),
        (lambda c: setattr(c, "fingerprint", ""), "fingerprint: empty"),
        (lambda c: setattr(c, "labels", lambda split: {"gap": np.zeros(1)}), "1 values"),
    ],
)
def test_a_broken_corpus_is_found(
    molecules: Molecules, tmp_path: Path, break_it: Any, complaint: str
) -> None:
    prepare = molecules.prepare

    def broken(*arguments: Any) -> Corpus:
        corpus = prepare(*arguments)
        break_it(corpus)
        return corpus

    molecules.prepare = broken  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match=complaint):
        check_domain(molecules, tmp_path / "check")
