"""Chapter 03: every mechanism keeps its promise, each check rejects a broken twin, and the attacks do what is claimed of them.

Statistical checks: an honest mechanism fails `check_promise` with probability 1e-6 at most, over a fixed family of events, and seeds
are fixed besides. OpenDP's noise has no seed; the error rates of its two tests stand beside them.
"""

import math
import threading
import time
from fractions import Fraction

import numpy as np
import opendp.prelude as dp
import pytest
from dp_accounting import GaussianDpEvent, pld
from scipy import stats

from pprml import mechanisms as mech
from pprml.mechanisms import Budget, BudgetError

dp.enable_features("contrib")
DRAWS = 100_000
EVENTS = tuple(np.linspace(-4, 5, 19))


def check_promise(release, epsilon, events=EVENTS, draws=DRAWS, error=1e-6):
    """`release(with_record, draws, rng)` draws outputs; no event "above" or "below" may be more than e^epsilon times as likely."""
    rng = np.random.default_rng(0)
    outputs = [np.asarray(release(with_record, draws, rng), float) for with_record in (False, True)]
    level = error / (8 * len(events))  # events x 2 sides x 2 directions x 2 limits
    for event in events:
        for side in (np.greater, np.less_equal):
            hits = [int(side(drawn, event).sum()) for drawn in outputs]
            # Clopper and Pearson's exact limits for a share.
            low = [stats.beta.ppf(level, k, draws - k + 1) if k else 0.0 for k in hits]
            high = [stats.beta.isf(level, k + 1, draws - k) if k < draws else 1.0 for k in hits]
            for one, other in ((0, 1), (1, 0)):
                assert low[one] <= math.exp(epsilon) * high[other], f"{side.__name__} {event}"


def check_size(noise, scale):
    """The mean distance from zero is the scale: 7 standard errors of a Laplace distribution, so an error of 1e-11."""
    assert np.abs(noise).mean() == pytest.approx(scale, rel=7 / math.sqrt(np.size(noise)))


# Laplace


def count_with(noise):
    return lambda with_record, draws, rng: int(with_record) + noise(draws, rng)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_laplace_keeps_its_promise_and_wastes_nothing(epsilon):
    check_promise(count_with(lambda n, rng: mech.laplace_noise(epsilon, 1, n, rng)), epsilon)
    check_promise(count_with(lambda n, rng: mech.integer_laplace_noise(epsilon, n, rng)), epsilon)
    check_size(mech.laplace_noise(epsilon, 3, DRAWS, np.random.default_rng(0)), 3 / epsilon)
    # A fifth less epsilon is not kept, and the check notices.
    with pytest.raises(AssertionError):
        check_promise(count_with(lambda n, rng: mech.laplace_noise(epsilon, 1, n, rng)), 0.8 * epsilon)


def test_whole_numbers_are_whole_and_exact():
    drawn = mech.integer_laplace_noise(1.0, DRAWS, np.random.default_rng(0))
    assert drawn.dtype.kind == "i"
    decay = math.exp(-1)
    for k in range(-4, 5):
        share = (1 - decay) / (1 + decay) * decay ** abs(k)
        # 6 standard errors: an error of 2e-9 a value.
        assert (drawn == k).mean() == pytest.approx(share, abs=6 * math.sqrt(share / DRAWS))


def test_half_the_noise_is_rejected():
    with pytest.raises(AssertionError):
        check_promise(count_with(lambda n, rng: mech.laplace_noise(1.0, 1, n, rng) / 2), 1.0)


def test_a_record_that_moves_twice_the_sensitivity_is_rejected():
    with pytest.raises(AssertionError):
        check_promise(lambda there, n, rng: 2 * there + mech.laplace_noise(1.0, 1, n, rng), 1.0)
    check_promise(lambda there, n, rng: 2 * there + mech.laplace_noise(1.0, 2, n, rng), 1.0)


def test_bounded_noise_is_rejected_whatever_its_size():
    with pytest.raises(AssertionError):
        check_promise(
            lambda there, n, rng: there + rng.uniform(-10, 10, n), 2.0, events=[-9.5, 0, 9.5, 10, 10.5]
        )


