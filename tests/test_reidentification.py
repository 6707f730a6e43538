"""Chapter 02, faces, places and ratings; each check also rejects a broken twin."""

import math

import numpy as np
import opendp.prelude as dp
import pandas as pd
import pytest

from pprml import datasets
from pprml import reidentification as reid


@pytest.fixture(scope="module")
def faces():
    pictures, people = datasets.load("faces")
    return pictures.astype(float), people


# Faces: obscuring and naming


def test_split_takes_half_of_each_person():
    people = np.repeat([3, 7, 9], [4, 2, 5])
    gallery = reid.split_pictures(people, seed=0)
    assert [gallery[people == person].sum() for person in (3, 7, 9)] == [2, 1, 2]
    assert (gallery == reid.split_pictures(people, seed=0)).all()
    assert any((gallery != reid.split_pictures(people, seed=seed)).any() for seed in range(1, 5))


def check_mosaic(obscure):
    """A mosaic is constant within each cell, has the picture's cell means, and does not depend on more than those."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 11, 9)).astype(float)
    result = obscure(pictures, 4)
    for top in (0, 4, 8):
        for left in (0, 4, 8):
            part = (slice(None), slice(top, top + 4), slice(left, left + 4))
            assert np.ptp(result[part], axis=(1, 2)).max() == 0
            assert np.allclose(result[part].mean(axis=(1, 2)), pictures[part].mean(axis=(1, 2)))
    assert result.shape == pictures.shape


def test_mosaic_keeps_only_cell_means():
    check_mosaic(reid.naive_mosaic)


def mosaic_that_leaves_the_edge(pictures, cell):
    """Only whole cells are averaged: the right and lower edge stay as they were."""
    result = pictures.copy()
    rows, columns = (size // cell * cell for size in pictures.shape[1:])
    result[:, :rows, :columns] = reid.naive_mosaic(pictures[:, :rows, :columns], cell)
    return result


@pytest.mark.parametrize("broken", [lambda pictures, cell: pictures, mosaic_that_leaves_the_edge])
def test_mosaic_that_leaves_pixels_untouched_is_rejected(broken):
    with pytest.raises(AssertionError):
        check_mosaic(broken)


def test_attack_names_real_faces_and_no_strangers(faces):
    pictures, people = faces
    own = reid.split_pictures(people, seed=0)
    named = reid.attack_faces(pictures[own], people[own], pictures[~own])
    assert np.mean(named == people[~own]) > 0.85
    shuffled = np.random.default_rng(1).permutation(people[own])
    # Names dealt at random: about 5 of 200 by luck. The gallery's pictures of one person share luck, hence a wide bound.
    assert np.mean(reid.attack_faces(pictures[own], shuffled, pictures[~own]) == people[~own]) < 0.15


def test_a_mosaic_does_not_stop_an_attacker_who_makes_one(faces):
    pictures, people = faces
    own, mosaic = reid.split_pictures(people, seed=0), reid.naive_mosaic(pictures)
    assert np.mean(reid.attack_faces(mosaic[own], people[own], mosaic[~own]) == people[~own]) > 0.85


# Faces: k-same


def check_groups_of_k(average, pictures, k):
    """Every released picture is shared by k or more, and is the average of that many originals."""
    released = average(pictures, k)
    _, group, size = np.unique(
        released.reshape(len(released), -1), axis=0, return_inverse=True, return_counts=True
    )
    assert size.min() >= k and size.max() < 2 * k
    for number in range(len(size)):
        members = group.ravel() == number
        assert np.allclose(released[members][0], pictures[members].mean(axis=0))


@pytest.mark.parametrize(("count", "k"), [(12, 3), (13, 5), (7, 7), (40, 2)])
def test_k_same_makes_groups_of_k(count, k):
    check_groups_of_k(reid.average_k, np.random.default_rng(0).random((count, 6, 5)), k)


def average_and_drop_the_rest(pictures, k):
    """The remainder becomes a group of its own, however small."""
    whole = len(pictures) // k * k
    return np.concatenate([reid.average_k(pictures[:whole], k), pictures[whole:]])


def average_neighbours(pictures, k):
    """Each picture is averaged with its own nearest ones: no two results need be the same."""
    flat = pictures.reshape(len(pictures), -1)
    near = np.argsort(((flat[:, None] - flat) ** 2).sum(axis=2), axis=1)[:, :k]
    return flat[near].mean(axis=1).reshape(pictures.shape)


@pytest.mark.parametrize("broken", [lambda p, k: p, average_and_drop_the_rest, average_neighbours])
def test_averages_that_are_not_shared_by_k_are_rejected(broken):
    with pytest.raises(AssertionError):
        check_groups_of_k(broken, np.random.default_rng(0).random((13, 6, 5)), 4)


@pytest.mark.parametrize("k", [2, 5, 8])
def test_k_same_bounds_any_attacker_on_one_picture(faces, k):
    pictures, people = faces
    own = reid.split_pictures(people, seed=0)
    one = pictures[~own][np.unique(people[~own], return_index=True)[1]]
    released = reid.average_k(one, k)
    # The strongest attacker there is: his gallery holds the very pictures that were averaged.
    named = reid.attack_faces(one, np.arange(40), released)
    assert np.mean(named == np.arange(40)) <= 1 / k
    assert np.mean(reid.attack_faces(one, np.arange(40), one) == np.arange(40)) == 1


# Faces: the noisy mosaic


def check_promised_noise(release, epsilon, cell=4):
    """The noise on each cell is Laplace with the scale that the whole picture's sensitivity asks for.

    A mid-grey picture and an epsilon so large that nothing is cut. The mean of |noise| over n = 3,000 cells has the standard
    error scale / sqrt(n); five of them fail a correct mechanism once in 1.7 million runs. Half the noise is 27 away.
    """
    pictures = np.full((500, 8, 12), 128.0)
    released, guarantee = release(pictures, epsilon, cell)
    cells = reid.cell_means(released, cell) - 128
    scale = cells[0].size * 255 / epsilon
    assert abs(np.abs(cells).mean() - scale) < 5 * scale / np.sqrt(cells.size)
    assert guarantee.epsilon == pytest.approx(epsilon) and guarantee.delta == 0
    assert (guarantee.unit, guarantee.adjacency) == ("record", "replace")


def test_noisy_mosaic_has_the_noise_it_promises():
    check_promised_noise(reid.release_mosaic, 100)


def with_scale(factor):
    def release(pictures, epsilon, cell):
        return reid.release_mosaic(pictures, epsilon * factor, cell)[0], reid.release_mosaic(
            pictures, epsilon, cell
        )[1]

    return release


@pytest.mark.parametrize("factor", [2, 6])
def test_half_the_noise_or_the_sensitivity_of_one_cell_is_rejected(factor):
    # Six cells: an epsilon six times as large is the noise of somebody who took the sensitivity of one cell for the whole.
    with pytest.raises(AssertionError):
        check_promised_noise(with_scale(factor), 100)


def test_a_picture_can_move_the_cells_by_the_sensitivity_and_no_more():
    black, white = np.zeros((1, 10, 9)), np.full((1, 10, 9), 255.0)
    moved = np.abs(reid.cell_means(white, 4) - reid.cell_means(black, 4)).sum()
    assert moved == 9 * 255
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 50, 10, 9)).astype(float)
    gaps = np.abs(np.rint(reid.cell_means(first, 4)) - np.rint(reid.cell_means(second, 4))).sum(axis=(1, 2))
    assert gaps.max() <= moved


def test_opendp_agrees_about_epsilon():
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l1_distance(T=int)
    _, guarantee = reid.release_mosaic(np.full((1, 8, 12), 128.0), 3.0, 4)
    assert dp.m.make_laplace(*space, scale=6 * 255 / 3.0).map(6 * 255) == pytest.approx(guarantee.epsilon)


def test_released_values_are_grey_levels_and_fresh():
    pictures = np.full((20, 8, 12), 250.0)
    first, _ = reid.release_mosaic(pictures, 10, 4)
    second, _ = reid.release_mosaic(pictures, 10, 4)
    assert first.min() >= 0 and first.max() <= 255 and first.shape == pictures.shape
    assert (first != second).any()


# Places


@pytest.fixture(scope="module")
def traces():
    return reid.simulate_traces(people=1_500, antennas=200, days=20, seed=0)


def unicity_by_hand(person, place, hour, points, sample, seed):
    """The definition, with sets and no sorting, on the same draws."""
    everybody = {}
    for who, *point in zip(person, place, hour, strict=True):
        everybody.setdefault(who, set()).add(tuple(map(int, point)))
    rng = np.random.default_rng(seed)
    eligible = np.array(sorted(who for who, known in everybody.items() if len(known) >= points))
    alone = []
    for target in rng.permutation(eligible)[:sample]:
        known = [
            sorted(everybody[target])[i] for i in rng.choice(len(everybody[target]), points, replace=False)
        ]
        alone.append(
            [sum(set(known[:n]) <= trace for trace in everybody.values()) == 1 for n in range(1, points + 1)]
        )
    return np.mean(alone, axis=0)


def check_unicity(measure, traces):
    region = reid.merge_antennas(traces.positions, 16)[traces.antenna]
    for place, hour in [(traces.antenna, traces.hour), (region, traces.hour // 24)]:
        expected = unicity_by_hand(traces.person, place, hour, 4, 60, 1)
        assert measure(traces.person, place, hour, points=4, sample=60, seed=1) == pytest.approx(expected)


def test_unicity_is_the_definition(traces):
    check_unicity(reid.places_unicity, traces)


def test_unicity_that_counts_ties_as_unique_is_rejected(traces, monkeypatch):
    def ties(groups):
        return [len(set.intersection(*map(set, groups[: n + 1]))) <= 2 for n in range(len(groups))]

    monkeypatch.setattr(reid, "_alone_after", ties)
    with pytest.raises(AssertionError):
        check_unicity(reid.places_unicity, traces)


def test_unicity_that_counts_calls_and_not_points_is_rejected(traces):
    def repeated(person, place, hour, **kwargs):
        # A call that coarsening made equal to another counts as a point of its own.
        return reid.places_unicity(person, place * 10_000 + np.arange(len(person)) % 10_000, hour, **kwargs)

    with pytest.raises(AssertionError):
        check_unicity(repeated, traces)


def test_unicity_grows_with_points_and_falls_with_coarseness(traces):
    fine = reid.places_unicity(traces.person, traces.antenna, traces.hour, points=5)
    region = reid.merge_antennas(traces.positions, 16)[traces.antenna]
    coarse = reid.places_unicity(traces.person, region, traces.hour // 24, points=5)
    assert (np.diff(fine) >= 0).all() and (np.diff(coarse) >= 0).all()
    assert (coarse <= fine).all() and coarse[3] < fine[3] - 0.1


def test_one_place_and_twins():
    # 0 and 1 share all points, 2 has one of its own.
    person, place, hour = [0, 0, 1, 1, 2, 2], [5, 6, 5, 6, 5, 7], [1, 2, 1, 2, 1, 3]
    assert reid.places_unicity(person, place, hour, points=2)[1] == pytest.approx(1 / 3)


def test_regions_are_equal_and_compact():
    positions = np.random.default_rng(0).random((1_000, 2)) * 200
    region = reid.merge_antennas(positions, 64)
    assert np.bincount(region).min() >= 15 and np.bincount(region).max() <= 16
    spread = np.mean([positions[region == number].std(axis=0).mean() for number in range(64)])
    by_index = np.mean([positions[i : i + 16].std(axis=0).mean() for i in range(0, 992, 16)])
    # Merging by index would give regions as wide as the country.
    assert spread < by_index / 4
    assert (reid.merge_antennas(positions, 1) == 0).all()


def test_traces_explore_and_return(traces):
    assert traces.hour.max() == 20 * 24 - 1 and traces.antenna.max() < 200
    calls = np.bincount(traces.person)
    # Mean 3.8 calls a day, a log-normal share cut at 0.9 an hour; 20 days.
    assert 3 < calls.mean() / 20 < 4
    busiest = pd.DataFrame({"who": traces.person, "where": traces.antenna}).groupby("who")["where"]
    favourite = busiest.agg(lambda where: where.value_counts(normalize=True).iloc[0])
    assert favourite.mean() > 0.2
    same = reid.simulate_traces(people=1_500, antennas=200, days=20, seed=0)
    assert (same.antenna == traces.antenna).all()


# Ratings


def table(*rows):
    return pd.DataFrame(rows, columns=["user", "film", "rating", "day"])


#: Users 1 and 2 rated the same film alike, a month apart; 3 gave it other stars.
THREE = table((1, 10, 4.0, 100), (2, 10, 4.0, 130), (3, 10, 1.0, 100))


def check_uses_stars_and_dates(measure):
    assert measure(THREE, points=1)[0] == 1
    assert measure(THREE, points=1, day_slack=30)[0] == pytest.approx(1 / 3)
    assert measure(THREE, points=1, rating_slack=3)[0] == pytest.approx(1 / 3)
    assert measure(THREE, points=1, rating_slack=math.inf, day_slack=math.inf)[0] == 0


def test_ratings_attack_uses_stars_and_dates():
    check_uses_stars_and_dates(reid.ratings_unicity)


@pytest.mark.parametrize("ignored", ["day_slack", "rating_slack"])
def test_ratings_attack_that_ignores_dates_or_stars_is_rejected(ignored):
    with pytest.raises(AssertionError):
        check_uses_stars_and_dates(
            lambda *args, **kw: reid.ratings_unicity(*args, **(kw | {ignored: math.inf}))
        )


def test_movielens_users_stand_out_and_less_without_dates():
    ratings = datasets.load("movielens")
    dated = reid.ratings_unicity(ratings, points=4)
    undated = reid.ratings_unicity(ratings, points=4, day_slack=math.inf)
    assert (np.diff(dated) > 0).all() and (undated < dated).all()
    assert dated[3] > 0.9 and undated[3] < 0.7


def crowd(users=60, films=30, each=25):
    rng = np.random.default_rng(0)
    seen = np.concatenate([rng.choice(films, each, replace=False) for _ in range(users)])
    return table(*((i // each, film, 3.0, 0) for i, film in enumerate(seen)))


def check_counts(release):
    """Noise of scale `most` / epsilon, and nobody counted more than `most` times.

    Mean |noise| over 2,000 films without ratings has standard error scale / sqrt(2,000): five fail once in 1.7 million runs.
    """
    ratings, films = crowd(), np.arange(2_030)
    counts, guarantee = release(ratings, "film", films, 2.0, 10)
    empty = counts[30:]
    assert abs(empty.abs().mean() - 5) < 5 * 5 / np.sqrt(len(empty))
    assert (guarantee.unit, guarantee.adjacency, guarantee.epsilon) == (
        "user",
        "add/remove",
        pytest.approx(2),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reid, "add_laplace", lambda values, scale: values)
        assert release(ratings, "film", films, 2.0, 10)[0].sum() == 60 * 10


def test_counts_are_clipped_and_noisy():
    check_counts(reid.release_counts)


@pytest.mark.parametrize(
    "broken",
    [
        lambda r, c, v, epsilon, most: reid.release_counts(r, c, v, epsilon, 2 * most),
        lambda r, c, v, epsilon, most: reid.release_counts(r, c, v, 2 * epsilon, most),
        lambda r, c, v, epsilon, most: reid.release_counts(r, c, v, epsilon * 10 / 9, most),
        lambda r, c, v, epsilon, most: reid.release_counts(r.assign(user=range(len(r))), c, v, epsilon, most),
    ],
    ids=["clips later", "half the noise", "nine tenths of the noise", "clips rows, not users"],
)
def test_counts_with_too_little_clipping_or_noise_are_rejected(broken):
    with pytest.raises(AssertionError):
        check_counts(broken)


def test_films_off_the_list_are_not_counted_and_stars_are(monkeypatch):
    monkeypatch.setattr(reid, "add_laplace", lambda values, scale: values)
    counts, _ = reid.release_counts(crowd(), "film", [0, 1, 999], 1)
    assert list(counts.index) == [0, 1, 999] and counts[999] == 0
    stars, _ = reid.release_counts(crowd(), "rating", [3.0, 4.0], 1, most=20)
    assert stars[3.0] == 60 * 20 and stars[4.0] == 0
    twice = pd.concat([crowd()] * 2)
    assert reid.release_counts(twice, "film", range(30), 1, most=25)[0].max() <= 60


# Bad input


PICTURE = np.full((2, 8, 8), 100.0)


@pytest.mark.parametrize(
    ("call", "fix"),
    [
        (lambda: reid.split_pictures([0, 0, 1], 0), "two or more"),
        (lambda: reid.cell_means(PICTURE[0], 4), "first axis"),
        (lambda: reid.cell_means(PICTURE * np.nan, 4), "finite"),
        (lambda: reid.cell_means(PICTURE, 9), "1 to 8"),
        (lambda: reid.cell_means(PICTURE, 0), "1 to 8"),
        (lambda: reid.attack_faces(PICTURE, [0], PICTURE), "one name"),
        (lambda: reid.attack_faces(PICTURE, [0, 1], PICTURE[:, :4]), "same height"),
        (lambda: reid.average_k(PICTURE, 1), "as they are"),
        (lambda: reid.average_k(PICTURE, 3), "2 to 2"),
        (lambda: reid.release_mosaic(PICTURE * 3, 1.0, 4), "0 to 255"),
        (lambda: reid.release_mosaic(PICTURE, 0, 4), "above 0"),
        (lambda: reid.release_mosaic(PICTURE, math.inf, 4), "finite"),
        (lambda: reid.release_mosaic(PICTURE, math.nan, 4), "above 0"),
        (lambda: reid.simulate_traces(people=1), "2 or more"),
        (lambda: reid.simulate_traces(calls_a_day=30), "at most 24"),
        (lambda: reid.merge_antennas(np.zeros((10, 2)), 3), "power of two"),
        (lambda: reid.merge_antennas(np.zeros((10, 2)), 16), "at most the 10"),
        (lambda: reid.places_unicity([0, 1], [0, 0], [0, 1], points=2), "ask for fewer"),
        (lambda: reid.places_unicity([0, 1], [0, 0], [0, 1], points=0), "1 or more"),
        (lambda: reid.places_unicity([0, np.nan], [0, 0], [0, 1], points=1), "drop missing"),
        (lambda: reid.places_unicity([0, None], [0, 0], [0, 1], points=1), "drop missing"),
        (lambda: reid.places_unicity([0, 1], [0, 0.5], [0, 1], points=1), "whole numbers"),
        (lambda: reid.places_unicity([0, 1], [0, 0], [0, -1], points=1), "0 or more"),
        (lambda: reid.places_unicity([0, 1], [0, 0], [0], points=1), "each call"),
        (lambda: reid.ratings_unicity(THREE.drop(columns="day")), "day"),
        (lambda: reid.ratings_unicity(THREE.assign(film=[10, None, 10]), points=1), "drop such rows"),
        (lambda: reid.ratings_unicity(THREE.assign(day=[1, np.nan, 1]), points=1), "drop such rows"),
        (lambda: reid.release_counts(THREE.assign(user=[1, None, 1]), "film", [10], 1), "drop such rows"),
        (lambda: reid.release_counts(THREE, "filme", [10], 1), "did you mean 'film'"),
        (lambda: reid.ratings_unicity(THREE, points=2), "ask for fewer"),
        (lambda: reid.ratings_unicity(THREE, points=1, day_slack=-1), "0 or more"),
        (lambda: reid.release_counts(THREE, "film", [10], 0), "above 0"),
        (lambda: reid.release_counts(THREE, "film", [10], 1, most=0), "1 or more"),
    ],
)
def test_bad_input_names_the_fix(call, fix):
    with pytest.raises(ValueError, match=fix):
        call()
