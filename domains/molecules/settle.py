"""What constrained decoding makes of decoder outputs, as targets: the decoder learns to be valid by itself.

`sciLDM.training.self_training` says how.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sciLDM.domains.molecules.autoencoder import GraphLogits, graph_loss, upper_pairs
from sciLDM.domains.molecules.decode import constrain, read_plainly
from sciLDM.domains.molecules.vocabulary import Vocabulary

__all__ = ["settle", "settled_loss"]


@torch.no_grad()
def settle(logits: GraphLogits, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Graphs inside the valence caps and in one piece, padded to the vocabulary's largest molecule.

    Returns:
        `types`, `chirality` `[b, n]`, `order`, `stereo` `[b, n, n]` (bytes, upper triangle); `changed` where the plain
        reading was another; `usable` where no atom had to go.
    """
    plain = read_plainly(logits, vocabulary)
    order, usable = plain.order.clone(), torch.ones(len(plain.order), dtype=torch.bool)
    caps = np.asarray(vocabulary.caps)
    for k in torch.nonzero(~plain.allowed)[:, 0].tolist():
        n = int(logits.mask[k].sum())
        keep, constrained = constrain(
            plain.order[k, :n, :n].cpu().numpy(),
            plain.odds[k, :n, :n].cpu().numpy(),
            caps[plain.types[k, :n].cpu().numpy()],
        )
        if len(keep) == n:
            order[k, :n, :n] = torch.as_tensor(constrained)
        else:
            usable[k] = False
    spare = vocabulary.max_atoms - order.shape[1]
    atoms = {"types": plain.types, "chirality": plain.chirality}
    pairs = {"order": order, "stereo": plain.stereo}
    return {
        **{name: F.pad(x, (0, spare)).byte().cpu() for name, x in atoms.items()},
        **{name: F.pad(x, (0, spare, 0, spare)).byte().cpu() for name, x in pairs.items()},
        "changed": ~plain.allowed.cpu(),
        "usable": usable,
    }


def settled_loss(settled: Mapping[str, Tensor], logits: GraphLogits) -> dict[str, Float[Tensor, "batch"]]:
    """Negative log-likelihood of those graphs, in nats a molecule."""
    n = logits.mask.shape[1]
    types, chirality = (settled[name][:, :n].long() for name in ("types", "chirality"))
    order, stereo = (settled[name][:, :n, :n].long() for name in ("order", "stereo"))
    return graph_loss(logits, types, chirality, order, stereo, upper_pairs(logits.mask))
