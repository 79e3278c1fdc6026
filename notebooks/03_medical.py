# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # From a folder of scans to missing slices and damaged regions rebuilt, with error bars
#
# You have a folder of NIfTI files. This notebook trains a latent diffusion model on them, then takes a patient whom the
# model has never seen, of whom only every fourth slice was recorded, or whose scan is spoilt in a region. Set
# `SCILDM_TINY=1` for a run of seconds instead of half an hour.

# %%
import os
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from IPython.display import HTML

import sciLDM
from sciLDM.data.cards import locate
from sciLDM.domains.medical import damaged, keep_slices, read_volume
from sciLDM.domains.medical.pictures import middle_of, orthogonal_slices
from sciLDM.errors import DataError

TINY = os.environ.get("SCILDM_TINY") == "1"
work = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1. The folder
# Brain MR around the hippocampus (Medical Segmentation Decathlon). Where it is not on this machine we make phantoms of
# about that size: a few ellipsoids of different brightness and some noise, each on a scale of its own, as MR has it.


# %%
def phantom(path: Path, rng: np.random.Generator) -> Path:
    """A head with ellipsoids in it, stored from right to left as 16-bit numbers."""
    shape = tuple(int(n) for n in rng.integers((32, 44, 32), (39, 55, 43)))
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"), axis=-1)
    image = 0.5 + 0.1 * axes @ rng.normal(size=3)
    for _ in range(6):
        radii, centre = rng.uniform(0.25, 0.6, 3), rng.uniform(-0.6, 0.6, 3)
        depth = 1 - np.sqrt((((axes - centre) / radii) ** 2).sum(axis=-1))
        image += rng.uniform(-0.3, 0.3) / (1 + np.exp(-12 * depth))
    scale = 10 ** rng.uniform(2.5, 3.5)
    values = scale * (image + 0.02 * rng.normal(size=shape))
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [shape[0] / 2, -20.0, 5.0]
    nib.save(nib.Nifti1Image(np.clip(values, 0, None).astype(np.int16), affine), path)
    return path


count = 14 if TINY else 200
try:
    files = [p for p in locate("msd_hippocampus") if p.parent.name == "images"][:count]
except DataError:
    files = [phantom(work / f"p{k:03d}.nii.gz", np.random.default_rng(k)) for k in range(count)]
(work / "scans").mkdir()
for file in files[:-1]:
    shutil.copy(file, work / "scans")
patient = files[-1]  # kept out of the folder: the model never sees it
image = nib.load(patient)
print(
    len(files) - 1, "scans;", patient.name, image.shape, nib.aff2axcodes(image.affine), image.get_data_dtype()
)

# %% [markdown]
# ## 2. Train
# Volumes of other sizes than `grid` are padded or cut. Half of such data is noise, which does not compress: 48 numbers
# for 64 voxels. With few scans most of what can be learnt is a mean and covariances, so the denoiser starts from those
# (`gaussian_start`). An interrupted run continues when the cell is run again.

# %%
limits = {"max_steps": 2, "warmup_steps": 1} if TINY else {"warmup_steps": 50, "precision": "bf16"}
config = {
    "domain": {
        "class_path": "medical",
        "init_args": {
            "data": str(work / "scans"),
            "modality": "mr",
            "grid": [44, 60, 48],
            "autoencoder": {
                "channels": 48, "patch": 2, "factors": [2], "widths": [8, 16] if TINY else [16, 48],
                "blocks": [0, 1], "noise": 0.02, "block_pca": True, "l1": 0.0, "mse": 1.0,
            },
        },
    },
    "network": {
        "class_path": "UNetNetwork",
        "init_args": {"widths": [8, 16] if TINY else [32, 64], "attention_levels": [], "boundary": "replicate"},
    },
    "gaussian_start": True,
    "start_patterns": 1,
    "objective": {"self_condition": 0.0},
    "ignore_gate": True,  # the floor depends on the noise of your data; the score is printed
    "autoencoder_stage": {"max_minutes": 3, "max_steps": 300, "learning_rate": 2e-3, "batch_size": 2 if TINY else 4,
                          **limits},
    "denoiser_stage": {"max_minutes": 20, "max_steps": 5000, "learning_rate": 2e-3, "batch_size": 2 if TINY else 4,
                       "decay_from": 0.3, "weight_decay": 0.05, "ema_decay": 0.997, **limits},
}  # fmt: skip
model = sciLDM.fit(config, work / "run")

