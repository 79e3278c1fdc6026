"""Work on chunks of molecules in several processes, in order, with progress."""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from sciLDM.errors import DataError

__all__ = ["CHUNK", "Progress", "parallel_map"]

CHUNK = 500
"""Molecules a task: some tenths of a second of work, so that progress moves and overheads do not show."""

Progress = Callable[[int, int], None]
"""Called with (molecules done, molecules in all)."""


def parallel_map(
    function: Callable[..., Any],
    chunks: Sequence[tuple[Any, ...]],
    *,
    workers: int | None,
    progress: Progress | None,
) -> Iterator[Any]:
    """``function(*chunk)`` for each chunk, in order; the first entry of a chunk has one item per molecule.

    Args:
        function: a module-level function.
        chunks: the arguments of each call.
        workers: processes; ``None`` takes every core this process may use, 1 stays in this process.
        progress: told how far the work has come.

    Raises:
        DataError: a worker process died.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(available if workers is None else workers, len(chunks))
    total, done = sum(len(chunk[0]) for chunk in chunks), 0
    results = _serial(function, chunks) if workers <= 1 else _pooled(function, chunks, workers)
    for chunk, result in zip(chunks, results, strict=True):
        yield result
        done += len(chunk[0])
        if progress is not None:
            progress(done, total)


def _serial(function: Callable[..., Any], chunks: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    for chunk in chunks:
        yield function(*chunk)


def _pooled(function: Callable[..., Any], chunks: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    # Forked workers run RDKit and NumPy alone, never torch, so the parent's threads cannot deadlock them; and
    # unlike spawned ones they do not import the user's script again, so it needs no main guard.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*multi-threaded", category=DeprecationWarning)
            futures: list[Future[Any]] = [pool.submit(function, *chunk) for chunk in chunks]
        futures.reverse()
        while futures:
            yield futures.pop().result()  # popped, so that a result can be freed once it is used
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died; pass workers=1, or give it more memory, or (on Windows and macOS) put "
            "the calling code of your script under `if __name__ == '__main__':`"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
