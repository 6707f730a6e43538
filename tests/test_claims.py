"""The ledger accepts what it should and refuses what it should."""

import json
import math

import pytest

from pprml import claims
from pprml.claims import Claim, ClaimError, LedgerError

GOOD = """
share:
  sentence: "Matched: {states}"
  kind: measured
  states: "64.2 %"
  window: exact
  recompute: notebook
  baseline: 0.0002
  source: here
"""


def write_ledger(folder, text, name="01_x.yml"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


def load(tmp_path, text):
    return claims.load_ledger(write_ledger(tmp_path / "claims", text))


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Use a ledger and a place for measurements of its own."""

    def use(text):
        ledger = load(tmp_path, text)
        monkeypatch.setattr(claims, "_ledger", lambda: ledger)
        return ledger

    monkeypatch.setenv("PPRML_OUTPUT", str(tmp_path / "out"))
    return use


def measure(**fields):
    base = dict(
        id="x",
        chapter="c",
        sentence="s",
        kind="measured",
        recompute="notebook",
        source="s",
        baseline="none: test",
    )
    return Claim(**{**base, **fields})


@pytest.mark.parametrize(
    "twin", [GOOD + GOOD.replace("64.2", "64.3"), GOOD + "  source: there\n"], ids=["id", "field"]
)
def test_the_same_id_or_field_twice_in_one_file_is_refused(tmp_path, twin):
    with pytest.raises(LedgerError, match="used twice"):
        load(tmp_path, twin)


def test_states_carries_digits_and_unit():
    claim = measure(states="64.2 %", window="exact")
    assert claim.value == pytest.approx(0.642)
    assert claim.bounds() == pytest.approx((0.6415, 0.6425))
    assert claim.show(0.64171) == "64.2 %"
    assert measure(states="1,261", window="exact").show(1261) == "1,261"
    assert measure(states="1e-6", window="below").show(2.2e-8) == "2e-08"


@pytest.mark.parametrize(
    "value, inside", [(0.64249, True), (0.6426, False), (0.6414, False), (math.nan, False)]
)
def test_exact_window_is_the_digits_shown(value, inside):
    assert measure(states="64.2 %", window="exact").accepts(value) is inside


def test_window_from_runs_is_three_deviations():
    claim = measure(states="0.80", window={"runs": [0.79, 0.80, 0.81]})
    assert claim.bounds() == pytest.approx((0.77, 0.83))
    assert claim.accepts(0.771) and not claim.accepts(0.769)


@pytest.mark.parametrize("window, good, bad", [("above", 21.0, 19.0), ("below", 19.0, 21.0)])
def test_inequality(window, good, bad):
    claim = measure(states="20 ×", window=window)
    assert claim.accepts(good) and not claim.accepts(bad)


def test_ordering_is_strict_and_needs_the_other_value():
    claim = measure(window={"greater_than": "y"})
    assert claim.accepts(0.9, {"y": 0.8}) and not claim.accepts(0.8, {"y": 0.8})
    with pytest.raises(ClaimError, match="has not been measured"):
        claim.accepts(0.9, {})


def test_check_passes_records_and_prints(scratch, capsys):
    scratch(GOOD)
    claims.check("share", 0.64171)
    assert "measured 64.2 %" in capsys.readouterr().out
    assert claims.load_measured() == {"share": 0.64171}


def test_an_ordering_is_shown_as_the_number_that_it_is_compared_with(scratch, capsys):
    order = (
        GOOD.replace("share:", "more:").replace('"64.2 %"', "null").replace("exact", "{greater_than: share}")
    )
    scratch(GOOD + order)
    claims.check("share", 0.64171)
    claims.check("more", [0.70, 0.72])
    assert "more: measured 71.0 % ± 1.4 % over 2 seeds, window greater than share" in capsys.readouterr().out


def test_check_raises_outside_the_window_and_records_nothing(scratch):
    scratch(GOOD)
    with pytest.raises(ClaimError, match="outside its window"):
        claims.check("share", 0.66)
    assert claims.load_measured() == {}


def test_check_takes_one_value_a_seed(scratch, capsys):
    scratch(GOOD.replace("window: exact", "window: {runs: [0.63, 0.642, 0.654]}"))
    claims.check("share", [0.64, 0.641, 0.645])
    assert "over 3 seeds" in capsys.readouterr().out
    assert claims.load_measured()["share"] == pytest.approx(0.642)


def test_a_timing_is_recorded_once_and_not_printed(scratch, tmp_path, capsys):
    scratch(GOOD.replace("64.2 %", "20 ×").replace("exact", "above") + "  varies: true\n")
    claims.check("share", 31.0)
    claims.check("share", 45.0)
    assert claims.load_measured() == {"share": 31.0}
    assert "31" not in capsys.readouterr().out


def test_unknown_id_names_the_nearest(scratch):
    scratch(GOOD)
    with pytest.raises(ValueError, match="did you mean 'share'"):
        claims.check("shares", 0.6)


@pytest.mark.parametrize(
    "change, fault",
    [
        (("baseline: 0.0002", "baseline: 0.642"), "also accept the null"),
        (("  baseline: 0.0002\n", ""), "null baseline"),
        (("exact", "roughly"), "window is missing or unknown"),
        (("exact", "{runs: [0.6, 0.7]}"), "three seeds"),
        (("exact", "{runs: [0.6, 0.7, 0.8]}"), "its runs average"),
        (("exact", "{greater_than: nobody}"), "not in the ledger"),
        (("kind: measured", "kind: guessed"), "kind must be"),
        (("  source: here\n", ""), "source"),
        (("source: here", "source: here\n  colour: red"), "unknown field"),
        (('states: "64.2 %"', "states: 64.2"), "in quotes"),
        (("recompute: notebook", "recompute: somehow"), "recompute"),
    ],
)
def test_a_bad_entry_is_refused(tmp_path, change, fault):
    with pytest.raises(LedgerError, match=fault):
        load(tmp_path, GOOD.replace(*change))


def test_a_wide_window_from_noisy_runs_is_refused_when_it_reaches_the_null(tmp_path):
    noisy = GOOD.replace("exact", "{runs: [0.3, 0.642, 0.984]}")
    with pytest.raises(LedgerError, match="also accept the null"):
        load(tmp_path, noisy.replace("64.2 %", "64.2 %").replace("baseline: 0.0002", "baseline: 0.1"))


def test_an_id_used_twice_is_refused(tmp_path):
    write_ledger(tmp_path / "claims", GOOD, "02_y.yml")
    with pytest.raises(LedgerError, match="used twice"):
        load(tmp_path, GOOD)


def test_an_article_sentence_needs_a_verdict(tmp_path):
    with pytest.raises(LedgerError, match="verdict"):
        load(tmp_path, "a:\n  sentence: s\n  kind: article\n  verdict: maybe\n")


def test_half_written_measurements_never_replace_whole_ones(scratch, tmp_path):
    """A disk that refuses to take more bytes leaves the old record as it was."""
    import resource
    import signal

    scratch(GOOD)
    claims.check("share", 0.6417)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limit[1]))
    try:
        with pytest.raises(OSError):
            claims.check("share", 0.6421)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    files = list(claims.measured_folder().iterdir())
    assert [file.name for file in files] == ["01_x.json"]
    assert json.loads(files[0].read_text()) == {"share": 0.6417}
