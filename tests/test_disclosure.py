"""Chapter 01: proxies, samples, groups that talk and counts with noise; each check also rejects a broken twin."""

from dataclasses import replace

import numpy as np
import opendp.prelude as dp
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pprml import datasets, disclosure
from pprml import deidentification as deid
from pprml.accounting import laplace_guarantee

# The removed column


@pytest.fixture(scope="module")
def staff():
    """3,000 made-up people: `height` follows sex, `luck` follows nothing."""
    rng = np.random.default_rng(0)
    sex = pd.Series(rng.random(3_000) < 0.5, name="sex")
    frame = pd.DataFrame({"height": 2.0 * sex + rng.normal(size=3_000), "luck": rng.normal(size=3_000)})
    return frame, sex


def check_nothing_to_find(attack, staff):
    frame, sex = staff
    # The standard deviation of the AUC of 1,000 rows is 0.018: 5 of them, error 6e-7.
    assert abs(attack(frame[["luck"]], sex) - 0.5) < 0.09


def test_a_proxy_gives_the_removed_column_away_and_noise_does_not(staff):
    assert disclosure.attack_removed_column(*staff, 0) > 0.85  # two normals 2 apart: 0.92
    check_nothing_to_find(lambda frame, sex: disclosure.attack_removed_column(frame, sex, 0), staff)


def test_attack_that_is_tested_on_what_it_learned_from_is_rejected(staff):
    def learns_and_tests_on_the_same(frame, sex):
        return roc_auc_score(sex, disclosure.fit_scores(frame, sex.to_numpy(), frame))

    with pytest.raises(AssertionError):
        check_nothing_to_find(learns_and_tests_on_the_same, staff)


def test_text_and_missing_values_are_encoded_alike_in_any_order():
    frame = pd.DataFrame({"job": ["b", None, "a", "b"], "age": [3.0, 1.0, np.nan, 2.0]})
    coded = disclosure.encode_columns(frame)
    assert coded["job"].tolist()[0] == 1 and coded["job"].isna().tolist() == [False, True, False, False]
    assert disclosure.encode_columns(frame[::-1]).loc[frame.index].equals(coded)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda frame, sex: (frame.assign(sex=sex), sex), "still in the frame"),
        (lambda frame, sex: (frame, sex.astype(int)), "must be bool"),
        (lambda frame, sex: (frame, sex[:-1]), "index"),
    ],
)
def test_removed_column_that_is_not_removed_is_refused(staff, change, fault):
    with pytest.raises(ValueError, match=fault):
        disclosure.attack_removed_column(*change(*staff), 0)


def test_labels_of_one_kind_are_refused(staff):
    with pytest.raises(ValueError, match="both"):
        disclosure.fit_scores(staff[0], np.ones(3_000, bool), staff[0])


# A sample and its population


