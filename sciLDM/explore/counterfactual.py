r"""The same object with another condition: noise is kept, the label changes.

    y = flow(z | own labels),    z' = flow^-1(y | new labels)

The conditional flow takes from an object what its labels say; the noise that is left is what they do not (Preechakul et
al. 2022, arXiv:2111.15640; Su et al. 2023, 2203.08382). Deterministic, and the object itself under its own labels. For
latents `N(m(c), C)` it is the shift `m(c') - m(c)`, exactly.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from sciLDM.errors import ConfigError
from sciLDM.explore.flow import ProbabilityFlow
from sciLDM.explore.native import Encoded, conditioned, decode, encode
from sciLDM.model import LatentDiffusion

__all__ = ["counterfactual"]


@torch.no_grad()
def counterfactual(
    model: LatentDiffusion, objects: Any, cond: Mapping[str, Any], *, flow: ProbabilityFlow | None = None
) -> Any:
    """What objects would be under other conditions, all else equal.

    Args:
        model: A trained model.
        objects: Native objects whose own labels the codec can tell.
        cond: Conditions to change, in the user's units: one value, or one for each object. Labels not named are held.
        flow: How the flow is integrated; 12 calls of the denoiser for each of its steps.

    Returns:
        Native objects, one for each.

    Raises:
        ConfigError: Objects encoded before (their new labels cannot be read), or an unknown condition.
        DataError: Objects that the model cannot represent.
    """
    if isinstance(objects, Encoded) or not cond:
        raise ConfigError("counterfactual needs the objects themselves and at least one condition to change")
    own, asked, flow = encode(model, objects), encode(model, objects, cond=cond), flow or ProbabilityFlow()
    y = flow.to_noise(conditioned(model, own), own.z)
    # What the round trip loses is put back: under its own labels an object is exactly itself.
    lost = own.z - flow.to_latents(conditioned(model, own), y)
    z = flow.to_latents(conditioned(model, asked), y) + lost
    return decode(model, replace(asked, z=z if asked.mask is None else z * asked.mask[:, None]))