def answer_two_questions(fresh):
    """The difference of a group's answer with the target and without, at epsilon 1 each."""

    def release(with_record, draws, rng):
        first = mech.laplace_noise(1.0, 1, draws, rng)
        second = mech.laplace_noise(1.0, 1, draws, rng) if fresh else first
        return (100 + with_record + first) - (100 + second)

    return release


def test_two_answers_cost_their_sum_and_noise_used_twice_is_rejected():
    check_promise(answer_two_questions(fresh=True), 2.0)
    with pytest.raises(AssertionError):
        check_promise(answer_two_questions(fresh=False), 2.0)


# Sums


def check_sum(summarize, low, high, outlier):
    """At epsilon 1, with and without a record far outside the bounds; 20,000 calls each, in units of the larger bound."""
    rows, unit = np.array([3.0, 7.0]), max(-low, high)

    def release(with_record, draws, rng):
        values = np.append(rows, outlier) if with_record else rows
        drawn = [summarize(values, low, high, 1.0, rng) for _ in range(draws)]
        return (np.array(drawn) - 10) / unit

    check_promise(release, 1.0, draws=20_000)


@pytest.mark.parametrize("low, high, outlier", [(0, 10, 1e6), (-20, 10, -1e6)])
def test_a_clipped_sum_keeps_its_promise(low, high, outlier):
    check_sum(lambda *arguments: mech.private_sum(*arguments)[0], low, high, outlier)


def sum_unclipped(values, low, high, epsilon, rng):
    return values.sum() + mech.laplace_noise(epsilon, max(-low, high), (), rng)


def sum_by_the_upper_bound(values, low, high, epsilon, rng):
    return np.clip(values, low, high).sum() + mech.laplace_noise(epsilon, high, (), rng)


@pytest.mark.parametrize("twin", [sum_unclipped, sum_by_the_upper_bound])
def test_a_sum_whose_noise_does_not_cover_a_record_is_rejected(twin):
    with pytest.raises(AssertionError):
        check_sum(twin, -20, 10, -1e6)


def test_clipping_moves_only_what_is_outside():
    assert list(mech.clip_values(np.array([-5, 0, 4, 99]), 0, 10)) == [0, 0, 4, 10]


# Gaussian


@pytest.mark.parametrize(
    "epsilon, delta, sensitivity", [(1, 1e-6, 1), (0.1, 1e-5, 10), (5, 1e-9, 1), (8, 1e-6, 2)]
)
def test_gaussian_noise_is_what_an_independent_accountant_says(epsilon, delta, sensitivity):
    sigma = mech.gaussian_scale(epsilon, delta, sensitivity)
    found = pld.PLDAccountant().compose(GaussianDpEvent(sigma / sensitivity)).get_epsilon(delta)
    assert found == pytest.approx(epsilon, rel=0.01)
    # Half the noise is another guarantee altogether.
    half = pld.PLDAccountant().compose(GaussianDpEvent(sigma / sensitivity / 2)).get_epsilon(delta)
    assert half > 1.5 * epsilon


def test_gaussian_noise_is_below_the_classical_formula():
    classical = math.sqrt(2 * math.log(1.25 / 1e-6)) / 0.5
    assert 0.5 * classical < mech.gaussian_scale(0.5, 1e-6) < classical


def test_gaussian_delta_falls_with_noise_and_does_not_overflow():
    deltas = [mech.gaussian_delta(sigma, 1.0) for sigma in (0.5, 1, 2, 4)]
    assert deltas == sorted(deltas, reverse=True) and deltas[-1] > 0
    assert mech.gaussian_delta(1.0, 2000.0) == 0
    drawn = mech.gaussian_noise(2.5, DRAWS, np.random.default_rng(0))
    assert drawn.std() == pytest.approx(2.5, rel=6 / math.sqrt(2 * DRAWS))


# Randomised response


def check_estimate(report):
    """Within 6 standard errors of the true share (an error of 2e-9), at epsilon 1."""
    answers, rng = np.arange(DRAWS) % 10 < 3, np.random.default_rng(0)
    limit = 6 * 0.5 / (2 * mech.truth_probability(1.0) - 1) / math.sqrt(DRAWS)
    assert mech.estimate_share(report(answers, rng), 1.0) == pytest.approx(0.3, abs=limit)


