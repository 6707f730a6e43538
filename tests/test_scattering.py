"""Scattering features: what Kymatio computes, of one picture alone, kept whole or not at all."""

import numpy as np
import pytest

from pprml import scattering
from pprml.dp_sgd import PoissonBatches


@pytest.fixture(scope="module")
def pictures():
    """Blobs and bars of several strengths on black."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:28, :28]
    drawn = []
    for _ in range(12):
        across, down, turn = rng.uniform(8, 20), rng.uniform(8, 20), rng.uniform(0, np.pi)
        along = (rows - down) * np.cos(turn) + (columns - across) * np.sin(turn)
        bar = np.exp(-(along**2) / 8) * (np.hypot(rows - down, columns - across) < 9)
        drawn.append(np.round(rng.uniform(100, 255) * bar))
    return np.array(drawn, np.uint8)


@pytest.fixture(scope="module")
def coefficients(pictures, tmp_path_factory):
    return scattering.scatter(pictures, tmp_path_factory.mktemp("cache"))


def test_coefficients_are_those_of_kymatio(pictures, coefficients):
    from kymatio.numpy import Scattering2D

    expected = Scattering2D(2, (28, 28), L=8)(pictures.astype(np.float64) / 255)
    assert coefficients.shape == expected.shape == (12, 81, 7, 7)
    # Half precision keeps eleven bits.
    np.testing.assert_allclose(coefficients, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sides", [(8, 8), (28, 28), (12, 40)])
def test_the_shorter_way_is_kymatios_transform_to_the_last_bits(sides):
    """Noise, so that no frequency is empty; in single precision Kymatio itself is as far from its result in double."""
    from kymatio.numpy import Scattering2D

    pictures = np.random.default_rng(2).random((6, *sides), dtype=np.float32)
    kymatio, found = Scattering2D(2, sides, L=8), np.empty((6, 81, sides[0] // 4, sides[1] // 4), np.float32)
    scattering._Transform(sides).write(pictures, found)
    np.testing.assert_allclose(found, kymatio(pictures.astype(np.float64)), atol=2e-6)
    # The broken twin: a quarter of the spectrum's sum forgotten.
    assert np.abs(found[:, 17:] - kymatio(pictures)[:, 17:] / 4).max() > 1e-3


def test_parts_of_many_pictures_are_put_in_their_places(pictures, coefficients, tmp_path, monkeypatch):
    monkeypatch.setattr(scattering, "_PART", 5)
    np.testing.assert_array_equal(scattering.scatter(pictures, tmp_path), coefficients)


def normalize_over_pictures(coefficients):
    """The broken twin: means and scales of the data set, which private training would have to pay for."""
    flat = coefficients.reshape(len(coefficients), -1).astype(np.float32)
    return (flat - flat.mean(axis=0)) / np.sqrt(flat.var(axis=0) + 1e-5)


@pytest.mark.parametrize("floor", [None, 0.001])
def test_features_of_a_picture_do_not_depend_on_the_others(coefficients, floor):
    together = scattering.normalize_groups(coefficients, local_floor=floor)
    alone = np.vstack([scattering.normalize_groups(one[None], local_floor=floor) for one in coefficients])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    twin = np.vstack([normalize_over_pictures(one[None]) for one in coefficients])
    assert np.abs(normalize_over_pictures(coefficients) - twin).max() > 0.1


@pytest.mark.parametrize("floor", [None, 0.001])
def test_each_group_has_mean_zero_and_variance_one(coefficients, floor):
    features = scattering.normalize_groups(coefficients, groups=27, local_floor=floor)
    groups = features.reshape(12, 27, 3 * 49)
    assert features.dtype == np.float32
    assert np.abs(groups.mean(axis=2)).max() < 1e-4
    # Below one where a group holds next to nothing; never above, so that a row's length is bounded.
    assert groups.std(axis=2).max() < 1.001
    assert groups[:, 0].std(axis=1).min() > 0.9
    assert np.linalg.norm(features, axis=1).max() < 1.001 * np.sqrt(81 * 49)


def test_local_normalisation_forgets_the_strength_of_an_edge(tmp_path):
    """Two squares, one faint: without local normalisation their edges differ by the ratio of their strengths."""
    picture = np.zeros((1, 28, 28), np.uint8)
    picture[:, 4:10, 4:10], picture[:, 18:24, 18:24] = 250, 25
    coefficients = scattering.scatter(picture, tmp_path)
    lengths = {}
    for floor in (None, 0.001):
        oriented = scattering.normalize_groups(coefficients, 81, floor).reshape(81, 7, 7)[1:]
        first, second = oriented[:, 1:3, 1:3], oriented[:, 4:6, 4:6][:, ::-1, ::-1]
        lengths[floor] = np.ptp(first) / np.ptp(second)
    assert lengths[None] > 4
    assert lengths[0.001] < 2


def test_the_cache_is_used_and_a_damaged_one_is_not(pictures, tmp_path, monkeypatch, capsys):
    fresh = scattering.scatter(pictures, tmp_path)
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()

    def refuse(*_):
        raise AssertionError("computed although it was cached")

    with monkeypatch.context() as patch:
        patch.setattr(scattering, "_compute", refuse)
        np.testing.assert_array_equal(scattering.scatter(pictures, tmp_path), fresh)
    assert capsys.readouterr().err == ""
    for damaged in (sound[:-7], sound[:40] + bytes([sound[40] ^ 1]) + sound[41:], b""):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(scattering.scatter(pictures, tmp_path), fresh)
        assert "damaged" in capsys.readouterr().err
        assert path.read_bytes() == sound
    assert list(tmp_path.iterdir()) == [path]


def test_other_pictures_have_a_file_of_their_own(pictures, tmp_path):
    changed = pictures.copy()
    changed[0, 14, 14] ^= 255
    first, second = (scattering.scatter(each, tmp_path) for each in (pictures, changed))
    assert len(list(tmp_path.iterdir())) == 2
    assert not np.array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1:], second[1:])


def test_a_cache_that_cannot_be_written_costs_only_time(pictures, coefficients, tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not cached"):
        np.testing.assert_array_equal(scattering.scatter(pictures, tmp_path / "taken"), coefficients)


@pytest.mark.parametrize(
    "pictures, message",
    [
        (np.zeros((2, 28, 28)), "uint8"),
        (np.zeros((28, 28), np.uint8), "uint8"),
        (np.zeros((0, 28, 28), np.uint8), "uint8"),
        (np.zeros((2, 30, 28), np.uint8), "multiples of 4"),
        (np.zeros((2, 4, 4), np.uint8), "multiples of 4"),
    ],
)
def test_unfit_pictures_are_refused(pictures, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        scattering.scatter(pictures, tmp_path)


@pytest.mark.parametrize("options", [{"groups": 26}, {"local_floor": 0.0}, {"local_floor": np.nan}])
def test_unfit_normalisations_are_refused(coefficients, options):
    with pytest.raises(ValueError, match="divis|positive"):
        scattering.normalize_groups(coefficients, **options)


@pytest.fixture(scope="module")
def rows():
    """2,000 rows of length between 1 and 3, with a mean and one long direction."""
    rng = np.random.default_rng(1)
    rows = 0.3 * rng.normal(size=(2000, 30)) + 0.5
    rows[:, 3] += 2 * rng.normal(size=2000)
    return rows.astype(np.float32)


def scale(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def draw_two(seed=0, batch=2000):
    return PoissonBatches(records=2000, batch_size=batch, steps=2, seed=seed)


def test_whitening_centres_and_shortens_the_long_direction(rows):
    whitening = scattering.whiten_privately(rows, draw_two(), 1e-3)
    np.testing.assert_allclose(whitening.center, scale(rows).mean(axis=0), atol=1e-5)
    assert abs(whitening.directions[-1, 3]) > 0.95
    noisy = scattering.whiten_privately(rows, draw_two(), 20.0)
    assert len(noisy.factors) < 6 and noisy.factors[-1] < 0.6
    before, after = scale(scale(rows) - noisy.center), noisy.apply(rows, length=1.0)
    assert after.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(noisy.apply(rows), axis=1), 10, rtol=1e-5)
    assert after[:, 3].var() < 0.6 * before[:, 3].var()


@pytest.mark.parametrize("long", [4, 15, 40, 56])
def test_all_directions_that_stand_out_are_found_however_many(monkeypatch, long):
    """They are looked for in steps; a full decomposition finds the same, of which fifty at most are taken."""
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(4000, 60)) * np.where(np.arange(60) < long, np.linspace(20, 10, 60), 0.1)
    batches, seen = PoissonBatches(records=4000, batch_size=4000, steps=2, seed=0), []
    find = scattering.eigsh
    monkeypatch.setattr(scattering, "eigsh", lambda spread, **how: seen.append(spread) or find(spread, **how))
    whitening = scattering.whiten_privately(rows.astype(np.float32), batches, 0.1)
    values, vectors = np.linalg.eigh(seen[0].astype(np.float64))
    floor = np.sqrt(2 * 60) * 0.1 / 4000
    kept = values[-50:] > floor
    assert min(long, 50) <= kept.sum() == len(whitening.factors)
    np.testing.assert_allclose(whitening.factors, np.sqrt(floor / values[-50:][kept]), rtol=1e-3)
    same = np.abs(np.sum(whitening.directions * vectors[:, -50:].T[kept], axis=1))
    np.testing.assert_allclose(same, 1, atol=1e-2)


def capture_spread(monkeypatch, rows, batches, noise_multiplier):
    """Return the noisy sums that leave the records: the centre, and the matrix of which the directions are taken."""
    seen = []
    find = scattering.eigsh
    with monkeypatch.context() as patch:
        patch.setattr(scattering, "eigsh", lambda spread, **how: seen.append(spread) or find(spread, **how))
        whitening = scattering.whiten_privately(rows, batches, noise_multiplier)
    return whitening.center, seen[0]


class Without(PoissonBatches):
    """The same batches and noise, with a record left out of one batch, or with nobody in any."""

    gone = (0, 0)

    def draw(self, step):
        drawn = super().draw(step)
        if self.gone is None:
            return drawn[:0]
        return np.setdiff1d(drawn, self.gone[1]) if step == self.gone[0] else drawn


@pytest.mark.parametrize("step", [0, 1])
def test_one_record_moves_each_sum_by_at_most_one(monkeypatch, rows, step):
    """The record is a thousand times as long as the others, and in one of the two batches alone, so that the other sum stays."""
    batches = draw_two(seed=3, batch=1000)
    record = np.setdiff1d(batches.draw(step), batches.draw(1 - step))[0]
    monkeypatch.setattr(Without, "gone", (step, record))
    loud = rows.copy()
    loud[record] *= 1000
    with_it = capture_spread(monkeypatch, loud, batches, 0.5)[step]
    without = capture_spread(monkeypatch, loud, Without(2000, 1000, 2, 3), 0.5)[step]
    moved = 1000 * np.linalg.norm(with_it - without)
    assert 0.99 < moved < 1.01
    # The broken twin: rows that are not brought to one length.
    assert np.linalg.norm(loud[record]) > 100


def test_the_noise_is_what_the_accountant_assumes(monkeypatch, rows):
    """Of 600 and 8,700 numbers: 15 % off is five standard errors and more, and half the noise would be caught."""
    monkeypatch.setattr(Without, "gone", None)
    released = [capture_spread(monkeypatch, rows, Without(2000, 1000, 2, seed), 3.0) for seed in range(20)]
    centers = np.array([center for center, _ in released])
    # Averaged with the transpose, hence the root of two.
    spreads = np.sqrt(2) * np.array([spread[np.triu_indices(30, 1)] for _, spread in released])
    for sums in (centers, spreads):
        assert abs(1000 * sums.std() / 3.0 - 1) < 0.15
    # Neither repeats within a release nor from one seed to the next.
    # (noise used twice would put number k of the centre at row 0, column k of the spread: a correlation of 0.7).
    assert abs(np.corrcoef(centers[:, 1:].ravel(), spreads[:, :29].ravel())[0, 1]) < 0.25
    assert abs(np.corrcoef(centers[0], centers[1])[0, 1]) < 0.8


@pytest.mark.parametrize(
    "batches, noise_multiplier, message",
    [
        (PoissonBatches(2000, 100, 3, 0), 1.0, "two batches"),
        (PoissonBatches(1999, 100, 2, 0), 1.0, "two batches"),
        (PoissonBatches(2000, 100, 2, 0), 0.0, "positive"),
        (PoissonBatches(2000, 100, 2, 0), float("nan"), "positive"),
    ],
)
def test_unfit_whitenings_are_refused(rows, batches, noise_multiplier, message):
    with pytest.raises(ValueError, match=message):
        scattering.whiten_privately(rows, batches, noise_multiplier)
