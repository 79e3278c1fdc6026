"""Molecules per second at few steps, ours beside torch-molecule's samplers and a SMILES model of CharRNN's size.

Everything in one process with one number of threads, on molecules as large as QM9's. Only time is measured: the peers
have untrained weights (one step on 32 molecules sets up their tables), at their default size and with about as many
parameters as ours. Each is called as its users call it and returns SMILES; ours is also timed with the table of
properties, novelty and nearest neighbours that it gives its users.

CharRNN: Segler et al. 2018 (doi:10.1021/acscentsci.7b00512) with the sizes of MOSES (Polykovskiy et al. 2020), three
LSTM layers of 768 units; it is given the lengths of real SMILES, stops at the longest of a batch, and drops strings
that have ended: the least that a sampler of such a model must do.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
import torch
from _common import Row, interleave, parser, print_rows, write_rows
from torch import Tensor, nn

import sciLDM
from sciLDM.domains.molecules.decode import decode_molecules
from sciLDM.domains.molecules.sources import qm9
from sciLDM.model import LatentDiffusion
from sciLDM.rng import NoiseSource

OURS = "sciLDM qm9-small"


@final
@dataclass(frozen=True)
class Candidate:
    """A sampler: `call(count)` draws that many molecules; `count` is how many are timed at once."""

    call: Callable[[int], object]
    count: int
    parameters: int
    note: str = ""


def ours(model: LatentDiffusion, count: int, steps: int) -> dict[str, Candidate]:
    """In float32 and bfloat16, to SMILES and to the table; with the guide, as it is shipped, and without."""
    sampler, seeds = model.experiment.sampler.with_steps(steps), iter(range(10**9))

    def draw(count: int, dtype: torch.dtype | None, *, table: bool, guide: bool) -> Any:
        model.to("cpu", dtype=dtype)
        noise, ids = NoiseSource(next(seeds)), range(count)
        request = model.codec.plan(count, {}, noise, ids)
        with _guided(model, guide):
            z = model.sample_latents(request, ids, noise, sampler=sampler)
        if table:
            return model.codec.decode(model.autoencoder, z, request, reference=model.reference)
        with torch.no_grad():
            logits = model.autoencoder.decode(z, request.mask)
        return [found.smiles for found in decode_molecules(logits, model.codec.vocabulary)]

    size, guide, half = model.parameters["denoiser"], model.parameters.get("guide", 0), torch.bfloat16
    found = {
        OURS: Candidate(partial(draw, dtype=half, table=False, guide=True), count, size + guide, "bfloat16"),
        f"{OURS}, float32": Candidate(
            partial(draw, dtype=None, table=False, guide=True), count, size + guide
        ),
        f"{OURS}, with table": Candidate(
            partial(draw, dtype=half, table=True, guide=True), count, size + guide, "bfloat16"
        ),
    }
    if guide:
        found[f"{OURS}, no guide"] = Candidate(
            partial(draw, dtype=half, table=False, guide=False), count, size, "bfloat16"
        )
    return found


@contextmanager
def _guided(model: LatentDiffusion, wanted: bool) -> Iterator[None]:
    guide, model.guide = model.guide, model.guide if wanted else None
    try:
        yield
    finally:
        model.guide = guide


def torch_molecule(smiles: Sequence[str], count: int, steps: int) -> dict[str, Candidate]:
    """DeFoG, Graph-DiT (unguided: one call a step) and DiGress, at default size and near ours in parameters."""
    from torch_molecule import (
        DeFoGMolecularGenerator,
        DigressMolecularGenerator,
        GraphDITMolecularGenerator,
    )

    small = {"dx": 160, "de": 40, "dy": 64, "n_head": 8, "dim_ffX": 160, "dim_ffE": 80, "dim_ffy": 128}
    made = {
        "DeFoG, default size": lambda: DeFoGMolecularGenerator(sample_steps=steps, epochs=1),
        "DeFoG, equal count": lambda: DeFoGMolecularGenerator(
            sample_steps=steps, epochs=1, hidden_dims=small
        ),
        "Graph-DiT, default size": lambda: GraphDITMolecularGenerator(
            timesteps=steps, epochs=1, guide_scale=1.0
        ),
        "Graph-DiT, equal count": lambda: GraphDITMolecularGenerator(
            timesteps=steps, epochs=1, guide_scale=1.0, hidden_size=160, num_head=8
        ),
        "DiGress, default size": lambda: DigressMolecularGenerator(timesteps=steps, epochs=1),
        "DiGress, equal count": lambda: DigressMolecularGenerator(
            timesteps=steps, epochs=1, hidden_size_X=128, hidden_size_E=64
        ),
    }
    found = {}
    for name, make in made.items():
        generator = make()
        generator.device = torch.device("cpu")
        generator.fit(list(smiles[:32]))
        parameters = sum(p.numel() for p in generator.model.parameters())
        found[f"torch-molecule {name}"] = Candidate(partial(_generate, generator), count, parameters)
    return found


def _generate(generator: Any, count: int) -> list[str | None]:
    return generator.generate(batch_size=count)


@final
class CharRNN(nn.Module):
    """The language model of MOSES: tokens in and out, three LSTM layers."""

    def __init__(self, tokens: int = 40, hidden: int = 768, layers: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, tokens)
        self.lstm = nn.LSTM(tokens, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, tokens)

    @torch.no_grad()
    def sample(self, lengths: Tensor) -> list[list[int]]:
        """Token by token until every string has its length (ascending from last to first)."""
        token, state = torch.ones(len(lengths), 1, dtype=torch.long), None
        drawn: list[Tensor] = []
        for position in range(int(lengths[0])):
            alive = int((lengths > position).sum())
            if state is not None:
                state = tuple(part[:, :alive].contiguous() for part in state)
            output, state = self.lstm(self.embedding(token[:alive]), state)
            token = torch.multinomial(self.linear(output[:, -1]).float().softmax(-1), 1)
            drawn.append(token[:, 0])
        strings: list[list[int]] = [[] for _ in lengths]
        for tokens in drawn:
            for string, value in zip(strings, tokens.tolist(), strict=False):
                string.append(value)
        return strings


def char_rnn(smiles: Sequence[str], count: int) -> dict[str, Candidate]:
    """With lengths of QM9's SMILES (end mark included), in float32 and bfloat16."""
    chosen = np.random.default_rng(0).choice(len(smiles), size=count, replace=False)
    lengths = torch.tensor(sorted((len(smiles[i]) + 1 for i in chosen), reverse=True))
    found = {}
    for name, dtype in (("", torch.bfloat16), (", float32", torch.float32)):
        net = CharRNN().to(dtype).eval()
        size = sum(p.numel() for p in net.parameters())
        note = f"{lengths.float().mean():.1f} tokens a string"
        found[f"CharRNN{name}"] = Candidate(partial(_strings, net, lengths), count, size, note)
    return found


