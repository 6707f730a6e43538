"""What a notebook and its prose must be: the checks that every text a reader sees has to pass."""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

from pprml import ROOT
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
#: A cell that a reader sees, and one that is folded.
MAX_CELL_LINES, MAX_FOLDED_LINES = 15, 40
#: check: holds measurements against the ledger. hide-input: only draws. varies: shows a clock, fresh entropy or what a processor's
#: rounding decides. shows:NAME: is the definition of NAME in the package.
TAGS = ("check", "hide-input", "varies")
FOLDED = ("check", "hide-input")
#: Units that stand between a number and its mark wherever the ledger has them.
UNITS = ("%", "×", "s", "ms", "minutes", "kB", "MB", "GB", "dB", "points", "bits", "stars")


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
    timed = [name for name in _MARK.findall(text) if name in ledger and ledger[name].kind == "time"]
    if timed and "machine of the record" not in text:
        faults.append(
            Fault(
                where,
                f"states the time {timed[0]} and does not say that it is one of the machine of the record",
            )
        )
    for number, unit, claim_id in _BOUND.findall(text):
        if claim_id not in ledger:
            faults.append(Fault(where, name_nearest("claim", claim_id, ledger)))
        elif "?" in (ledger[claim_id].states or ""):
            faults.append(
                Fault(where, f"{claim_id} is not measured yet: run `pprml reproduce` and `pprml accept`")
            )
        elif ledger[claim_id].states is None:
            faults.append(Fault(where, f"{number} is bound to {claim_id}, which states no number"))
        else:
            shown, half = parse_number(number + (" %" if "%" in unit else ""))
            stated, named = re.match(rf"\s*({NUMBER})\s*(\S*)", ledger[claim_id].states).groups()
            if abs(shown - ledger[claim_id].value) > half * (1 + 1e-9):
                faults.append(
                    Fault(where, f"{number}{unit} differs from {claim_id}: {ledger[claim_id].states}")
                )
            elif _count_digits(number) < min(2, _count_digits(stated)):
                faults.append(
                    Fault(where, f"{number}{unit} rounds {claim_id} away: {ledger[claim_id].states}")
                )
            elif named in UNITS and not unit.replace("\\", "").strip().startswith(named):
                faults.append(
                    Fault(
                        where, f"{number}{unit} has another unit than {claim_id}: {ledger[claim_id].states}"
                    )
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


def _count_digits(number: str) -> int:
    return len(re.sub(r"\D", "", number.partition("e")[0]).lstrip("0"))


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
    lines = cell.source.splitlines()
    tags = cell.metadata.get("tags", [])
    problems = _check_tags(cell, tags)
    most = MAX_FOLDED_LINES if set(tags) & set(FOLDED) else MAX_CELL_LINES
    if len(lines) > most:
        problems.append(f"{len(lines)} lines of code; split it, {most} is the most")
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


def _check_tags(cell: nbformat.NotebookNode, tags: list[str]) -> list[str]:
    problems = [
        f"unknown tag {tag!r}; known: {', '.join(TAGS)}, shows:NAME"
        for tag in tags
        if tag not in TAGS and not tag.startswith("shows:")
    ]
    folded = bool(set(tags) & set(FOLDED))
    if folded != cell.metadata.get("jupyter", {}).get("source_hidden", False):
        problems.append(
            "a cell is folded (jupyter: source_hidden) where it is tagged check or hide-input, and only there"
        )
    if "figures.save(" in cell.source and "hide-input" not in tags:
        problems.append("draws a figure: tag it hide-input, and compute in a cell of its own")
    if "claims.took(" in cell.source and "varies" not in tags:
        problems.append("shows a time: tag it varies")
    if "check" in tags:
        if cell.outputs:
            problems.append("a check cell shows nothing; what a reader is to see stands in a cell of its own")
        if not all(map(_is_check, ast.parse(cell.source).body)):
            problems.append("a check cell holds claims.check(...) and loops of it, and nothing else")
    elif "claims.check(" in cell.source:
        problems.append("claims.check stands in a cell of its own, tagged check")
    for tag in tags:
        if tag.startswith("shows:"):
            problems += _check_shown(cell.source, tag.removeprefix("shows:"))
    return problems


def _is_check(node: ast.stmt) -> bool:
    if isinstance(node, ast.For):
        return all(map(_is_check, node.body)) and not node.orelse
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "claims.check"
    )


def _check_shown(source: str, name: str) -> list[str]:
    """Compare a cell with the definition in the package whose name it carries: docstrings, comments and types may differ."""
    module, _, function = name.rpartition(".")
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if not path.exists():
        return [f"shows:{name}, but there is no module {module}"]
    package, cell = _find_function(path.read_text("utf-8"), function), _find_function(source, function)
    if package is None or cell is None:
        return [f"shows:{name}, but {'the cell' if cell is None else module} does not define {function}"]
    return [f"is not {name} as the package defines it: change one of them"] * (package != cell)


def _find_function(source: str, name: str) -> str | None:
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            node.body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            for part in ast.walk(node):
                if isinstance(part, ast.arg):
                    part.annotation = None
                if isinstance(part, ast.FunctionDef):
                    part.returns = None
            return ast.dump(node)
    return None
