"""For authors of adapters: one call that holds a domain to the contract of `sciLDM.domain`.

    from sciLDM.testing import check_domain

    def test_my_domain(tmp_path):
        check_domain(MyDomain("shared/small.nc"), tmp_path)

Also re-exported: distributions with exact denoisers, for tests of samplers and guidance.
"""

import inspect
import json
import os
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciLDM.domain import Codec, Corpus, Domain
from sciLDM.experiment import read_config
from sciLDM.model import LatentDiffusion, load
from sciLDM.objectives import DiffusionObjective
from sciLDM.oracles import GaussianDenoiser, MixtureDenoiser
from sciLDM.rng import NoiseSource
from sciLDM.training import (
    AutoencoderStage,
    DenoiserStage,
    LatentData,
    SplitData,
    StageSettings,
    TrainerSettings,
    run_stage,
)

__all__ = ["GaussianDenoiser", "MixtureDenoiser", "check_domain"]

SPLITS = ("train", "validation", "test")
_FEW = 4


def check_domain(
    domain: Domain,
    tmp_path: Path,
    *,
    config: Mapping[str, Any] | None = None,
    same: Callable[[Any, Any], bool] | None = None,
    count: int = 3,
) -> LatentDiffusion:
    """Prepare, encode, take one optimisation step a stage, sample, save, load, and sample the same again.

    Seconds with a small data set. Asserts, so that a failing test shows the values.

    Args:
        domain: A configured adapter on a small data set.
        tmp_path: An empty folder.
        config: An experiment as for `sciLDM.fit` with this adapter as its `domain`; when None, one is made from the
            constructor's required arguments, read from attributes of the same names.
        same: Compares two results of `Codec.decode`; by default their text form.
        count: Objects to sample.

    Returns:
        The model, after one step a stage.

    Raises:
        AssertionError: The adapter breaks the contract; the message says which part.
    """
    corpus = domain.prepare(tmp_path / "cache", _silent)
    _check_corpus(corpus)
    codec = _check_codec(domain, corpus)
    corpus.write_reference(tmp_path / "reference")
    z, mask = _check_autoencoder(codec, corpus, domain)
    complete = read_config(_spelled(domain) if config is None else config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LatentDiffusion(complete, corpus.state, reference=tmp_path / "reference")
    _train(model, corpus, z, mask, tmp_path)
    samples = model.sample(count, steps=2, seed=1)
    got = _length(samples)
    assert got == count, f"decode: asked for {count} objects, got {got}"
    _check_batch_size(model, count)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    loaded.reference = model.reference
    equal = same or (lambda a, b: _text(a) == _text(b))
    assert equal(samples, loaded.sample(count, steps=2, seed=1)), (
        "save -> load -> sample: not the same objects"
    )
    return model


def _length(samples: Any) -> int:
    """How many objects there are; an xarray data set has them along `number`, its length is that of its variables."""
    sizes = getattr(samples, "sizes", None)
    if isinstance(sizes, Mapping):
        return sizes["number"]
    assert isinstance(samples, Sized), "decode: the native objects have no length"
    return len(samples)


def _check_batch_size(model: LatentDiffusion, count: int) -> None:
    noise, sampler = NoiseSource(1), model.experiment.sampler.with_steps(2)
    request = model.codec.plan(count, {}, noise, range(count))
    assert request.shape == model.codec.shape, (
        f"plan: grid {request.shape}, codec.shape is {model.codec.shape}"
    )
    later = model.codec.plan(count - 1, {}, noise, range(1, count))
    for name, label in request.cond.items():
        assert label.shape[0] == count, f"plan: {tuple(label.shape)} labels {name!r} for {count} samples"
        assert torch.equal(label[1:], later.cond[name]), (
            f"plan: label {name!r} depends on more than the sample's id"
        )
    sizes = [
        model.sample_latents(request, range(count), noise, sampler=sampler, batch_size=b) for b in (count, 1)
    ]
    assert torch.allclose(*sizes, atol=1e-4), "sample: latents depend on the batch size"


def _check_corpus(corpus: Corpus) -> None:
    assert set(corpus.sizes) == set(SPLITS), f"Corpus.sizes: expected {SPLITS}, got {sorted(corpus.sizes)}"
    assert all(corpus.sizes[s] > 0 for s in SPLITS), f"Corpus.sizes: an empty split, {dict(corpus.sizes)}"
    assert isinstance(corpus.fingerprint, str), "Corpus.fingerprint: expected text"
    assert corpus.fingerprint, "Corpus.fingerprint: empty, so latents of other data would be taken for these"
    for split in SPLITS:
        for name, values in corpus.labels(split).items():
            assert len(values) == corpus.sizes[split], f"labels({split!r})[{name!r}]: {len(values)} values"
            assert isinstance(values, np.ndarray), f"labels({split!r})[{name!r}]: expected an array"


def _check_codec(domain: Domain, corpus: Corpus) -> Codec:
    text = json.dumps(corpus.state, allow_nan=False)
    assert json.loads(text) == corpus.state, (
        "Corpus.state: JSON does not give it back (tuples, or keys that are no text?)"
    )
    codec, again = domain.codec(corpus.state), domain.codec(json.loads(text))
    assert codec.conditions == again.conditions, "codec(state): other conditions from the same state"
    assert codec.shape == again.shape, "codec(state): another shape from the same state"
    names = [c.name for c in codec.conditions]
    assert len(set(names)) == len(names), f"Codec.conditions: names repeat, {names}"
    assert set(corpus.labels("train")) == set(names), (
        f"labels are {sorted(corpus.labels('train'))}, conditions {names}"
    )
    shapes = [{k: tuple(v.shape) for k, v in c.autoencoder().state_dict().items()} for c in (codec, again)]
    assert shapes[0] == shapes[1], "codec(state): another autoencoder from the same state"
    return codec


@torch.no_grad()
def _check_autoencoder(codec: Codec, corpus: Corpus, domain: Domain) -> tuple[Tensor, Tensor | None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = codec.autoencoder().eval()
    few = np.arange(min(_FEW, corpus.sizes["train"]))
    fields = corpus.fields("train", few)
    z, mask = autoencoder.code(fields)
    assert z.shape[:2] == (len(few), autoencoder.latent_channels), f"encode: latents {tuple(z.shape)}"
    assert len(z.shape[2:]) == len(codec.shape), (
        f"encode: grid {tuple(z.shape[2:])} for codec.shape {codec.shape}"
    )
    assert all(n <= most for n, most in zip(z.shape[2:], codec.shape, strict=True)), (
        "encode: larger than codec.shape"
    )
    assert bool(z.isfinite().all()), "encode: latents are not finite"
    if mask is not None:
        assert mask.shape == (len(few), *z.shape[2:]), (
            f"encode: mask {tuple(mask.shape)} for latents {tuple(z.shape)}"
        )
        assert not z.masked_select(~mask[:, None].expand_as(z)).any(), (
            "encode: cells that do not exist are not zero"
        )
        _check_alone(autoencoder, corpus, z, mask)
    decoded = autoencoder.decode(z, mask)
    for name, values in autoencoder.reconstruction_loss(fields, decoded).items():
        assert values.shape == (len(few),), (
            f"reconstruction_loss[{name!r}]: one value a sample, got {tuple(values.shape)}"
        )
    scores = autoencoder.metrics(fields, decoded)
    missing = set(domain.gate) - set(scores)
    assert not missing, f"gate asks for {sorted(missing)}, metrics are {sorted(scores)}"
    assert all(torch.as_tensor(v).shape == (len(few),) for v in scores.values()), (
        "metrics: one value a sample"
    )
    full = torch.zeros(len(few), z.shape[1], *codec.shape)
    there = None if mask is None else torch.zeros(len(few), *codec.shape, dtype=torch.bool)
    inside = tuple(slice(n) for n in z.shape[2:])
    full[(slice(None), slice(None), *inside)] = z
    if there is not None and mask is not None:
        there[(slice(None), *inside)] = mask
    autoencoder.decode(full, there)  # as after sampling, on the largest grid
    return full, there


def _check_alone(autoencoder: Any, corpus: Corpus, z: Tensor, mask: Tensor) -> None:
    """A sample's latent must not depend on what else is in its batch."""
    alone, own = autoencoder.code(corpus.fields("train", np.array([0])))
    difference = z[0][:, mask[0]] - alone[0][:, own[0]]
    assert float(difference.abs().max()) < 1e-3, "encode: a sample's latent depends on its batch"


def _train(model: LatentDiffusion, corpus: Corpus, z: Tensor, mask: Tensor | None, folder: Path) -> None:
    settings = StageSettings(max_steps=1, batch_size=_FEW, warmup_steps=0, validation_samples=_FEW)
    quiet = TrainerSettings(accelerator="cpu", progress_bar=False)
    before = {n: p.detach().clone() for n, p in model.autoencoder.named_parameters()}
    stage = AutoencoderStage(model.autoencoder)
    result = run_stage(
        stage,
        SplitData(corpus, "train"),
        SplitData(corpus, "validation"),
        settings,
        quiet,
        folder / "autoencoder",
    )
    stage.finished_network()
    assert result.steps == 1, "stage 1: no step was made"
    moved = any(not torch.equal(p, before[n]) for n, p in model.autoencoder.named_parameters())
    assert moved, "stage 1: no parameter moved; is the loss attached to the encoder and decoder?"
    model.stats.fit([(z, mask)])
    labels = {name: torch.as_tensor(values[: len(z)]) for name, values in corpus.labels("train").items()}
    data = LatentData(model.stats.normalise_masked(z, mask), mask, labels)
    denoising = DenoiserStage(model.denoiser, DiffusionObjective(), model.codec.conditions)
    result = run_stage(denoising, data, data, settings, quiet, folder / "denoiser")
    denoising.finished_network()
    assert np.isfinite(result.validation["loss"]), "stage 2: the loss is not finite"


def _spelled(domain: Domain) -> dict[str, Any]:
    """A small experiment around an adapter that was built by hand."""
    kind = type(domain)
    required = [
        p.name for p in inspect.signature(kind).parameters.values() if p.default is inspect.Parameter.empty
    ]
    missing = [name for name in required if not hasattr(domain, name)]
    assert not missing, (
        f"keep the constructor's arguments {missing} as attributes of the same names, or pass config="
    )
    values = {name: getattr(domain, name) for name in required}
    plain = {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in values.items()}
    return {
        "domain": {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": plain},
        "network": {
            "class_path": "sciLDM.nets.DiTNetwork",
            "init_args": {"width": 32, "depth": 1, "heads": 2},
        },
    }


def _text(samples: Any) -> str:
    return repr(getattr(samples, "table", samples))


def _silent(_what: str, _done: int, _total: int) -> None:
    """No progress shown."""
