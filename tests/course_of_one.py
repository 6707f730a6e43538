"""A small course in a folder of its own, for the tests of the machinery: one chapter, its ledger, a git history."""

import functools
import json
import subprocess

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from pprml import claims
from pprml.course import cli, keys, report, upkeep

LEDGER = """
share:
  sentence: "Matched: {states}."
  states: "64.2 %"
  baseline: 0.0002
  source: here
spread:
  sentence: "On average {states}."
  states: "?.??"
  window: spread
  baseline: 0
  source: here
"""
PROSE = "Of them 64.2 %<!-- claim: share --> match, about 64 %<!-- claim: share -->; on average ?<!-- claim: spread -->."
CODE = """from pprml import claims
share = {share}
claims.check("share", share)
claims.check("spread", [0.5 + seed / 100 for seed in claims.SEEDS])
print(f"{{share:.1%}} match")"""


def write_book(path, *sources, kernel="pprml-core", prose=PROSE):
    cells = [new_markdown_cell("# 01 A title\n\n*What is left?*"), new_markdown_cell(prose)]
    book = new_notebook(cells=[*cells, *(new_code_cell(source) for source in sources)])
    book.metadata.kernelspec = {"name": kernel, "display_name": kernel, "language": "python"}
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"
    path.write_text(nbformat.writes(book) + "\n")
    return path


def git(root, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def _find_here(find, book, claims, root=None):
    return find(book, claims)


@pytest.fixture
def course(tmp_path, monkeypatch):
    """The root of a course with an empty list of chapters; the commands write to its own build folder."""
    root = tmp_path / "the course é"
    for folder in ("notebooks", "claims", "figures", "claims/measured", "pprml", "book"):
        (root / folder).mkdir(parents=True)
    for module in (cli, report):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setenv("PPRML_OUTPUT", str(root / "build"))
    for name in ("find_key", "find_spread_key"):
        # The packages are those of the real checkout.
        monkeypatch.setattr(keys, name, functools.partial(_find_here, getattr(keys, name)))
    monkeypatch.setattr(upkeep, "load_ledger", claims.load_ledger)
    (root / "README.md").write_text("<!-- begin generated: chapters -->\n<!-- end generated: chapters -->\n")
    (root / ".gitignore").write_text("build/\n")
    return root


@pytest.fixture
def chapter(course, monkeypatch):
    """The same with one chapter, whose kernel reads this course's ledger."""
    (course / "claims" / "01_a.yml").write_text(LEDGER)
    read = "import pprml.claims; from pathlib import Path\n"
    read += f"pprml.claims._ledger = lambda: pprml.claims.load_ledger(Path({str(course / 'claims')!r}))"
    write_book(course / "notebooks" / "01_a.ipynb", read, CODE.format(share=0.6423))
    git(course, "init", "-q")
    git(course, "add", ".")
    git(course, "commit", "-qm", "Begin")
    return course


def change_code(root, old, new):
    path = root / "notebooks" / "01_a.ipynb"
    path.write_text(path.read_text().replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1]))
    git(root, "add", ".")
