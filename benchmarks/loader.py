"""Reading and writing climate data: samples a second from memory and from zarr, and ensembles in bounded memory.

Three parts (`--only ram zarr ensemble`), each written to `results/loader.json` as soon as it is done, about two minutes
in all:

ram       daily sea-level pressure (`ncep_slp`, 17 x 33 cells) in random batches of 256, ready for the autoencoder
zarr      16,384 fields of 64 x 128 cells in chunks of 16 times, four times what the loader may keep: a shuffled epoch,
          beside the plain decoding of the same store, xbatcher and an xarray loop
ensemble  peak memory of 50 and of 500 members of 180 x 360 cells, and a run that is killed and goes on
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr
from _common import Row, interleave, machine, parser, print_rows, versions, without_aims, write_rows

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.data.ensemble import write_ensemble
from sciLDM.domains.climate import Climate, LoadingSettings
from sciLDM.domains.climate.read import open_source
from sciLDM.errors import DataError
from sciLDM.experiment import instantiate, read_config
from sciLDM.model import LatentDiffusion, load
from sciLDM.training import SplitData
from sciLDM.training.plan import BatchPlan

PARTS = ("ram", "zarr", "ensemble")
RESULTS = Path(__file__).resolve().parent / "results" / "loader.json"
AE = GridSettings(channels=2, patch=4, factors=(), widths=(8,), blocks=(1,))
CHUNK, BATCH, BLOCK = 16, 64, 16


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress."""


def fields(count: int, rows: int, columns: int) -> xr.Dataset:
    """Slow waves and noise, to two digits, as reanalyses are stored."""
    rng = np.random.default_rng(0)
    lon, lat = np.arange(columns) * 360.0 / columns, (np.arange(rows) + 0.5) * 180.0 / rows - 90
    day = np.arange(count, dtype=np.float32)[:, None, None]
    angle = np.deg2rad(lon).astype(np.float32)[None, None]
    waves = sum(rng.normal() * np.sin(k * (angle + 0.05 * day) + 6.3 * rng.random()) for k in range(1, 9))
    x = rng.standard_normal((count, rows, columns), dtype=np.float32)
    x *= 0.3
    x += 280 + (10 * waves * np.cos(np.deg2rad(lat))[None, :, None]).astype(np.float32)
    attrs = {"units": "K", "standard_name": "air_temperature"}
    return xr.Dataset(
        {"tas": (("time", "lat", "lon"), x.round(2), attrs)},
        coords={
            "time": np.datetime64("1980-01-01", "ns") + np.arange(count) * np.timedelta64(1, "D"),
            "lat": ("lat", lat, {"units": "degrees_north"}),
            "lon": ("lon", lon, {"units": "degrees_east"}),
        },
    )


def stored(dataset: xr.Dataset, path: Path) -> Path:
    """As zarr in chunks of some times."""
    chunks = (CHUNK, *dataset["tas"].shape[1:])
    dataset.to_zarr(path, encoding={"tas": {"chunks": chunks}}, zarr_format=3, consolidated=False)
    return path


