r"""What the denoiser makes of an object: its activations, pooled over the latent, as features for other tasks.

To undo noise a denoiser has to know what its data are made of, and its inner layers do (Baranchuk et al. 2022,
arXiv:2112.03126; Xiang et al. 2023, arXiv:2303.09769). The latent is given without its conditions, at `lmbda = 1` but
with no noise added, so that features are a function of the object alone; tokens of three layers (half way, the last but
one, and the end) are summed over the cells that exist. For other networks than `DiT` features are the latents
themselves, where they are few and all objects have all of them, or moments of these.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.explore.editing import opened
from sciLDM.explore.native import Encoded
from sciLDM.guidance import Conditioned
from sciLDM.model import LatentDiffusion
from sciLDM.nets import DiT

__all__ = ["activations", "pooled_latents"]

_FEW = 256


@torch.no_grad()
def activations(
    model: LatentDiffusion, encoded: Encoded, *, lmbda: float = 1.0, batch_size: int = 512
) -> Float[Tensor, "objects features"]:
    """Features of objects, on the CPU.

    Args:
        model: A trained model.
        encoded: Objects, from `sciLDM.explore.encode`.
        lmbda: The noise level that the network is told.
        batch_size: Objects at once.

    Raises:
        ConfigError: No objects.
    """
    if len(encoded) == 0:
        raise ConfigError("activations: expected at least one object")
    net = model.denoiser.net
    if not isinstance(net, DiT):
        whole = encoded.mask is None and encoded.z[0].numel() <= _FEW
        return encoded.z.flatten(1).float().cpu() if whole else pooled_latents(encoded)
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda _module, _inputs, output: seen.__setitem__(name, output.detach().float())

    depth = len(net.blocks)
    layers = {f"block {k}": net.blocks[k] for k in {depth // 2 - 1, depth - 2} if k >= 0} | {"end": net.norm}
    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    bare = opened(model, encoded, ())
    found = []
    try:
        for start in range(0, len(bare), batch_size):
            part = bare.rows(range(start, min(start + batch_size, len(bare))))
            found.append(_of_batch(model, part, lmbda, seen))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found)


def _of_batch(model: LatentDiffusion, part: Encoded, lmbda: float, seen: Mapping[str, Tensor]) -> Tensor:
    schedule = model.denoiser.schedule
    t = schedule.t_of_lmbda(torch.full((len(part),), lmbda, dtype=torch.float64)).to(part.z)
    alpha = schedule(t)[0].to(part.z).view(-1, *[1] * (part.z.ndim - 1))
    cond = {name: label.to(model.device) for name, label in part.request.cond.items()}
    Conditioned(model.denoiser, cond, part.mask)(alpha * part.z, t)
    cells = part.z[:, 0].flatten(1)
    there = torch.ones_like(cells) if part.mask is None else part.mask.flatten(1).to(cells)
    pooled = []
    for name in sorted(seen):
        tokens = seen[name][:, -cells.shape[1] :]  # tokens of conditions come first
        if tokens.shape[1] == cells.shape[1]:
            tokens = tokens * there[..., None]
        pooled.append(tokens.sum(1))
    return torch.cat([*pooled, there.sum(1, keepdim=True)], dim=1).cpu()


def pooled_latents(encoded: Encoded) -> Float[Tensor, "objects features"]:
    """Sum and second moments of the latent's channels over the cells that exist, and the number of these."""
    z = encoded.z.flatten(2).float()
    there = torch.ones_like(z[:, 0]) if encoded.mask is None else encoded.mask.flatten(1).to(z)
    z = z * there[:, None]
    second = torch.einsum("bcn,bdn->bcd", z, z)
    upper = torch.triu_indices(z.shape[1], z.shape[1], device=z.device)
    return torch.cat([z.sum(2), second[:, upper[0], upper[1]], there.sum(1, keepdim=True)], dim=1).cpu()
