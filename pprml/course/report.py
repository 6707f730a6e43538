"""What was measured, for a reader: the README's table of chapters and the generated pages of the book."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import nbformat

from pprml import ROOT
from pprml._files import write_whole
from pprml.claims import Claim, load_ledger
from pprml.course import keys

PARTS = {
    "Part I: what data gives away": ("01", "02"),
    "Part II: what noise buys": ("03", "04", "05"),
    "Part III: learning where the data is": ("06", "07", "08", "09"),
    "Part IV: computing on what nobody may see": ("10", "11", "12"),
}


def load_timings(root: Path = ROOT) -> dict[str, dict[str, float]]:
    """Read seconds and peak gigabytes of each notebook from the committed benchmark."""
    path = root / "benchmarks" / "results" / "notebooks.json"
    timings: dict[str, dict[str, float]] = {}
    for record in json.loads(path.read_text("utf-8")) if path.exists() else []:
        timings.setdefault(record["case"], {})[record["metric"]] = record["ours"]
    return timings


def list_books(root: Path = ROOT) -> dict[str, Path]:
    """Return the chapters by name, in the course's order."""
    return {path.stem: path for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


def render_chapters(root: Path = ROOT) -> str:
    """Table of the chapters by part: question, track, minutes, memory and the modules that it calls."""
    timings = load_timings(root)
    rows = [
        "| chapter | its question | track | minutes | memory | its code in `pprml/` |",
        "|---|---|---|---|---|---|",
    ]
    for name, path in list_books(root).items():
        book = nbformat.read(path, as_version=4)
        for part, numbers in PARTS.items():
            if name[:2] == numbers[0]:
                rows.append(f"| **{part}** | | | | | |")
        question = re.search(r"^[*_](.+\?)[*_]", book.cells[0].source, re.M)[1]
        took = timings.get(name, {})
        minutes = f"{took['seconds'] / 60:.1f}" if took else "not measured"
        memory = f"{took['gigabytes']:.1f} GB" if took else "not measured"
        modules = ", ".join(f"`{module}`" for module in _list_modules(book))
        track = keys.read_track(book)
        rows.append(
            f"| [{name}](notebooks/{path.name}) | {question} | {track} | {minutes} | {memory} | {modules} |"
        )
    return "\n".join(rows)


def _list_modules(book: nbformat.NotebookNode) -> list[str]:
    source = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    shared = {"claims", "figures", "datasets", "accounting", "ROOT"}
    found = []
    for names in re.findall(r"^from pprml import (.+)$", source, re.M):
        found += [name.split(" as ")[0].strip("() ") for name in names.split(",")]
    found += re.findall(r"^(?:from|import) pprml\.(\w+)", source, re.M)
    return sorted({name for name in found if name} - shared)


def render_results(ledger: Mapping[str, Claim]) -> str:
    """Page of the results: each claim that has a headline, its value and what it was computed from."""
    rows = [
        "# Results",
        "",
        "Each number is measured by the chapter that its id names; `make reproduce` measures it again.",
        "",
    ]
    rows += ["| result | value | how it is known |", "|---|---|---|"]
    for claim in ledger.values():
        if claim.headline:
            bound = {"above": "at least ", "below": "at most "}.get(
                claim.window if isinstance(claim.window, str) else "", ""
            )
            rows.append(
                f"| {claim.headline} | {bound}{claim.states}<!-- claim: {claim.id} --> | {claim.source} |"
            )
    return "\n".join(rows) + "\n"


def render_verdicts(ledger: Mapping[str, Claim]) -> str:
    """Page of the article's sentences: the verdict so far, and the claims that test it."""
    rows = ["# The article's sentences, tested", ""]
    rows += ['M. Fayaz, "Privacy-Preserving AI: What It Is and Why It Matters?", sentence by sentence.', ""]
    rows += ["| | the article says | verdict | what is true | tested by |", "|---|---|---|---|---|"]
    for claim in ledger.values():
        if claim.kind == "article":
            missing = "no experiment decides it" if claim.verdict == "untestable" else "not tested yet"
            tests = ", ".join(f"`{name}`" for name in claim.tested_by) or missing
            rows.append(f"| {claim.number} | {claim.sentence} | {claim.verdict} | {claim.truth} | {tests} |")
    return "\n".join(rows) + "\n"


def render_ledger(ledger: Mapping[str, Claim]) -> str:
    """Page of every claim: its sentence with the number in it, what it has to beat, and how closely it is held."""
    rows = ["# Every claim", ""]
    rows += [
        "The sentences that the chapters' numbers belong to. *Held to*: how far a new run may be from it. A time is held to nothing:",
        "",
    ]
    rows[-2] += " it is what the machine of the record took."
    chapter = None
    for claim in ledger.values():
        if claim.kind == "article":
            continue
        if claim.chapter != chapter:
            chapter = claim.chapter
            rows += [
                "",
                f"## {chapter}",
                "",
                "| id | claim | a guesser, or without it | held to |",
                "|---|---|---|---|",
            ]
        null = ledger[claim.baseline].states if claim.baseline in ledger else claim.baseline
        held = {"published": "published", "time": "a time"}.get(claim.kind) or claim.show_window()
        words = claim.say(claim.states or "").replace("|", "\\|")
        rows.append(
            f"| `{claim.id}` | {words} | {'' if null is None else str(null).removeprefix('none: ')} | {held} |"
        )
    return "\n".join(rows) + "\n"


PAGES = {"results.md": render_results, "article.md": render_verdicts, "ledger.md": render_ledger}


def render_readme(text: str, root: Path = ROOT) -> str:
    """Return a README with the table of chapters, between its two marks, made afresh."""
    begin, end = "<!-- begin generated: chapters -->", "<!-- end generated: chapters -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"README.md must hold the marks {begin} and {end} once each")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{render_chapters(root)}\n{end}{rest.split(end)[1]}"


def render_pages(root: Path = ROOT) -> dict[Path, str]:
    """Return every generated page and its text."""
    ledger = load_ledger(root / "claims")
    readme = root / "README.md"
    pages = {root / "book" / name: make(ledger) for name, make in PAGES.items()}
    return {readme: render_readme(readme.read_text("utf-8"), root), **pages}


def write_pages(root: Path = ROOT) -> list[str]:
    """Write the generated pages that have changed; return their names."""
    written = []
    for path, text in render_pages(root).items():
        if not path.exists() or path.read_text("utf-8") != text:
            write_whole(path, text)
            written.append(str(path.relative_to(root)))
    return written