def test_randomized_response_is_private_and_unbiased():
    check_estimate(lambda answers, rng: mech.randomized_response(answers, 1.0, rng))
    report = lambda there, n, rng: mech.randomized_response(np.full(n, there), 1.0, rng)  # noqa: E731
    check_promise(report, 1.0, events=[0.5])
    with pytest.raises(AssertionError):
        check_promise(report, 0.9, events=[0.5])


def test_a_swapped_probability_is_as_private_and_its_estimate_is_rejected():
    def swapped(answers, rng):
        return answers ^ (rng.random(answers.shape) < mech.truth_probability(1.0))

    check_promise(lambda there, n, rng: swapped(np.full(n, there), rng), 1.0, events=[0.5])
    with pytest.raises(AssertionError):
        check_estimate(swapped)


def test_one_coin_for_everyone_is_rejected():
    def shared(answers, rng):
        return answers ^ (rng.random() >= mech.truth_probability(1.0))

    with pytest.raises(AssertionError):
        check_estimate(shared)


def test_the_truth_is_told_by_the_odds_of_epsilon():
    assert mech.truth_probability(math.log(3)) == pytest.approx(0.75)
    assert mech.truth_probability(1000) == 1


# The budget


def refuses(budget, ask, epsilon):
    try:
        budget.release(ask, epsilon)
    except BudgetError as error:
        assert "smaller epsilon" in str(error)
        return True
    return False


def check_budget(kind):
    budget, asked = kind(1.0), []
    ask = lambda: asked.append(1)  # noqa: E731
    assert not any(refuses(budget, ask, 0.1) for _ in range(9))
    assert refuses(budget, ask, 0.2)
    assert len(asked) == 9, "a refused question was answered"
    with pytest.raises(ZeroDivisionError):
        budget.release(lambda: 1 / 0, 0.05)
    assert not refuses(budget, ask, 0.05)
    assert refuses(budget, ask, 0.05), "the question that failed was not charged"
    small = kind(0.3)
    assert not refuses(small, ask, 0.1) and not refuses(small, ask, 0.2), "all of it may be spent"
    assert refuses(small, ask, 1e-9)


def test_budget_counts_to_the_last_decimal():
    check_budget(Budget)
    budget = Budget(1)
    assert budget.release(lambda: 42, 0.25) == 42 and budget.remaining == 0.75


class ForgetsFailures(Budget):
    """Charges only what was answered in the end."""

    def release(self, measure, epsilon):
        answer = measure()
        super().release(int, epsilon)
        return answer


class ForgetsEverySecond(Budget):
    """Charges one question in two."""

    count = 0

    def release(self, measure, epsilon):
        self.count += 1
        return measure() if self.count % 2 == 0 else super().release(measure, epsilon)


class CountsInFloats(Budget):
    """Adds binary fractions, so that ten tenths are not one."""

    def __init__(self, epsilon):
        self.total, self.spent = epsilon, 0.0

    def release(self, measure, epsilon):
        if self.spent + epsilon > self.total:
            raise BudgetError("ask with a smaller epsilon")
        self.spent += epsilon
        return measure()


@pytest.mark.parametrize("twin", [ForgetsFailures, ForgetsEverySecond, CountsInFloats])
def test_a_budget_that_forgets_is_rejected(twin):
    with pytest.raises(AssertionError):
        check_budget(twin)


class SlowToCompare(Fraction):
    """A balance that other threads can overtake while it is being read."""

    def __lt__(self, other):
        answer = super().__lt__(other)
        time.sleep(0.05)
        return answer


