"""The checkout keeps its own contracts: ledger, prose, notebooks, figures, records, pages, lock."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from benchmarks.run import RESULTS
from pprml import ROOT, claims, figures
from pprml.course import cli, compare, keys, report, upkeep
from pprml.course.contract import check_notebook, check_prose

LEDGER = claims.load_ledger()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CLOSED_FORMS = [claim.id for claim in LEDGER.values() if isinstance(claim.recompute, dict)]
MEASURED = claims.load_measured()


def of_chapter(name):
    return [claim for claim in LEDGER.values() if claim.chapter == name]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_contract(path):
    assert [str(fault) for fault in check_notebook(path, LEDGER)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_shows_is_what_a_run_made(path):
    book = nbformat.read(path, as_version=4)
    assert compare.check_signature(book, of_chapter(path.stem), ROOT, path.stem) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_claim_was_measured_and_holds(path):
    moves = [str(move) for move in compare.list_moves(of_chapter(path.stem), MEASURED)]
    assert moves == [] == compare.list_strangers(path.stem, ROOT, LEDGER)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_ledger_states_what_accept_writes(path):
    """Where a number is exact or a mean over seeds, its text is that of the measured value and of no other."""
    typed = []
    for claim in of_chapter(path.stem):
        value = (
            sum(claim.spread) / len(claim.spread)
            if claim.window == "spread" and claim.spread
            else MEASURED.get(claim.id)
        )
        if claim.kind == "measured" and claim.window in ("exact", "spread") and value is not None:
            typed += [f"{claim.id}: {claim.states}, measured {value}"] * (claim.states != claim.show(value))
    assert typed == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_prose_shows_the_digits_that_accept_writes(path):
    stated = {
        claim.id: claim for claim in LEDGER.values() if claim.states and claim.kind in ("measured", "time")
    }
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            quoted = {
                name: stated[name] for name in re.findall(r"claim:\s*(\w+)", cell.source) if name in stated
            }
            assert upkeep.write_prose(cell.source, quoted) == cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_its_module_and_tests(path):
    """The modules that it calls have tests: one of its own track, where it has one."""
    modules = report._list_modules(nbformat.read(path, as_version=4))
    tests = {file.stem.removeprefix("test_") for file in (ROOT / "tests").rglob("test_*.py")}
    assert set(modules) & tests, modules


def test_readme_and_pages_match_the_ledger_and_are_up_to_date():
    for page, text in report.render_pages().items():
        assert page.read_text("utf-8") == text, f"{page.name}: run `pprml pages`"
    readme = ROOT / "README.md"
    assert [str(fault) for fault in check_prose(readme.read_text("utf-8"), "README.md", LEDGER)] == []
    assert len(readme.read_text("utf-8").splitlines()) <= 120


def test_every_sentence_of_a_claim_is_on_a_page():
    page = (ROOT / "book" / "ledger.md").read_text("utf-8")
    assert [
        claim.id for claim in LEDGER.values() if claim.kind != "article" and f"| `{claim.id}` |" not in page
    ] == []


@pytest.mark.parametrize("claim_id", CLOSED_FORMS)
def test_closed_form_claim_recomputes(claim_id):
    assert LEDGER[claim_id].accepts(claims.recompute(LEDGER[claim_id]), MEASURED)


def test_a_number_of_the_ledger_that_nobody_measured_is_caught():
    victim = next(
        c for c in LEDGER.values() if c.kind == "measured" and c.window == "exact" and c.id in MEASURED
    )
    (move,) = compare.list_moves([victim], {**MEASURED, victim.id: victim.value * 1.2 + 1})
    assert move.claim is victim


def test_every_article_sentence_is_in_the_ledger():
    numbers = [claim.number for claim in LEDGER.values() if claim.kind == "article"]
    assert numbers == list(range(1, 30))


def test_every_figure_has_its_numbers_and_is_signed_by_a_run():
    drawn = {path.stem for path in (ROOT / "figures").glob("*.svg")}
    assert drawn == {path.stem for path in (ROOT / "figures").glob("*.json")}
    signed = set()
    for path in NOTEBOOKS:
        signed |= set(nbformat.read(path, as_version=4).metadata.get("pprml", {}).get("figures", {}))
    assert drawn == signed
    for name in drawn:
        record = json.loads((ROOT / "figures" / f"{name}.json").read_text("utf-8"))
        assert figures.compare(record, record) == [] and record["alt"]


def test_an_altered_series_in_a_figure_is_caught(tmp_path):
    paths = sorted((ROOT / "figures").glob("*.json"))
    path = next(path for path in paths if not json.loads(path.read_text("utf-8"))["varies"])
    record = json.loads(path.read_text("utf-8"))
    name, axes = next(iter(record["series"].items()))
    axis = next(key for key, values in axes.items() if not isinstance(values[0], str))
    axes[axis][0] += 10 * (1 + record["tolerance"][name]) * (abs(axes[axis][0]) + 1)
    (tmp_path / path.name).write_text(json.dumps(record))
    assert compare.compare_figures([path.stem], tmp_path, ROOT / "figures")


def test_benchmark_records_are_those_of_a_run_and_name_their_machine():
    signed = json.loads((RESULTS / "signatures.json").read_text("utf-8"))
    files = {
        path.stem: json.loads(path.read_text("utf-8"))
        for path in RESULTS.glob("*.json")
        if path.stem != "signatures"
    }
    assert {name: keys.digest(records) for name, records in files.items()} == signed
    for name, records in files.items():
        if name != "utility":  # accuracies, which no machine changes
            assert all("cores" in record["machine"] for record in records), name


def test_times_say_what_the_machine_of_the_record_took():
    """A time is compared with its record, never with a run: both are committed."""
    recorded = claims.load_times()
    for claim in LEDGER.values():
        if claim.kind == "time":
            assert claim.accepts(recorded[claim.id]), (claim.id, claim.states, recorded[claim.id])


@pytest.mark.parametrize(
    "platform", ["aarch64-apple-darwin", "aarch64-unknown-linux-gnu", "x86_64-manylinux_2_31"]
)
def test_the_lock_holds_the_core_track_for_every_machine(platform, tmp_path):
    """A dry run: uv finds a wheel or a source for every package. It asks no registry that the lock does not name."""
    uv = next((str(path) for path in [ROOT / ".uv" / "bin" / "uv"] if path.exists()), shutil.which("uv"))
    arguments = [
        "--locked",
        "--dry-run",
        "--extra",
        "core",
        "--python",
        sys.executable,
        "--python-platform",
        platform,
    ]
    done = subprocess.run(
        [uv, "sync", *arguments],
        cwd=ROOT,
        env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(tmp_path / "env")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert ("tensorflow-federated" in done.stderr) is ("x86_64" in platform)


def test_a_chapter_whose_package_a_machine_cannot_have_says_so(monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    reasons = {path.stem[:2]: cli.lacks_wheel(nbformat.read(path, as_version=4)) for path in NOTEBOOKS}
    assert {name for name, reason in reasons.items() if reason} == {"06", "07", "08"}


def test_line_ends_are_those_that_sh_needs():
    done = subprocess.run(["git", "ls-files", "--eol"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 or "crlf" not in done.stdout


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff(arguments):
    done = subprocess.run(
        [f"{sys.prefix}/bin/ruff", *arguments, "--quiet"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
