"""Molecules as graphs: SMILES tables in, candidate molecules with asked-for properties out."""

from sciLDM.domains.molecules.codec import AutoencoderSettings, MoleculeCodec, Property
from sciLDM.domains.molecules.domain import Molecules
from sciLDM.domains.molecules.samples import MoleculeSamples

__all__ = ["AutoencoderSettings", "MoleculeCodec", "MoleculeSamples", "Molecules", "Property"]
