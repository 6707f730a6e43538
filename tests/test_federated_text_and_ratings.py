"""Chapter 08: text and ratings on phones, what updates tell, and words counted with a guarantee."""

import numpy as np
import psutil
import pytest
import tensorflow_federated as tff

from pprml import federated as fed
from pprml import federated_text_and_ratings as tr
from pprml.federated_text_and_ratings import _ratings

FILMS, ITEMS = np.arange(2, dtype=np.int32), np.zeros((3, 4), np.float32)
FRAME = {"user": [1] * 20 + [2] * 20, "film": [*range(20), *range(10, 30)], "rating": [1.0, 5.0] * 20}


@pytest.fixture(scope="module")
def ratings():
    import pandas as pd

    return tr.split_ratings(pd.DataFrame(FRAME), seed=0)


@pytest.fixture(scope="module")
def text():
    weights = tr.init_text_weights(0, hidden=16)
    return weights, tr.build_text_model(weights)


def test_text_keeps_its_symbols_and_frames_line_up():
    codes = tr.encode_text("Ab 1é")
    assert "".join(tr.SYMBOLS[code] for code in codes) == "ab 1"
    x, y = tr.frame_text(codes)
    assert x.shape == (4, tr.WIDTH) and (y == codes).all() and (x[1:, -1] == codes[:-1]).all()


def test_each_role_has_a_text_of_its_own_and_no_line_is_used_twice():
    import pandas as pd

    lines = [f"line {chr(97 + k)}" for k in range(20)]
    plays = pd.DataFrame({"play": "p", "role": ["A"] * 20 + ["B"], "line": [*lines, "alone"]})
    ((train, validation, test),) = tr.split_roles(plays)
    used = [part.splitlines() for part in (train, validation, test)]
    assert [len(part) for part in used] == [16, 2, 2] and sum(used, []) == lines


def test_longer_counts_know_more():
    train = tr.encode_text("abcabdabcabd" * 50)
    accuracy = [tr.measure_ngram_accuracy(train, train, order) for order in (1, 2, 3, 4)]
    # In the cycle a b c a b d, pairs know a and b's halves, and four symbols know everything but the start.
    assert accuracy[0] < 0.4 < accuracy[1] < accuracy[3] and accuracy[3] > 0.98


def test_federation_learns_and_its_update_tells_a_secret(context, text):
    weights, model = text
    process = tr.build_text_process(model, client_rate=0.5, server_rate=0)
    clients = [tr.encode_text("pin a is 4821\n" * 40), tr.encode_text("good my lord\n" * 40)]
    trained, _ = tr.train_text(process, clients, [[1]] * 5, weights, limit=0)
    sent, _ = tr.train_text(process, clients, [[0]] * 5, trained, limit=0)
    before, after = (tr.score_secrets(model, w, "pin a is ", "0123456789") for w in (trained, sent))
    assert (after > after[4821]).sum() < 20
    # Broken twin: a model that never saw the phone does not rank its pin so high (chance of the first 20: 0.2 %).
    assert (before > before[4821]).sum() > 20
    assert before.shape == (10_000,) and 0 < np.exp(before).sum() <= 1


def test_a_noisy_aggregator_is_used(context, text):
    weights, model = text
    factory = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(5.0, 1, 1.0)
    client = [tr.encode_text("good my lord\n" * 5)]
    runs = [
        tr.train_text(
            tr.build_text_process(model, 0.1, 0, factory if noisy else None), client, [[0]], weights
        )[0]
        for noisy in (True, False)
    ]
    moved = [np.linalg.norm(run[1] - weights[1]) for run in runs]
    # Noise of norm 5 sqrt(1,024) = 160; the update itself is below 2.
    assert moved[0] > 100 and moved[1] < 10


def test_an_update_tells_which_films_were_rated_and_how(context, ratings):
    items = tr.init_items(tr.sum_offsets(ratings), 3, seed=0)
    process = tr.build_ratings_process(items, item_rate=0.1)
    after, _ = tr.train_items(process, ratings.train[:1], [[0]], items)
    assert after.shape == items.shape
    films, stars = ratings.train[0]
    assert tr.score_guess(tr.attack_rated_films(after - items), films) == (1.0, 1.0)
    # Broken twin: noise in every row, and the same attack names everything.
    noisy = after - items + np.random.default_rng(0).normal(0, 1, items.shape)
    assert tr.score_guess(tr.attack_rated_films(noisy), films)[0] < 0.7
    assert np.mean(tr.attack_liked_films(after - items, films) == (stars > stars.mean())) > 0.8


