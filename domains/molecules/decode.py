r"""From decoder logits to molecules that are valid by construction.

Raw reading: the argmax of every head. It is kept, and its validity is reported beside the decoded one. Decoding keeps
the raw graph when it is connected and inside the valence caps; otherwise

1. atoms keep their most likely type, which gives each a cap on the sum of its bond orders;
2. a maximum spanning tree over `log p(bonded) - log p(none)` is grown with one unit of valence per bond (Kruskal), and
   no merge may use up the last free valence while other parts remain;
3. pairs are visited by decreasing log-odds and raised to their most likely order as far as both ends allow.

Atoms that no valence can reach are left out (eight fluorines and a carbon give CF4). Hydrogens fill what is left. Caps
are the largest valences seen in the training data, so what comes out is what RDKit accepts, and a raw graph that RDKit
would accept beyond them is constrained all the same. Nothing is repaired in silence: `changed` marks every molecule
whose decoded graph is not its raw one.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from rdkit import Chem
from torch import Tensor

from sciLDM.domains.molecules.autoencoder import GraphLogits, upper_pairs
from sciLDM.domains.molecules.rebuild import to_mol
from sciLDM.domains.molecules.vocabulary import Vocabulary

__all__ = ["Decoded", "PlainReading", "constrain", "decode_molecules", "read_plainly"]


@final
@dataclass(frozen=True)
class Decoded:
    """One molecule, as sampled.

    Attributes:
        mol: The molecule, or None when RDKit refused even the constrained graph.
        smiles: Canonical isomeric SMILES of `mol`, or None.
        valid_raw: The argmax graph passes RDKit's sanitisation (it may be disconnected, as in the GDSS protocol).
        connected_raw: The argmax graph is connected.
        changed: The atoms or bonds of `mol` are not those of the argmax graph. (Stereo marks that mean nothing are
            dropped as in any SMILES, and do not count.)
        raw_smiles: SMILES of the argmax graph when it is valid, else None.
    """

    mol: Chem.Mol | None
    smiles: str | None
    valid_raw: bool
    connected_raw: bool
    changed: bool
    raw_smiles: str | None


@final
@dataclass(frozen=True)
class PlainReading:
    """The argmax of every head, for a batch.

    Attributes:
        types: Of the atoms, `[b, n]`.
        chirality: Likewise.
        order: Of the bonds, upper triangle, `[b, n, n]`.
        stereo: Likewise.
        odds: `log p(bonded) - log p(none)`.
        fits: Whether all atoms are inside their caps.
        connected: Whether the graph is in one piece.
    """

    types: Int[Tensor, "b n"]
    chirality: Int[Tensor, "b n"]
    order: Int[Tensor, "b n n"]
    stereo: Int[Tensor, "b n n"]
    odds: Float[Tensor, "b n n"]
    fits: Bool[Tensor, "b"]
    connected: Bool[Tensor, "b"]

    @property
    def allowed(self) -> Bool[Tensor, "b"]:
        """Whether decoding keeps the graph."""
        return self.fits & self.connected


def read_plainly(logits: GraphLogits, vocabulary: Vocabulary) -> PlainReading:
    """The raw graphs; see the module's docstring."""
    pairs = upper_pairs(logits.mask)
    order = torch.where(pairs, logits.order.argmax(-1), 0)
    caps = torch.tensor(vocabulary.caps, device=order.device)
    types = logits.types.argmax(-1)
    room = caps[types] - order.sum(1) - order.sum(2)
    return PlainReading(
        types=types,
        chirality=logits.chirality.argmax(-1),
        order=order,
        stereo=logits.stereo.argmax(-1),
        odds=logits.order[..., 1:].logsumexp(-1) - logits.order[..., 0],
        fits=((room >= 0) | ~logits.mask).all(-1),
        connected=_connected(order, logits.mask),
    )


def decode_molecules(logits: GraphLogits, vocabulary: Vocabulary) -> list[Decoded]:
    """Decode a batch of logits; see the module's docstring."""
    plain = read_plainly(logits, vocabulary)
    arrays = [
        x.cpu().numpy()
        for x in (
            plain.types,
            plain.order,
            plain.chirality,
            plain.stereo,
            plain.fits,
            plain.connected,
            logits.mask.sum(-1),
        )
    ]
    odds = plain.odds.cpu().numpy()
    return [
        _decode_one(
            kinds[:n],
            orders[:n, :n],
            chirality[:n],
            stereo[:n, :n],
            odds[k, :n, :n],
            bool(ok),
            bool(whole),
            vocabulary,
        )
        for k, (kinds, orders, chirality, stereo, ok, whole, n) in enumerate(zip(*arrays, strict=True))
    ]


