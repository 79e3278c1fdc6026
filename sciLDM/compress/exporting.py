r"""The denoiser or the decoder as a file that runs without sciLDM: a program of `torch.export`, or an ONNX graph.

    denoiser   x0 = D(x_t, t, mask, previous, label of each condition)      all of normalised latents
    decoder    what the autoencoder says of latents: named tensors          of denormalised ones

The batch is free, the grid is the model's largest. What optional inputs of the denoiser mean when they are not known:
`mask` true everywhere, `previous` zeros (no earlier estimate), a label NaN (or -1 for a class). A file of the same name
with `.json` after it says what is needed outside: inputs and outputs, latent statistics, schedule. What was written is
read back and compared with the model at two batch sizes before it is kept.
"""

import copy
import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from sciLDM.conditions import Category, Condition, FieldMap, Scalar, Tokens, Vector
from sciLDM.data.ensemble import model_hash
from sciLDM.denoiser import NetDenoiser
from sciLDM.errors import ConfigError, MissingExtra
from sciLDM.model import LatentDiffusion

__all__ = ["Exported", "export"]

TOLERANCE = 1e-4
"""Largest difference to the model that is accepted, in units of the largest number that it returns (at least 1)."""
_TRACED, _TRIED = 3, (1, 5)
"""Batch sizes: traced with, compared at."""

Part = Literal["denoiser", "decoder"]


@final
@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        inputs: Names of its inputs, in order.
        outputs: Names of its outputs, in order.
        difference: Largest difference to the model, relative as in `TOLERANCE`; None where it could not be run.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float | None