# %% [markdown]
# ## 3. What was lost
# Every fourth slice from feet to head, or all but a box of 10 x 12 x 8 voxels. What is missing is NaN; nothing of it
# reaches the model. Noise of the scanner: about 3 % of the range.

# %%
whole = read_volume(patient).data
mask = np.zeros(image.shape, dtype=np.uint8)
mask[tuple(slice(n // 2 - half, n // 2 + half) for n, half in zip(image.shape, (5, 6, 4), strict=True))] = 1
cases = {
    "every fourth slice": keep_slices(patient, axis=2, every=4),
    "damaged region": damaged(patient, mask),
}
noise_std = 0.03 * float(np.ptp(np.quantile(whole, [0.01, 0.99])))

found = model.reconstruct(
    list(cases.values()), noise_std=noise_std, samples=2 if TINY else 16, steps=4 if TINY else 20, seed=0
)
results = dict(zip(cases, found, strict=True))


# %% [markdown]
# ## 4. Truth, input, reconstruction, error and standard deviation
# Three cuts through the middle of what was lost. The standard deviation is small where something was measured.


# %%
def picture(name: str) -> HTML:
    """Cuts through the middle of what was lost."""
    result = results[name]
    recon, given = result.arrays["recon"], result.volume.data
    images = {"truth": whole, "input": given, "reconstruction": recon,
              "error": recon - whole, "std": result.arrays["std"]}  # fmt: skip
    at, spacing = middle_of(np.isnan(given), whole.shape), result.volume.spacing
    window = (float(whole.min()), float(np.quantile(whole, 0.998)))
    return HTML(orthogonal_slices(images, f"{patient.name}: {name}", at=at, spacing=spacing, window=window))


picture("every fourth slice")

# %%
picture("damaged region")

# %% [markdown]
# ## 5. Numbers
# Over the voxels that were lost: the error, beside the spread of the true values there; the share inside the 90 %
# interval; and how much of the variance was generated rather than measured.

# %%
rows = {}
for name, result in results.items():
    lost, parts = np.isnan(result.volume.data), result.arrays
    rows[name] = {
        "rmse": float(np.sqrt(((parts["recon"] - whole)[lost] ** 2).mean())),
        "std of the truth": float(whole[lost].std()),
        "coverage": float(((whole >= parts["lower"]) & (whole <= parts["upper"]))[lost].mean()),
        "std, lost": float(parts["std"][lost].mean()),
        "std, measured": float(parts["std"][~lost].mean()),
        "chi2": result.chi2,
    }
table = pd.DataFrame(rows).T
table.round(3)

# %%
# In the patient's own geometry and number type, as a BIDS derivative with side-cars that say it is synthetic.
written = results["every fourth slice"].save(work / "derivatives", samples=1)
again = nib.load(next(p for p in written if "recon" in p.name))
print(*(p.name for p in written), sep="\n")
assert np.allclose(again.affine, image.affine, atol=1e-4)
assert again.shape == image.shape
assert again.get_data_dtype() == image.get_data_dtype()
assert (table["std, lost"] > table["std, measured"]).all(), table
slices = table.loc["every fourth slice"]
assert slices["rmse"] < (1.0 if TINY else 0.8) * slices["std of the truth"], slices  # TINY trains four steps
round(float(slices["rmse"] / slices["std of the truth"]), 3)