def shuffled(data: SplitData, batch: int) -> Callable[[], None]:
    """A call that reads one epoch, a new order each time."""
    epoch = iter(range(10**6))

    def run() -> None:
        plan = BatchPlan(next(epoch), len(data), batch, data.epoch)
        for step in range(len(data) // batch):
            data.fields(plan.indices(step))

    return run


def xbatcher_epoch(dataset: xr.Dataset, batch: int, count: int) -> Callable[[], None] | None:
    """A call that takes all batches of an xbatcher generator, in order (it does not shuffle); None without it."""
    try:
        import xbatcher
    except ImportError as error:
        print(f"a peer is left out: {error}. Do `pip install -r benchmarks/requirements.txt`")
        return None
    sizes = {"time": batch, **{d: n for d, n in dataset["tas"].sizes.items() if d != "time"}}

    def run() -> None:
        for part in xbatcher.BatchGenerator(dataset.isel(time=slice(0, count)), sizes):
            torch.from_numpy(part["tas"].values)

    return run


def part_ram(*, quick: bool, repeats: int, clock: str, work: Path) -> list[Row]:
    """Random batches from memory."""
    try:
        open_source("ncep_slp").close()
        source: Any = "ncep_slp"
    except DataError as missing:
        print(f"{missing} Synthetic fields of the same size are read instead.")
        source = fields(2922, 17, 33)
    corpus = Climate(source, autoencoder=AE).prepare(work, silent)
    data = SplitData(corpus, "train")
    found = open_source(source)
    dataset = found.first.load().rename({found.variables[0]: "tas"})
    plan = BatchPlan(0, len(data), 256)
    rounds = 1 if quick else 20
    steps = rounds * (len(data) // 256)

    def ours() -> None:
        for step in range(steps):
            data.fields(plan.indices(step))

    def loop() -> None:
        for step in range(steps // rounds):
            torch.from_numpy(dataset["tas"].isel(time=plan.indices(step)).values)

    calls = {"sciLDM": ours, "xarray loop": loop}
    peer = xbatcher_epoch(dataset, 256, len(data) // 256 * 256)
    calls |= {} if peer is None else {"xbatcher": peer}
    seconds = interleave(calls, repeats=repeats, clock=clock)  # type: ignore[arg-type]
    found.close()
    samples = {
        "sciLDM": steps * 256,
        "xarray loop": steps // rounds * 256,
        "xbatcher": len(data) // 256 * 256,
    }
    notes = {
        "sciLDM": "normalised, weighted",
        "xarray loop": "values alone",
        "xbatcher": "values alone, in order",
    }
    return [
        Row(f"from memory: {name}", samples[name] / s, "samples/s", 20_000 if name == "sciLDM" else None,
            note=notes[name])
        for name, s in seconds.items()
    ]  # fmt: skip


def part_zarr(*, quick: bool, repeats: int, clock: str, work: Path) -> list[Row]:
    """Shuffled batches from a store that is larger than what may be kept."""
    count = 512 if quick else 16384
    path = stored(fields(count, 64, 128), work / "fields.zarr")
    size = 4 * count * 64 * 128
    loading = LoadingSettings(memory_gib=size / 4 / 2**30, threads=2)
    start = time.perf_counter()
    domain = Climate(str(path), autoencoder=AE)
    domain.loading = loading
    corpus = domain.prepare(work, silent)
    prepared = time.perf_counter() - start
    data = SplitData(corpus, "train")
    batches = len(data) // BATCH
    array = zarr.open_group(path, mode="r")["tas"]
    dataset = xr.open_zarr(path, consolidated=False, chunks=None)
    rng = np.random.default_rng(0)
    few = max(2, batches // 48)
    anywhere = [rng.integers(0, len(data), BATCH) for _ in range(few)]

    def raw(states: int) -> Callable[[], None]:
        def run() -> None:
            for at in range(0, batches * BATCH, states):
                array[at : min(at + states, batches * BATCH)]

        return run

    def loop() -> None:
        for k in range(batches):
            torch.from_numpy(dataset["tas"].isel(time=slice(k * BATCH, (k + 1) * BATCH)).values)

    def random_loop() -> None:
        for rows in anywhere:
            torch.from_numpy(dataset["tas"].isel(time=rows).values)

    calls = {
        **{f"raw decoding, {n} times a call": raw(n) for n in (CHUNK, 8 * CHUNK, 32 * CHUNK)},
        "sciLDM, shuffled": shuffled(data, BATCH),
        "xarray loop, in order": loop,
        "xarray loop, shuffled": random_loop,
    }
    peer = xbatcher_epoch(dataset, BATCH, batches * BATCH)
    calls |= {} if peer is None else {"xbatcher, in order": peer}
    seconds = interleave(calls, repeats=repeats, clock=clock)  # type: ignore[arg-type]
    samples = {name: (few if name == "xarray loop, shuffled" else batches) * BATCH for name in calls}
    rate = {name: samples[name] / s for name, s in seconds.items()}
    best = max(rate[name] for name in rate if name.startswith("raw"))
    made = [Row(f"from zarr: {name}", value, "samples/s") for name, value in rate.items()]
    return [
        *made,
        Row(
            "from zarr: sciLDM over raw decoding",
            rate["sciLDM, shuffled"] / best,
            "1",
            0.8,
            note="the best raw",
        ),
        Row(
            "from zarr: preparation",
            size / 2**20 / prepared,
            "MiB/s",
            note="one look and three passes over training",
        ),
    ]


def untrained(work: Path) -> Path:
    """A model of global 1 degree fields with random weights: enough to write its samples."""
    autoencoder = {"channels": 4, "patch": 10, "factors": [], "widths": [16], "blocks": [1]}
    options = {"data": str(stored(fields(64, 180, 360), work / "globe.zarr")), "autoencoder": autoencoder}
    network = {"width": 32, "depth": 1, "heads": 2}
    config = read_config(
        {
            "domain": {"class_path": "climate", "init_args": options},
            "network": {"class_path": "DiTNetwork", "init_args": network},
        }
    )
    corpus = instantiate(config).domain.prepare(work, silent)
    torch.manual_seed(0)
    model = LatentDiffusion(config, corpus.state)
    for parameter in model.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save(work / "model")
    return work / "model"


def worker(model: str, out: str, count: int) -> None:
    """Write an ensemble and say how much memory it took; run as a process of its own."""
    torch.set_num_threads(1)
    loaded = load(model)
    _forget_peak()
    before = _peak()
    write_ensemble(loaded, out, count, steps=2, seed=1, batch_size=BLOCK)
    print(json.dumps({"before": before, "peak": _peak()}))


def _forget_peak() -> None:
    """Loading libraries takes more than writing does: Linux can begin to count anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> float:
    """MiB of this process at most, since `_forget_peak` where there is one."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))
        if found:
            return int(found[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform != "darwin" else 2**20)


def _start(model: Path, out: Path, count: int) -> "subprocess.Popen[str]":
    here = Path(__file__).resolve()
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here), "--worker", str(model), str(out), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def tree_hash(path: Path) -> str:
    """sha256 of all files below a folder, names included."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(repr(str(file.relative_to(path))).encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def part_ensemble(*, quick: bool, repeats: int, clock: str, work: Path) -> list[Row]:
    """Memory, and a kill in the middle."""
    model, (few, many) = untrained(work), ((BLOCK, 4 * BLOCK) if quick else (50, 500))
    told, seconds = {}, {}
    for count in (few, many):
        start = time.perf_counter()
        output, _ = (process := _start(model, work / f"whole-{count}.zarr", count)).communicate()
        if process.returncode:
            raise RuntimeError(f"writing {count} members failed")
        seconds[count], told[count] = time.perf_counter() - start, json.loads(output.splitlines()[-1])
    killed, left = _killed(model, work / "killed.zarr", many)
    resumed = _start(model, work / "killed.zarr", many)
    resumed.communicate()
    same = tree_hash(work / "killed.zarr") == tree_hash(work / f"whole-{many}.zarr")
    field = 180 * 360 * 4 / 2**20
    files = sum(1 for p in (work / f"whole-{many}.zarr").rglob("*") if p.is_file())
    grown = told[many]["peak"] - told[few]["peak"]
    limit, before = 0.1 * field * (many - few), f"loaded model: {told[few]['before']:.0f} MiB"
    sizes = {count: f"{field * count:.0f} MiB of fields" for count in (few, many)}
    left_of = f"kill -9 with {left} of {-(-many // BLOCK)} blocks left"
    return [
        *(
            Row(f"ensemble: peak memory, {n} members", told[n]["peak"], "MiB", note=sizes[n])
            for n in (few, many)
        ),
        Row("ensemble: growth of the peak", grown, "MiB", at_most=limit, note=before),
        Row(f"ensemble: {many} members", many / seconds[many], "members/s", note=f"{files} files, 2 steps"),
        Row("ensemble: killed, resumed, equal bytes", float(same and killed), "1", 1.0, note=left_of),
    ]


def _killed(model: Path, out: Path, count: int) -> tuple[bool, int]:
    """Start a run and kill it in the middle; whether it was alive, and blocks it had left."""
    blocks = -(-count // BLOCK)
    done = out.with_name(out.name + ".partial") / "done"
    process = _start(model, out, count)
    while process.poll() is None and (not done.exists() or sum(1 for _ in done.iterdir()) - 1 < blocks // 2):
        time.sleep(0.01)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive and not out.exists(), blocks - sum(1 for p in done.iterdir() if p.name.isdigit())


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    arguments = parser(__doc__ or "")
    arguments.set_defaults(repeats=5)
    arguments.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="which parts to run")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    record = {
        "versions": versions(["sciLDM", "torch", "zarr", "xarray", "xbatcher"]),
        "parts": known.get("parts", {}),
    }
    repeats, rows = 1 if options.quick else options.repeats, []
    for name in options.only:
        host, work = machine(), Path(tempfile.mkdtemp(prefix="loader-"))
        try:
            run = {"ram": part_ram, "zarr": part_zarr, "ensemble": part_ensemble}[name]
            made = run(quick=options.quick, repeats=repeats, clock=options.clock, work=work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        made = without_aims(made) if options.quick else made
        print_rows(made)
        rows += made
        record["parts"][name] = {
            "machine": host, "threads": options.threads, "clock": options.clock, "repeats": repeats,
            "rows": [{**asdict(row), "verdict": row.verdict} for row in made],
        }  # fmt: skip
        if not options.quick:
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_rows(rows, options.json)


if __name__ == "__main__":
    main()
