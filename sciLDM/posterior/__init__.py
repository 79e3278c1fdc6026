"""From an observation to calibrated posterior samples."""
