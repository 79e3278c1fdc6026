"""Autoencoders: base class, bottlenecks, latent statistics, and the one for fields on regular grids."""

from sciLDM.autoencoders.base import Autoencoder, Latent
from sciLDM.autoencoders.bottleneck import Bottleneck, KLBottleneck, NoiseBottleneck, SaturatingBottleneck
from sciLDM.autoencoders.grid import GridAutoencoder
from sciLDM.autoencoders.grid_fields import GridFields
from sciLDM.autoencoders.grid_settings import GridSettings
from sciLDM.autoencoders.latents import LatentStats

__all__ = [
    "Autoencoder",
    "Bottleneck",
    "GridAutoencoder",
    "GridFields",
    "GridSettings",
    "KLBottleneck",
    "Latent",
    "LatentStats",
    "NoiseBottleneck",
    "SaturatingBottleneck",
]
