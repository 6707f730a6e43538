"""The ledger's upkeep: what was measured goes into ledger, prose, outputs and figures, and a person reads the difference."""

import json
import re
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nbformat

from pprml import claims
from pprml._files import write_whole
from pprml.claims import Claim, beaten_by_null, load_ledger, load_measured, load_spreads
from pprml.course import compare, keys, report

_PROSE = r"([-+−]?[\d?][\d,?]*(?:\.[\d?]+)?(?:e[-+]?[\d?]+)?)([^\n<|\d]{{0,30}}?)(<!--\s*claim:\s*{id}\s*-->)"


class NotAcceptedError(ValueError):
    """Nothing was written: the run is old, the files have other changes, or a number is a finding and not an update."""


def accept(name: str, root: Path, build: Path) -> list[str]:
    """Take over what a run of one chapter made.

    Parameters
    ----------
    name : str
        The chapter, such as ``04_dp_sgd``.
    root, build : Path
        The checkout, and the folder that `pprml reproduce` (and `pprml seeds`) wrote to.

    Returns
    -------
    list of str
        The files written: the notebook's outputs, its measurements, spreads and figures, the numbers of its ledger, the prose that
        quotes them in any chapter, and the generated pages.

    Raises
    ------
    NotAcceptedError
        The run is missing or of other code, a file that would be written has changes of its own, a bound or an order does not hold,
        or a number no longer beats its null baseline. Nothing is written then.
    """
    path = root / "notebooks" / f"{name}.ipynb"
    ledger = load_ledger(root / "claims")
    chapter = {key: claim for key, claim in ledger.items() if claim.chapter == name}
    book = nbformat.read(path, as_version=4)
    ran = _read_run(book, chapter, root, build, name)
    spreads = _read_spreads(book, chapter, root, build, name)
    measured = load_measured(root / "claims" / "measured") | load_measured_of(build, name)
    updated = _update_claims(chapter, ledger, measured, spreads)

    texts: dict[Path, str] = {}
    yml = root / "claims" / f"{name}.yml"
    changed = {key: claim for key, claim in updated.items() if claim.states != chapter[key].states}
    texts[yml] = _write_states(yml.read_text("utf-8"), changed)
    for other in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        prose = nbformat.read(other, as_version=4)
        for cell in prose.cells:
            if cell.cell_type == "markdown":
                cell.source = write_prose(cell.source, changed)
        if other == path:
            _take_outputs(prose, ran)
        texts[other] = nbformat.writes(prose) + "\n"
    texts[root / "README.md"] = write_prose((root / "README.md").read_text("utf-8"), changed)
    texts[root / "claims" / "measured" / f"{name}.json"] = _read(
        build / "claims" / "measured" / f"{name}.json"
    )
    if spreads:
        texts[root / "claims" / "spreads" / f"{name}.json"] = _read(
            build / "claims" / "spreads" / f"{name}.json"
        )
    for figure in ran.metadata["pprml"]["figures"]:
        for kind in ("svg", "json"):
            texts[root / "figures" / f"{figure}.{kind}"] = _read(build / "figures" / f"{figure}.{kind}")
    written = {file: text for file, text in texts.items() if not file.exists() or _read(file) != text}
    _refuse_dirty(written, root)
    for file, text in written.items():
        write_whole(file, text)
    claims._ledger.cache_clear()
    return [str(file.relative_to(root)) for file in written] + report.write_pages(root)


def _read(path: Path) -> str:
    return path.read_text("utf-8")


def load_measured_of(build: Path, name: str) -> dict[str, float]:
    """Read what a run of one chapter measured."""
    values = json.loads(_read(build / "claims" / "measured" / f"{name}.json"))
    return {
        key: statistics.fmean(value) if isinstance(value, list) else value for key, value in values.items()
    }


