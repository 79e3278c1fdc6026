"""The small latent prior that `posterior.py` tests solvers with: trained once, in about 12 minutes of one core."""

from pathlib import Path
from typing import Any

from sciLDM import fit
from sciLDM.model import LatentDiffusion

__all__ = ["SIDE", "config", "trained"]

SIDE = 24


def config(*, quick: bool = False) -> dict[str, Any]:
    """What is trained. `quick` shows that it runs; nothing is learnt."""
    autoencoder = {
        "channels": 24, "patch": 2, "factors": [2], "widths": [24, 64], "blocks": [1, 1], "block_pca": True,
        "mse": 1.0, "l1": 0.0, "gradient": 0.0, "noise": 0.02,
    }  # fmt: skip
    domain = {"side": SIDE, "train": 64 if quick else 4096, "held_out": 8 if quick else 128}
    common = {"learning_rate": 2e-3, "warmup_steps": 50, "precision": "bf16", "validate_every": 400}
    return {
        "domain": {
            "class_path": "phantom_domain.PhantomDomain",
            "init_args": {**domain, "autoencoder": autoencoder},
        },
        "network": {
            "class_path": "UNetNetwork",
            "init_args": {"widths": [8, 8] if quick else [48, 96], "attention_levels": []},
        },
        "gaussian_start": True,
        "objective": {"self_condition": 0.0},
        "autoencoder_stage": {**common, "max_steps": 2 if quick else 1400, "batch_size": 8},
        "denoiser_stage": {
            **common, "max_steps": 2 if quick else 2600, "batch_size": 16, "learning_rate": 1e-3,
            "decay_from": 0.4, "weight_decay": 0.0, "ema_decay": 0.998,
        },
        "trainer": {"progress_bar": False, "accelerator": "cpu"},
    }  # fmt: skip


def trained(work: Path, *, quick: bool = False) -> LatentDiffusion:
    """The prior in `work`, trained there if it is not yet; an interrupted training continues."""
    return fit(config(quick=quick), work)
