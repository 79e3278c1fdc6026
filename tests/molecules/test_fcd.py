"""The Frechet distance against closed forms and the `fcd` package; the FCD, its cache and its notes."""

import random
import sys
import warnings

import hypothesis
import hypothesis.strategies as st
import jaxtyping
import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from sciLDM.domains.molecules import fcd as fcd_module
from sciLDM.domains.molecules.fcd import (
    chemnet_activations,
    fcd_statistics,
    frechet_chemnet_distance,
    frechet_distance,
)
from sciLDM.domains.molecules.metrics import evaluate_set
from sciLDM.errors import DataError, MissingExtra, ShapeMismatch

_QM9 = [
    "CC12CC1CCC(=O)N2",
    "C#CC1CC2(O)CCC12",
    "O=C1CCNC12COC2",
    "N#CC(N)CCOC=N",
    "C#CC1C2C(O)C3C2N13",
    "CC1C(=O)CN1C1CC1",
    "OC12C=CC3CC1(O)C32",
    "CC1(C2CC(=O)N2)CO1",
    "CC1C(C)C12OCC2O",
    "CC12COC(=O)C1(O)C2",
]
_ZINC = [
    "Cc1nc(CN(C)C(=O)[C@H]2COc3ccc(F)cc3C2)cs1",
    "O=C(NCc1nc[nH]n1)Nc1ccccc1C(F)(F)F",
    "Cc1cc(NC(=O)c2ccccn2)ccc1S(N)(=O)=O",
    "CCN(Cc1cccc(C)n1)S(=O)(=O)CCCl",
    "O=C(C[C@H]1Oc2ccccc2NC1=O)NCCc1ccccc1F",
    "CCNC(=O)C(=O)N/N=C/c1ccc2c(c1)OCO2",
    "CC(C)c1ccc([C@H](C)[C@@H](C)O)cc1",
    "CC[C@H](Nc1cnn(C)c1)/C(N)=N/O",
]


def _shuffled(entries: list) -> list:
    return random.Random(1).sample(entries, len(entries))


