"""What all tests share.

Nothing here imports `sciLDM`: this file is read before the jaxtyping hook is in place, and a module imported
before the hook keeps its annotations unchecked for the whole run.
"""

import os
from pathlib import Path

import hypothesis
import pytest

# Generated examples take as long as the machine is busy, so no deadline; the same examples each time, so that
# a red test stays red. `--hypothesis-profile=search` looks for new ones.
hypothesis.settings.register_profile("default-sciLDM", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=500)
hypothesis.settings.load_profile("default-sciLDM")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder named by SCILDM_DATA; the test is skipped without one."""
    folder = Path(os.environ.get("SCILDM_DATA", "/nonexistent"))
    if not folder.is_dir():
        pytest.skip("needs data: set SCILDM_DATA to a folder that holds it")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Layers are initialised from torch's global generator: the same weights in any order of tests."""
    import torch

    torch.manual_seed(0)
