"""`accept` writes what was measured and nothing else; what no run made is refused."""

import json

import nbformat
import pytest

from pprml.claims import load_ledger
from pprml.course import cli, compare
from tests.course_of_one import change_code, chapter, course, git  # noqa: F401 fixtures

NAME = "01_a"


def read_prose(root):
    return nbformat.read(root / "notebooks" / f"{NAME}.ipynb", as_version=4).cells[1].source


def faults(root):
    book = nbformat.read(root / "notebooks" / f"{NAME}.ipynb", as_version=4)
    return compare.check_signature(book, load_ledger(root / "claims").values(), root, NAME)


def run_and_accept(root):
    assert cli.main(["seeds", NAME, "--seeds", "5"]) == 0
    assert cli.main(["reproduce", NAME]) in (0, 1)  # 1: no number is stated yet, or another one
    assert cli.main(["accept", NAME]) == 0


@pytest.fixture
def accepted(chapter):  # noqa: F811
    run_and_accept(chapter)
    git(chapter, "add", ".")
    git(chapter, "commit", "-qm", "Accept")
    return chapter


def test_numbers_go_into_ledger_prose_outputs_and_pages_and_the_run_is_signed(accepted):
    ledger = load_ledger(accepted / "claims")
    assert (ledger["share"].states, ledger["spread"].states) == ("64.2 %", "0.52")
    assert ledger["spread"].spread == (0.5, 0.51, 0.52, 0.53, 0.54)
    assert "on average 0.52<!-- claim: spread -->" in read_prose(accepted)
    assert "On average 0.52." in (accepted / "book" / "ledger.md").read_text()
    assert faults(accepted) == []
    # A second time there is nothing to write.
    assert cli.main(["accept", NAME]) == 0 and git(accepted, "status", "--porcelain") == ""


def test_a_number_that_moved_is_written_with_the_digits_of_each_place(accepted):
    change_code(accepted, "share = 0.6423", "share = 0.71")
    run_and_accept(accepted)
    assert 'states: "71.0 %"' in (accepted / "claims" / f"{NAME}.yml").read_text()
    assert "71.0 %<!-- claim: share --> match, about 71 %<!-- claim: share -->" in read_prose(accepted)


def test_an_edit_after_the_run_is_refused(chapter, capsys):  # noqa: F811
    assert cli.main(["accept", NAME]) == 1 and "has not been run here" in capsys.readouterr().err
    cli.main(["seeds", NAME])
    cli.main(["reproduce", NAME])
    change_code(chapter, "share = 0.6423", "share = 0.7")
    assert cli.main(["accept", NAME]) == 1 and "has changed since it was run" in capsys.readouterr().err


def test_a_claim_without_its_seeds_is_refused(chapter, capsys):  # noqa: F811
    cli.main(["reproduce", NAME])
    assert cli.main(["accept", NAME]) == 1 and "run `pprml seeds 01_a`" in capsys.readouterr().err


def test_a_dirty_tree_is_refused_and_nothing_is_written(accepted, capsys):
    change_code(accepted, "share = 0.6423", "share = 0.71")
    cli.main(["seeds", NAME])
    cli.main(["reproduce", NAME])
    ledger = accepted / "claims" / f"{NAME}.yml"
    ledger.write_text(ledger.read_text() + "# a change of one's own\n")
    before = {
        path: path.read_bytes() for path in accepted.rglob("*") if path.is_file() and ".git/" not in str(path)
    }
    capsys.readouterr()
    assert cli.main(["accept", NAME]) == 1 and "changed and not staged" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_claim_that_no_longer_beats_its_baseline_is_a_finding(accepted, capsys):
    change_code(accepted, "share = 0.6423", "share = 0.0002")
    cli.main(["seeds", NAME])
    cli.main(["reproduce", NAME])
    assert cli.main(["accept", NAME]) == 1
    said = capsys.readouterr().err
    assert "a finding, not a number to update" in said and "does not beat its null baseline 0.0002" in said
    assert 'states: "64.2 %"' in (accepted / "claims" / f"{NAME}.yml").read_text()


def _edit_output(root):
    change_code(root, "64.2% match\n", "65.2% match\n")


def _edit_cell(root):
    change_code(root, "share = 0.6423", "share = 0.7")


def _edit_measured(root):
    path = root / "claims" / "measured" / f"{NAME}.json"
    path.write_text(path.read_text().replace("0.6423", "0.6523"))


def _edit_spread(root):
    path = root / "claims" / "spreads" / f"{NAME}.json"
    path.write_text(path.read_text().replace("0.54", "0.55"))


def _cut_spread(root):
    path = root / "claims" / "spreads" / f"{NAME}.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({"values": record["values"]}))


def _drop_spread(root):
    (root / "claims" / "spreads" / f"{NAME}.json").unlink()


def _old_spread(root):
    from pprml.course import keys

    path = root / "claims" / "spreads" / f"{NAME}.json"
    record = json.loads(path.read_text())
    content = {k: record[k] for k in ("seeds", "values")} | {"key": "0" * 32}
    path.write_text(json.dumps(content | {"digest": keys.digest(content)}))


def _unsign(root):
    path = root / "notebooks" / f"{NAME}.ipynb"
    book = json.loads(path.read_text())
    del book["metadata"]["pprml"]
    path.write_text(json.dumps(book))


@pytest.mark.parametrize(
    "lie, said",
    [
        (_edit_output, "its outputs are not those of its run"),
        (_edit_cell, "changed after its run"),
        (_edit_measured, "its measurements are not those of its run"),
        (_edit_spread, "was changed by hand"),
        (_cut_spread, "truncated"),
        (_drop_spread, "no spread is recorded for spread"),
        (_old_spread, "recorded with other code"),
        (_unsign, "was not run by the course's runner"),
    ],
    ids=lambda part: getattr(part, "__name__", "")[1:],
)
def test_what_no_run_made_is_refused(accepted, lie, said):
    lie(accepted)
    assert any(said in fault for fault in faults(accepted)), faults(accepted)


def test_seeds_of_a_claim_that_is_not_measured_once_a_seed_are_refused(chapter, capsys):  # noqa: F811
    change_code(chapter, "[0.5 + seed / 100 for seed in claims.SEEDS]", "0.5")
    assert cli.main(["seeds", NAME]) == 3
    assert "spread was measured not once a seed" in capsys.readouterr().err
    assert not (chapter / "build" / "claims" / "spreads").exists()
