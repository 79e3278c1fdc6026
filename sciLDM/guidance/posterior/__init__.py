"""Posterior guidance: denoisers that have seen an observation."""
