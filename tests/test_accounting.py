"""The accounting agrees with independent values, and refuses what it cannot honestly account for."""

import math

import pytest
from dp_accounting import rdp
from scipy.optimize import brentq
from scipy.stats import norm

from pprml import accounting
from pprml.accounting import SamplingMismatchError, dp_sgd_guarantee

# records 60,000, batch 256, delta 1e-5: dp_accounting 0.4.3 called directly, outside this package; fixed size with half the noise, since
# replacing a record moves the sum by two clipping norms.
TABLE = [
    # noise, epochs, PLD Poisson, RDP Poisson, RDP unamplified, RDP fixed size
    (1.3, 15, 0.869, 0.954, 17.65, 7.18),
    (1.1, 60, 2.391, 2.597, 56.95, 24.1),
    (0.7, 45, 5.643, 6.318, 89.99, 1278),
]


def tutorial(noise, epochs, **options):
    return dp_sgd_guarantee(60_000, 256, epochs, noise, 1e-5, **options)


@pytest.mark.parametrize("noise, epochs, poisson_pld, poisson_rdp, shuffled_rdp, fixed_rdp", TABLE)
def test_table_of_the_tutorials_to_one_percent(
    noise, epochs, poisson_pld, poisson_rdp, shuffled_rdp, fixed_rdp
):
    poisson = tutorial(noise, epochs)
    assert poisson.epsilon == pytest.approx(poisson_pld, rel=0.01)
    assert poisson.other_epsilon == pytest.approx(poisson_rdp, rel=0.01)
    assert tutorial(noise, epochs, sampling="shuffled").other_epsilon == pytest.approx(shuffled_rdp, rel=0.01)
    assert tutorial(noise, epochs, sampling="fixed_size").epsilon == pytest.approx(fixed_rdp, rel=0.01)


def exact_gaussian_epsilon(noise, compositions, delta):
    """Balle and Wang 2018, arXiv 1805.06530, theorem 8: the exact curve of a Gaussian mechanism, no accountant involved."""
    mu = math.sqrt(compositions) / noise

    def excess(epsilon):
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta

    return brentq(excess, 0, 500)


@pytest.mark.parametrize("noise, epochs", [(1.3, 15), (5.0, 3), (2.0, 1)])
def test_shuffled_bound_is_the_exact_gaussian_curve(noise, epochs):
    exact = exact_gaussian_epsilon(noise, epochs, 1e-5)
    assert tutorial(noise, epochs, sampling="shuffled").epsilon == pytest.approx(exact, rel=0.005)


def test_full_batches_are_the_exact_gaussian_curve():
    full = dp_sgd_guarantee(1000, 1000, 5, 3.0, 1e-5)
    assert full.epsilon == pytest.approx(exact_gaussian_epsilon(3.0, 5, 1e-5), rel=0.005)


def holds_for_a_replaced_record(epsilon, noise):
    # A batch of all records, one step: a Gaussian mechanism whose sensitivity is two clipping norms. RDP bounds it from above.
    exact = exact_gaussian_epsilon(noise / 2, 1, 1e-5)
    return exact <= epsilon <= 1.1 * exact


def test_a_replaced_record_moves_the_sum_by_two_norms():
    fixed = dp_sgd_guarantee(1000, 1000, 1, 4.0, 1e-5, sampling="fixed_size")
    assert holds_for_a_replaced_record(fixed.epsilon, 4.0)
    # The broken twin leaves the noise as it is, as if a replacement moved the sum by one norm.
    undoubled = dp_sgd_guarantee(1000, 1000, 1, 8.0, 1e-5, sampling="fixed_size")
    assert not holds_for_a_replaced_record(undoubled.epsilon, 4.0)


@pytest.mark.parametrize(
    "change",
    [dict(noise_multiplier=0.65), dict(epochs=30), dict(batch_size=512), dict(delta=1e-6)],
    ids=["half the noise", "twice the epochs", "twice the batch", "a smaller delta"],
)
def test_a_weaker_setting_costs_more(change):
    base = dict(records=60_000, batch_size=256, epochs=15, noise_multiplier=1.3, delta=1e-5)
    assert dp_sgd_guarantee(**{**base, **change}).epsilon > dp_sgd_guarantee(**base).epsilon * 1.05