def _decode_one(
    types: np.ndarray,
    order: np.ndarray,
    chirality: np.ndarray,
    stereo: np.ndarray,
    odds: np.ndarray,
    fits: bool,
    connected: bool,
    vocabulary: Vocabulary,
) -> Decoded:
    raw = build(types, order, chirality, stereo, vocabulary)
    raw_smiles = None if raw is None else Chem.MolToSmiles(raw)
    if raw is not None and fits and connected:
        return Decoded(raw, raw_smiles, True, True, False, raw_smiles)
    caps = np.asarray(vocabulary.caps)[types]
    keep, constrained = constrain(order, odds, caps)
    mol = build(types[keep], constrained, chirality[keep], stereo[np.ix_(keep, keep)], vocabulary)
    smiles = None if mol is None else Chem.MolToSmiles(mol)
    same = len(keep) == len(types) and np.array_equal(constrained, order)
    return Decoded(mol, smiles, raw is not None, bool(connected), not same, raw_smiles)


def constrain(order: np.ndarray, odds: np.ndarray, caps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected graph within the caps, closest to `order` in the greedy sense of the module's docstring.

    Args:
        order: Most likely bond orders, upper triangle, `[n, n]`.
        odds: `log p(bonded) - log p(none)`, upper triangle.
        caps: Largest sum of bond orders of each atom.

    Returns:
        Atoms kept (all, unless some cannot be attached), and their bond orders.
    """
    n = len(caps)
    free = [int(c) for c in caps]
    first, second = np.triu_indices(n, 1)
    by_odds = np.argsort(-odds[first, second], kind="stable")
    pairs = list(zip(first[by_odds].tolist(), second[by_odds].tolist(), strict=True))
    result = np.zeros((n, n), dtype=np.int64)
    part = list(range(n))
    members = [[i] for i in range(n)]
    spare = list(free)  # free valences of each part
    parts = sum(c > 0 for c in free)  # atoms that cannot bond are left out anyway, so nothing waits for them
    for i, j in pairs:
        a, b = part[i], part[j]
        if a == b or free[i] < 1 or free[j] < 1 or (spare[a] + spare[b] < 3 and parts > 2):
            continue
        _join(a, b, part, members, spare)
        result[i, j] = 1
        free[i], free[j], parts = free[i] - 1, free[j] - 1, parts - 1
    largest = max(range(n), key=lambda a: len(members[a]))
    if parts > 1:  # not all atoms can be attached: attach as many as find a place
        for i, j in pairs:
            a, b = part[i], part[j]
            if (a == largest) != (b == largest) and free[i] > 0 and free[j] > 0:
                _join(largest, b if a == largest else a, part, members, spare)
                result[i, j] = 1
                free[i], free[j] = free[i] - 1, free[j] - 1
    keep = np.sort(members[largest])
    for i, j in pairs:
        raised = min(int(order[i, j] - result[i, j]), free[i], free[j])
        if raised > 0 and part[i] == largest and part[j] == largest:
            result[i, j] += raised
            free[i], free[j] = free[i] - raised, free[j] - raised
    return keep, result[np.ix_(keep, keep)]


def _join(a: int, b: int, part: list[int], members: list[list[int]], spare: list[int]) -> None:
    """Merge part `b` into part `a` by one bond."""
    for k in members[b]:
        part[k] = a
    members[a] += members[b]
    members[b] = []
    spare[a] += spare[b] - 2


def build(
    types: np.ndarray,
    order: np.ndarray,
    chirality: np.ndarray,
    stereo: np.ndarray,
    vocabulary: Vocabulary,
    *,
    reread: bool = False,
) -> Chem.Mol | None:
    """The molecule of a graph, or None where it is none; `reread` finds aromatic rings and drops idle hydrogens."""
    kinds = [vocabulary.types[k] for k in types]
    bonds = [
        (int(i), int(j), int(order[i, j]), int(stereo[i, j])) for i, j in zip(*np.nonzero(order), strict=True)
    ]
    try:
        mol = to_mol([k[0] for k in kinds], [k[1] for k in kinds], bonds, chirality.tolist())
    except ValueError:
        return None
    if reread or mol.GetNumAtoms() > len(kinds):
        # A hydrogen added for the geometry of C=N-H stays though that geometry means nothing; re-reading drops it.
        return Chem.MolFromSmiles(Chem.MolToSmiles(mol))
    return mol


def _connected(order: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Whether each graph is one piece, by repeated squaring of reachability."""
    bonded = ((order + order.transpose(1, 2)) > 0).float()
    reach = bonded + torch.eye(order.shape[1], device=order.device)
    for _ in range(max(1, int(np.ceil(np.log2(max(order.shape[1], 2)))))):
        reach = ((reach @ reach) > 0).float()
    return ((reach[:, 0] > 0) | ~mask).all(-1)
