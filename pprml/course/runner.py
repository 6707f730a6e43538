"""Run one notebook in a fresh kernel: what it measured, its memory, and no process left behind."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from pprml._processes import list_marked

#: Marks every process that a run starts, so that none of them outlives it.
RUN_MARK = "PPRML_RUN"
#: A cell that needs longer hangs. The slowest cell of the course takes about a minute on two quiet cores; a busy machine is given an hour.
CELL_SECONDS = 3600


class NotebookError(RuntimeError):
    """A cell failed, or its kernel died."""


@dataclass(frozen=True)
class Run:
    """One execution of a notebook: the executed book, seconds, and the peak memory of its kernel and all it started, in bytes."""

    book: nbformat.NotebookNode
    seconds: float
    peak_bytes: int


def kill_marked(mark: str | None = None) -> None:
    """End every process that a run with this mark started, and every one left by a run whose own process is gone."""
    # A process without a mark is none of ours.
    victims = [
        process
        for process, found in list_marked(RUN_MARK)
        if process.pid != os.getpid()
        and (found == mark or not psutil.pid_exists(int(found.partition(".")[0])))
    ]
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(victims, timeout=10)


def run_notebook(
    path: Path,
    record: Path,
    seeds: str = "0",
    progress: Callable[[], None] = lambda: None,
) -> Run:
    """Execute a notebook from a fresh kernel; the file itself is not touched.

    Parameters
    ----------
    path : Path
        The notebook.
    record : Path
        Folder in which the notebook's measurements and figures are collected. What was there of this chapter is replaced.
    seeds : str
        The seeds of the run, joined by commas.
    progress : callable
        Called after each code cell.

    Returns
    -------
    Run

    Raises
    ------
    NotebookError
        At the first failing cell, with the notebook, the cell and the error; or when the kernel dies.
    """
    book = nbformat.read(path, as_version=4)
    current = [0]

    def start(cell, cell_index):
        current[0] = cell_index

    for kind in ("measured", "times"):
        (record / "claims" / kind / f"{path.stem}.json").unlink(missing_ok=True)
    mark = f"{os.getpid()}.{time.time_ns()}"
    environment = {
        **os.environ,
        RUN_MARK: mark,
        "PPRML_RECORD": str(record.resolve()),
        "PPRML_CHAPTER": path.stem,
        "PPRML_SEEDS": seeds,
        # The outputs are the same in every country.
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
    }
    client = NotebookClient(
        book,
        timeout=CELL_SECONDS,
        kernel_name=book.metadata.kernelspec.name,
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
        on_cell_start=start,
        on_cell_executed=lambda cell, cell_index, execute_reply: progress()
        if cell.cell_type == "code"
        else None,
    )
    try:
        with _watch_memory(mark) as peak:
            began = time.perf_counter()
            client.execute(env=environment)
            seconds = time.perf_counter() - began
    except CellExecutionError as error:
        source = book.cells[current[0]].source
        raise NotebookError(
            f"{path.name}, cell {current[0]} failed:\n\n{source}\n\n{error.ename}: {error.evalue}"
        ) from None
    except DeadKernelError:
        raise NotebookError(
            f"{path.name}, cell {current[0]}: the kernel died or was stopped (out of memory?)"
        ) from None
    finally:
        # TensorFlow Federated's worker outlives a kernel, whether that shut down or crashed.
        kill_marked(mark)
    # The interpreter's patch version is the machine's, not the notebook's.
    book.metadata.language_info = {"name": "python"}
    book.metadata.pop("widgets", None)
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # clock times, left by other tools
    return Run(book, seconds, peak[0])


@contextmanager
def _watch_memory(mark: str) -> Iterator[list[int]]:
    """Sample the memory of the marked processes every two seconds, shared pages counted once; yields a list that holds the peak."""
    peak, stop = [0], threading.Event()

    def sample() -> None:
        while not stop.wait(2):
            total = 0
            for process, found in list_marked(RUN_MARK):
                if found == mark:
                    with contextlib.suppress(psutil.Error):
                        total += process.memory_full_info().pss
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
