"""A molecule's part is its own: whatever the file, its order, or its company."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rdkit")

from sciLDM.domains.molecules.splits import Split, split_by_smiles
from sciLDM.errors import ConfigError, DataError

MANY = [f"C{'C' * (k % 40)}{'O' * (k // 40)}N" for k in range(4000)]
PARTS = ("train", "validation", "test")


def part_of(smiles: list[str], split: Split) -> dict[str, str]:
    return {smiles[row]: part for part in PARTS for row in getattr(split, part)}


@given(
    st.integers(1, 300),
    st.integers(0, 5),
    st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (0.34, 0.33, 0.33)]),
)
def test_every_row_falls_in_exactly_one_part(
    count: int, salt: int, fractions: tuple[float, float, float]
) -> None:
    smiles = MANY[: count + 2]
    split = split_by_smiles(smiles, fractions=fractions, salt=salt)
    rows = np.concatenate([split.train, split.validation, split.test])
    assert sorted(rows) == list(range(len(smiles)))
    for part, share in zip(PARTS, fractions, strict=True):
        assert (len(getattr(split, part)) > 0) == (share > 0)
        assert list(getattr(split, part)) == sorted(getattr(split, part))


def test_order_company_and_copies_change_nothing() -> None:
    whole = part_of(MANY, split_by_smiles(MANY))
    shuffled = [MANY[k] for k in np.random.default_rng(0).permutation(len(MANY))]
    assert part_of(shuffled, split_by_smiles(shuffled)) == whole
    some = MANY[100:900]
    assert part_of(some, split_by_smiles(some)) == {text: whole[text] for text in some}
    twice = MANY[:500] + MANY[:500]
    split = split_by_smiles(twice)
    for part in PARTS:
        rows = getattr(split, part)
        assert np.array_equal(rows[: len(rows) // 2] + 500, rows[len(rows) // 2 :])


def test_parts_never_change_between_versions() -> None:
    """A published test set must stay one. `printf 0:CCO | sha256sum` begins cbf5, so u = 0.797: test; and so on."""
    smiles = ["C", "CC", "CCO", "c1ccccc1", "CCN", "CC(=O)O", "O=C=O", "CCCl", "CS(C)=O", "N#N"]
    split = split_by_smiles(smiles, fractions=(0.5, 0.25, 0.25))
    assert [split.train.tolist(), split.validation.tolist(), split.test.tolist()] == [
        [0, 1, 5, 8],
        [4, 7, 9],
        [2, 3, 6],
    ]


def test_shares_are_as_asked_within_sampling_error() -> None:
    split = split_by_smiles(MANY, fractions=(0.8, 0.15, 0.05))
    for part, share in zip(PARTS, (0.8, 0.15, 0.05), strict=True):
        deviation = (share * (1 - share) / len(MANY)) ** 0.5
        assert abs(len(getattr(split, part)) / len(MANY) - share) < 4 * deviation


def test_another_salt_is_independent() -> None:
    first, second = split_by_smiles(MANY), split_by_smiles(MANY, salt=1)
    overlap = len(np.intersect1d(first.test, second.test)) / len(first.test)
    assert 0.04 < overlap < 0.16  # 0.1 if independent


def test_growing_data_keeps_its_test_set() -> None:
    small, large = split_by_smiles(MANY[:1000]), split_by_smiles(MANY)
    assert set(small.test) <= set(large.test)


def test_tiny_sets() -> None:
    for count in range(3, 30):
        split = split_by_smiles(MANY[:count])
        assert min(len(split.train), len(split.validation), len(split.test)) >= 1
    with pytest.raises(DataError, match=r"at least 3 different molecules.*got 2"):
        split_by_smiles(["C", "CC", "C", "CC"])
    with pytest.raises(DataError, match="got 0"):
        split_by_smiles([])
    only = split_by_smiles(["C"], fractions=(1.0, 0.0, 0.0))
    assert only.train.tolist() == [0]


@pytest.mark.parametrize("fractions", [(0.5, 0.1, 0.1), (1.2, -0.1, -0.1), (0.0, 0.5, 0.5)])
def test_impossible_fractions(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        split_by_smiles(MANY, fractions=fractions)