def _strings(net: CharRNN, lengths: Tensor, count: int) -> list[list[int]]:
    return net.sample(lengths[:count])


def measure(model: LatentDiffusion, steps: int, *, count: int, repeats: int, clock: str) -> list[Row]:
    """Rows at one number of steps; peers that are not installed are left out."""
    torch.manual_seed(0)
    smiles = qm9()["smiles"].sample(20_000, random_state=0).tolist()
    candidates = ours(model, count, steps) | char_rnn(smiles, count)
    try:
        candidates |= torch_molecule(smiles, count, steps)
    except ImportError as error:
        print(f"a peer is left out: {error}. Do `pip install -r benchmarks/requirements.txt`")
    for candidate in candidates.values():
        candidate.call(min(4, candidate.count))
    calls = {name: partial(c.call, c.count) for name, c in candidates.items()}
    seconds = interleave(calls, repeats=repeats, warmup=0, clock=clock)  # type: ignore[arg-type]
    rates = {name: c.count / seconds[name] for name, c in candidates.items()}
    rows = []
    for name, candidate in candidates.items():
        what = name if name.startswith("CharRNN") else f"{name}, {steps} steps"
        size = f"{candidate.parameters / 1e6:.1f} M parameters"
        note = ", ".join(part for part in (size, candidate.note, f"{candidate.count} at once") if part)
        rows.append(Row(what, rates[name], "molecules/s", note=note))
        if not name.startswith(OURS):
            base = f"{OURS}, float32" if name.startswith("torch") or "float32" in name else OURS
            rows.append(Row(f"{base}, {steps} steps, over {name}", rates[base] / rates[name], "1"))
    return rows


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("model", nargs="?", default="qm9-small", help="shipped model or run folder")
    arguments.add_argument("--count", type=int, default=128, help="molecules at once, of each (default: 128)")
    arguments.add_argument(
        "--steps", type=int, nargs="+", default=[4, 20], help="denoiser calls (default: 4 20)"
    )
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    model = sciLDM.load(options.model)
    count, repeats = (8, 1) if options.quick else (options.count, min(options.repeats, 3))
    rows: list[Row] = []
    for steps in [2] if options.quick else options.steps:
        rows += measure(model, steps, count=count, repeats=repeats, clock=options.clock)
    rows = list({row.name: row for row in rows}.values())
    print_rows(rows)
    write_rows(rows, options.json)


if __name__ == "__main__":
    main()
