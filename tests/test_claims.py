"""The ledger accepts what it should and refuses what it should; `check` knows who holds the notebook."""

import json
import math

import pytest

from pprml import claims
from pprml.claims import Claim, LedgerError

GOOD = """
share:
  sentence: "Matched: {states}."
  states: "64.2 %"
  baseline: 0.0002
  source: here
"""


def write_ledger(folder, text, name="01_x.yml", spread=None):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    if spread:
        (folder / "spreads").mkdir(exist_ok=True)
        (folder / "spreads" / "01_x.json").write_text(json.dumps({"values": spread}))
    return folder


def load(tmp_path, text, spread=None):
    return claims.load_ledger(write_ledger(tmp_path / "claims", text, spread=spread))


@pytest.fixture
def by_hand(tmp_path, monkeypatch):
    """Use a ledger of one's own, as a person who runs a notebook by hand."""
    monkeypatch.delenv("PPRML_RECORD", raising=False)

    def use(text, spread=None):
        ledger = load(tmp_path, text, spread)
        monkeypatch.setattr(claims, "_ledger", lambda: ledger)
        return ledger

    return use


@pytest.fixture
def by_runner(by_hand, tmp_path, monkeypatch):
    """The same under the course's runner."""
    monkeypatch.setenv("PPRML_RECORD", str(tmp_path / "out"))
    monkeypatch.setenv("PPRML_CHAPTER", "01_x")
    return by_hand


def measured(tmp_path, kind="measured"):
    path = tmp_path / "out" / "claims" / kind / "01_x.json"
    return json.loads(path.read_text()) if path.exists() else {}


def measure(**fields):
    return Claim(**{**dict(id="x", chapter="c", sentence="s", source="s", baseline="none: test"), **fields})


@pytest.mark.parametrize(
    "twin", [GOOD + GOOD.replace("64.2", "64.3"), GOOD + "  source: there\n"], ids=["id", "field"]
)
def test_the_same_id_or_field_twice_in_one_file_is_refused(tmp_path, twin):
    with pytest.raises(LedgerError, match="used twice"):
        load(tmp_path, twin)


def test_defaults_of_a_file_are_those_of_its_entries(tmp_path):
    ledger = load(tmp_path, "defaults:\n  source: everywhere\n" + GOOD.replace("  source: here\n", ""))
    assert ledger["share"].source == "everywhere" and ledger["share"].window == "exact"


def test_states_carries_digits_and_unit():
    claim = measure(states="64.2 %")
    assert claim.value == pytest.approx(0.642)
    assert claim.bounds() == pytest.approx((0.6415, 0.6425))
    assert claim.show(0.64171) == "64.2 %"
    assert measure(states="1,261").show(1261) == "1,261"
    assert measure(states="1e-6", window="below").show(2.2e-8) == "2e-8"


def test_a_number_that_was_never_measured_is_not_accepted_and_shows_its_digits():
    claim = measure(states="?.? %")
    assert math.isnan(claim.value) and not claim.accepts(0.5) and claim.show(0.5) == "50.0 %"


@pytest.mark.parametrize(
    "value, inside", [(0.64249, True), (0.6426, False), (0.6414, False), (math.nan, False)]
)
def test_exact_window_is_the_digits_shown(value, inside):
    assert measure(states="64.2 %").accepts(value) is inside


def test_the_window_of_a_spread_holds_one_more_run_as_often_as_it_says():
    """Of 20,000 made-up claims with normal values 2 are expected outside; more than 15 come once in 10^8 runs."""
    import random

    draw = random.Random(1).gauss
    outside = 0
    for _ in range(20_000):
        claim = measure(states="0", window="spread", spread=tuple(draw(0, 1) for _ in range(8)))
        outside += not claim.accepts(draw(0, 1))
    assert outside <= 15


def test_seeds_that_agree_leave_no_room():
    claim = measure(states="0.50", window="spread", spread=(0.5,) * 8)
    assert claim.accepts(0.5) and not claim.accepts(0.501)


def test_a_spread_that_nobody_recorded_accepts_nothing():
    assert not measure(states="0.50", window="spread").accepts(0.5)


@pytest.mark.parametrize("window, good, bad", [("above", 21.0, 19.0), ("below", 19.0, 21.0)])
def test_inequality(window, good, bad):
    claim = measure(states="20 ×", window=window)
    assert claim.accepts(good) and not claim.accepts(bad)


def test_an_order_is_strict_and_needs_the_other_value():
    claim = measure(window={"greater_than": "y"})
    assert claim.accepts(0.9, {"y": 0.8}) and not claim.accepts(0.8, {"y": 0.8})
    with pytest.raises(KeyError, match="y"):
        claim.accepts(0.9, {})


def test_under_the_runner_check_collects_and_prints_nothing(by_runner, tmp_path, capsys):
    by_runner(GOOD)
    claims.check("share", 0.9)
    claims.check("share", [0.63, 0.642, 0.654])
    assert capsys.readouterr().out == ""
    assert measured(tmp_path) == {"share": [0.63, 0.642, 0.654]}


