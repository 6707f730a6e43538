"""Chapter 01: linkage, uniqueness, phone tokens and k-anonymity; each check also rejects a broken twin."""

import hashlib
import hmac
import secrets

import numpy as np
import pandas as pd
import pytest

from pprml import datasets
from pprml import deidentification as deid

KEY = secrets.token_bytes(32)


# Linkage


@pytest.fixture
def files():
    """Six people; 2 and 3 share their key, 4's key is missing, 5's has a typing error."""
    born = ["1950", "1951", "1960", "1960", None, "1970"]
    left = pd.DataFrame({"born": born, "zip": ["1", "2", "3", "3", "4", "5"]}, index=list("abcdef"))
    right = left.set_axis(list("ABCDEF")).assign(born=[*born[:5], "1971"])
    truth = pd.MultiIndex.from_arrays([list("abcdef"), list("ABCDEF")])
    return left, right.sample(frac=1, random_state=0), truth


def check_no_ambiguous_pair(attack, files):
    left, right, truth = files
    pairs = attack(left, right, ["born", "zip"])
    assert set(pairs) == {("a", "A"), ("b", "B")}
    assert deid.score_linkage(pairs, truth) == (1.0, pytest.approx(2 / 6))


def test_linkage_claims_only_what_is_certain(files):
    check_no_ambiguous_pair(deid.attack_linkage, files)


def test_linkage_that_counts_ambiguous_or_missing_matches_is_rejected(files):
    def broken(left, right, on):
        rows = left.rename_axis("left").reset_index().merge(right.rename_axis("right").reset_index(), on=on)
        return pd.MultiIndex.from_frame(rows[["left", "right"]])

    with pytest.raises(AssertionError):
        check_no_ambiguous_pair(broken, files)


def test_score_counts_false_matches(files):
    wrong = pd.MultiIndex.from_arrays([["a", "b"], ["A", "C"]])
    assert deid.score_linkage(wrong, files[2]) == (0.5, pytest.approx(1 / 6))
    assert deid.score_linkage(wrong[:0], files[2]) == (0, 0)


def test_febrl_links_without_names_and_not_when_shuffled():
    a, b, truth = datasets.load("febrl4")
    found = deid.score_linkage(deid.attack_linkage(a, b, ["date_of_birth", "postcode"]), truth)
    assert found.precision > 0.99 and 0.7 < found.recall < 0.8
    columns = ["date_of_birth", "postcode"]
    shuffled = b[columns].sample(frac=1, random_state=0).set_axis(b.index)
    null = deid.score_linkage(deid.attack_linkage(a, shuffled, columns), truth)
    # One lucky pair in 5,000 is expected by chance; more than 8 has probability 1e-6.
    assert null.recall <= 8 / 5000


# Uniqueness


SIZES, SHARES, CELLS = [40, 150, 600, 2000], np.array([0.5, 0.3, 0.15, 0.05]), 200


def simulate_share(at_most, runs=300):
    """Deal people to cells, count those in small groups; return the mean share and its standard error."""
    generator = np.random.default_rng(5)
    shares = []
    for _ in range(runs):
        hits = 0
        for size in SIZES:
            kinds = generator.choice(len(SHARES), size=size, p=SHARES)
            cells = kinds * CELLS + generator.integers(CELLS, size=size)
            counts = np.bincount(cells)
            hits += counts[counts <= at_most].sum()
        shares.append(hits / sum(SIZES))
    return np.mean(shares), np.std(shares, ddof=1) / np.sqrt(runs)


@pytest.mark.parametrize("at_most", [1, 5])
def test_closed_form_agrees_with_a_simulation(at_most):
    mean, error = simulate_share(at_most)
    # Four standard errors: a correct formula fails for 6 in 100,000 seeds.
    assert abs(deid.share_in_small_groups(SIZES, SHARES, CELLS, at_most) - mean) < 4 * error


def test_the_mean_zip_size_fails_the_same_simulation():
    mean, error = simulate_share(1)
    mean_size = [round(np.mean(SIZES))]
    assert abs(deid.share_in_small_groups(mean_size, SHARES, CELLS) - mean) > 20 * error


def test_uniqueness_by_hand():
    # Two people, one cell of probability 1/4 each: the other one is elsewhere with probability 3/4.
    assert deid.share_in_small_groups([2], [0.25] * 4) == pytest.approx(0.75)
    assert deid.share_in_small_groups([1], [1.0]) == 1
    assert deid.share_in_small_groups([3], [1.0]) == 0
    assert deid.share_in_small_groups([3], [1.0], at_most=3) == 1
    # People count, not ZIPs: one alone and two who share everything.
    assert deid.share_in_small_groups([1, 2], [1.0]) == pytest.approx(1 / 3)


def test_us_shares_order_as_they_must():
    shares = deid.us_age_sex_shares()
    assert shares.shape == (202,) and shares.sum() == pytest.approx(1)
    year, month, day = (deid.us_unique_share(name) for name in ("year", "month", "day"))
    assert year < month < day < deid.us_unique_share(mean_zip=True)


# Phone numbers


