"""The command line: run the chapters, record their seeds, accept what was measured."""

import argparse
import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpecManager
from tqdm import tqdm

from pprml import ROOT
from pprml._files import dump_json, name_nearest, write_whole
from pprml.claims import LedgerError, load_ledger, load_measured
from pprml.course import compare, keys, report, upkeep
from pprml.course.runner import NotebookError, Run, kill_marked, run_notebook

DONE, MOVED, USAGE, CELL_FAILED, NOT_POSSIBLE, INTERRUPTED = 0, 1, 2, 3, 4, 130
#: Notebooks at a time. Most of them keep a core and a half busy.
JOBS = 2
#: Seeds of a recorded spread.
SEEDS = tuple(range(8))
#: Packages of the core track that some machines cannot have.
NOT_EVERYWHERE = {
    "tensorflow_federated": "it needs TensorFlow Federated, which has wheels for x86-64 Linux only"
}


def find_build() -> Path:
    """Return the folder that runs write to, ``PPRML_OUTPUT`` or the checkout's ``build``, made and tried."""
    folder = Path(os.environ.get("PPRML_OUTPUT") or ROOT / "build").resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").write_bytes(b"")
        (folder / ".writable").unlink()
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written ({error.strerror}); set PPRML_OUTPUT to a folder that can"
        ) from None
    return folder