# --- Frechet distance ------------------------------------------------------------------------------
@hypothesis.given(
    st.lists(st.tuples(*[st.floats(-3, 3)] * 2, *[st.floats(0, 4)] * 2), min_size=1, max_size=6),
    st.integers(0, 10**6),
)
def test_frechet_matches_the_closed_form_of_commuting_gaussians(rows: list, seed: int) -> None:
    """Covariances with common eigenvectors: |m1 - m2|^2 + sum (s1 - s2)^2, s the standard deviations."""
    m1, m2, s1, s2 = np.array(rows).T
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(rows), len(rows))))
    got = frechet_distance(q @ m1, q @ np.diag(s1**2) @ q.T, q @ m2, q @ np.diag(s2**2) @ q.T)
    assert got == pytest.approx(((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum(), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("dimension", [2, 16, 64])
def test_frechet_matches_the_fcd_package(dimension: int) -> None:
    package = pytest.importorskip("fcd")
    rng = np.random.default_rng(dimension)
    x, y = rng.normal(size=(2, 400, dimension)) * rng.uniform(0.2, 3, size=(2, 1, dimension))
    arguments = x.mean(0), np.cov(x.T), y.mean(0) + 0.3, np.cov(y.T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package passes an option that SciPy deprecated
        expected = package.calculate_frechet_distance(
            mu1=arguments[0], sigma1=arguments[1], mu2=arguments[2], sigma2=arguments[3]
        )
    assert frechet_distance(*arguments) == pytest.approx(expected, rel=1e-6)


def test_frechet_is_zero_and_symmetric_for_singular_covariances() -> None:
    """Fewer samples than dimensions, where a matrix square root of the product fails."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20, 100))
    a, b = (x.mean(0), np.cov(x.T)), (y.mean(0), np.cov(y.T))
    # Sample covariances of rank 19 in 100 dimensions: the oracle works in the 19-dimensional spans.
    cross = np.linalg.svd((x - x.mean(0)) @ (y - y.mean(0)).T / 19, compute_uv=False).sum()
    expected = ((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * cross
    assert frechet_distance(*a, *b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(*a, *b) == pytest.approx(frechet_distance(*b, *a), rel=1e-9)
    assert frechet_distance(*a, *a) < 1e-7 * np.trace(a[1])


def test_frechet_refuses_what_cannot_be_compared() -> None:
    # Under pytest the annotations are checked first; without that hook the function refuses by itself.
    with pytest.raises((ShapeMismatch, jaxtyping.TypeCheckError)):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
    with pytest.raises(DataError, match="finite"):
        frechet_distance(np.zeros(2), np.full((2, 2), np.nan), np.zeros(2), np.eye(2))


# --- FCD -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def chemnet() -> None:
    pytest.importorskip("fcd")


@pytest.mark.usefixtures("chemnet")
def test_fcd_equals_the_package_and_vanishes_on_equal_sets() -> None:
    import fcd

    same = frechet_chemnet_distance(_QM9, _shuffled(_QM9))
    assert same.value < 1e-6
    # The covariances of such small sets are singular, where the package's sqrtm is not exact: its activations
    # go through our distance, which was checked above.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fcd.load_ref_model()
        x, y = (fcd.get_predictions(model, s, n_jobs=0, device="cpu").astype(float) for s in (_QM9, _ZINC))
    expected = frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert frechet_chemnet_distance(_QM9, _ZINC).value == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("chemnet")
def test_activations_do_not_depend_on_the_batch_and_charges_matter() -> None:
    whole = chemnet_activations(_QM9[:6], batch_size=6)
    np.testing.assert_allclose(chemnet_activations(_QM9[:6], batch_size=4), whole, rtol=1e-4, atol=1e-5)
    neutral, charged = chemnet_activations(["CC(=O)O", "CC(=O)[O-]"])
    assert np.abs(neutral - charged).max() > 1e-2


@pytest.mark.usefixtures("chemnet")
def test_statistics_are_cached_by_content(tmp_path, monkeypatch) -> None:
    first = fcd_statistics(_QM9[:5], cache_dir=tmp_path / "new")
    (file,) = (tmp_path / "new").iterdir()  # and no temporary file is left

    def never(*_args: object, **_options: object) -> None:
        raise AssertionError("the cache was not used")

    with monkeypatch.context() as patch:
        patch.setattr(fcd_module, "chemnet_activations", never)
        again = fcd_statistics(_shuffled(_QM9[:5]), cache_dir=tmp_path / "new")
        np.testing.assert_array_equal(again.covariance, first.covariance)
        with pytest.raises(AssertionError, match="not used"):
            fcd_statistics(_QM9[:4], cache_dir=tmp_path / "new")
    file.write_bytes(file.read_bytes()[:1000])  # a damaged file is replaced, not believed
    repaired = fcd_statistics(_QM9[:5], cache_dir=tmp_path / "new")
    np.testing.assert_array_equal(repaired.mean, first.mean)
    with np.load(file) as stored:
        np.testing.assert_array_equal(stored["mean"], first.mean)


@pytest.mark.usefixtures("chemnet")
def test_small_samples_are_noted_and_threads_left_alone() -> None:
    threads = torch.get_num_threads()
    result = frechet_chemnet_distance(_QM9[:3], _QM9[3:7])
    assert torch.get_num_threads() == threads
    assert (result.generated_count, result.reference_count) == (3, 4)
    assert [n.split(":")[0] for n in result.notes] == [
        "FCD of 3 generated molecules",
        "FCD of 4 reference molecules",
    ]
    with pytest.raises(DataError, match="two or more"):
        frechet_chemnet_distance(["C"], _QM9)


def test_a_missing_fcd_package_names_the_install_line(monkeypatch) -> None:
    fcd_module._chemnet.cache_clear()
    monkeypatch.setitem(sys.modules, "fcd", None)
    with pytest.raises(MissingExtra, match="pip install"):
        evaluate_set(_QM9, train=_QM9, test=_QM9)