def _read_run(
    book, chapter: Mapping[str, Claim], root: Path, build: Path, name: str
) -> nbformat.NotebookNode:
    path = build / "notebooks" / f"{name}.ipynb"
    if not path.exists():
        raise NotAcceptedError(f"{name} has not been run here: run `pprml reproduce {name}`")
    ran = nbformat.read(path, as_version=4)
    if ran.metadata.get("pprml", {}).get("key") != keys.find_key(book, chapter.values(), root):
        raise NotAcceptedError(f"{name} has changed since it was run here: run `pprml reproduce {name}`")
    if strangers := compare.list_strangers(name, build, chapter):
        raise NotAcceptedError(f"{name} measures what its ledger does not hold: {', '.join(strangers)}")
    return ran


def _read_spreads(book, chapter, root: Path, build: Path, name: str) -> dict[str, tuple[float, ...]]:
    """Return the freshly recorded spreads, if there are any; refuse where the chapter's are then still old."""
    fresh = build / "claims" / "spreads" / f"{name}.json"
    if fresh.exists() and not compare.check_spread(book, chapter.values(), build, name, root):
        return load_spreads(fresh.parent)
    if faults := compare.check_spread(book, chapter.values(), root, name, root):
        raise NotAcceptedError(f"{name}: {faults[0]}")
    return {}


def _update_claims(chapter, ledger, measured, spreads) -> dict[str, Claim]:
    """Return the chapter's claims with the numbers that were measured; refuse what is a finding."""
    updated, findings = {}, []
    for key, claim in chapter.items():
        claim = replace(claim, spread=spreads.get(key, claim.spread))
        value = (
            statistics.fmean(claim.spread) if claim.window == "spread" and claim.spread else measured.get(key)
        )
        if claim.kind == "measured" and claim.window in ("exact", "spread") and value is not None:
            claim = replace(claim, states=claim.show(value))
        updated[key] = claim
    moved = compare.list_moves(updated.values(), measured)
    findings += [str(move) for move in moved]
    everything = {**ledger, **updated}
    for claim in updated.values():
        if claim.kind == "measured" and beaten_by_null(claim, everything):
            findings.append(f"{claim.id}: {claim.states} does not beat its null baseline {claim.baseline}")
    if findings:
        raise NotAcceptedError(
            "a finding, not a number to update; nothing is written:\n  " + "\n  ".join(findings)
        )
    return updated


def _write_states(text: str, changed: Mapping[str, Claim]) -> str:
    for key, claim in changed.items():
        text, count = re.subn(
            rf'(^{re.escape(key)}:\n(?:[ #].*\n)*?  states: )"[^"\n]*"',
            rf'\g<1>"{claim.states}"',
            text,
            count=1,
            flags=re.M,
        )
        if not count:
            raise NotAcceptedError(f"{key}: write its `states` on a line of its own, in quotes")
    return text


def write_prose(text: str, changed: Mapping[str, Claim]) -> str:
    """Return a text in which the numbers bound to these claims are theirs, each with the digits that the text shows."""
    for key, claim in changed.items():

        def put(match: re.Match, claim=claim) -> str:
            number, unit, mark = match.groups()
            if "?" in number:
                return claim.states + mark
            # The text may show fewer digits than the ledger.
            shape = replace(claim, states=number + ("%" if "%" in unit else ""))
            exact = claims.parse_number(claim.states)[0]
            return shape.show(exact).removesuffix("%") + unit + mark

        text = re.sub(_PROSE.format(id=re.escape(key)), put, text)
    return text


def _take_outputs(book: nbformat.NotebookNode, ran: nbformat.NotebookNode) -> None:
    fresh = iter([cell for cell in ran.cells if cell.cell_type == "code"])
    for cell in book.cells:
        if cell.cell_type == "code":
            done = next(fresh)
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
    book.metadata = ran.metadata


def _refuse_dirty(files: Mapping[Path, str], root: Path) -> None:
    """Refuse where git knows of changes that are neither committed nor staged: nobody could tell them from what is written."""
    known = [str(file.relative_to(root)) for file in files if file.exists()]
    if not known:
        return
    done = subprocess.run(
        ["git", "-C", root, "diff", "--name-only", "--", *known], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotAcceptedError("this is not a git checkout: nobody could read what was written")
    if dirty := done.stdout.split():
        raise NotAcceptedError(
            f"{', '.join(dirty[:4])}: changed and not staged; run `git add` on your changes, so that `git diff` shows what is accepted"
        )
