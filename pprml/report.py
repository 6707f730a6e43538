"""What was measured, for a reader: the ledger's report, and the README's generated tables."""

import json
import re

import nbformat

from pprml import ROOT
from pprml._files import write_whole
from pprml.claims import Claim, load_ledger, load_measured, recompute

README = ROOT / "README.md"


def describe_ledger(
    ledger: dict[str, Claim] | None = None, measured: dict[str, float] | None = None
) -> tuple[str, int]:
    """Write the ledger's report.

    Returns
    -------
    text : str
        One line a claim: id, stated, window, measured, verdict, source.
    failures : int
        Measured claims that are missing or outside their window.
    """
    ledger = load_ledger() if ledger is None else ledger
    measured = load_measured() if measured is None else measured
    lines, failures = [], 0
    for claim in ledger.values():
        got = ""
        verdict = claim.verdict or ""
        if claim.kind == "article":
            verdict += "" if claim.tested_by or verdict == "untestable" else " (not tested yet)"
        if claim.kind == "measured":
            value = measured.get(claim.id)
            if value is None and isinstance(claim.recompute, dict):
                value = recompute(claim)
            ok = value is not None and claim.accepts(value, measured)
            failures += not ok
            got = "not measured" if value is None else claim.show(value)
            verdict = "holds" if ok else "FAILS"
        row = (
            claim.id,
            claim.states or "",
            claim.show_window(),
            got,
            verdict,
            claim.source or claim.sentence,
        )
        lines.append(row)
    head = ("claim", "stated", "window", "measured", "verdict", "source")
    widths = [min(44, max(len(row[i]) for row in [head, *lines])) for i in range(5)]
    table = "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5][:90]]
        ).rstrip()
        for row in [head, *lines]
    )
    return table, failures


def load_timings() -> dict[str, dict[str, float]]:
    """Read seconds and peak gigabytes of each notebook from the committed benchmark."""
    path = ROOT / "benchmarks" / "results" / "notebooks.json"
    timings: dict[str, dict[str, float]] = {}
    for record in json.loads(path.read_text("utf-8")) if path.exists() else []:
        timings.setdefault(record["case"], {})[record["metric"]] = record["ours"]
    return timings


def render_notebooks() -> str:
    """Table of the notebooks: question, track, minutes and memory."""
    timings = load_timings()
    rows = ["| notebook | its question | track | minutes | memory |", "|---|---|---|---|---|"]
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        book = nbformat.read(path, as_version=4)
        question = re.search(r"^[*_](.+\?)[*_]", book.cells[0].source, re.M)[1]
        track = book.metadata.kernelspec.name.removeprefix("pprml-")
        took = timings.get(path.stem, {})
        minutes = f"{took['seconds'] / 60:.1f}" if took else "not measured"
        memory = f"{took['gigabytes']:.1f} GB" if took else "not measured"
        rows.append(f"| [{path.stem}](notebooks/{path.name}) | {question} | {track} | {minutes} | {memory} |")
    return "\n".join(rows)


def render_results() -> str:
    """Table of the results: each measured claim that the README is to show, its value and what it was computed from."""
    rows = ["| result | value | how it is known |", "|---|---|---|"]
    for claim in load_ledger().values():
        if claim.headline:
            sentence = claim.sentence.replace("{states}", "").strip()
            rows.append(
                f"| {claim.headline if isinstance(claim.headline, str) else sentence} "
                f"| {_qualify(claim.window)}{claim.states}<!-- claim: {claim.id} --> | {claim.source} |"
            )
    return "\n".join(rows)


def _qualify(window) -> str:
    return {"above": "at least ", "below": "at most "}.get(window if isinstance(window, str) else "", "")


def render_verdicts() -> str:
    """Table of the article's sentences: the verdict so far, and the claims that test it."""
    rows = ["| | the article says | verdict | what is true | tested by |", "|---|---|---|---|---|"]
    for claim in load_ledger().values():
        if claim.kind == "article":
            missing = "no experiment decides it" if claim.verdict == "untestable" else "not tested yet"
            tests = ", ".join(f"`{name}`" for name in claim.tested_by) or missing
            rows.append(f"| {claim.number} | {claim.sentence} | {claim.verdict} | {claim.truth} | {tests} |")
    return "\n".join(rows)


TABLES = {"notebooks": render_notebooks, "results": render_results, "verdicts": render_verdicts}


def render(text: str) -> str:
    """Return a README with each generated table, between its two marks, made afresh."""
    for name, make in TABLES.items():
        begin, end = f"<!-- begin generated: {name} -->", f"<!-- end generated: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"README.md must hold the marks {begin} and {end} once each")
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


def update() -> None:
    """Write the README's tables, if they have changed."""
    old = README.read_text("utf-8")
    new = render(old)
    if new != old:
        write_whole(README, new)
