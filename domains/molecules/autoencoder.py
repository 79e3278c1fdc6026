r"""Molecular graph autoencoder: one latent vector per heavy atom, near-lossless.

Encoder: a transformer over atoms with an additive pair bias from bonds and shortest paths (Graphormer, Ying et al.
2021, arXiv:2106.05234). Decoder: a transformer over latents, then heads for atom type (element and charge together, as
observed in the data), chirality, and for every pair `i < j` bond order and double-bond geometry.

Atoms stand in the order of the canonical SMILES, and their index is part of encoder and decoder: without it symmetric
atoms share one latent, and no pairwise head can then rebuild, say, a phenyl ring.
"""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.utils import to_dense_adj, to_dense_batch

from sciLDM.autoencoders import Autoencoder, Bottleneck, Latent, NoiseBottleneck
from sciLDM.domains.molecules.vocabulary import Vocabulary
from sciLDM.errors import DataError

__all__ = ["DenseGraph", "GraphLogits", "MolecularGraphAE", "graph_loss", "upper_pairs"]

_MAX_PATH = 8
_ORDERS = 4
_STEREO = 3
_REMEDY = (
    "featurise with this model's vocabulary (featurise(..., vocabulary=...)), which rejects such molecules"
)


@dataclass(frozen=True)
class DenseGraph:
    """A padded batch of graphs: atoms `[b, n]`, pairs `[b, n, n]`, symmetric."""

    types: Int[Tensor, "b n"]
    hydrogens: Int[Tensor, "b n"]
    chirality: Int[Tensor, "b n"]
    in_ring: Int[Tensor, "b n"]
    order: Int[Tensor, "b n n"]
    stereo: Int[Tensor, "b n n"]
    mask: Bool[Tensor, "b n"]


@dataclass(frozen=True)
class GraphLogits:
    """Decoder output; pair logits are meant for `i < j`."""

    types: Float[Tensor, "b n types"]
    chirality: Float[Tensor, "b n 3"]
    order: Float[Tensor, "b n n 4"]
    stereo: Float[Tensor, "b n n 3"]
    mask: Bool[Tensor, "b n"]


def _half_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


@final
class _GELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        # In bfloat16 the erf form differs by less than the rounding, and takes a third of the time on CPUs.
        return F.gelu(x, approximate="none" if _half_on_cpu(x) else "tanh")


