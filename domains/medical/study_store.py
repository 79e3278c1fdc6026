"""Where a study keeps what it has computed, so that one that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from sciLDM.domains.medical.result import Reconstruction
from sciLDM.domains.medical.study_tasks import Observed

__all__ = ["Store", "identity"]


@final
class Store:
    """Images and networks by task, method, volume and everything that they depend on.

    Args:
        root: Folder to keep them in; None computes everything anew.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)

    def image(
        self, observed: Observed, name: str, depends: Any, make: Callable[[], tuple[np.ndarray, float]]
    ) -> tuple[np.ndarray, float]:
        """An image and the seconds it took.

        Args:
            observed: What it was made from.
            name: Of the method.
            depends: Settings that change it, as anything with a repr.
            make: Computes it.
        """
        path = self._path(name, (identity(observed), depends), ".npz")
        if path is not None and path.is_file():
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                return stored["image"], float(stored["seconds"])
        image, seconds = make()
        if path is not None:
            _save(path, {"image": image, "seconds": np.array(seconds)})
        return image, seconds

    def reconstruction(
        self,
        observed: Observed,
        depends: Any,
        make: Callable[[], tuple[Reconstruction, float]],
    ) -> tuple[Reconstruction, float]:
        """Our reconstruction and the seconds it took; see `image`."""
        path = self._path("sciLDM", (identity(observed), depends), ".npz")
        if path is not None and path.is_file():
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                said = json.loads(str(stored["said"]))
                arrays = {k.removeprefix("array/"): stored[k] for k in stored.files if k.startswith("array/")}
                result = Reconstruction(observed.scan.volume, arrays, stored["draws"], **said["result"])
            return result, said["seconds"]
        result, seconds = make()
        if path is not None:
            known = {
                k: getattr(result, k) for k in ("chi2", "calibrated", "modality")
            } | {"details": dict(result.details)}  # fmt: skip
            said = json.dumps({"result": known, "seconds": seconds})
            arrays = {f"array/{k}": v for k, v in result.arrays.items()}
            _save(path, arrays | {"draws": result.draws, "said": np.array(said)})
        return result, seconds

    def content(self, name: str, depends: Any, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Tensors and plain values: a trained network, a tuned weight."""
        path = self._path(name, depends, ".pt")
        if path is not None and path.is_file():
            return torch.load(path, weights_only=True)
        made = make()
        if path is not None:
            partial = path.with_suffix(".partial")
            torch.save(dict(made), partial)
            partial.replace(path)
        return made

    def _path(self, name: str, depends: Any, suffix: str) -> Path | None:
        if self.root is None:
            return None
        digest = hashlib.sha256(repr((name, depends)).encode()).hexdigest()[:20]
        plain = "".join(c if c.isalnum() else "-" for c in name)
        return self.root / f"{plain}-{digest}{suffix}"


def identity(observed: Observed) -> tuple[Any, ...]:
    """What was observed and of whom: the values themselves decide."""
    values = np.ascontiguousarray(observed.observation.values.numpy())
    truth = np.ascontiguousarray(observed.case.volume.data)
    parts = [hashlib.sha256(a.tobytes()).hexdigest() for a in (values, truth)]
    return (type(observed.observation.operator).__name__, observed.noise_std, *parts)


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    partial.replace(path)
