"""What came out of a run, held against what is committed: numbers against the ledger, outputs and figures to the digits shown."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat

from pprml import ROOT, figures
from pprml.claims import LEAST_SEEDS, NUMBER, Claim, recompute
from pprml.course import keys


@dataclass(frozen=True)
class Move:
    """A number that left the window of its claim: what came out, or None where nothing was measured."""

    claim: Claim
    value: float | None
    measured: Mapping[str, float]

    def __str__(self) -> str:
        claim, stated = self.claim, self.claim.states or "an order"
        if self.value is None:
            return f"{claim.id}: not measured (stated {stated})"
        if claim.other:
            than = self.measured.get(claim.other, math.nan)
            return f"{claim.id}: {self.value:.6g} is not {claim.show_window()}, which is {than:.6g}"
        return f"{claim.id}: {claim.show(self.value)} ({self.value:.6g}), stated {stated}, window {claim.show_window()}"


def list_moves(claims: Iterable[Claim], measured: Mapping[str, float]) -> list[Move]:
    """Return every measured claim whose number left its window, is missing, or states no number yet."""
    moves = []
    for claim in claims:
        if claim.kind != "measured":
            continue
        value = measured.get(claim.id)
        if value is None and isinstance(claim.recompute, dict):
            value = recompute(claim)
        missing = value is None or (claim.other and claim.other not in measured)
        if missing or not claim.accepts(value, measured):
            moves.append(Move(claim, value, measured))
    return moves


def list_strangers(chapter: str, folder: Path, ledger: Mapping[str, Claim]) -> list[str]:
    """Return the ids that a run measured and that its chapter's ledger does not hold."""
    found = set()
    for kind in ("measured", "times"):
        path = folder / "claims" / kind / f"{chapter}.json"
        found |= set(json.loads(path.read_text("utf-8"))) if path.exists() else set()
    return sorted(name for name in found if name not in ledger or ledger[name].chapter != chapter)


def compare_outputs(new: nbformat.NotebookNode, old: nbformat.NotebookNode) -> list[str]:
    """Compare what the cells of two runs show, word by word, numbers to the digits shown.

    A cell tagged ``varies`` shows a clock, fresh entropy or what the processor's rounding decides: of it only the words are compared.
    Figures are compared elsewhere, by their numbers.
    """
    faults = []
    pairs = [[cell for cell in book.cells if cell.cell_type == "code"] for book in (new, old)]
    if len(pairs[0]) != len(pairs[1]):
        return ["another number of cells"]
    for position, (fresh, known) in enumerate(zip(*pairs, strict=True)):
        varies = "varies" in known.metadata.get("tags", ())
        was, now = (_split(_read_text(cell)) for cell in (known, fresh))
        if was[1] != now[1]:
            faults.append(f"code cell {position} says something else: {_first_difference(now[1], was[1])}")
        elif not varies:
            moved = [f"{b} was {a}" for a, b in zip(was[0], now[0], strict=True) if not _same(a, b)]
            faults += [f"code cell {position}: {', '.join(moved[:3])}"] * bool(moved)
    return faults


def _read_text(cell: nbformat.NotebookNode) -> str:
    parts = []
    for output in cell.outputs:
        if "text" in output:
            parts.append(output["text"])
        elif "data" in output and not any(kind.startswith("image/") for kind in output["data"]):
            parts.append(output["data"].get("text/plain", ""))
    return "\n".join(parts)


def _split(text: str) -> tuple[list[str], list[str]]:
    # Columns are as wide as their widest number: blanks and rules are layout.
    return re.findall(NUMBER, text), re.sub(NUMBER, "#", re.sub(r"[-=─]{3,}", "", text)).split()


def _same(old: str, new: str) -> bool:
    if old == new:
        return True
    a, b = (float(text.replace(",", "").replace("−", "-")) for text in (old, new))
    digits = [len(text.partition("e")[0].partition(".")[2]) for text in (old, new)]
    exponent = int(old.partition("e")[2] or "0")
    # A last digit may round either way.
    return abs(a - b) <= 1.01 * 10.0 ** (exponent - min(digits)) and ("." in old or "e" in old or a == b)


