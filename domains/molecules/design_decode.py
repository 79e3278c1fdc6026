"""Decoding around a scaffold: its atoms and bonds are given, the rest is the decoder's.

Clamped logits make the scaffold certain. Where the argmax graph is then connected and inside the valence caps it is the
molecule; otherwise the constraint of `decode` acts on the decoration alone: scaffold atoms enter it with the valences
that their own bonds leave them (none, where they are closed), held together by a tree of bonds that comes first.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from rdkit import Chem

from sciLDM.domains.molecules.autoencoder import GraphLogits
from sciLDM.domains.molecules.decode import Decoded, build, constrain, decode_molecules
from sciLDM.domains.molecules.design_scaffold import Placement
from sciLDM.domains.molecules.vocabulary import Vocabulary

__all__ = ["constrain_around", "decode_around", "scaffold_likelihood"]

_CERTAIN = 1e4
"""Above any logit a network gives."""


def decode_around(
    logits: GraphLogits, placements: Sequence[Placement], vocabulary: Vocabulary
) -> list[Decoded]:
    """Molecules that have the scaffold where the placements say.

    `valid_raw` and `raw_smiles` are of the unclamped argmax, so that they tell what the model did by itself;
    `changed` says that clamp or constraint altered it.
    """
    raw = decode_molecules(logits, vocabulary)
    types, order, chirality, stereo = (
        x.argmax(-1).cpu().numpy() for x in (logits.types, logits.order, logits.chirality, logits.stereo)
    )
    odds = (logits.order[..., 1:].logsumexp(-1) - logits.order[..., 0]).cpu().numpy()
    return [
        _decode_one(types[k, :n], order[k, :n, :n], chirality[k, :n], stereo[k, :n, :n], odds[k, :n, :n], p, raw[k],
                    vocabulary)
        for k, p in enumerate(placements)
        for n in (p.atoms,)
    ]  # fmt: skip


def _decode_one(
    types: np.ndarray,
    order: np.ndarray,
    chirality: np.ndarray,
    stereo: np.ndarray,
    odds: np.ndarray,
    placement: Placement,
    raw: Decoded,
    vocabulary: Vocabulary,
) -> Decoded:
    order = np.triu(order, 1)
    clamped_types, clamped = types.copy(), order.copy()
    clamped_types[placement.positions] = placement.types
    clamped[np.ix_(placement.positions, placement.positions)] = placement.order
    caps = np.asarray(vocabulary.caps)[clamped_types]
    keep, bonds = constrain_around(clamped, odds, caps, placement)
    mol = build(
        clamped_types[keep], bonds, chirality[keep], stereo[np.ix_(keep, keep)], vocabulary, reread=True
    )
    same = len(keep) == len(types) and np.array_equal(bonds, order) and np.array_equal(types, clamped_types)
    smiles = None if mol is None else Chem.MolToSmiles(mol)
    return replace(raw, mol=mol, smiles=smiles, changed=not same)


def constrain_around(
    order: np.ndarray, odds: np.ndarray, caps: np.ndarray, placement: Placement
) -> tuple[np.ndarray, np.ndarray]:
    """Connected graph within the caps that has the scaffold's bonds and no others on its closed atoms.

    Args:
        order: Most likely bond orders with the scaffold's in place, upper triangle, `[n, n]`.
        odds: `log p(bonded) - log p(none)`.
        caps: Largest sum of bond orders of each atom.
        placement: Where the scaffold stands.

    Returns:
        Atoms kept (all of the scaffold), and their bond orders.
    """
    place, block = placement.positions, placement.order
    inside = block + block.T
    spare = np.where(placement.open, np.maximum(caps[place] - inside.sum(1), 0), 0)
    if not spare.any():  # the scaffold alone, whole
        return place, block
    closed = np.zeros(len(caps), dtype=bool)
    closed[place[spare == 0]] = True
    reduced, ranked, room = np.array(order), np.array(odds, dtype=float), np.array(caps)
    ranked[closed[:, None] | closed[None]] = -_CERTAIN
    reduced[closed[:, None] | closed[None]] = 0
    reduced[np.ix_(place, place)], ranked[np.ix_(place, place)] = 0, -2 * _CERTAIN
    tree = _tree(inside, int(np.argmax(spare)))
    room[place] = spare
    for rank, (i, j) in enumerate(tree):
        a, b = sorted((place[i], place[j]))
        reduced[a, b], ranked[a, b] = 1, 2 * _CERTAIN - rank
        room[a], room[b] = room[a] + 1, room[b] + 1
    keep, bonds = constrain(reduced, ranked, room)
    whole = np.zeros_like(order)
    whole[np.ix_(keep, keep)] = bonds
    whole[np.ix_(place, place)] = block
    keep = np.union1d(keep, place)
    return keep, whole[np.ix_(keep, keep)]


def _tree(bonded: np.ndarray, root: int) -> list[tuple[int, int]]:
    """Bonds of a spanning tree, outwards from an atom with valences to spare: no join may look like the last one."""
    seen, edges, waiting = {root}, [], deque([root])
    while waiting:
        here = waiting.popleft()
        for there in np.flatnonzero(bonded[here]).tolist():
            if there not in seen:
                seen.add(there)
                edges.append((here, there))
                waiting.append(there)
    return edges


def scaffold_likelihood(
    logits: GraphLogits, types: torch.Tensor, order: torch.Tensor, known: torch.Tensor, pairs: torch.Tensor
) -> torch.Tensor:
    """`log p(scaffold | latent)` under the decoder's heads, for each sample.

    Args:
        logits: Of the decoder.
        types: Atom types, `[b, n]`, read where `known`.
        order: Bond orders, `[b, n, n]`, read where `pairs`.
        known: Scaffold atoms.
        pairs: Pairs `i < j` that the scaffold decides.
    """
    atoms = logits.types.log_softmax(-1).gather(-1, types.unsqueeze(-1)).squeeze(-1)
    bonds = logits.order.log_softmax(-1).gather(-1, order.unsqueeze(-1)).squeeze(-1)
    return (atoms * known).sum(-1) + (bonds * pairs).flatten(1).sum(-1)