def check_estimate(estimate):
    """Groups of known sizes, sampled at 1 in 10: the mean of 20 estimates must be near the truth."""
    population = np.repeat(np.arange(30_000), np.random.default_rng(0).geometric(0.4, 30_000))
    sizes = np.bincount(population)
    errors = []
    for seed in range(20):
        sample = np.random.default_rng(seed).choice(population, len(population) // 10, replace=False)
        found = np.bincount(sample, minlength=len(sizes))
        truth = (found == 1).sum() / sizes[found == 1].sum()
        errors.append(estimate(found[sample], 0.1) - truth)
    # The deviation of a run is 0.007, of their mean 0.0016: 0.01 is 6 of them, error 1e-9.
    assert abs(np.mean(errors)) < 0.01


def test_estimate_of_right_matches_is_unbiased():
    check_estimate(disclosure.estimate_correct_matches)


def test_estimates_that_take_the_sample_for_the_population_are_rejected():
    def pairs_counted_as_rows(sizes, rate):
        ones, twos = (sizes == 1).sum(), (sizes == 2).sum()
        return rate * ones / (rate * ones + 2 * (1 - rate) * twos)

    for naive in (lambda sizes, rate: 1.0, lambda sizes, rate: rate, pairs_counted_as_rows):
        with pytest.raises(AssertionError):
            check_estimate(naive)


@pytest.fixture(scope="module")
def country():
    """The group of each of 20,000 people who came in by Pitman's rule (alpha 0.6, theta 1,000)."""
    rng, group, alpha, theta = np.random.default_rng(0), [0], 0.6, 1_000
    sizes = [1]
    for n in range(1, 20_000):
        if rng.random() < (theta + alpha * len(sizes)) / (theta + n):
            group.append(len(sizes))
            sizes.append(1)
            continue
        # A group of m is joined with weight m - alpha: somebody's group, refused in a share alpha / m of the draws.
        mate = group[rng.integers(n)]
        while rng.random() < alpha / sizes[mate]:
            mate = group[rng.integers(n)]
        group.append(mate)
        sizes[mate] += 1
    return np.array(group)


def check_uniqueness(estimate, country):
    """Sampled at 1 in 10, the mean of 20 estimates must be near the share that is alone in the whole country."""
    truth = (np.bincount(country) == 1).sum() / len(country)
    estimates = []
    for seed in range(20):
        sample = np.random.default_rng(seed).choice(country, len(country) // 10, replace=False)
        estimates.append(estimate(np.bincount(sample)[sample], 0.1))
    # The deviation of an estimate is 0.018, of their mean 0.004: 5 of them; the seeds are fixed.
    assert abs(np.mean(estimates) - truth) < 0.02


def test_estimate_of_population_uniqueness_finds_the_truth(country):
    check_uniqueness(disclosure.estimate_population_uniqueness, country)


def test_uniqueness_of_the_sample_or_scaled_by_the_rate_is_rejected(country):
    def sample_for_population(sizes, rate):
        return (sizes == 1).mean()

    def alone_times_rate(sizes, rate):
        return (sizes == 1).mean() * rate

    def not_run_on(sizes, rate):
        return disclosure.estimate_population_uniqueness(sizes, 0.999)

    for broken in (sample_for_population, alone_times_rate, not_run_on):
        with pytest.raises(AssertionError):
            check_uniqueness(broken, country)


def test_a_whole_population_needs_no_estimate():
    assert disclosure.estimate_correct_matches([1, 2, 2], 1) == 1
    assert disclosure.estimate_population_uniqueness([1, 2, 2], 1) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("sizes", "rate", "fault"),
    [
        ([1, 2, 2], 0, "rate"),
        ([1, 2], 0.1, "size of its group"),
        ([1, 0], 0.1, "size of its group"),
        ([1, 1], 0.1, "everybody"),
        ([2, 2], 0.1, "nobody"),
        ([], 0.1, "nobody"),
    ],
)
def test_samples_that_cannot_be_fitted_are_refused(sizes, rate, fault):
    with pytest.raises(ValueError, match=fault):
        disclosure.estimate_population_uniqueness(sizes, rate)


@pytest.mark.parametrize(
    ("sizes", "rate", "fault"),
    [([1, 2, 2], 0, "rate"), ([1, 2, 2], 1.5, "rate"), ([3, 3, 3], 0.1, "alone"), ([1, 1], 0.1, "pair")],
)
def test_samples_that_say_nothing_are_refused(sizes, rate, fault):
    with pytest.raises(ValueError, match=fault):
        disclosure.estimate_correct_matches(sizes, rate)


# Groups


@pytest.fixture(scope="module")
def people():
    """2,000 made-up people with three quasi-identifiers and a job."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"age": rng.integers(18, 80, 2_000), "zip": rng.integers(0, 50, 2_000)})
    frame["sex"] = rng.choice(["f", "m", None], 2_000)
    frame["job"] = rng.choice(["a", "b", "c", "d", "e", "f", "g"], 2_000)
    return frame


def check_groups(split, people):
    jobs = pd.factorize(people["job"])[0]
    group = split(people, ["age", "zip", "sex"], lambda rows: len(rows) >= 5 and len(set(jobs[rows])) >= 3)
    told = people.assign(group=group)
    assert deid.k_of(told, ["group"]) >= 5 and told.groupby("group")["job"].nunique().min() >= 3
    assert group.nunique() > 100
    # People who look alike are in one group: the attacker need not guess which.
    assert told.groupby(["age", "zip", "sex"], dropna=False)["group"].nunique().max() == 1
    # No two groups share a point: each pair is apart in some column.
    coded = disclosure.encode_columns(people[["age", "zip", "sex"]]).fillna(-1).groupby(group)
    low, high = coded.min().to_numpy(), coded.max().to_numpy()
    apart = ((low[:, None] > high[None]) | (high[:, None] < low[None])).any(axis=2)
    assert (apart | np.eye(len(low), dtype=bool)).all()


def test_groups_keep_every_condition_and_are_boxes_apart(people):
    check_groups(disclosure.split_groups, people)


def test_groups_that_break_a_condition_or_overlap_are_rejected(people):
    def five_by_five(frame, columns, allowed):
        """Groups of neighbours in sorted order: people who look alike fall on two sides of a cut."""
        order = frame.sort_values(columns).index
        return pd.Series(np.minimum(np.arange(len(frame)) // 5, len(frame) // 5 - 1), order)[frame.index]

    def forgets_the_jobs(frame, columns, allowed):
        return disclosure.split_groups(frame, columns, lambda rows: len(rows) >= 5)

    def missing_values_go_anywhere(frame, columns, allowed):
        group = disclosure.split_groups(frame, columns, allowed)
        return group.where(frame["sex"].notna(), 0)

    def cuts_once(frame, columns, allowed):
        return (frame[columns[0]] > frame[columns[0]].median()).astype(int)

    for broken in (five_by_five, forgets_the_jobs, missing_values_go_anywhere, cuts_once):
        with pytest.raises(AssertionError):
            check_groups(broken, people)


def test_groups_that_cannot_be_are_refused(people):
    with pytest.raises(ValueError, match="ask for less"):
        disclosure.split_groups(people, ["age"], lambda rows: len(rows) > 2_000)
    for frame, columns, fault in (
        (people, ["agee"], "did you mean 'age'"),
        (people[:0], ["age"], "at least one row"),
        (people, [], "at least one quasi-identifier"),
        (people.assign(zip=[1, "1"] * 1_000), ["zip"], "mixes types"),
    ):
        with pytest.raises(ValueError, match=fault):
            disclosure.split_groups(frame, columns, len)
    assert disclosure.split_groups(people.assign(same=1), ["same"], len).nunique() == 1


def check_intersection(attack):
    """Ann is in both releases, Ben only in the second, Cat in none; Dan and Eve fill the groups."""
    jobs = pd.Series({"ann": "sales", "ben": "farm", "cat": "law", "dan": "farm", "eve": None})
    first = pd.Series({"ann": 1, "dan": 1, "eve": 2})
    second = pd.Series({"ann": 7, "ben": 8, "dan": 8, "eve": 7})
    possible = attack([first, second], jobs)
    assert possible.sum(axis=1).to_dict() == {"ann": 1, "ben": 1, "cat": 4, "dan": 1, "eve": 1}
    assert attack([first], jobs).sum(axis=1).to_dict() == {"ann": 2, "ben": 4, "cat": 4, "dan": 2, "eve": 1}


def test_intersection_narrows_those_in_both_releases():
    check_intersection(disclosure.attack_intersection)


def test_intersection_that_forgets_people_left_out_is_rejected():
    def only_those_in_all(groups, sensitive):
        both = set.intersection(*(set(group.index) for group in groups))
        return disclosure.attack_intersection([group.loc[sorted(both)] for group in groups], sensitive)

    def nothing_possible_for_those_left_out(groups, sensitive):
        possible = disclosure.attack_intersection(groups, sensitive)
        for group in groups:
            possible.loc[possible.index.difference(group.index)] = False
        return possible

    for broken in (only_those_in_all, nothing_possible_for_those_left_out):
        with pytest.raises(AssertionError):
            check_intersection(broken)


def test_truth_is_never_ruled_out_and_groups_of_everyone_say_nothing(people):
    groups = [disclosure.split_groups(people, [name], lambda rows: len(rows) >= 5) for name in ("age", "zip")]
    possible = disclosure.attack_intersection(groups, people["job"])
    assert possible.to_numpy()[np.arange(2_000), possible.columns.get_indexer(people["job"])].all()
    assert disclosure.attack_intersection([groups[0] * 0], people["job"]).all(axis=None)


@pytest.mark.parametrize("index", [["ann", "zoe"], ["ann", "ann"]])
def test_releases_of_strangers_or_of_people_twice_are_refused(index):
    with pytest.raises(ValueError, match="each once"):
        disclosure.attack_intersection([pd.Series([1, 1], index)], pd.Series({"ann": "sales"}))


# Counts with noise

VALUES = {"age": ["young", "old"], "income": ["low", "high"]}


def check_sensitivity(count):
    """Removing any row changes all counts together by 1, and the cells are the same for every table."""
    frame = pd.DataFrame({"age": ["old", "old", "young"], "income": ["low", "low", "high"]})
    counts = count(frame, VALUES)
    for row in frame.index:
        fewer = count(frame.drop(row), VALUES)
        assert fewer.index.equals(counts.index) and abs(counts - fewer).sum() == 1
    assert counts.to_list() == [0, 1, 2, 0] and pd.api.types.is_integer_dtype(counts)


def test_a_record_adds_one_to_one_count():
    check_sensitivity(disclosure.count_cells)


def test_counts_whose_cells_or_sensitivity_depend_on_the_table_are_rejected():
    def only_cells_that_occur(frame, values):
        return frame.groupby(list(values)).size()

    def twice(frame, values):
        return 2 * disclosure.count_cells(frame, values)

    for broken in (only_cells_that_occur, twice):
        with pytest.raises(AssertionError):
            check_sensitivity(broken)


@pytest.mark.parametrize("value", ["ancient", None])
def test_values_that_are_not_listed_are_refused(value):
    with pytest.raises(ValueError, match="not listed"):
        disclosure.count_cells(pd.DataFrame({"age": [value], "income": ["low"]}), VALUES)


def test_an_empty_table_has_counts_and_an_unknown_column_does_not():
    empty = pd.DataFrame({"age": [], "income": []}, dtype=object)
    assert disclosure.count_cells(empty, VALUES).to_list() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="did you mean 'income'"):
        disclosure.count_cells(empty, {"incom": ["low"]})
    with pytest.raises(ValueError, match="at least one"):
        disclosure.count_cells(empty, {})


def check_presence(release):
    """An attacker who knows all others, 20,000 times: not above the bound of the stated guarantee, and close to it."""
    present = np.arange(20_000) % 2
    for scale in (2.0, 1.0):
        noisy, guarantee = release(pd.Series(100 + present), scale)
        assert guarantee.epsilon == pytest.approx(1 / scale)
        right = ((noisy.to_numpy() > 100) == present).mean()
        # The deviation of the share is 0.0035 at most: 5 of them, error 6e-7 for each side and scale.
        assert abs(right - disclosure.accuracy_bound(guarantee)) < 0.0175


def test_the_attacker_who_knows_all_others_reaches_the_bound_and_no_more():
    check_presence(disclosure.release_histogram)


def test_releases_with_other_noise_than_stated_are_rejected():
    def half_the_noise(counts, scale):
        noisy, _ = disclosure.release_histogram(counts, scale / 2)
        return noisy, laplace_guarantee(scale, 1)

    def doubled_sensitivity(counts, scale):
        return disclosure.release_histogram(2 * counts - 100, scale)

    def one_noise_for_all(counts, scale):
        space = dp.atom_domain(T="i64"), dp.absolute_distance(T="i64")
        noise = dp.m.make_laplace(*space, scale=scale)(0)
        return counts + noise, laplace_guarantee(scale, 1)

    for broken in (half_the_noise, doubled_sensitivity, one_noise_for_all):
        with pytest.raises(AssertionError):
            check_presence(broken)


def check_differencing(release_twice):
    """From two releases the cell a person left is guessed less well than one release and full knowledge would allow."""
    cell = np.random.default_rng(0).integers(0, 2, 4_000)
    without = np.full((4_000, 2), 30)
    before, after = release_twice(without + np.eye(2, dtype=int)[cell], without, 1.0)
    right = (disclosure.attack_differencing(before, after) == cell).mean()
    # The convolution of four discrete Laplace noises gives 0.658; the deviation is 0.0075: 5 of them, error 6e-7.
    assert abs(right - 0.658) < 0.0375


def _release(counts, scale):
    return disclosure.release_histogram(pd.Series(counts.ravel()), scale)[0].to_numpy().reshape(counts.shape)


def test_two_noisy_releases_give_little_away():
    check_differencing(lambda before, after, scale: (_release(before, scale), _release(after, scale)))


def test_noise_that_is_used_twice_or_not_at_all_is_rejected():
    def reused(before, after, scale):
        noise = _release(before, scale) - before
        return before + noise, after + noise

    for broken in (reused, lambda before, after, scale: (before, after)):
        with pytest.raises(AssertionError):
            check_differencing(broken)
    exact = disclosure.attack_differencing([[5, 3], [5, 3]], [[4, 3], [5, 2]])
    assert exact.tolist() == [0, 1]


def test_ties_are_settled_by_a_coin():
    same = np.zeros((10_000, 2))
    # 10,000 fair coins: 0.025 is 5 deviations, error 6e-7; the seed is fixed.
    assert abs(disclosure.attack_differencing(same, same).mean() - 0.5) < 0.025


def test_bad_counts_scales_and_shapes_are_refused():
    with pytest.raises(ValueError, match="whole numbers"):
        disclosure.release_histogram(pd.Series([1.5]), 1)
    with pytest.raises(ValueError, match="without noise"):
        disclosure.release_histogram(pd.Series([1]), 0)
    with pytest.raises(ValueError, match="trials"):
        disclosure.attack_differencing(np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="trials"):
        disclosure.attack_differencing(np.zeros((3, 4)), np.zeros((3, 4)))


def test_bound_counts_a_move_twice_and_refuses_a_delta():
    guarantee = laplace_guarantee(1, 1)
    assert disclosure.accuracy_bound(guarantee) == pytest.approx(0.7311, abs=1e-4)
    move = laplace_guarantee(1, 2, adjacency="replace")
    assert disclosure.accuracy_bound(move) == pytest.approx(0.8808, abs=1e-4)
    with pytest.raises(ValueError, match="delta 0"):
        disclosure.accuracy_bound(replace(guarantee, delta=1e-5))


def test_two_releases_of_adult_pin_down_people_that_neither_does():
    adult = datasets.load("adult").dropna(subset=["occupation"]).head(8_000).reset_index(drop=True)
    jobs = pd.factorize(adult["occupation"])[0]

    def three_jobs(rows):
        return len(rows) >= 5 and np.count_nonzero(np.bincount(jobs[rows])) >= 3

    columns = ["age", "sex", "race", "native_country"]
    groups = [
        disclosure.split_groups(adult, [*columns, *more], three_jobs)
        for more in (["education", "marital_status"], ["workclass", "hours_per_week"])
    ]
    pinned = [
        (disclosure.attack_intersection(known, adult["occupation"]).sum(axis=1) == 1).mean()
        for known in (groups[:1], groups[1:], groups)
    ]
    assert pinned[:2] == [0, 0] and pinned[2] > 0.01