def test_under_the_runner_a_time_is_kept_apart(by_runner, tmp_path, capsys):
    by_runner(GOOD.replace("64.2 %", "20 s").replace("baseline: 0.0002", "kind: time"))
    claims.check("share", 31.0)
    assert measured(tmp_path) == {} and measured(tmp_path, "times") == {"share": 31.0}
    claims.took(share=33.0)
    assert "Here: 33 s; on the machine of the record: not recorded" in capsys.readouterr().out


@pytest.mark.parametrize(
    "value, said",
    [
        (0.64171, "Matched: 64.2 %. (As the text says.)"),
        (0.7, "Matched: 70.0 %. (The text says 64.2 %.)"),
        (math.nan, "Matched: nan %. (The text says 64.2 %.)"),
    ],
)
def test_by_hand_check_says_one_sentence_and_writes_nothing(by_hand, tmp_path, capsys, value, said):
    by_hand(GOOD)
    before = sorted(tmp_path.rglob("*"))
    claims.check("share", value)
    assert capsys.readouterr().out == said + "\n" and sorted(tmp_path.rglob("*")) == before


def test_by_hand_a_spread_is_said(by_hand, capsys):
    by_hand(GOOD + "  window: spread\n", {"share": [0.60, 0.62, 0.64, 0.66, 0.69]})
    claims.check("share", 0.65)
    assert "the mean of 5 seeds from 60.0 % to 69.0 %" in capsys.readouterr().out


def test_by_hand_a_bound_and_an_order_say_where_they_do_not_hold(by_hand, capsys):
    order = 'more:\n  sentence: "More match."\n  window: {greater_than: share}\n  baseline: "none: an order"\n  source: here\n'
    by_hand(GOOD + "  window: above\n" + order)
    claims.check("share", 0.5)
    claims.check("more", 0.4)
    claims.check("more", 0.6)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("NOT here: Matched: 64.2 %") and said[1].startswith("NOT here: More match.")
    assert said[2] == "More match. (60.0 % against 50.0 %.)"


def test_unknown_id_names_the_nearest(by_hand):
    by_hand(GOOD)
    with pytest.raises(ValueError, match="did you mean 'share'"):
        claims.check("shares", 0.6)


@pytest.mark.parametrize(
    "change, fault",
    [
        (("baseline: 0.0002", "baseline: 0.642"), "does not beat the null"),
        (("  baseline: 0.0002\n", ""), "null baseline"),
        (("baseline: 0.0002", "window: roughly\n  baseline: 0.0002"), "window is missing or unknown"),
        (("baseline: 0.0002", "window: {runs: [0.6, 0.7, 0.8]}\n  baseline: 0.0002"), "unknown order"),
        (("baseline: 0.0002", "window: {greater_than: nobody}\n  baseline: 0.0002"), "not in the ledger"),
        (("states:", "kind: guessed\n  states:"), "kind must be"),
        (("  source: here\n", ""), "source"),
        (("source: here", "source: here\n  colour: red"), "unknown field"),
        (("source: here", "source: here\n  spread: [0.6, 0.7]"), "unknown field"),
        (("source: here", "source: here\n  varies: true"), "unknown field"),
        (('states: "64.2 %"', "states: 64.2"), "in quotes"),
        (('  states: "64.2 %"\n', ""), "needs `states`"),
        (("source: here", "source: here\n  recompute: somehow"), "recompute"),
        (("baseline: 0.0002", "kind: time\n  window: spread"), "window of a time"),
    ],
)
def test_a_bad_entry_is_refused(tmp_path, change, fault):
    with pytest.raises(LedgerError, match=fault):
        load(tmp_path, GOOD.replace(*change))


def test_a_spread_whose_mean_does_not_beat_the_null_is_refused(tmp_path):
    noisy = {"share": [0.3, 0.5, 0.642, 0.784, 0.984]}
    load(tmp_path, GOOD + "  window: spread\n", noisy)  # far from 0.0002
    with pytest.raises(LedgerError, match="does not beat the null"):
        load(tmp_path, GOOD.replace("0.0002", "0.5") + "  window: spread\n", noisy)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"values": 3}'])
def test_a_truncated_record_of_seeds_is_refused(tmp_path, content):
    folder = write_ledger(tmp_path / "claims", GOOD, spread={"share": [1]})
    (folder / "spreads" / "01_x.json").write_text(content)
    with pytest.raises(LedgerError, match="no record of seeds: run `pprml seeds 01_x`"):
        claims.load_ledger(folder)


def test_an_id_used_twice_is_refused(tmp_path):
    write_ledger(tmp_path / "claims", GOOD, "02_y.yml")
    with pytest.raises(LedgerError, match="used twice"):
        load(tmp_path, GOOD)


def test_an_article_sentence_needs_a_verdict(tmp_path):
    with pytest.raises(LedgerError, match="verdict"):
        load(tmp_path, "a:\n  sentence: s\n  kind: article\n  verdict: maybe\n")


def test_half_written_measurements_never_replace_whole_ones(by_runner, tmp_path):
    """A disk that refuses to take more bytes leaves the old record as it was."""
    import resource
    import signal

    by_runner(GOOD)
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
    files = list((tmp_path / "out" / "claims" / "measured").iterdir())
    assert [file.name for file in files] == ["01_x.json"] and measured(tmp_path) == {"share": 0.6417}
