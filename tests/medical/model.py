"""A medical model after one step of each stage: made once a session, not to be changed."""

from pathlib import Path

import pytest
import torch

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.domains.medical import Medical
from sciLDM.model import LatentDiffusion
from sciLDM.testing import check_domain
from tests.medical.phantoms import experiment, folder

_MADE: dict[int, LatentDiffusion] = {}


def tiny_model(factory: pytest.TempPathFactory) -> LatentDiffusion:
    """Untrained for all purposes; its geometry, units and bookkeeping are those of a real one."""
    if id(factory) not in _MADE:
        torch.set_num_threads(1)  # nets this small only wait for other threads
        place: Path = factory.mktemp("medical")
        data = folder(place / "in")
        domain = Medical(
            str(data),
            grid=(16, 16, 16),
            autoencoder=GridSettings(channels=4, widths=(8, 16), blocks=(1, 1)),
            psnr=-100.0,
        )
        _MADE[id(factory)] = check_domain(domain, place / "check", config=experiment(data))
    return _MADE[id(factory)]