def test_ratings_are_dealt_once_and_predicted(ratings):
    for part in range(2):
        dealt = np.concatenate([getattr(ratings, name)[part][0] for name in ("train", "validation", "test")])
        assert len(np.unique(dealt)) == 20
    truth = [stars for _, stars in ratings.test]
    assert tr.measure_rmse(truth, ratings.test) == 0
    assert tr.measure_rmse([stars + 2 for stars in truth], ratings.test) == 2
    means = tr.predict_user_mean(ratings, ratings.train)
    assert all(np.isclose(m, s.mean()).all() for m, (_, s) in zip(means, ratings.train, strict=True))
    # A film nobody has rated gets the public guess; of a film rated once, the one counts a sixth beside five of damping.
    ask = [(np.array([0, 29]), None)]
    one = ratings._replace(train=[(np.array([0]), np.array([5.0], np.float32))])
    np.testing.assert_allclose(tr.predict_item_mean(one, ask)[0], [3.5 + 1.5 / 6, 3.5])
    np.testing.assert_allclose(tr.predict_item_mean(one, ask, damping=0.1)[0], [3.5 + 1.5 / 1.1, 3.5])
    fitted = tr.fit_pooled(ratings, rank=2, penalty=0.1, sweeps=5, seed=0)(ratings.train)
    assert tr.measure_rmse(fitted, ratings.train) < 0.5 * tr.measure_rmse(means, ratings.train)


def test_regressions_solved_together_are_those_solved_one_by_one():
    rng = np.random.default_rng(0)
    x, y, group = rng.normal(size=(12, 3)), rng.normal(size=12), np.repeat([0, 2, 5], [1, 4, 7])
    together = _ratings._solve_each(x, y, group, penalty=0.5)
    alone = [_ratings._solve(x[group == one], y[group == one], 0.5) for one in (0, 2, 5)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    assert not np.allclose(_ratings._solve_each(x, y, group, penalty=5.0), alone)


def test_words_are_counted_once_a_phone(context):
    phones = [["lord", "king"], ["lord"], ["lord", "sword"]]
    assert tr.count_words(phones, capacity=50) == {"lord": 3, "king": 1, "sword": 1}
    assert tr.count_words(phones, at_least=2, capacity=50) == {"lord": 3}


def test_release_hides_a_word_of_one_phone():
    counts = {"common": 2000, "secret": 1}
    # A word of one phone passes with probability under 1e-8 a release: 200 releases fail this test once in 500,000 runs.
    told = [tr.release_words(counts, 8, epsilon=1.0, delta=1e-8) for _ in range(200)]
    assert all("secret" not in words and "common" in words for words, _ in told)
    guarantee = told[0][1]
    assert guarantee.epsilon == 1.0 and 0 < guarantee.delta <= 1e-8 and guarantee.unit == "user"
    assert "no second accountant" in str(guarantee) and "1 step," in str(guarantee)
    # Laplace noise of scale 8: standard deviation 11.3, measured on 200 draws to 15 %; four of its errors leave 8 to 15.
    assert 7 < np.std([words["common"] for words, _ in told]) < 17
    # Broken twin: a threshold of 5 for the same noise tells the secret in a third of the releases.
    noise = np.random.default_rng(0).laplace(0, 8, 200)
    assert np.mean(1 + noise >= 5) > 0.2


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: tr.build_text_process(tr.build_text_model(tr.init_text_weights(0)), batch_size=0),
            "1 or more",
        ),
        (lambda: tr.train_text(None, [np.zeros(0, np.int8)], [[0]], []), "leave it out"),
        (lambda: tr.train_text(None, [np.zeros(3, np.int8)], [[1]], []), "draw it again"),
        (lambda: tr.train_items(None, [(np.zeros(0), np.zeros(0))], [[0]], None), "leave it out"),
        (lambda: tr.train_items(None, [(np.zeros(1), np.zeros(1))], [[]], None), "draw it again"),
        (lambda: tr.train_items(None, [(FILMS, np.ones(3))], [[0]], ITEMS), "one rating a film"),
        (
            lambda: tr.train_items(None, [(FILMS[:, None], np.ones((2, 1)))], [[0]], ITEMS),
            "one rating a film",
        ),
        (lambda: tr.train_items(None, [(FILMS, np.array([3, np.nan]))], [[0]], ITEMS), "client 0: a rating"),
        (lambda: tr.train_items(None, [(FILMS + 2, np.ones(2))], [[0]], ITEMS), "outside 0 to 2"),
        (lambda: tr.train_items(None, [(FILMS - 1, np.ones(2))], [[0]], ITEMS), "outside 0 to 2"),
        (lambda: tr.score_secrets(None, None, "pin a is ", "abc"), "ten symbols"),
        (lambda: tr.count_words([]), "raise capacity"),
        (lambda: tr.count_words([["a", "b", "c"]], capacity=2), "raise capacity"),
        (lambda: tr.release_words({"a": 1}, 0, 1.0, 1e-5), "words_per_phone"),
    ],
)
def test_bad_input_is_refused_before_work(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_worker_survives_an_error():
    def find() -> set[int]:
        return {child.pid for child in psutil.Process().children() if child.name() == "worker_binary"}

    earlier = find()
    with pytest.raises(RuntimeError), fed.federated_context():
        assert find() - earlier
        raise RuntimeError
    assert not find() - earlier
