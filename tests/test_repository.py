"""The checkout keeps its own contracts: ledger, prose, notebooks, figures, README."""

import json
import subprocess
import sys

import pytest

from pprml import ROOT, claims, figures, report
from pprml.contract import check_notebook, check_prose

LEDGER = claims.load_ledger()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CLOSED_FORMS = [claim.id for claim in LEDGER.values() if isinstance(claim.recompute, dict)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_contract(path):
    assert [str(fault) for fault in check_notebook(path, LEDGER)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_its_module_tests_and_ledger(path):
    modules = {
        "01": "deidentification",
        "02": "reidentification",
        "03": "mechanisms",
        "04": "dp_sgd",
        "05": "auditing",
        "06": "federated",
        "07": "federated_privacy",
        "08": "federated_text_and_ratings",
        "09": "flower_app",
        "10": "encrypted_regression",
        "11": "encrypted_inference",
        "12": "multiparty",
    }
    module = modules[path.stem[:2]]
    assert (ROOT / "pprml" / f"{module}.py").exists() or (ROOT / "pprml" / module / "__init__.py").exists()
    # A track's tests live in a folder of their own.
    tests = [ROOT / "tests" / track / f"test_{module}.py" for track in ("", "mpc", "pytorch")]
    assert any(file.exists() for file in tests), f"no test_{module}.py"
    assert (ROOT / "claims" / f"{path.stem}.yml").exists()


def test_readme_prose_matches_the_ledger():
    assert [str(fault) for fault in check_prose(report.README.read_text("utf-8"), "README.md", LEDGER)] == []


def test_readme_tables_are_up_to_date():
    text = report.README.read_text("utf-8")
    assert report.render(text) == text, "run `make reproduce`"


@pytest.mark.parametrize("claim_id", CLOSED_FORMS)
def test_closed_form_claim_recomputes(claim_id):
    value = claims.recompute(LEDGER[claim_id])
    assert LEDGER[claim_id].accepts(value, claims.load_measured(ROOT / "claims" / "measured")), value


def test_every_measured_claim_was_measured_and_holds():
    text, failures = report.describe_ledger(LEDGER, claims.load_measured(ROOT / "claims" / "measured"))
    assert failures == 0, text


def test_a_claim_out_of_its_window_fails_the_report():
    measured = claims.load_measured(ROOT / "claims" / "measured")
    victim = next(c for c in LEDGER.values() if c.window == "exact" and c.recompute == "notebook")
    text, failures = report.describe_ledger(LEDGER, {**measured, victim.id: victim.value * 1.2 + 1})
    assert failures >= 1 and "FAILS" in text


def test_every_article_sentence_is_in_the_ledger():
    numbers = [claim.number for claim in LEDGER.values() if claim.kind == "article"]
    assert numbers == list(range(1, 30))


def test_every_figure_has_its_numbers_and_is_drawn_by_a_notebook():
    drawn = {path.stem for path in (ROOT / "figures").glob("*.svg")}
    assert drawn == {path.stem for path in (ROOT / "figures").glob("*.json")}
    source = "".join(path.read_text("utf-8") for path in NOTEBOOKS)
    assert all(f'\\"{name}\\"' in source for name in drawn), drawn
    for name in drawn:
        record = json.loads((ROOT / "figures" / f"{name}.json").read_text("utf-8"))
        assert figures.compare(record, record) == [] and record["alt"]


def test_an_altered_series_in_a_committed_figure_is_caught(tmp_path):
    path = next((ROOT / "figures").glob("*.json"))
    record = json.loads(path.read_text("utf-8"))
    name, axes = next(iter(record["series"].items()))
    axis = next(key for key, values in axes.items() if not isinstance(values[0], str))
    axes[axis][0] += 10 * (1 + record["tolerance"][name]) * (abs(axes[axis][0]) + 1)
    reference = json.loads(path.read_text("utf-8"))
    (tmp_path / path.name).write_text(json.dumps(record))
    assert figures.check_folder(tmp_path, {path.stem: reference})


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff(arguments):
    done = subprocess.run(
        [f"{sys.prefix}/bin/ruff", *arguments, "--quiet"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
