"""Every fault that the contract names is caught, planted one at a time in a notebook that has none."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from pprml.claims import Claim
from pprml.course.contract import SECTIONS, check_notebook, check_prose

LEDGER = {
    "share": Claim("share", "01", "s", "measured", states="64.2 %", window="exact", source="s"),
    "eps": Claim("eps", "01", "s", "measured", states="2.99", window="exact", source="s"),
    "order": Claim("order", "01", "s", "measured", window={"greater_than": "share"}, source="s"),
    "new": Claim("new", "01", "s", "measured", states="?.? %", source="s"),
    "slow": Claim("slow", "01", "s", "time", states="30 s", window="below", source="s"),
}


def problems(text):
    return [fault.problem for fault in check_prose(text, "here", LEDGER)]


@pytest.mark.parametrize(
    "text",
    [
        "Of them 64.2 %<!-- claim: share --> match.",
        "About 64 %<!-- claim: share --> match.",
        "In 2010, 64.2 %<!-- claim: share --> were unique.",
        "It costs ε = 2.99<!-- claim: eps --> a record.",
        "The first is larger<!-- claim: order -->.",
        "There are 5,000 people and 100 clients; version 0.87.",
        "On the machine of the record it took under 30 s<!-- claim: slow -->.".replace("On", "on"),
    ],
)
def test_bound_numbers_pass(text):
    assert problems(text) == []


@pytest.mark.parametrize(
    "text, fault",
    [
        ("Of them 65.2 %<!-- claim: share --> match.", "differs from share"),
        ("Of them 64.3 %<!-- claim: share --> match.", "differs from share"),
        ("Of them 64.2 %<!-- claim: shore --> match.", "did you mean 'share'"),
        ("Of them 64.2 % match.", "carries no claim id"),
        ("Of them 64.2 percent match.", "carries no claim id"),
        ("trained with epsilon = 3", "carries no claim id"),
        ("trained with $\\varepsilon = 3$", "carries no claim id"),
        ("trained at ε of about 3", "carries no claim id"),
        ("with δ = 1e-5", "carries no claim id"),
        ("it is 20 × slower", "carries no claim id"),
        ("an AUC of 0.74", "carries no claim id"),
        ("an accuracy of 0.9", "carries no claim id"),
        ("| 91.0 % | 64.2 %<!-- claim: share --> |", "carries no claim id"),
        ("It matches<!-- claim: share -->.", "no number stands before it"),
        ("It is 3<!-- claim: order -->.", "states no number"),
        ("It took under 30 s<!-- claim: slow -->.", "machine of the record"),
        ("On the machine of the record: 30 ms<!-- claim: slow -->.", "another unit"),
        ("On the machine of the record: 30<!-- claim: slow -->.", "another unit"),
        ("Of them 64<!-- claim: share --> match.", "differs"),
        ("It costs ε = 3<!-- claim: eps --> a record.", "rounds eps away"),
        ("It is 12.5 %<!-- claim: new -->.", "not measured yet"),
    ],
)
def test_planted_fault_in_prose_is_caught(text, fault):
    assert any(fault in problem for problem in problems(text)), problems(text)


def good_book():
    cells = [new_markdown_cell("# 01 A title\n\n*What is left?*")]
    for section in SECTIONS:
        cells.append(new_markdown_cell(f"## {section}: more words\n\nText."))
    cells.append(new_code_cell("print(1 + 1)", execution_count=1, outputs=[new_output("stream", text="2\n")]))
    book = new_notebook(cells=cells)
    book.metadata.kernelspec = {"name": "pprml-core", "display_name": "pprml core", "language": "python"}
    return book


def faults_of(book, tmp_path):
    path = tmp_path / "01_x.ipynb"
    nbformat.write(book, path)
    return [fault.problem for fault in check_notebook(path, LEDGER)]


def test_a_good_notebook_has_no_faults(tmp_path):
    assert faults_of(good_book(), tmp_path) == []


def _drop_section(book):
    del book.cells[4]


def _swap_sections(book):
    book.cells[4], book.cells[5] = book.cells[5], book.cells[4]


def _no_question(book):
    book.cells[0].source = "# 01 A title"


def _unrun(book):
    book.cells[-1].execution_count = None


def _run_twice(book):
    book.cells[-1].execution_count = 7


def _clock_times(book):
    book.cells[-1].metadata["execution"] = {"iopub.status.busy": "2020-01-01T00:00:00Z"}


def _error(book):
    book.cells[-1].outputs = [new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])]


def _drawing(book):
    data = {"text/plain": "[Text(0, 0.5, 'Share')]"}
    book.cells[-1].outputs = [new_output("execute_result", data=data, execution_count=1)]


def _address(book):
    book.cells[-1].outputs = [new_output("stream", name="stdout", text="<Line2D at 0x7f12ab34cd56>\n")]


def _stderr(book):
    book.cells[-1].outputs = [new_output("stream", name="stderr", text="warning\n")]


def _other_kernel(book):
    book.metadata.kernelspec.name = "python3"


def _code(source, *tags):
    def plant(book):
        book.cells[-1].source = source
        book.cells[-1].metadata = {"tags": list(tags)} if tags else {}
        if {"check", "hide-input"} & set(tags):
            book.cells[-1].metadata["jupyter"] = {"source_hidden": True}

    return plant


def _folded_without_a_tag(book):
    book.cells[-1].metadata["jupyter"] = {"source_hidden": True}


def _tag_without_a_fold(book):
    book.cells[-1].metadata["tags"] = ["hide-input"]


SHOWN = "def split_phones(count, phones):\n    return count // phones"


@pytest.mark.parametrize(
    "plant, fault",
    [
        (_drop_section, "has no section '## The attack'"),
        (_swap_sections, "comes too early"),
        (_no_question, "question in italics"),
        (_unrun, "was not run once"),
        (_run_twice, "was not run once"),
        (_error, "ended in ZeroDivisionError"),
        (_clock_times, "clock times"),
        (_stderr, "wrote to stderr"),
        (_address, "an object, not a result"),
        (_drawing, "an object, not a result"),
        (_other_kernel, "kernel of the course"),
        (_code("!ls"), "shell escape"),
        (_code("x = 1\n%time f()"), "shell escape"),
        (_code("import pip; pip.main(['install', 'x'])"), "an install"),
        (_code("url = 'https://example.org/x.csv'"), "a URL"),
        (_code("\n".join(["x = 1"] * 16)), "16 lines"),
        (_code("figures.save(fig, 'x', data=data, alt=alt);"), "does not show it"),
        (_code("figures.save(fig, 'x', data=data, alt=alt)"), "tag it hide-input"),
        (_code("x = 1", "timing"), "unknown tag 'timing'"),
        (_folded_without_a_tag, "is folded"),
        (_tag_without_a_fold, "is folded"),
        (_code("claims.check('share', 1)"), "a cell of its own, tagged check"),
        (_code("claims.check('share', 1)", "check"), "a check cell shows nothing"),
        (_code("x = attack()\nclaims.check('share', x)", "check"), "and nothing else"),
        (_code("claims.took(slow=1)"), "tag it varies"),
        (_code("\n".join(["x = 1"] * 41), "hide-input"), "41 lines"),
        (_code(SHOWN, "shows:pprml.nowhere.split_phones"), "there is no module pprml.nowhere"),
        (_code(SHOWN, "shows:pprml.partition.split_phones"), "does not define split_phones"),
        (
            _code("def dump_json(value):\n    return value", "shows:pprml._files.dump_json"),
            "as the package defines it",
        ),
    ],
)
def test_planted_fault_in_a_notebook_is_caught(tmp_path, plant, fault):
    book = good_book()
    plant(book)
    found = faults_of(book, tmp_path)
    assert any(fault in problem for problem in found), found


def test_a_cell_that_shows_a_definition_may_leave_out_docstring_comments_and_types(tmp_path):
    source = """def dump_json(value):  # as it is written
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\\n"
"""
    book = good_book()
    _code(source, "shows:pprml._files.dump_json")(book)
    assert faults_of(book, tmp_path) == []