def test_a_guarantee_says_what_it_depends_on():
    guarantee = tutorial(1.3, 15)
    assert (guarantee.unit, guarantee.adjacency, guarantee.sampling) == ("record", "add/remove", "poisson")
    assert (guarantee.accountant, guarantee.other_accountant, guarantee.steps) == ("PLD", "RDP", 3516)
    text = str(guarantee)
    for part in (
        "epsilon = 0.86",
        "delta = 1e-05",
        "record",
        "add/remove",
        "poisson",
        "3516",
        "PLD",
        "RDP",
        "clipped",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) < 100


def test_steps_survive_the_round_trip_through_epochs():
    for steps in (1, 7, 299, 300, 3515):
        assert accounting.count_steps(55_000, 512, steps * 512 / 55_000) == steps


def test_a_shuffled_loader_is_refused_by_the_poisson_accountant():
    with pytest.raises(SamplingMismatchError, match="loader is shuffled"):
        tutorial(1.3, 15, loader="shuffled")


def test_asking_for_the_mismatch_prints_the_unamplified_bound_beside_it(capsys):
    guarantee = tutorial(1.3, 15, loader="shuffled", accept_mismatch=True)
    printed = capsys.readouterr().out
    assert "NOT MET" in printed and "16.5" in printed
    assert guarantee.assumptions[0].startswith("NOT MET")


def test_accountants_that_disagree_are_refused(monkeypatch):
    """The broken twin: RDP with half the noise."""
    honest = rdp.RdpAccountant

    class Broken(honest):
        def compose(self, event, count=1):
            return super().compose(event, 4)

    monkeypatch.setattr(rdp, "RdpAccountant", Broken)
    with pytest.raises(accounting.AccountingError, match="further apart"):
        tutorial(1.3, 15)


@pytest.mark.parametrize(
    "records, batch, epochs, noise", [(500, 50, 1, 4.0), (5_000, 64, 20, 0.8), (60_000, 8192, 40, 8.0)]
)
def test_the_stated_gap_holds_over_a_grid(records, batch, epochs, noise):
    guarantee = dp_sgd_guarantee(records, batch, epochs, noise, 1e-5)
    assert guarantee.epsilon * 0.99 <= guarantee.other_epsilon <= guarantee.epsilon * 1.6 + 0.1


@pytest.mark.parametrize(
    "change, fault",
    [
        (dict(noise_multiplier=0.0), "noise_multiplier"),
        (dict(noise_multiplier=-1.0), "noise_multiplier"),
        (dict(noise_multiplier=math.nan), "noise_multiplier"),
        (dict(noise_multiplier="1"), "noise_multiplier"),
        (dict(delta=0.0), "delta"),
        (dict(delta=1.0), "delta"),
        (dict(delta=math.nan), "delta"),
        (dict(batch_size=0), "batch_size"),
        (dict(batch_size=60_001), "larger than the 60000 records"),
        (dict(epochs=0), "epochs"),
        (dict(epochs=math.inf), "epochs"),
        (dict(epochs=1.5, sampling="shuffled"), "whole number"),
        (dict(records=-5), "records"),
        (dict(sampling="random"), "sampling must be one of"),
        (dict(loader="random"), "loader must be one of"),
    ],
)
def test_bad_input_is_refused(change, fault):
    base = dict(records=60_000, batch_size=256, epochs=15, noise_multiplier=1.3, delta=1e-5)
    with pytest.raises(ValueError, match=fault):
        dp_sgd_guarantee(**{**base, **change})


def test_a_delta_that_protects_nobody_is_pointed_out():
    assert "not below 1/records" in dp_sgd_guarantee(100, 10, 1, 5.0, 0.02).assumptions[-1]


@pytest.mark.parametrize(
    ("scale", "sensitivity", "releases"),
    [(2.0, 1, 1), (0.5, 1, 3), (510.0, 255.0, 2), (100.0, 1, 1), (1 / 37, 1, 1), (1e-4, 1, 1), (1e6, 1, 1)],
)
def test_laplace_epsilon_is_sensitivity_over_scale(scale, sensitivity, releases):
    guarantee = accounting.laplace_guarantee(scale, sensitivity, releases=releases)
    assert guarantee.epsilon == pytest.approx(releases * sensitivity / scale)
    assert guarantee.delta == 0 and guarantee.other_epsilon == pytest.approx(
        guarantee.epsilon, rel=0.01, abs=1e-4
    )
    assert (
        "record" in str(guarantee)
        and "add/remove" in str(guarantee)
        and f"at most {sensitivity:g}" in str(guarantee)
    )