def test_numbers_are_distinct_seeded_and_ten_digits():
    numbers = deid.make_phone_numbers(500, seed=1)
    assert len(set(numbers)) == 500
    assert all(len(n) == 10 and n.startswith("555") and n[3] in "23456789" for n in numbers)
    assert numbers == deid.make_phone_numbers(500, seed=1) != deid.make_phone_numbers(500, seed=2)


def check_token_resists_enumeration(token_of):
    """Enumerate one exchange as an attacker without the key, who tries no key and the empty key."""
    numbers = [f"555234{line:04d}" for line in range(0, 10_000, 1000)]
    tokens = {token_of(number): number for number in numbers}
    assert not deid.attack_hash(tokens, "555", exchanges=range(234, 235))
    tried = {hmac.digest(b"", b"555234%04d" % line, "sha256").hex() for line in range(10_000)}
    assert not tried & set(tokens)


def test_keyed_tokens_resist_enumeration():
    check_token_resists_enumeration(lambda number: deid.pseudonymize(number, KEY))


@pytest.mark.parametrize(
    "broken",
    [
        deid.naive_hash,
        lambda number: hmac.digest(b"", number.encode(), "sha256").hex(),
        lambda number: hashlib.sha256(b"" + number.encode()).hexdigest(),
    ],
    ids=["no key", "empty hmac key", "empty prefix"],
)
def test_tokens_without_a_real_key_are_rejected(broken):
    with pytest.raises(AssertionError):
        check_token_resists_enumeration(broken)


def test_hash_attack_returns_the_right_numbers_and_nothing_else():
    numbers = ["5552000000", "5552009999", "5552010000", "5559999999"]
    hashed = [deid.naive_hash(number) for number in numbers]
    found = deid.attack_hash(hashed, "555", exchanges=range(200, 202))
    assert found == dict(zip(hashed[:3], numbers[:3], strict=True))
    # Another area code: nothing to find.
    assert deid.attack_hash(hashed, "556", exchanges=range(200, 201)) == {}


def test_same_key_links_and_other_key_does_not():
    number, other = "5552345678", secrets.token_bytes(32)
    assert deid.pseudonymize(number, KEY) == deid.pseudonymize(number, KEY)
    assert deid.pseudonymize(number, KEY) != deid.pseudonymize(number, other)
    assert deid.pseudonymize(number, KEY) == hmac.new(KEY, number.encode(), "sha256").hexdigest()


# k-anonymity


@pytest.fixture
def table():
    """Ten made-up rows: a group of 4, of 3, of 2 (city missing) and of 1 (city missing)."""
    return pd.DataFrame(
        {
            "age": [31] * 4 + [42] * 3 + [53] * 2 + [64],
            "city": ["x"] * 4 + ["y"] * 3 + [None] * 3,
            "ill": [1, 1, 1, 1, 0, 1, 0, 0, 0, 1],
        }
    )