@contextlib.contextmanager
def only_run(build: Path) -> Iterator[None]:
    """Hold the folder of results for this run: a second one says so and stops."""
    with open(build / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise OSError(
                f"another run (process {file.read().strip() or 'unknown'}) is writing to {build}; "
                "wait for it, or set PPRML_OUTPUT to another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def list_notebooks(names: Sequence[str] = ()) -> list[Path]:
    """Return the chapters named (`04_dp_sgd`, or `04`), or all; a ValueError names the nearest to an unknown one."""
    known = report.list_books(ROOT)
    wanted = {Path(name).stem for name in names}
    wanted = {next((stem for stem in known if stem[:2] == name), name) for name in wanted} or set(known)
    for name in sorted(wanted - set(known)):
        raise ValueError(name_nearest("notebook", name, known))
    return [path for stem, path in known.items() if stem in wanted]


def lacks_wheel(book: nbformat.NotebookNode) -> str | None:
    """Say which package a chapter needs that this kind of machine cannot have, or None."""
    sources = [cell.source for cell in book.cells if cell.cell_type == "code"]
    files = [keys.find_module(name) for name in keys.list_closure(sources)]
    sources += [file.read_text("utf-8") for file in files]
    for package, reason in NOT_EVERYWHERE.items():
        if any(f"import {package}" in source for source in sources) and not importlib.util.find_spec(package):
            return reason
    return None


def why_not(kernel: str, kernels: dict[str, str]) -> str | None:
    """Say why a track cannot run here, or None where it can."""
    track = kernel.removeprefix("pprml-")
    if kernel not in kernels:
        reason = Path(sys.prefix) / f"no-{track}.txt"
        why = (
            reason.read_text("utf-8").strip()
            if reason.exists()
            else f"the {track} track is not set up (`make {track}`)"
        )
        return why
    python = json.loads((Path(kernels[kernel]) / "kernel.json").read_text("utf-8"))["argv"][0]
    # A registered kernel outlives its environment.
    return None if shutil.which(python) else f"the {track} track has lost its environment (`make {track}`)"


def _sign(run: Run, key: str, build: Path, name: str) -> nbformat.NotebookNode:
    """Return the book of a run with its key and the digests of what it made."""
    book = nbformat.reads(nbformat.writes(run.book), as_version=4)
    path = build / "claims" / "measured" / f"{name}.json"
    if not path.exists():
        write_whole(path, dump_json({}))
    source = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    drawn = [path.stem for path in sorted((build / "figures").glob("*.json")) if f'"{path.stem}"' in source]
    book.metadata["pprml"] = {
        "key": key,
        "outputs": keys.digest_outputs(book),
        "measured": keys.digest(json.loads(path.read_text("utf-8"))),
        "figures": {figure: keys.digest_figure(build / "figures", figure) for figure in drawn},
    }
    return book


def _run_all(
    paths: Sequence[Path], work: Callable[[Path, Callable[[], None]], None], jobs: int
) -> dict[str, str]:
    """Run notebooks side by side, the longest first, within the machine's memory; return name and reason of those that failed."""
    known, failed, lock = report.load_timings(ROOT), {}, threading.Condition()
    waiting = sorted(paths, key=lambda path: -known.get(path.stem, {}).get("seconds", 1e9))
    # A quarter is left to the machine.
    memory = 0.75 * psutil.virtual_memory().total / 1e9
    running: dict[str, float] = {}
    counts = {
        path: sum(cell.cell_type == "code" for cell in nbformat.read(path, as_version=4).cells)
        for path in paths
    }
    layout = "{desc} |{bar:24}| cell {n_fmt}/{total_fmt}, {elapsed}"
    with tqdm(total=sum(counts.values()), bar_format=layout, mininterval=1, file=sys.stderr) as bar:

        def show() -> None:
            bar.set_description_str(" + ".join(sorted(name[:2] for name in running)) or "done")

        def step() -> None:
            with lock:
                bar.update()

        def one(path: Path) -> None:
            began = time.monotonic()
            try:
                work(path, step)
                said = f"{path.stem}: ran in {(time.monotonic() - began) / 60:.1f} min"
            except (NotebookError, OSError) as error:
                failed[path.stem] = str(error)
                said = f"{path.stem}: FAILED"
            except BaseException as error:  # noqa: BLE001 a thread's end is never silent
                failed[path.stem] = f"{type(error).__name__}: {error}"
                said = f"{path.stem}: FAILED"
            with lock:
                running.pop(path.stem)
                tqdm.write(said, file=sys.stderr)
                show()
                lock.notify()

        try:
            while waiting or running:
                with lock:
                    held = sum(running.values())
                    for path in list(waiting):
                        need = known.get(path.stem, {}).get("gigabytes", 4.0)
                        if len(running) < jobs and (not running or held + need <= memory):
                            waiting.remove(path)
                            running[path.stem] = need
                            held += need
                            threading.Thread(target=one, args=(path,), daemon=True).start()
                    show()
                    lock.wait(timeout=1)
        except BaseException:
            # Kernels of this process end with it; what is finished is kept.
            _end_runs()
            raise
    return failed


def _end_runs() -> None:
    from pprml._processes import list_marked
    from pprml.course.runner import RUN_MARK

    for _, mark in list(list_marked(RUN_MARK)):
        if mark.partition(".")[0] == str(os.getpid()):
            kill_marked(mark)


def _load_chapters() -> tuple[dict, dict[str, list]]:
    ledger = load_ledger(ROOT / "claims")
    chapters: dict[str, list] = {name: [] for name in report.list_books(ROOT)}
    for claim in ledger.values():
        chapters.setdefault(claim.chapter, []).append(claim)
    return ledger, chapters


def reproduce(
    names: Sequence[str] = (),
    force: bool = False,
    stale: bool = False,
    strict: bool = False,
    jobs: int = JOBS,
) -> int:
    """Run chapters into the build folder and say what moved; nothing that is tracked is written.

    Parameters
    ----------
    names : sequence of str
        Chapters by name; all by default.
    force : bool
        Run also those whose run there is of the same key.
    stale : bool
        Run only those whose committed outputs are of another key.
    strict : bool
        Compare outputs and figures with what is committed, too.
    jobs : int
        Notebooks at a time.

    Returns
    -------
    int
        Exit code: 0, 1 where a number moved beyond its window, 3 where a cell failed, 4 where nothing could be run.
    """
    build = find_build()
    ledger, chapters = _load_chapters()
    kernels = KernelSpecManager().find_kernel_specs()
    todo, left_out, fresh = [], {}, []
    for path in list_notebooks(names):
        book = nbformat.read(path, as_version=4)
        key = keys.find_key(book, chapters[path.stem])
        if stale and book.metadata.get("pprml", {}).get("key") == key:
            continue
        if reason := why_not(book.metadata.kernelspec.name, kernels) or lacks_wheel(book):
            left_out[path.stem] = reason
        elif not force and _read_key(build / "notebooks" / path.name) == key:
            fresh.append(path.stem)
        else:
            todo.append(path)

    def work(path: Path, step: Callable[[], None]) -> None:
        key = keys.find_key(nbformat.read(path, as_version=4), chapters[path.stem])
        run = run_notebook(path, build, progress=step)
        write_whole(
            build / "notebooks" / path.name, nbformat.writes(_sign(run, key, build, path.stem)) + "\n"
        )
        note = {"seconds": round(run.seconds, 1), "gigabytes": round(run.peak_bytes / 1e9, 2)}
        write_whole(build / "runs" / f"{path.stem}.json", dump_json(note))

    with only_run(build):
        kill_marked()
        failed = _run_all(todo, work, jobs) if todo else {}
    ran = [path.stem for path in todo if path.stem not in failed]
    return _summarize(build, ledger, chapters, ran, fresh, left_out, failed, strict)


def _read_key(path: Path) -> str | None:
    try:
        return nbformat.read(path, as_version=4).metadata["pprml"]["key"]
    except (OSError, ValueError, KeyError):
        return None


def _summarize(build, ledger, chapters, ran, fresh, left_out, failed, strict) -> int:
    """Print the last screen, write it to the build folder's report, and return the exit code."""
    looked = sorted([*ran, *fresh])
    measured = load_measured(ROOT / "claims" / "measured")
    differs: list[str] = []
    for name in looked:
        measured |= upkeep.load_measured_of(build, name)
    moved = [move for name in looked for move in compare.list_moves(chapters[name], measured)]
    for name in looked:
        differs += [
            f"{name}: measures {stranger}, which its ledger does not hold"
            for stranger in compare.list_strangers(name, build, ledger)
        ]
        if strict:
            books = [
                nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
                for folder in (build, ROOT)
            ]
            differs += [f"{name}: {fault}" for fault in compare.compare_outputs(*books)]
            figures = {
                figure for book in books for figure in book.metadata.get("pprml", {}).get("figures", {})
            }
            differs += [
                f"{name}: {fault}"
                for fault in compare.compare_figures(figures, build / "figures", ROOT / "figures")
            ]
    lines = [f"ran: {', '.join(sorted(ran)) or 'nothing'}"]
    lines += [f"run before, and unchanged since: {', '.join(fresh)}"] * bool(fresh)
    lines += [f"left out: {name}, because {reason}" for name, reason in left_out.items()]
    lines += [f"FAILED: {name}" for name in failed]
    held = sum(claim.kind == "measured" for name in looked for claim in chapters[name])
    lines.append(f"numbers that moved beyond the digits shown: {len(moved)} of {held}")
    lines += [f"  {move}" for move in moved]
    lines += [f"other differences: {len(differs)}"] * strict + [f"  {fault}" for fault in differs]
    lines.append(f"pages: {_short(build)}/notebooks, figures: {_short(build)}/figures")
    write_whole(build / "report.txt", "\n".join([*lines, *(f"\n{text}" for text in failed.values())]) + "\n")
    # The last screen fits a terminal.
    shown = lines if len(lines) <= 24 else [*lines[:20], f"  ... and {len(lines) - 21} lines more", lines[-1]]
    print(*shown, f"report: {_short(build)}/report.txt", sep="\n")
    if failed:
        print(*(f"\npprml: {text}" for text in failed.values()), file=sys.stderr)
        return CELL_FAILED
    if left_out and not looked:
        return NOT_POSSIBLE
    return MOVED if moved or differs else DONE


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def record_seeds(names: Sequence[str], seeds: Sequence[int] = SEEDS, jobs: int = JOBS) -> int:
    """Run chapters once for all seeds and write their spreads, with seeds and key, to the build folder."""
    build = find_build()
    _, chapters = _load_chapters()
    paths = list_notebooks(names)

    def work(path: Path, step: Callable[[], None]) -> None:
        scratch = build / "seeds"
        book = nbformat.read(path, as_version=4)
        wanted = {claim.id for claim in chapters[path.stem] if claim.window == "spread"}
        key = keys.find_spread_key(book, chapters[path.stem])
        run_notebook(path, scratch, ",".join(map(str, seeds)), step)
        found = json.loads((scratch / "claims" / "measured" / f"{path.stem}.json").read_text("utf-8"))
        values = {name: found.get(name) for name in sorted(wanted)}
        for name, runs in values.items():
            if not isinstance(runs, list) or len(runs) != len(seeds):
                raise NotebookError(
                    f"{path.stem}: {name} was measured {'never' if runs is None else 'not once a seed'}"
                )
        content = {"key": key, "seeds": list(seeds), "values": values}
        record = {**content, "digest": keys.digest(json.loads(json.dumps(content)))}
        write_whole(build / "claims" / "spreads" / f"{path.stem}.json", dump_json(record))

    with only_run(build):
        kill_marked()
        failed = _run_all(paths, work, jobs)
    print(
        *(f"pprml: {text}" for text in failed.values()), sep="\n", file=sys.stderr, end="\n" if failed else ""
    )
    print(
        f"spreads of {len(seeds)} seeds: {_short(build)}/claims/spreads; `pprml reproduce` and `pprml accept` take them over"
    )
    return CELL_FAILED if failed else DONE


def accept(names: Sequence[str]) -> int:
    """Take over what was measured, chapter by chapter; print the files written."""
    build, code = find_build(), DONE
    for path in list_notebooks(names):
        try:
            written = upkeep.accept(path.stem, ROOT, build)
            print(f"{path.stem}: wrote {len(written)} files; read them with `git diff`")
        except upkeep.NotAcceptedError as error:
            print(f"pprml: {error}", file=sys.stderr)
            code = MOVED
    return code


def fetch_data() -> int:
    """Load every data set of the registry once, so that later runs need no network; print licence and source."""
    from pprml import datasets

    failures = 0
    for name, entry in datasets.REGISTRY.items():
        try:
            datasets.load(name)
            status = "ready"
        except (datasets.DataUnavailableError, datasets.ChecksumError) as error:
            status, failures = f"NOT AVAILABLE: {error}", failures + 1
        print(f"{name}: {status}\n  {entry.title}\n  licence: {entry.licence}\n  source: {entry.source}")
    return NOT_POSSIBLE if failures else DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pprml",
        description="Run and check the course. Runs write to build/ (or PPRML_OUTPUT); only `accept` writes what is tracked.",
        epilog="exit codes: 0 all is well, 1 a number moved or was not accepted, 2 unknown name or option, 3 a cell failed, "
        "4 data, disk, track or lock missing, 130 interrupted",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("reproduce", help="run chapters and say which numbers moved")
    run.add_argument("notebook", nargs="*", help="for example 04_dp_sgd, or 04; all by default")
    run.add_argument(
        "--force", action="store_true", help="run also what has not changed since it was run here"
    )
    run.add_argument(
        "--stale", action="store_true", help="run only what has changed since its outputs were committed"
    )
    run.add_argument(
        "--strict", action="store_true", help="compare outputs and figures with what is committed, too"
    )
    run.add_argument("--jobs", type=int, default=JOBS, help=f"notebooks at a time ({JOBS})")
    seeds = commands.add_parser("seeds", help="record the spread of chapters over seeds")
    seeds.add_argument("notebook", nargs="+")
    seeds.add_argument("--seeds", type=int, default=len(SEEDS), help=f"how many ({len(SEEDS)})")
    seeds.add_argument("--jobs", type=int, default=JOBS)
    take = commands.add_parser(
        "accept", help="write what was measured into ledger, prose, outputs and figures"
    )
    take.add_argument("notebook", nargs="+")
    commands.add_parser("pages", help="write README's table and the generated pages of the book")
    commands.add_parser("data", help="fetch and verify every data set, so that later runs need no network")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    # Asked to stop, it leaves by the same door as when interrupted: nothing half-written, no process left.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if options.command == "reproduce":
            return reproduce(
                options.notebook, options.force, options.stale, options.strict, max(1, options.jobs)
            )
        if options.command == "seeds":
            return record_seeds(options.notebook, range(max(2, options.seeds)), max(1, options.jobs))
        if options.command == "accept":
            return accept(options.notebook)
        if options.command == "pages":
            print(*report.write_pages(ROOT), sep="\n")
            return DONE
        return fetch_data()
    except LedgerError as error:
        print(f"pprml: the ledger: {error}", file=sys.stderr)
        return USAGE
    except ValueError as error:
        print(f"pprml: {error}", file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"pprml: {error}; what was there before is unchanged", file=sys.stderr)
        return NOT_POSSIBLE
    except KeyboardInterrupt:
        print(
            "\npprml: interrupted; finished chapters are kept, run the command again to go on",
            file=sys.stderr,
        )
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
