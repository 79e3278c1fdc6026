"""Networks over N-d grids of latent vectors."""

from sciLDM.nets.conditioning import ConditionEmbedding
from sciLDM.nets.dit import DiT
from sciLDM.nets.recipes import DiTNetwork, Network, UNetNetwork
from sciLDM.nets.unet import UNet

__all__ = ["ConditionEmbedding", "DiT", "DiTNetwork", "Network", "UNet", "UNetNetwork"]