KNOWN = ["age", "city"]
LEVELS = {
    "age": [lambda column: column // 20 * 20, lambda column: column * 0],
    "city": [lambda column: pd.Series("*", index=column.index)],
}


def check_group_sizes(sizes_of, table):
    sizes = sizes_of(table, KNOWN)
    assert sizes.to_list() == [4] * 4 + [3] * 3 + [2] * 2 + [1]


def test_missing_values_form_their_own_group(table):
    check_group_sizes(deid.group_sizes, table)
    assert deid.k_of(table, KNOWN) == 1
    assert deid.uniqueness(table, KNOWN) == 0.1


def test_a_k_check_that_drops_missing_values_is_rejected(table):
    def broken(frame, columns):
        return frame.groupby(columns, dropna=True)[columns[0]].transform("size")

    # The twin sees a table of k = 3, where one person is alone.
    assert broken(table, KNOWN).min() == 3
    with pytest.raises(AssertionError):
        check_group_sizes(broken, table)


def test_reidentification_rate_is_what_a_guessing_attacker_gets(table):
    rate = deid.reidentification_rate(table, KNOWN)
    assert rate == pytest.approx(4 / 10)  # groups / rows
    generator, right, runs = np.random.default_rng(0), 0, 20_000
    members = table.groupby(KNOWN, dropna=False).indices
    group_of = {row: rows for rows in members.values() for row in rows}
    for target in generator.integers(len(table), size=runs):
        right += generator.choice(group_of[target]) == target
    # Four standard errors: fails for 6 in 100,000 seeds.
    assert abs(right / runs - rate) < 4 * np.sqrt(rate * (1 - rate) / runs)


def test_homogeneous_share_by_hand(table):
    # The groups of 4 (all ill), of 2 (both well) and of 1; the group of 3 is mixed.
    assert deid.homogeneous_share(table, KNOWN, "ill") == pytest.approx(0.7)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("max_suppressed", [0, 0.1, 0.3])
def test_release_keeps_its_promise(table, k, max_suppressed):
    before = table.copy()
    release = deid.anonymize_k(table, KNOWN, k, LEVELS, max_suppressed)
    assert deid.k_of(release.frame, KNOWN) >= k
    assert len(release.suppressed) <= max_suppressed * len(table)
    assert sorted([*release.frame.index, *release.suppressed]) == list(table.index)
    # What is not a quasi-identifier is untouched, and so is the caller's table.
    pd.testing.assert_series_equal(release.frame["ill"], table["ill"].loc[release.frame.index])
    pd.testing.assert_frame_equal(table, before)
    # The published rows are the original rows at the levels stated.
    coarse = deid.generalize(table, release.levels, LEVELS).loc[release.frame.index]
    pd.testing.assert_frame_equal(coarse, release.frame)


def test_k_of_one_changes_nothing(table):
    release = deid.anonymize_k(table, KNOWN, 1, LEVELS)
    pd.testing.assert_frame_equal(release.frame, table)
    assert release.levels == {"age": 0, "city": 0} and len(release.suppressed) == 0


def test_generalize_takes_each_column_to_its_own_level(table):
    coarse = deid.generalize(table, {"age": 1, "city": 0}, LEVELS)
    assert coarse["age"].to_list() == [20] * 4 + [40] * 5 + [60]
    assert coarse["city"].equals(table["city"])
    assert set(deid.generalize(table, {"age": 2}, LEVELS)["age"]) == {0}


def test_the_column_with_most_values_is_coarsened_first(table):
    wide = table.assign(city=list("abcdefghij"))  # ten cities, four ages
    release = deid.anonymize_k(wide, KNOWN, 2, LEVELS, max_suppressed=0.1)
    assert release.levels == {"age": 0, "city": 1}


def test_suppression_alone_where_it_suffices(table):
    release = deid.anonymize_k(table, KNOWN, 2, LEVELS, max_suppressed=0.1)
    assert release.levels == {"age": 0, "city": 0} and list(release.suppressed) == [9]


# Bad input: each error names the fix


EMPTY = pd.DataFrame({"age": [], "city": [], "ill": []})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: deid.group_sizes(EMPTY, KNOWN), "at least one row"),
        (lambda t: deid.attack_linkage(EMPTY, t, ["age"]), "at least one row"),
        (lambda t: deid.anonymize_k(EMPTY, KNOWN, 2, LEVELS), "at least one row"),
        (lambda t: deid.group_sizes(t, []), "at least one quasi-identifier"),
        (lambda t: deid.k_of(t, ["agee"]), "did you mean 'age'"),
        (lambda t: deid.homogeneous_share(t, KNOWN, "il"), "did you mean 'ill'"),
        (lambda t: deid.attack_linkage(t, t, ["cty"]), "did you mean 'city'"),
        (lambda t: deid.anonymize_k(t, ["age", "citty"], 2, LEVELS), "did you mean 'city'"),
        (lambda t: deid.anonymize_k(t, KNOWN, 0, LEVELS), "k must be 1 to 10"),
        (lambda t: deid.anonymize_k(t, KNOWN, 11, LEVELS), "k must be 1 to 10"),
        (lambda t: deid.anonymize_k(t, [*KNOWN, "ill"], 2, LEVELS), "no entry for 'ill'"),
        (lambda t: deid.anonymize_k(t, KNOWN, 2, LEVELS, max_suppressed=1), "max_suppressed"),
        (lambda t: deid.anonymize_k(t, KNOWN, 9, {"age": [], "city": []}, 0), "add a level"),
        (lambda t: deid.score_linkage(pd.MultiIndex.from_arrays([[], []]), t.index[:0]), "true pairs"),
        (lambda t: deid.share_in_small_groups([10, np.nan], [1.0]), "drop missing and empty"),
        (lambda t: deid.share_in_small_groups([10, 0], [1.0]), "drop missing and empty"),
        (lambda t: deid.share_in_small_groups([], [1.0]), "drop missing and empty"),
        (lambda t: deid.share_in_small_groups([10], [2.0, 3.0]), "divide the counts"),
        (lambda t: deid.share_in_small_groups([10], [1.0], at_most=0), "at_most"),
        (lambda t: deid.us_unique_share("days"), "did you mean 'day'"),
        (lambda t: deid.naive_hash("555-234-5678"), "ten digits"),
        (lambda t: deid.naive_hash("15552345678"), "ten digits"),
        (lambda t: deid.naive_hash("٥٥٥٢٣٤٥٦٧٨"), "ten digits"),
        (lambda t: deid.pseudonymize("555234567", KEY), "ten digits"),
        (lambda t: deid.pseudonymize("5552345678", b""), "secrets.token_bytes"),
        (lambda t: deid.pseudonymize("5552345678", b"1234"), "secrets.token_bytes"),
        (lambda t: deid.pseudonymize("5552345678", "a text that is long enough"), "secrets.token_bytes"),
        (lambda t: deid.attack_hash([], "55"), "three digits"),
        (lambda t: deid.make_phone_numbers(0, seed=0), "1 to 8,000,000"),
        (lambda t: deid.make_phone_numbers(5, seed=0, area_code="5555"), "three digits"),
    ],
)
def test_bad_input_names_the_fix(table, call, message):
    with pytest.raises(ValueError, match=message):
        call(table)