@final
class _Layer(nn.Module):
    """Pre-norm transformer layer; attention takes an additive bias per head and pair."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), _GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            self.qkv(self.norm_1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        bias = bias.to(q.dtype)
        if _half_on_cpu(q):
            # The backward pass of the fused attention takes several times as long (see `sciLDM.nets.dit`).
            q, k, v = (part.contiguous() for part in (q, k, v))
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias
            mixed = scores.softmax(dim=-1).to(v.dtype) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm_2(x))


@final
class MolecularGraphAE(Autoencoder[Batch, GraphLogits]):
    """Graph autoencoder with per-atom latents `[batch, channels, atoms]`.

    Args:
        vocabulary: Atom types, their valence caps, and the largest molecule.
        channels: Latent channels per atom; 8 for QM9, 12 to 16 for drug-like molecules.
        width: Model width; depth: layers in the encoder and in the decoder.
        heads: Attention heads.
        bottleneck: Default: bounded code with noise.
        valence_weight: Weight of the hinge on expected valence above the cap.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        channels: int = 8,
        width: int = 96,
        depth: int = 3,
        heads: int = 4,
        bottleneck: Bottleneck | None = None,
        valence_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.latent_channels = channels
        self.bottleneck = bottleneck or NoiseBottleneck()
        self.valence_weight = valence_weight
        types = len(vocabulary.types)
        self.register_buffer("_type_of", torch.tensor(vocabulary.type_table), persistent=False)
        self.register_buffer("_caps", torch.tensor(vocabulary.caps, dtype=torch.float32), persistent=False)
        self.embed_type = nn.Embedding(types, width)
        self.embed_hydrogens = nn.Embedding(8, width)
        self.embed_chirality = nn.Embedding(3, width)
        self.embed_ring = nn.Embedding(2, width)
        self.position_in = nn.Embedding(vocabulary.max_atoms, width)
        self.bias_order = nn.Embedding(_ORDERS, heads)
        self.bias_stereo = nn.Embedding(_STEREO, heads)
        self.bias_path = nn.Embedding(_MAX_PATH + 2, heads)
        self.encoder = nn.ModuleList([_Layer(width, heads) for _ in range(depth)])
        self.to_latent = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * channels))
        self.from_latent = nn.Linear(channels, width)
        self.position_out = nn.Embedding(vocabulary.max_atoms, width)
        self.decoder = nn.ModuleList([_Layer(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.atom_head = nn.Linear(width, types + 3)
        self.pair_left, self.pair_right = nn.Linear(width, width), nn.Linear(width, width)
        self.pair_sum = nn.Linear(width, 2 * width)
        self.pair_head = nn.Sequential(_GELU(), nn.Linear(width, _ORDERS + _STEREO))

    def dense(self, batch: Batch) -> DenseGraph:
        """Padded tensors of a PyG batch as `GraphTable.to_batch` makes it.

        Raises:
            DataError: An atom or a size that this model's vocabulary does not have.
        """
        x, mask = to_dense_batch(batch.x, batch.batch)
        types = self._types(x, mask)
        adjacency = to_dense_adj(batch.edge_index, batch.batch, batch.edge_attr, max_num_nodes=x.shape[1])
        return DenseGraph(
            types=types,
            hydrogens=x[..., 2].clamp_max(7),
            chirality=x[..., 3],
            in_ring=x[..., 4],
            order=adjacency[..., 0].long(),
            stereo=adjacency[..., 1].long(),
            mask=mask,
        )

    def _types(self, x: Tensor, mask: Tensor) -> Tensor:
        """Atom types; padding gets type 0, since element 0 with charge 0 need not be a type."""
        largest = self.vocabulary.max_atoms
        if x.shape[1] > largest:
            raise DataError(
                f"a molecule has {x.shape[1]} heavy atoms, this model holds at most {largest}; {_REMEDY}"
            )
        table = self._type_of
        inside = (x[..., 0] < table.shape[0]) & (x[..., 1] < table.shape[1])
        types = table[x[..., 0].clamp_max(table.shape[0] - 1), x[..., 1].clamp_max(table.shape[1] - 1)]
        if bool((mask & ~(inside & (types >= 0))).any()):
            known = ", ".join(
                f"{symbol}{charge:+d}" if charge else symbol for symbol, charge in self.vocabulary.types
            )
            raise DataError(f"an atom is not among this model's ({known}); {_REMEDY}")
        return types.masked_fill(~mask, 0)

    def encode(self, fields: Batch) -> Latent:
        graph = self.dense(fields)
        positions = torch.arange(graph.mask.shape[1], device=graph.mask.device)
        h = (
            self.embed_type(graph.types)
            + self.embed_hydrogens(graph.hydrogens)
            + self.embed_chirality(graph.chirality)
            + self.embed_ring(graph.in_ring)
            + self.position_in(positions)
        )
        pair = (
            self.bias_order(graph.order)
            + self.bias_stereo(graph.stereo)
            + self.bias_path(_path_lengths(graph.order))
        )
        bias = pair.permute(0, 3, 1, 2) + _padding_bias(graph.mask)
        for layer in self.encoder:
            h = layer(h, bias)
        mean, log_std = self.to_latent(h).transpose(1, 2).float().chunk(2, dim=1)
        return Latent(mean, log_std, graph.mask)

    def decode(self, z: Tensor, mask: Tensor | None) -> GraphLogits:
        if mask is None:
            mask = torch.ones(z.shape[0], z.shape[2], dtype=torch.bool, device=z.device)
        positions = torch.arange(z.shape[2], device=z.device)
        h = self.from_latent(z.transpose(1, 2)) + self.position_out(positions)
        bias = _padding_bias(mask)
        for layer in self.decoder:
            h = layer(h, bias)
        h = self.norm(h)
        first, second = self.pair_sum(h).chunk(2, dim=-1)
        pair = (
            self.pair_left(h)[:, :, None] * self.pair_right(h)[:, None] + first[:, :, None] + second[:, None]
        )
        atom, pair = self.atom_head(h).float(), self.pair_head(pair).float()
        return GraphLogits(atom[..., :-3], atom[..., -3:], pair[..., :_ORDERS], pair[..., _ORDERS:], mask)

    def reconstruction_loss(self, fields: Batch, decoded: GraphLogits) -> dict[str, Float[Tensor, "batch"]]:
        graph = self.dense(fields)
        pairs = upper_pairs(graph.mask)
        terms = graph_loss(decoded, graph.types, graph.chirality, graph.order, graph.stereo, pairs)
        return {**terms, "valence": self.valence_weight * self._valence_excess(decoded, pairs)}

    def _valence_excess(self, decoded: GraphLogits, pairs: Tensor) -> Tensor:
        """Hinge on the expected sum of bond orders above the expected cap, summed over atoms."""
        orders = torch.arange(_ORDERS, device=pairs.device, dtype=torch.float32)
        expected = (decoded.order.softmax(-1) * orders).sum(-1) * pairs
        valence = expected.sum(1) + expected.sum(2)
        cap = (decoded.types.softmax(-1) * self._caps).sum(-1)
        return (F.relu(valence - cap) * decoded.mask).sum(dim=1)

    def metrics(self, fields: Batch, decoded: GraphLogits) -> dict[str, Tensor]:
        graph = self.dense(fields)
        pairs = upper_pairs(graph.mask)
        bonded = pairs & (graph.order > 0)
        atoms = ((decoded.types.argmax(-1) == graph.types) | ~graph.mask).all(-1)
        chirality = ((decoded.chirality.argmax(-1) == graph.chirality) | ~graph.mask).all(-1)
        bonds = ((decoded.order.argmax(-1) == graph.order) | ~pairs).flatten(1).all(-1)
        stereo = ((decoded.stereo.argmax(-1) == graph.stereo) | ~bonded).flatten(1).all(-1)
        exact = atoms & chirality & bonds & stereo
        return {"exact_graph": exact.float(), "exact_atoms": atoms.float(), "exact_bonds": bonds.float()}


def upper_pairs(mask: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n n"]:
    """Pairs `i < j` of atoms that exist."""
    return (mask[:, :, None] & mask[:, None]).triu(1)


def graph_loss(
    logits: GraphLogits, types: Tensor, chirality: Tensor, order: Tensor, stereo: Tensor, pairs: Tensor
) -> dict[str, Float[Tensor, "batch"]]:
    """Negative log-likelihood of graphs, in nats a molecule; `pairs` are those that exist, of which a bond is one."""
    bonded = (pairs & (order > 0)).float()
    return {
        "atom": _nll(logits.types, types, logits.mask),
        "chirality": _nll(logits.chirality, chirality, logits.mask),
        "bond": _nll(logits.order, order, pairs),
        "stereo": _nll(logits.stereo, stereo, bonded),
    }


def _nll(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Negative log-likelihood summed over all but the batch axis, in nats per molecule."""
    nll = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view(target.shape)
    return (nll * weight).flatten(1).sum(dim=1)


def _padding_bias(mask: Tensor) -> Tensor:
    return torch.where(mask, 0.0, -1e4)[:, None, None, :]


def _path_lengths(order: Int[Tensor, "b n n"]) -> Int[Tensor, "b n n"]:
    """Bonds on the shortest path, 0 on the diagonal, capped at `_MAX_PATH`; `_MAX_PATH + 1` when not connected."""
    bonded = (order > 0).float()
    reached = torch.eye(order.shape[1], device=order.device).expand_as(bonded)
    length = torch.where(reached > 0, 0, _MAX_PATH + 1)
    for step in range(1, _MAX_PATH + 1):
        wider = ((reached + reached @ bonded) > 0).float()
        length = torch.where((wider > 0) & (reached == 0), step, length)
        reached = wider
    return length