def test_budget_holds_when_asked_from_many_threads():
    budget, answers = Budget(1.0), []
    budget._left = SlowToCompare(1)
    threads = [
        threading.Thread(target=refuses, args=(budget, lambda: answers.append(1), 1.0)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 1 and budget.remaining == 0


# Attacks


@pytest.fixture
def town():
    """2,000 people, a quarter with the secret; 20 targets with it and 20 without; 100 groups."""
    rng = np.random.default_rng(5)
    secret = rng.random(2000) < 0.25
    targets = np.concatenate([np.flatnonzero(secret)[:20], np.flatnonzero(~secret)[:20]])
    groups = [rng.random(2000) < 0.5 for _ in range(100)]
    return secret, targets, groups


def count(secret):
    return lambda group: np.count_nonzero(secret & group)


def ask_often(ask, repeats):
    """The largest of many answers: that undoes noise which has a largest value."""
    return lambda group: max(ask(group) for _ in range(repeats))


def score(ask, town, groups):
    secret, targets, _ = town
    before = [group.copy() for group in groups]
    guesses = [any(mech.attack_difference(ask, group, target) for group in groups) for target in targets]
    assert all((one == other).all() for one, other in zip(before, groups, strict=True))
    return np.mean(np.array(guesses) == secret[targets])


def test_every_naive_fix_falls_to_the_difference(town):
    (secret, _, groups), everyone, rng = town, [np.ones(2000, bool)], np.random.default_rng(0)
    ask = count(secret)
    assert score(mech.naive_suppress(ask), town, everyone) == 1
    assert score(mech.naive_fixed_seed(ask, 0.1, 7), town, everyone) == 1
    # Missed with probability 0.9^100 a target; and (20/21)^300 a maximum.
    assert score(mech.naive_round(ask), town, groups) == 1
    assert score(ask_often(mech.naive_uniform(ask, rng), 300), town, everyone) == 1


def test_the_difference_fails_against_fresh_laplace_noise(town):
    rng = np.random.default_rng(0)
    secret = town[0]

    def ask(group):
        return np.count_nonzero(secret & group) + float(mech.laplace_noise(0.05, 1, (), rng))

    # A coin is right in 20 of 40, within 4 standard deviations (an error of 1e-4, with a fixed seed).
    assert abs(score(ask, town, [np.ones(2000, bool)]) - 0.5) < 4 * math.sqrt(0.25 / 40)


def test_naive_fixes_do_what_they_say():
    answers = count(np.arange(100) < 27)
    everyone, five = np.ones(100, bool), np.arange(100) < 5
    assert mech.naive_suppress(answers, least=27)(everyone) == 27
    assert mech.naive_suppress(answers)(everyone) == 27 and math.isnan(mech.naive_suppress(answers)(five))
    assert [mech.naive_round(answers)(np.arange(100) < n) for n in (4, 5, 14, 15)] == [0, 10, 10, 20]
    drawn = {mech.naive_uniform(answers, np.random.default_rng(s))(everyone) for s in range(400)}
    assert drawn == set(range(17, 38))


def measure_attacker(epsilon, records, rng):
    present = rng.random(DRAWS) < 0.5
    outputs = 50 + records * present + mech.integer_laplace_noise(epsilon, DRAWS, rng)
    return (mech.attack_threshold(outputs, 50, 50 + records) == present).mean()


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
def test_the_attacker_reaches_the_bound_and_does_not_pass_it(epsilon):
    found = measure_attacker(epsilon, 1, np.random.default_rng(0))
    # 6 standard errors: 2e-9.
    assert found == pytest.approx(mech.bound_attacker(epsilon), abs=6 * 0.5 / math.sqrt(DRAWS))


def test_four_records_are_found_more_often_than_one_and_within_their_bound():
    found = measure_attacker(0.5, 4, np.random.default_rng(0))
    assert mech.bound_attacker(0.5) + 0.1 < found < mech.bound_attacker(0.5, 4)
    assert mech.bound_attacker(0.5, 4) == mech.bound_attacker(2.0)


# Floating point


@pytest.mark.parametrize("scale", [0.5, 1.0, 10.0])
def test_doubles_prove_which_table_it_was_and_never_wrongly(scale):
    rng = np.random.default_rng(0)
    for value, sign in ((0, -1), (1, 1)):
        for outputs in (mech.add_laplace(value, scale, rng.random(5000)), rng.laplace(value, scale, 5000)):
            verdicts = mech.attack_rounding_errors(outputs, 0, 1, scale)
            assert (verdicts == sign).mean() > 0.7 and not (verdicts == -sign).any()


def test_laplace_noise_has_the_right_distribution_and_is_numpys_to_the_last_bit():
    outputs = mech.add_laplace(3.0, 2.0, np.random.default_rng(0).random(DRAWS))
    assert stats.kstest(outputs, stats.laplace(3, 2).cdf).pvalue > 1e-6
    around_zero = mech.add_laplace(0.0, 2.0, np.random.default_rng(0).random(DRAWS))
    assert (around_zero == np.random.default_rng(0).laplace(0.0, 2.0, DRAWS)).all()


def test_a_value_that_no_uniform_number_gives_is_seen_to_be_impossible():
    assert not mech.is_possible(np.array([1e-300, 123.456]), 0, 1.0).any()
    assert list(mech.attack_rounding_errors(np.array([1e-300, 123.456]), 0, 1, 1.0)) == [0, 0]


def test_opendp_stops_the_attack_on_doubles():
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l1_distance(T=float)
    safe = dp.m.make_laplace(*space, scale=1.0)
    verdicts = [
        mech.attack_rounding_errors(np.array(safe([value] * 10_000)), 0, 1, 1.0) for value in (0.0, 1.0)
    ]
    right, wrong = (
        sum((v == sign).sum() for v, sign in zip(verdicts, order, strict=True))
        for order in ((-1, 1), (1, -1))
    )
    # About 6,800 "proofs", of which e/(1 + e) may be right: 6 standard errors above, an error of 1e-9.
    most = mech.bound_attacker(1.0)
    assert right / (right + wrong) < most + 6 * math.sqrt(most * (1 - most) / (right + wrong))


def test_opendp_keeps_the_promise_that_we_check():
    noise = dp.m.make_laplace(dp.vector_domain(dp.atom_domain(T=int)), dp.l1_distance(T=int), scale=1.0)
    # No seed: fails once in a million runs.
    check_promise(lambda there, n, rng: noise([int(there)] * n), noise.map(1), events=np.arange(-3.5, 4.5))
    assert noise.map(1) == pytest.approx(1 / mech.laplace_scale(1.0))


# Bad input


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda rng: mech.laplace_noise(0, 1, 5, rng), "epsilon must be a number above 0"),
        (lambda rng: mech.laplace_noise(-1, 1, 5, rng), "smaller one means more noise"),
        (lambda rng: mech.laplace_noise(math.nan, 1, 5, rng), "epsilon"),
        (lambda rng: mech.laplace_noise(True, 1, 5, rng), "epsilon"),
        (lambda rng: mech.laplace_noise("1", 1, 5, rng), "epsilon"),
        (lambda rng: mech.laplace_noise(1, math.inf, 5, rng), "clip the values"),
        (lambda rng: mech.integer_laplace_noise(1, 5, rng, sensitivity=0), "sensitivity"),
        (lambda rng: mech.gaussian_scale(1, 0), "delta"),
        (lambda rng: mech.gaussian_scale(1, 1), "delta"),
        (lambda rng: mech.gaussian_scale(1e9, 1e-6), "epsilon"),
        (lambda rng: mech.gaussian_scale(1, 1e-6, -1), "clip"),
        (lambda rng: mech.gaussian_noise(0, 5, rng), "sigma"),
        (lambda rng: mech.truth_probability(0), "epsilon"),
        (lambda rng: mech.randomized_response(np.array([0, 1]), 1, rng), "array of bool"),
        (lambda rng: mech.randomized_response(np.array([], bool), 1, rng), "non-empty"),
        (lambda rng: mech.estimate_share(np.array([0.2]), 1), "array of bool"),
        (lambda rng: mech.private_sum(np.ones(3), 0, math.inf, 1, rng), "finite bounds"),
        (lambda rng: mech.private_sum(np.ones(3), 5, 1, 1, rng), "low below high"),
        (lambda rng: mech.private_sum(np.array([1, math.nan]), 0, 5, 1, rng), "missing"),
        (lambda rng: Budget(0), "epsilon"),
        (lambda rng: Budget(1).release(int, -1), "epsilon"),
        (lambda rng: mech.attack_rounding_errors(np.ones(2), 0, 1, 0), "scale"),
        (lambda rng: mech.bound_attacker(1, 0), "records"),
    ],
)
def test_bad_input_is_refused_with_the_fix(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.random.default_rng(0))
