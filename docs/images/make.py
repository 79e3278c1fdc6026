"""Draws samples.svg, the picture of the README: four molecules for each of three values of logP."""

from pathlib import Path

import numpy as np

import sciLDM

model = sciLDM.load("qm9-small")
targets = np.repeat([-1.0, 0.5, 2.0], 4)
found = model.sample(len(targets), cond={"logP": targets}, guidance=2.0, seed=7)
picture = found.draw(12, columns=4)
(Path(__file__).parent / "samples.svg").write_text(getattr(picture, "data", picture), encoding="utf-8")