def test_laplace_epsilon_is_never_below_the_ratio_of_densities():
    """The twin that forgets the sensitivity claims half of what the densities of two neighbours show."""
    scale, sensitivity = 1.0, 2.0
    worst = max(abs(abs(x) - abs(x - sensitivity)) / scale for x in (-5.0, 0.0, 1.0, 5.0))
    assert accounting.laplace_guarantee(scale, sensitivity).epsilon >= worst - 1e-12
    assert 1 / scale < worst


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"scale": 0}, "without noise"),
        ({"scale": float("nan")}, "scale"),
        ({"sensitivity": 0}, "sensitivity"),
        ({"releases": 0}, "whole number"),
        ({"releases": 1.5}, "whole number"),
    ],
)
def test_bad_laplace_input_is_refused(arguments, fault):
    with pytest.raises(ValueError, match=fault):
        accounting.laplace_guarantee(**{"scale": 1.0, "sensitivity": 1.0} | arguments)


@pytest.mark.parametrize("sigma, sensitivity, releases", [(4.0, 1.0, 1), (30.0, 10.0, 1), (10.0, 1.0, 25)])
def test_gaussian_is_the_exact_curve(sigma, sensitivity, releases):
    found = accounting.gaussian_guarantee(sigma, sensitivity, 1e-6, releases=releases)
    exact = exact_gaussian_epsilon(sigma / sensitivity, releases, 1e-6)
    assert found.epsilon == pytest.approx(exact, rel=0.005)
    assert found.other_epsilon > found.epsilon
    half = accounting.gaussian_guarantee(sigma / 2, sensitivity, 1e-6, releases=releases)
    assert half.epsilon > 1.5 * found.epsilon


def test_randomized_response_is_the_log_of_the_odds():
    found = accounting.randomized_response_guarantee(0.75)
    assert found.epsilon == pytest.approx(math.log(3)) and found.other_epsilon == pytest.approx(
        math.log(3), rel=1e-3
    )
    assert found.adjacency == "replace" and found.delta == 0
    assert accounting.randomized_response_guarantee(0.75, releases=4).epsilon == pytest.approx(
        4 * math.log(3)
    )


def test_four_compositions_are_ordered_and_basic_is_the_sum():
    four = {name: g.epsilon for name, g in accounting.compare_compositions(10, 1, 100, 1e-6).items()}
    assert four["basic"] == pytest.approx(10)
    # 0.1 sqrt(2 * 100 ln 1e6) + 100 * 0.1 (e^0.1 - 1)
    assert four["advanced"] == pytest.approx(6.308, abs=0.001)
    assert four["PLD"] < four["RDP"] < four["advanced"] < four["basic"]
    few = accounting.compare_compositions(10, 1, 1, 1e-6)
    assert few["advanced"].epsilon > few["basic"].epsilon >= few["PLD"].epsilon * 0.99


def test_group_privacy_multiplies():
    one = accounting.laplace_guarantee(2, 1)
    four = accounting.group_guarantee(one, 4)
    assert (four.epsilon, four.delta, four.unit) == (2.0, 0.0, "user")
    gaussian = accounting.gaussian_guarantee(4, 1, 1e-6)
    three = accounting.group_guarantee(gaussian, 3)
    e = gaussian.epsilon
    assert three.delta == pytest.approx(1e-6 * (1 + math.exp(e) + math.exp(2 * e)))


@pytest.mark.parametrize(
    "call",
    [
        lambda a: a.gaussian_guarantee(0, 1, 1e-6),
        lambda a: a.gaussian_guarantee(1, math.inf, 1e-6),
        lambda a: a.gaussian_guarantee(1, 1, 0),
        lambda a: a.gaussian_guarantee(1, 1, 1e-6, releases=0),
        lambda a: a.randomized_response_guarantee(0.5),
        lambda a: a.randomized_response_guarantee(1.0),
        lambda a: a.compare_compositions(1, 1, 1, 0),
        lambda a: a.compare_compositions(0, 1, 1, 1e-6),
        lambda a: a.group_guarantee(a.laplace_guarantee(1, 1), 0),
        lambda a: a.group_guarantee(a.laplace_guarantee(1, 1, unit="user"), 2),
    ],
)
def test_bad_release_input_is_refused(call):
    with pytest.raises(ValueError, match="must be"):
        call(accounting)
