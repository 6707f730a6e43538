"""Run one notebook in a fresh kernel: progress, memory, and no process left behind."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm

from pprml._processes import list_marked

#: Marks every process that a run starts, so that none of them outlives it.
RUN_MARK = "PPRML_RUN"


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


@contextmanager
def marked_processes() -> Iterator[str]:
    """Mark every process started inside the block, and end those still alive when it is left, however it is left.

    TensorFlow Federated's worker outlives a kernel, whether that shut down or crashed.
    """
    mark = f"{os.getpid()}.{time.time_ns()}"
    before, os.environ[RUN_MARK] = os.environ.get(RUN_MARK), mark
    try:
        yield mark
    finally:
        kill_marked(mark)
        os.environ.pop(RUN_MARK)
        if before is not None:
            os.environ[RUN_MARK] = before


def run_notebook(path: Path, expected_seconds: float | None = None) -> Run:
    """Execute a notebook from a fresh kernel with a progress bar; the file itself is not touched.

    Parameters
    ----------
    path : Path
        The notebook.
    expected_seconds : float, optional
        Shown beside the elapsed time.

    Returns
    -------
    Run

    Raises
    ------
    NotebookError
        At the first failing cell, with the notebook, the cell and the error; or when the kernel dies.
    """
    book = nbformat.read(path, as_version=4)
    code = [index for index, cell in enumerate(book.cells) if cell.cell_type == "code"]
    about = f" of about {expected_seconds:.0f} s" if expected_seconds else ""
    layout = "{desc} |{bar:24}| cell {n_fmt}/{total_fmt}, {elapsed}" + about
    current = [0]

    def start(cell, cell_index):
        current[0] = cell_index

    with (
        marked_processes() as mark,
        _watch_memory(mark) as peak,
        tqdm(total=len(code), desc=path.stem, bar_format=layout, mininterval=0.5) as bar,
    ):
        client = NotebookClient(
            book,
            timeout=1200,
            kernel_name=book.metadata.kernelspec.name,
            resources={"metadata": {"path": str(path.parent)}},
            record_timing=False,
            coalesce_streams=True,
            on_cell_start=start,
            on_cell_executed=lambda cell, cell_index, execute_reply: bar.update(cell.cell_type == "code"),
        )
        began = time.perf_counter()
        try:
            client.execute()
        except CellExecutionError as error:
            source = book.cells[current[0]].source
            raise NotebookError(
                f"{path.name}, cell {current[0]} failed:\n\n{source}\n\n{error.ename}: {error.evalue}"
            ) from None
        except DeadKernelError:
            raise NotebookError(
                f"{path.name}, cell {current[0]}: the kernel died or was stopped (out of memory?)"
            ) from None
        seconds = time.perf_counter() - began
    # The interpreter's patch version is the machine's, not the notebook's.
    book.metadata.language_info = {"name": "python"}
    book.metadata.pop("widgets", None)
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # clock times, left by other tools
    return Run(book, seconds, peak[0])


@contextmanager
def _watch_memory(mark: str) -> Iterator[list[int]]:
    """Sample the resident memory of the marked processes four times a second; yields a list that holds the peak."""
    peak, stop = [0], threading.Event()

    def sample() -> None:
        while not stop.wait(0.25):
            total = 0
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
