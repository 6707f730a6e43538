"""What a notebook and its prose must be: the checks that every text a reader sees has to pass."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

from pprml._files import name_nearest
from pprml.claims import NUMBER, Claim, parse_number

#: Level-2 headings, in order; each may go on in the notebook's own words.
SECTIONS = (
    "What you will be able to do",
    "Time, memory and track",
    "The idea on a small example",
    "The attack",
    "A naive fix",
    "The real defence",
    "What is still not protected",
    "The article's sentences",
    "References",
)
MAX_CELL_LINES = 15


@dataclass(frozen=True)
class Fault:
    """A place where a text breaks the contract, and how."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


_BOUND = re.compile(rf"({NUMBER})([^\n<|\d]{{0,30}}?)<!--\s*claim:\s*([\w.-]+)\s*-->")
_MARK = re.compile(r"<!--\s*claim:\s*([\w.-]+)\s*-->")
_GREEK = r"(?:ε|δ|\\(?:var)?epsilon|\\delta|\b[Ee]psilon|\b[Dd]elta|\bAUC|\b[Aa]ccuracy)"
_BARE = re.compile(
    rf"(?:{NUMBER}\s*(?:\\?%|×|percent\b))|(?:{_GREEK}\$?\s*(?:=|≈|<|>|≤|≥|is|of|at|about|near|to|was|:|\s)*\$?\s*{NUMBER})"
)


def check_prose(text: str, where: str, ledger: dict[str, Claim]) -> list[Fault]:
    """Compare the numbers of a text with the ledger.

    Parameters
    ----------
    text : str
        Markdown. A result is written as ``64.2 %<!-- claim: id -->``.
    where : str
        What to call the text in a fault, such as a notebook and cell.
    ledger : dict of str to Claim
        From `pprml.claims.load_ledger`.

    Returns
    -------
    list of Fault
        An id that is unknown, a number that differs from the ledger at the digits shown, or a number beside ε, δ, %, ×, AUC or
        "accuracy" that carries no id.
    """
    faults = []
    for number, unit, claim_id in _BOUND.findall(text):
        if claim_id not in ledger:
            faults.append(Fault(where, name_nearest("claim", claim_id, ledger)))
        elif ledger[claim_id].states is None:
            faults.append(Fault(where, f"{number} is bound to {claim_id}, which states no number"))
        else:
            shown, half = parse_number(number + (" %" if "%" in unit else ""))
            if abs(shown - ledger[claim_id].value) > half * (1 + 1e-9):
                faults.append(
                    Fault(where, f"{number}{unit} differs from {claim_id}: {ledger[claim_id].states}")
                )
    rest = _BOUND.sub(" ", text)
    for claim_id in _MARK.findall(rest):
        # A sentence without a number may cite an ordering.
        if claim_id not in ledger:
            faults.append(Fault(where, name_nearest("claim", claim_id, ledger)))
        elif ledger[claim_id].states is not None and ledger[claim_id].kind != "article":
            faults.append(
                Fault(where, f"{claim_id} states {ledger[claim_id].states}, but no number stands before it")
            )
    faults += [
        Fault(where, f"bare number {m[0].strip()!r} carries no claim id")
        for m in _BARE.finditer(_MARK.sub(" ", rest))
    ]
    return faults


def check_notebook(path: Path, ledger: dict[str, Claim]) -> list[Fault]:
    """Check an executed notebook against the whole contract.

    Parameters
    ----------
    path : Path
        An ``.ipynb`` file.
    ledger : dict of str to Claim
        From `pprml.claims.load_ledger`.

    Returns
    -------
    list of Fault
        A missing or misplaced section; a cell that was not run in order from a fresh kernel, ended in an error, wrote to stderr,
        saves a figure that it does not show, or is longer than `MAX_CELL_LINES`; a shell escape, an install or a URL in code; and
        every fault of the prose.
    """
    book = nbformat.read(path, as_version=4)
    faults = _check_sections(book, path.name)
    if not book.metadata.get("kernelspec", {}).get("name", "").startswith("pprml-"):
        faults.append(
            Fault(path.name, "names no kernel of the course (pprml-core, pprml-pytorch or pprml-mpc)")
        )
    count = 0
    for position, cell in enumerate(book.cells):
        where = f"{path.name}, cell {position}"
        if cell.cell_type == "markdown":
            faults += check_prose(cell.source, where, ledger)
        elif cell.cell_type == "code" and cell.source.strip():
            count += 1
            faults += _check_code(cell, where, count)
    return faults


def _check_sections(book: nbformat.NotebookNode, name: str) -> list[Fault]:
    texts = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    headings = [line[3:].strip() for text in texts for line in text.splitlines() if line.startswith("## ")]
    faults = []
    if not texts or not re.match(r"# \d\d .+\n+\s*[*_].+\?[*_]", texts[0]):
        faults.append(Fault(name, "must open with '# NN Title' and its question in italics"))
    place = -1
    for section in SECTIONS:
        found = next((i for i, heading in enumerate(headings) if heading.startswith(section)), None)
        if found is None:
            faults.append(Fault(name, f"has no section '## {section}'"))
        elif found < place:
            faults.append(Fault(name, f"section '## {section}' comes too early"))
        else:
            place = found
    return faults


def _check_code(cell: nbformat.NotebookNode, where: str, count: int) -> list[Fault]:
    problems = []
    lines = cell.source.splitlines()
    if len(lines) > MAX_CELL_LINES:
        problems.append(f"{len(lines)} lines of code; split it, {MAX_CELL_LINES} is the most")
    if any(re.match(r"\s*[!%]", line) for line in lines):
        problems.append("a shell escape or magic; write Python")
    if re.search(r"\bpip3?\b.*\binstall\b|\bconda\b.*\binstall\b", cell.source):
        problems.append("an install; the lock installs everything")
    if re.search(r"\b(?:https?|ftp)://", cell.source):
        problems.append("a URL; data comes from pprml.datasets")
    if "execution" in cell.metadata:
        problems.append("carries the clock times of another tool: run `make reproduce`")
    if cell.execution_count != count:
        problems.append("was not run once, in order, from a fresh kernel: run `make reproduce`")
    if "figures.save(" in cell.source and '"image/' not in json.dumps(cell.outputs):
        problems.append(
            "saves a figure and does not show it: end the cell with `figures.save(...)`, without a semicolon"
        )
    for output in cell.outputs:
        if output.output_type == "error":
            problems.append(f"ended in {output.ename}")
        if output.get("name") == "stderr":
            problems.append("wrote to stderr")
        if re.search(r" at 0x[0-9a-f]{6,}|\"text/plain\": \"\[?Text\(", json.dumps(output)):
            problems.append("shows an object, not a result: end the line with a semicolon")
    return [Fault(where, problem) for problem in problems]
