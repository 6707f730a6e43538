"""The command line: run the notebooks, resume an interrupted run, report on the ledger and the figures."""

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager

from pprml import ROOT, figures, report
from pprml._files import dump_json, name_nearest, write_whole
from pprml.runner import NotebookError, kill_marked, run_notebook

NOTEBOOKS = ROOT / "notebooks"
STATE = ROOT / ".pprml" / "state.json"
DONE, CLAIM_FAILED, USAGE, CELL_FAILED, NOT_POSSIBLE, INTERRUPTED = 0, 1, 2, 3, 4, 130


def list_notebooks(names: Sequence[str] = ()) -> list[Path]:
    """Return the notebooks named, in the course's order, or all of them; a ValueError names the nearest to an unknown one."""
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
    wanted = {Path(name).stem for name in names} or set(known)
    for name in sorted(wanted - set(known)):
        raise ValueError(name_nearest("notebook", name, known))
    return [path for stem, path in known.items() if stem in wanted]


def fingerprint(path: Path) -> str:
    """Return a digest of all that a notebook's outputs depend on: its code, the package and the lock."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    digest = hashlib.sha256(json.dumps(cells).encode())
    for part in [*sorted((ROOT / "pprml").rglob("*.py")), ROOT / "uv.lock"]:
        digest.update(str(part.relative_to(ROOT)).encode() + b"\0" + part.read_bytes())
    return digest.hexdigest()


def _read_state() -> dict[str, dict]:
    try:
        return json.loads(STATE.read_text("utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}  # at worst a notebook is run once more


def _why_not(kernel: str, kernels: dict[str, str]) -> str | None:
    """Say why a track's kernel cannot run here, or None where it can."""
    if kernel not in kernels:
        return f"{kernel} is not set up"
    python = json.loads((Path(kernels[kernel]) / "kernel.json").read_text("utf-8"))["argv"][0]
    # A registered kernel outlives its environment.
    return (
        None if shutil.which(python) else f"{kernel} has lost its environment: no {Path(python).name} there"
    )


def reproduce(names: Sequence[str] = (), force: bool = False) -> int:
    """Run the notebooks that need it, write their outputs, the figures and the README's tables, and print the ledger's report.

    Parameters
    ----------
    names : sequence of str
        Notebooks by name; all by default.
    force : bool
        Run also those whose code, package and lock have not changed since they were last run here.

    Returns
    -------
    int
        Exit code: 0, 1 where a claim left its window, 3 where a cell failed, 4 where nothing could be run.
    """
    state, kernels = _read_state(), KernelSpecManager().find_kernel_specs()
    expected = report.load_timings()
    skipped = []
    kill_marked()
    for path in list_notebooks(names):
        book, now = nbformat.read(path, as_version=4), fingerprint(path)
        kernel = book.metadata.kernelspec.name
        ran = all(
            cell.execution_count for cell in book.cells if cell.cell_type == "code" and cell.source.strip()
        )
        if not force and ran and state.get(path.stem, {}).get("fingerprint") == now:
            print(f"{path.stem}: unchanged since it was run here")
            continue
        if reason := _why_not(kernel, kernels):
            skipped.append(f"{path.stem}: skipped, {reason} (run `make {kernel.removeprefix('pprml-')}`)")
            continue
        known = state.get(path.stem, {}).get("seconds") or expected.get(path.stem, {}).get("seconds")
        run = run_notebook(path, known)
        write_whole(path, nbformat.writes(run.book) + "\n")
        state = {**_read_state(), path.stem: {"fingerprint": now, "seconds": round(run.seconds, 1)}}
        write_whole(STATE, dump_json(state))
    report.update()
    print(*skipped, sep="\n", end="\n" if skipped else "")
    return report_claims()


def report_claims() -> int:
    """Print the ledger's report; return 1 where a claim is unmeasured or outside its window."""
    text, failures = report.describe_ledger()
    print(text)
    if failures:
        print(f"{failures} claims are outside their window or not measured", file=sys.stderr)
    return CLAIM_FAILED if failures else DONE


def check_figures(new: Path | None = None) -> int:
    """Compare figures with the committed ones.

    Parameters
    ----------
    new : Path, optional
        A folder of freshly drawn figures, compared with those of the checkout. By default the checkout's own are compared with
        those of its last commit.

    Returns
    -------
    int
        0, or 1 where a series differs by more than its tolerance.
    """
    if new is None:
        reference = {
            Path(name).stem: json.loads(_git("show", f"HEAD:{name}")) for name in _committed_figures()
        }
    else:
        reference = {
            p.stem: json.loads(p.read_text("utf-8")) for p in sorted((ROOT / "figures").glob("*.json"))
        }
    faults = figures.check_folder(new or ROOT / "figures", reference)
    print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
    if not faults:
        print(f"{len(reference)} figures agree with the committed ones")
    return CLAIM_FAILED if faults else DONE


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout


def _committed_figures() -> list[str]:
    try:
        return [
            name
            for name in _git("ls-tree", "--name-only", "HEAD", "figures/").split()
            if name.endswith(".json")
        ]
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            "this is not a git checkout: name a folder to compare, `pprml figures check FOLDER`"
        ) from error


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
        description="Run and check the course. Every number a reader sees is bound to the ledger in claims/.",
        epilog="exit codes: 0 all is well, 1 a claim or figure left its window, 2 unknown name or option, 3 a cell failed, "
        "4 data, disk or kernel missing, 130 interrupted",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "reproduce", help="run the notebooks, write outputs, figures and tables, report on the ledger"
    )
    run.add_argument("notebook", nargs="*", help="for example 04_dp_sgd; all by default")
    run.add_argument(
        "--force", action="store_true", help="run also what has not changed since it was last run here"
    )
    commands.add_parser("claims", help="print the ledger: stated, window, measured, verdict, source")
    draw = commands.add_parser("figures", help="compare figures with the committed ones").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    compare = draw.add_parser("check", help="compare series by series, within each series' tolerance")
    compare.add_argument(
        "folder", nargs="?", type=Path, help="freshly drawn figures; by default the checkout's, against git"
    )
    commands.add_parser("data", help="fetch and verify every data set, so that later runs need no network")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    # Asked to stop, it leaves by the same door as when interrupted: nothing half-written, no process left.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if options.command == "reproduce":
            return reproduce(options.notebook, options.force)
        if options.command == "claims":
            return report_claims()
        if options.command == "figures":
            return check_figures(options.folder)
        return fetch_data()
    except ValueError as error:
        print(f"pprml: {error}", file=sys.stderr)
        return USAGE
    except NotebookError as error:
        print(f"\npprml: {error}", file=sys.stderr)
        return CELL_FAILED
    except OSError as error:
        print(f"pprml: {error}; what was there before is unchanged", file=sys.stderr)
        return NOT_POSSIBLE
    except KeyboardInterrupt:
        print(
            "\npprml: interrupted; finished notebooks are kept, run the command again to go on",
            file=sys.stderr,
        )
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