def _first_difference(new: list[str], old: list[str]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(new, old, strict=False)) if a != b), min(len(new), len(old)))
    return f"'{' '.join(new[at : at + 6])}' where '{' '.join(old[at : at + 6])}' was"


def compare_figures(names: Iterable[str], new: Path, old: Path) -> list[str]:
    """Compare a run's figures with the committed ones, series by series, within each one's tolerance."""
    faults = []
    for name in sorted(names):
        paths = [folder / f"{name}.json" for folder in (new, old)]
        if not all(path.exists() for path in paths):
            faults.append(
                f"figure {name}: {'not drawn' if paths[1].exists() else 'drawn, but not committed'}"
            )
            continue
        records = [json.loads(path.read_text("utf-8")) for path in paths]
        faults += [f"figure {name}: {fault}" for fault in figures.compare(*records)]
    return faults


def check_signature(book: nbformat.NotebookNode, claims: Iterable[Claim], root: Path, name: str) -> list[str]:
    """Say what of a committed notebook no run made: its outputs, its figures, its measurements, the record of its seeds."""
    signed = book.metadata.get("pprml", {})
    if not signed:
        return ["was not run by the course's runner: run `pprml reproduce` and `pprml accept`"]
    claims, faults = list(claims), []
    if signed["key"] != keys.find_key(book, claims, root):
        faults.append(
            "its cells, a module that it imports, its track's lock or the list of its claims changed after its run"
        )
    if signed["outputs"] != keys.digest_outputs(book):
        faults.append("its outputs are not those of its run")
    measured = root / "claims" / "measured" / f"{name}.json"
    if not measured.exists() or signed["measured"] != keys.digest(json.loads(measured.read_text("utf-8"))):
        faults.append("its measurements are not those of its run")
    for figure, mark in signed["figures"].items():
        try:
            faults += [f"figure {figure} is not the one that its run drew"] * (
                keys.digest_figure(root / "figures", figure) != mark
            )
        except FileNotFoundError:
            faults.append(f"figure {figure} is missing")
    return faults + check_spread(book, claims, root, name, root)


def check_spread(
    book: nbformat.NotebookNode, claims: Iterable[Claim], folder: Path, name: str, root: Path = ROOT
) -> list[str]:
    """Say why a record of a chapter's seeds (in a folder's ``claims/spreads``) is not to be trusted, or return nothing."""
    claims = list(claims)
    wanted = {claim.id for claim in claims if claim.window == "spread" and claim.kind == "measured"}
    path = folder / "claims" / "spreads" / f"{name}.json"
    if not path.exists():
        return [
            f"no spread is recorded for {', '.join(sorted(wanted)[:3])}: run `pprml seeds {name}`"
        ] * bool(wanted)
    try:
        record = json.loads(path.read_text("utf-8"))
        content, mark = {k: record[k] for k in ("key", "seeds", "values")}, record["digest"]
    except (ValueError, KeyError, TypeError):
        return [f"{path.name} is truncated or no record of seeds: run `pprml seeds {name}`"]
    faults = []
    if mark != keys.digest(content):
        faults.append(f"{path.name} was changed by hand: run `pprml seeds {name}`")
    if record["key"] != keys.find_spread_key(book, claims, root):
        faults.append(f"its spreads were recorded with other code: run `pprml seeds {name}`")
    if missing := wanted - set(record["values"]):
        faults.append(f"no spread is recorded for {', '.join(sorted(missing)[:3])}: run `pprml seeds {name}`")
    if any(
        len(values) != len(record["seeds"]) or len(values) < LEAST_SEEDS
        for values in record["values"].values()
    ):
        faults.append(
            f"{path.name} holds another number of values than of seeds, or fewer than {LEAST_SEEDS}"
        )
    return faults