def export(model: LatentDiffusion, path: str | os.PathLike[str], *, part: Part = "denoiser") -> Exported:
    """Write a part of a model for other programs, in float32.

    Args:
        model: Trained.
        path: Ends in `.pt2` (`torch.export`) or `.onnx`.
        part: `denoiser` or `decoder`.

    Raises:
        ConfigError: Another ending, a condition of free length, or a network that cannot be traced.
        MissingExtra: ONNX is asked for and not installed.
    """
    path = Path(path)
    write, run = _formats(path)
    if part not in ("denoiser", "decoder"):
        raise ConfigError(f"part: expected denoiser or decoder, got {part!r}")
    module = _Denoiser(model) if part == "denoiser" else _Decoder(model)
    # Tracing warns of what cannot be helped from here.
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        outputs = module.outputs()
        draft = path.with_name(f".{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(module, draft)
            difference = _difference(module, run(draft, module) if run is not None else None)
            if difference is not None and difference > TOLERANCE:
                raise ConfigError(
                    f"{path}: the exported {part} departs from the model by {difference:.1e}, expected at most "
                    f"{TOLERANCE}; nothing was kept"
                )
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    found = Exported(path, tuple(module.names), outputs, difference)
    text = json.dumps(_description(model, module, found, part), indent=2)
    path.with_name(f"{path.name}.json").write_text(text + "\n", encoding="utf-8")
    return found


class _Part(nn.Module):
    """A module of plain tensors in and out, with names for them."""

    names: list[str]

    def inputs(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def outputs(self) -> tuple[str, ...]:
        raise NotImplementedError


@final
class _Denoiser(_Part):
    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self.denoiser = _plain(model.denoiser)
        self.conditions: tuple[Condition, ...] = model.codec.conditions
        for condition in self.conditions:
            if isinstance(condition, Tokens):
                raise ConfigError(
                    f"export: condition {condition.name!r} is a sequence of free length, expected sizes that are known"
                )
        self.grid = (model.autoencoder.latent_channels, *model.codec.shape)
        self.names = ["x_t", "t", "mask", "previous", *(f"label_{c.name}" for c in self.conditions)]

    def forward(self, x_t: Tensor, t: Tensor, mask: Tensor, previous: Tensor, *labels: Tensor) -> Tensor:
        cond = {c.name: label for c, label in zip(self.conditions, labels, strict=True)}
        return self.denoiser(x_t, t, cond, mask, previous)

    def inputs(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        low, high = self.denoiser.schedule.t_range
        t = low + (high - low) * torch.rand(batch, generator=generator)
        x_t, previous = torch.randn(2, batch, *self.grid, generator=generator).unbind()
        mask = _mask(batch, self.grid[1:])
        return (x_t, t, mask, previous, *(self._label(c, batch, generator) for c in self.conditions))

    def _label(self, condition: Condition, batch: int, generator: torch.Generator) -> Tensor:
        """Some are missing."""
        known = torch.rand(batch, generator=generator) < 0.7
        if isinstance(condition, Category):
            return torch.where(known, torch.randint(condition.classes, (batch,), generator=generator), -1)
        size: tuple[int, ...] = ()
        if isinstance(condition, FieldMap):
            size = (condition.channels, *self.grid[1:])
        elif isinstance(condition, Vector):
            size = (condition.size,)
        label = torch.randn(batch, *size, generator=generator)
        if isinstance(condition, Scalar):
            label = condition.mean + condition.std * label
        return torch.where(known.view(-1, *[1] * len(size)), label, torch.nan)

    def outputs(self) -> tuple[str, ...]:
        return ("x0",)


@final
class _Decoder(_Part):
    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self.autoencoder = copy.deepcopy(model.autoencoder).cpu().eval()
        self.grid = (model.autoencoder.latent_channels, *model.codec.shape)
        self.names = ["z", "mask"]

    def forward(self, z: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(_named(self.autoencoder.decode(z, mask), mask).values())

    def inputs(self, batch: int, seed: int) -> tuple[Tensor, ...]:
        z = torch.randn(batch, *self.grid, generator=torch.Generator().manual_seed(seed))
        mask = _mask(batch, self.grid[1:])
        return z * mask[:, None], mask

    def outputs(self) -> tuple[str, ...]:
        z, mask = self.inputs(2, 0)
        return tuple(_named(self.autoencoder.decode(z, mask), mask))


def _plain(denoiser: NetDenoiser) -> NetDenoiser:
    """On the CPU, in float32."""
    plain = copy.deepcopy(denoiser).cpu().float().eval()
    plain.autocast_dtype = None
    return plain


def _mask(batch: int, grid: Sequence[int]) -> Tensor:
    """In each sample after the first, one more cell is missing at the end."""
    order = torch.arange(torch.Size(grid).numel()).view(1, *grid)
    missing = torch.arange(batch).clamp(max=order.numel() - 1).view(-1, *[1] * len(grid))
    return order < order.numel() - missing


def _named(decoded: Any, mask: Tensor) -> dict[str, Tensor]:
    """Tensors of a decoder's answer by name, without the mask that it was given."""
    if isinstance(decoded, Tensor):
        return {"decoded": decoded}
    if dataclasses.is_dataclass(decoded):
        decoded = {field.name: getattr(decoded, field.name) for field in dataclasses.fields(decoded)}
    elif isinstance(decoded, tuple) and hasattr(decoded, "_asdict"):
        decoded = decoded._asdict()
    if not isinstance(decoded, Mapping):
        raise ConfigError(
            f"export: expected a decoder of tensors by name, got one of {type(decoded).__name__}; export the denoiser"
        )
    return {str(n): value for n, value in decoded.items() if isinstance(value, Tensor) and value is not mask}


# --- formats ----------------------------------------------------------------------------------------------

_Run = Callable[..., Sequence[Tensor]]


def _formats(path: Path) -> tuple[Callable[[_Part, Path], None], Callable[[Path, _Part], _Run] | None]:
    """How to write that kind of file and how to run it, as far as that is installed."""
    if path.suffix == ".pt2":
        return _write_program, _read_program
    if path.suffix != ".onnx":
        raise ConfigError(
            f"{path}: expected a name that ends in .pt2 or .onnx, got {path.suffix or 'no ending'}"
        )
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"{' and '.join(missing)} needed for {path.name}: `pip install sciLDM[onnx]`, or write a .pt2 file"
        )
    return _write_onnx, None if find_spec("onnxruntime") is None else _read_onnx


def _traced(module: _Part) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    given = module.inputs(_TRACED, 0)
    free: Any = tuple({0: batch} for _ in given)
    if isinstance(module, _Denoiser):  # labels are one argument
        free = (*free[:4], free[4:])
    try:
        return torch.export.export(module, given, dynamic_shapes=free, strict=False)
    except Exception as problem:  # torch.export raises errors of many kinds
        reason = str(problem).strip().splitlines()
        raise ConfigError(
            f"export: this network cannot be traced by torch.export ({type(problem).__name__}: "
            f"{reason[0] if reason else ''}); use it through sciLDM"
        ) from problem


def _write_program(module: _Part, path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(_traced(module), file)


def _read_program(path: Path, module: _Part) -> _Run:
    with path.open("rb") as file:
        program = torch.export.load(file).module()

    def run(*given: Tensor) -> Sequence[Tensor]:
        found = program(*given)
        return (found,) if isinstance(found, Tensor) else found

    return run


def _hypot(a: Tensor, b: Tensor) -> Tensor:
    return (a * a + b * b).sqrt()


def _write_onnx(module: _Part, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of libraries that are not needed here
    known = _traced(module).run_decompositions({torch.ops.aten.hypot.default: _hypot})  # ONNX has none
    program = torch.onnx.export(
        known, input_names=module.names, output_names=list(module.outputs()), dynamo=True, verbose=False
    )
    assert program is not None
    program.save(path, external_data=False)


def _read_onnx(path: Path, module: _Part) -> _Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    used = [entry.name for entry in session.get_inputs()]

    def run(*given: Tensor) -> Sequence[Tensor]:
        named = {name: x.numpy() for name, x in zip(module.names, given, strict=True) if name in used}
        return [torch.from_numpy(x) for x in session.run(None, named)]

    return run


def _difference(module: _Part, run: _Run | None) -> float | None:
    """Largest difference to the model, over its largest output or 1."""
    if run is None:
        return None
    largest = 0.0
    for k, batch in enumerate(_TRIED):
        given = module.inputs(batch, k + 1)
        expected = module(*given)
        expected = (expected,) if isinstance(expected, Tensor) else expected
        for mine, theirs in zip(expected, run(*given), strict=True):
            scale = max(1.0, float(mine.float().abs().max()))
            largest = max(largest, float((mine.float() - theirs.float()).abs().max()) / scale)
    return largest


def _description(model: LatentDiffusion, module: _Part, found: Exported, part: str) -> dict[str, Any]:
    given = module.inputs(2, 0)
    return {
        "part": part,
        "model": model_hash(model),
        "torch": torch.__version__,
        "inputs": {
            name: {"shape": ["batch", *x.shape[1:]], "dtype": str(x.dtype).removeprefix("torch.")}
            for name, x in zip(found.inputs, given, strict=True)
        },
        "outputs": list(found.outputs),
        "latents": {"mean": model.stats.mean.tolist(), "std": model.stats.std.tolist()},
        "schedule": model.config["schedule"],
        "largest difference": found.difference,
    }
