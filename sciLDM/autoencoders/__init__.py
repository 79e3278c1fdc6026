"""Autoencoders: base class, bottlenecks, latent statistics."""

from sciLDM.autoencoders.base import Autoencoder, Latent
from sciLDM.autoencoders.bottleneck import Bottleneck, KLBottleneck, NoiseBottleneck
from sciLDM.autoencoders.latents import LatentStats

__all__ = ["Autoencoder", "Bottleneck", "KLBottleneck", "Latent", "LatentStats", "NoiseBottleneck"]
