"""Accounting agrees with accountants that the course does not use, over a grid of 200 settings.

The values and the command that makes them: `reference/accountants.json` and `reference/accountants.py`. Nothing here is random:
the error rate is zero.
"""

import json
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from pprml.accounting import AccountingError, _dp_sgd, _guarantee, dp_sgd_guarantee

REFERENCE = json.loads((Path(__file__).parent / "reference" / "accountants.json").read_text("utf-8"))
SETTINGS, REFUSED = (
    [dict(zip(REFERENCE["columns"], row, strict=False)) for row in REFERENCE[part]]
    for part in ("settings", "refused")
)
TOLERANCE = 0.01


def account(setting):
    records, batch_size, steps, noise, delta = (setting[name] for name in REFERENCE["columns"][:5])
    guarantee = dp_sgd_guarantee(records, batch_size, steps * batch_size / records, noise, delta)
    assert (guarantee.accountant, guarantee.other_accountant, guarantee.steps) == ("PLD", "RDP", steps)
    return guarantee


def account_or_refuse(setting):
    """Return epsilon by PLD and by RDP, and whether the guarantee was refused with these two values."""
    try:
        guarantee = account(setting)
    except AccountingError as refusal:
        found = re.match(r"PLD gives (\S+) and RDP (\S+): further apart", str(refusal))
        return float(found[1]), float(found[2]), True
    return guarantee.epsilon, guarantee.other_epsilon, False


def find_faults(setting, answer):
    """Name the accountants that disagree with their peer by more than the tolerance."""
    pairs = (("PLD", answer[0], "prv"), ("RDP", answer[1], "rdp"))
    return {name for name, ours, peer in pairs if ours != pytest.approx(setting[peer], rel=TOLERANCE)}


@pytest.fixture(scope="module")
def accounted():
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        answers = list(pool.map(account_or_refuse, SETTINGS + REFUSED, chunksize=2))
    pairs = list(zip(SETTINGS + REFUSED, answers, strict=True))
    return pairs[: len(SETTINGS)], pairs[len(SETTINGS) :]


def test_the_grid_is_as_wide_as_it_says():
    assert len({tuple(setting.values()) for setting in SETTINGS}) == 200
    rates = [setting["batch_size"] / setting["records"] for setting in SETTINGS]
    assert min(rates) == 0.001 and max(rates) == 0.3
    for name, low, high in (("noise_multiplier", 0.5, 8), ("steps", 100, 20_000), ("delta", 1e-7, 1e-5)):
        values = [setting[name] for setting in SETTINGS]
        assert (min(values), max(values)) == (low, high)
    assert all(0.05 <= setting["prv"] <= 30 for setting in SETTINGS)


def test_pld_and_rdp_agree_with_their_peers_to_one_percent(accounted):
    assert [(s, found) for s, found in accounted[0] if find_faults(s, found)] == []


def test_what_is_refused_is_refused_for_its_gap_alone_and_agrees_with_the_peers_too(accounted):
    assert all(refused for _, (_, _, refused) in accounted[1])
    assert not any(refused for _, (_, _, refused) in accounted[0])
    assert [(s, found) for s, found in accounted[1] if find_faults(s, found)] == []


def test_pld_lies_between_the_bounds_that_prv_proves(accounted):
    assert [s for s, found in accounted[0] if not s["prv_lower"] <= found[0] <= s["prv_upper"]] == []


def test_more_orders_than_opacus_takes_never_cost_anything(accounted):
    assert [s for s, found in accounted[0] if found[1] > s["rdp_own_orders"] * (1 + 1e-6)] == []


@pytest.mark.parametrize(
    "twin",
    [
        lambda noise, rate, steps: (noise, 2 * rate, steps),
        lambda noise, rate, steps: (noise, rate, steps * 9 // 10),
        lambda noise, rate, steps: (1.02 * noise, rate, steps),
    ],
    ids=["twice the sampling rate", "one step in ten forgotten", "2 % too much noise"],
)
def test_a_broken_twin_is_rejected(twin, monkeypatch):
    """Both accountants get the wrong event at every twentieth setting: one is caught at each of the ten, both at nine or more.

    With little noise and few steps RDP's epsilon depends so weakly on the steps that a tenth of them hides in 1 %.
    """
    honest = _dp_sgd._poisson_event
    monkeypatch.setattr(_dp_sgd, "_poisson_event", lambda *setting: honest(*twin(*setting)))
    monkeypatch.setattr(_guarantee, "ACCOUNTANT_GAP", (100, 100))
    faults = [find_faults(setting, account_or_refuse(setting)) for setting in SETTINGS[::20]]
    assert all(faults) and sum(found == {"PLD", "RDP"} for found in faults) >= 9, faults
