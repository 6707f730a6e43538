"""The same federated work for every side: who has which record, who takes part when, the first weights. NumPy and nothing else."""

import json
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

BATCH, RATE = 20, 0.1


class Work(NamedTuple):
    """Grey levels (clients, records, 784) as bytes, labels, each round's clients, and weights: kernel, bias, kernel, ..."""

    x: np.ndarray
    y: np.ndarray
    schedule: np.ndarray
    weights: list[np.ndarray]


@cache
def read_work(folder: str) -> Work:
    """Map the files that the benchmark wrote; a client's records are read when it takes part."""
    x, y, schedule = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ("x", "y", "schedule"))
    with np.load(Path(folder) / "weights.npz") as file:
        return Work(x, y, schedule, [file[name] for name in sorted(file.files)])


def main(run: Callable[[Work, str, Callable], list[np.ndarray]]) -> None:
    """Run a side's program: FOLDER NETWORK.

    `run(work, network, lap)` calls ``lap(weights)`` after each round and returns the last weights. Those and the first round's are
    left in files; the time of day at the end of the first round and the seconds of the others are printed.
    """
    folder, network = sys.argv[1:3]
    finished: list[float] = []

    def save(name, weights):
        np.savez(Path(folder) / f"{name}.npz", **{f"{k:02d}": np.asarray(w) for k, w in enumerate(weights)})

    def lap(weights):
        finished.append(time.time())
        if len(finished) == 1:
            save("first", weights)
            finished[0] = time.time()

    save("last", run(read_work(folder), network, lap))
    print(json.dumps({"first": finished[0], "rounds": np.diff(finished).tolist()}), flush=True)
