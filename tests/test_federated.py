"""Chapter 06: who has which record, what a round computes, what is left behind, and what an update shows."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from pprml import federated
from pprml.federated import _context

SIZES = (4, 3)
RATE = 0.5


def make_clients(sizes, seed=0):
    """Three blobs in four dimensions, and each client leans to a blob of its own."""
    rng = np.random.default_rng(seed)
    clients = []
    for number, size in enumerate(sizes):
        y = np.where(rng.random(size) < 0.6, number % 3, rng.integers(0, 3, size)).astype(np.int32)
        x = (np.eye(3, 4)[y] * 2 + rng.normal(0, 0.5, (size, 4))).astype(np.float32)
        clients.append((x, y))
    return clients


def hand_gradient(weights, x, y):
    kernel, bias = weights
    odds = np.exp(x @ kernel + bias)
    error = odds / odds.sum(1, keepdims=True) - np.eye(3)[y]
    return [x.T @ error / len(x), error.mean(0)]


def hand_pass(weights, x, y, batch_size, pull=0.0):
    first = weights
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        slopes = hand_gradient(weights, x[rows], y[rows])
        steps = zip(weights, slopes, first, strict=True)
        weights = [w - RATE * (slope + pull * (w - w0)) for w, slope, w0 in steps]
    return weights


def average(arrays, sizes):
    return [np.average(layer, axis=0, weights=sizes) for layer in zip(*arrays, strict=True)]


def assert_same_weights(weights, expected):
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def assert_partition(parts, num_records):
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num_records))


def assert_no_worker():
    assert not [child for child in psutil.Process().children() if child.name() == "worker_binary"]


@pytest.fixture(scope="module")
def weights():
    return federated.init_mlp(SIZES, seed=1)


@pytest.fixture(scope="module")
def model(weights):
    return federated.build_mlp(weights)


@pytest.fixture(scope="module")
def fedavg(model):
    return federated.build_fedavg(model, RATE, batch_size=8, dtype=np.float32)


# --- partitions and schedules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 0.01, 0.1, 1.0, 100.0])
def test_every_record_is_dealt_once_and_sizes_are_even(alpha):
    labels = np.random.default_rng(0).integers(0, 10, 1003)
    parts = federated.partition_records(labels, 20, alpha, seed=3)
    assert_partition(parts, 1003)
    assert {len(part) for part in parts} == {50, 51}


def test_a_partition_that_loses_or_repeats_a_record_is_rejected():
    parts = federated.partition_records(np.zeros(100, int), 5, None, seed=0)
    lost = [parts[0][1:], *parts[1:]]
    repeated = [np.append(parts[0][1:], parts[1][0]), *parts[1:]]
    for broken in (lost, repeated):
        with pytest.raises(AssertionError):
            assert_partition(broken, 100)


def test_alpha_sets_how_far_the_label_mixes_lie_apart():
    labels = np.repeat(np.arange(10), 600)

    def largest_share(alpha):
        parts = federated.partition_records(labels, 50, alpha, seed=0)
        return np.mean([np.bincount(labels[part]).max() / len(part) for part in parts])

    # A client of 120 records of a random deal has 0.16 of its commonest label; a skewed one well over half.
    assert largest_share(0.1) > 0.5 > 0.25 > largest_share(None)
    assert largest_share(0.1) > largest_share(1.0) > largest_share(1000.0)
    assert abs(largest_share(1000.0) - largest_share(None)) < 0.03


def test_the_mixes_centre_on_the_labels_of_all_records():
    labels = np.repeat([0, 1], [900, 100])
    parts = federated.partition_records(labels, 10, 1000.0, seed=0)
    assert max(labels[part].mean() for part in parts) < 0.25


@pytest.mark.parametrize("alpha", [None, 0.1])
def test_a_partition_is_fixed_by_its_seed(alpha):
    labels = np.repeat(np.arange(10), 30)
    deals = [federated.partition_records(labels, 10, alpha, seed=seed) for seed in (0, 0, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(deals[0], deals[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(deals[0], deals[2], strict=True))


@pytest.mark.parametrize(
    ("num_clients", "alpha", "fix"),
    [
        (0, None, "give 1 to 100"),
        (-1, None, "give 1 to 100"),
        (101, 0.1, "give 1 to 100"),
        (10, 0.0, "finite number above 0"),
        (10, -1.0, "finite number above 0"),
        (10, float("nan"), "finite number above 0"),
        (10, float("inf"), "finite number above 0"),
    ],
)
def test_a_partition_that_cannot_be_is_refused(num_clients, alpha, fix):
    with pytest.raises(ValueError, match=fix):
        federated.partition_records(np.zeros(100, int), num_clients, alpha, seed=0)


def test_a_schedule_repeats_no_client_in_a_round_and_reaches_all():
    schedule = federated.sample_clients(20, 5, 400, seed=0)
    assert schedule.shape == (400, 5)
    assert all(len(set(chosen)) == 5 for chosen in schedule)
    # Each client is chosen 100 times on average, sd 8.7: six deviations, under 1 in 10^7 for all twenty if it were random.
    assert np.abs(np.bincount(schedule.ravel(), minlength=20) - 100).max() < 52
    np.testing.assert_array_equal(schedule, federated.sample_clients(20, 5, 400, seed=0))


@pytest.mark.parametrize(
    ("clients", "a_round", "rounds"), [(5, 6, 1), (5, 0, 1), (0, 1, 1), (5, 2, 0), (5, 2, -1)]
)
def test_a_schedule_that_cannot_be_is_refused(clients, a_round, rounds):
    with pytest.raises(ValueError, match="give 1 or more"):
        federated.sample_clients(clients, a_round, rounds, seed=0)


# --- what a round computes --------------------------------------------------------------------------------------------


def test_a_fedavg_round_is_the_weighted_mean_of_what_clients_reach(context, weights, fedavg):
    clients = make_clients((5, 20, 75))
    hand = average([hand_pass(weights, *client, 8) for client in clients], sizes=[5, 20, 75])
    assert_same_weights(federated.run_rounds(fedavg, clients, [[0, 1, 2]], weights).weights, hand)


def test_an_unweighted_mean_is_rejected_where_sizes_differ(context, weights, model):
    process = tff.learning.algorithms.build_unweighted_fed_avg(
        model, tff.learning.optimizers.build_sgdm(RATE)
    )
    unweighted = federated.build_federation(process, model, batch_size=8, dtype=np.float32)
    clients = make_clients((5, 20, 75))
    result = federated.run_rounds(unweighted, clients, [[0, 1, 2]], weights).weights
    assert_same_weights(result, average([hand_pass(weights, *client, 8) for client in clients], [1, 1, 1]))
    with pytest.raises(AssertionError):
        assert_same_weights(
            result, average([hand_pass(weights, *client, 8) for client in clients], [5, 20, 75])
        )


def test_a_fedsgd_round_is_one_step_along_the_mean_gradient(context, weights, model):
    fedsgd = federated.build_fedsgd(model, RATE, dtype=np.float32)
    clients = make_clients((5, 20, 75))
    step = average([hand_gradient(weights, *client) for client in clients], sizes=[5, 20, 75])
    result = federated.run_rounds(fedsgd, clients, [[0, 1, 2]], weights)
    assert_same_weights(result.weights, [w - RATE * g for w, g in zip(weights, step, strict=True)])


def test_only_the_scheduled_clients_count(context, weights, fedavg):
    clients = make_clients((16, 16, 16))
    result = federated.run_rounds(fedavg, clients, [[2], [0]], weights)
    assert_same_weights(result.weights, hand_pass(hand_pass(weights, *clients[2], 8), *clients[0], 8))


def test_a_training_learns_and_keeps_its_scores(context, weights, model, fedavg):
    clients, (x, y) = make_clients([30] * 9), make_clients([300], seed=5)[0]
    schedule = federated.sample_clients(9, 3, 9, seed=0)
    score = lambda w: federated.measure_accuracy(model, w, x, y)  # noqa: E731
    training = federated.run_rounds(fedavg, clients, schedule, weights, score, every=2)
    np.testing.assert_array_equal(training.rounds, [2, 4, 6, 8])
    assert training.scores[-1] > 0.95
    assert score(training.weights) == pytest.approx(training.scores[-1], abs=0.03)


def test_a_training_ends_at_its_target(context, weights, fedavg):
    clients, seen = make_clients([16] * 4), iter((0.1, 0.5, 0.7, 0.9))
    schedule = federated.sample_clients(4, 2, 4, seed=0)
    training = federated.run_rounds(fedavg, clients, schedule, weights, lambda w: next(seen), stop_at=0.5)
    np.testing.assert_array_equal(training.rounds, [1, 2])
    assert_same_weights(
        training.weights, federated.run_rounds(fedavg, clients, schedule[:2], weights).weights
    )


def test_two_runs_are_the_same_to_the_last_bit(context, weights, fedavg):
    clients, schedule = make_clients([40] * 8), federated.sample_clients(8, 4, 5, seed=0)
    one, other = (federated.run_rounds(fedavg, clients, schedule, weights).weights for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_grey_levels_are_read_as_numbers_from_0_to_1(context, weights, model, fedavg):
    as_bytes = [(np.uint8(np.clip(x * 80, 0, 255)), y) for x, y in make_clients((20, 30))]
    as_floats = [((x / 255).astype(np.float32), y) for x, y in as_bytes]
    stored = federated.build_fedavg(model, RATE, batch_size=8)
    one = federated.run_rounds(stored, as_bytes, [[0, 1]], weights).weights
    assert_same_weights(one, federated.run_rounds(fedavg, as_floats, [[0, 1]], weights).weights)
    accuracies = [federated.measure_accuracy(model, one, *client) for client in (as_bytes[0], as_floats[0])]
    assert accuracies[0] == accuracies[1]


def test_an_update_is_what_one_client_changes(context, weights, fedavg):
    clients = make_clients((16, 40))
    updates = federated.collect_updates(fedavg, clients, weights)
    for client, update in zip(clients, updates, strict=True):
        reached = hand_pass(weights, *client, 8)
        assert_same_weights(update, [new - old for new, old in zip(reached, weights, strict=True)])


def test_accuracy_is_the_share_of_first_choices(model):
    kernel, bias = np.eye(4, 3, dtype=np.float32), np.zeros(3, np.float32)
    x = np.eye(3, 4, dtype=np.float32)
    assert federated.measure_accuracy(model, [kernel, bias], x, np.array([0, 1, 0])) == pytest.approx(2 / 3)


def test_initial_weights_depend_on_the_seed_alone():
    one, same, other = (federated.init_mlp((784, 128, 10), seed) for seed in (0, 0, 1))
    assert [w.shape for w in one] == [(784, 128), (128,), (128, 10), (10,)]
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])
    assert np.abs(one[0]).max() <= np.sqrt(6 / 912)


# --- the same as TFF's own algorithms -------------------------------------------------------------------------------------

# Sizes that 8 does not divide: every client ends on a smaller batch, and one has a single record.
UNEVEN = make_clients((5, 20, 75, 1, 33), seed=2)
ROUNDS = [[0, 1, 2], [3, 4, 1], [2, 4, 0]]
sgd, adam = tff.learning.optimizers.build_sgdm, tff.learning.optimizers.build_adam
stock = tff.learning.algorithms


def run_stock(process, model, weights, epochs=1, clients=UNEVEN):
    """Train with a process of TFF's own, fed from data sets."""
    start = tff.learning.models.ModelWeights(tuple(weights), ())
    state = process.set_model_weights(process.initialize(), start)
    for chosen in ROUNDS:
        sets = [tf.data.Dataset.from_tensor_slices(clients[k]).batch(8).repeat(epochs) for k in chosen]
        output = process.next(state, sets)
        state = output.state
    return list(state.global_model_weights.trainable), output.metrics["client_work"]["train"]


def assert_same_training(federation, reference):
    ours = federated.run_rounds(federation, UNEVEN, ROUNDS, reference[2])
    assert_same_weights(ours.weights, reference[0])
    assert ours.metrics[-1] == pytest.approx(dict(reference[1]), rel=1e-5)


CASES = {
    "fedavg": ({}, lambda m: stock.build_weighted_fed_avg(m, sgd(RATE)), 1),
    "two epochs": ({"local_epochs": 2}, lambda m: stock.build_weighted_fed_avg(m, sgd(RATE)), 2),
    "fedadam": (
        {"server_optimizer": adam(0.1)},
        lambda m: stock.build_weighted_fed_avg(m, sgd(RATE), adam(0.1)),
        1,
    ),
    "adam on the clients": (
        {"client_learning_rate": adam(0.1)},
        lambda m: stock.build_weighted_fed_avg(m, adam(0.1)),
        1,
    ),
    "counted alike": (
        {"aggregator": tff.aggregators.UnweightedMeanFactory()},
        lambda m: stock.build_unweighted_fed_avg(m, sgd(RATE)),
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_our_clients_reach_what_tffs_reach_in_weights_and_metrics(context, weights, model, name):
    settings, build, epochs = CASES[name]
    reference = (*run_stock(build(model), model, weights, epochs), weights)
    settings = {"client_learning_rate": RATE, "batch_size": 8, "dtype": np.float32, **settings}
    assert_same_training(federated.build_fedavg(model, **settings), reference)


@pytest.mark.parametrize(
    "broken",
    [
        {"batch_size": 16},
        {"local_epochs": 2},
        {"proximal_strength": 0.1},
        {"server_optimizer": sgd(0.9)},
        {"aggregator": tff.aggregators.UnweightedMeanFactory()},
        {"client_learning_rate": sgd(RATE, momentum=0.1)},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_a_client_that_works_otherwise_is_told_from_tffs(context, weights, model, broken):
    reference = (*run_stock(CASES["fedavg"][1](model), model, weights), weights)
    settings = {"client_learning_rate": RATE, "batch_size": 8, "dtype": np.float32, **broken}
    with pytest.raises(AssertionError):
        assert_same_training(federated.build_fedavg(model, **settings), reference)


def test_fedprox_pulls_back_to_the_servers_weights_and_tffs_own_pushes_away(context, weights, model):
    # The proximal term's gradient is strength * (w - w0), arXiv 1812.06127. TFF 0.87 adds strength * (w0 - w).
    clients = make_clients((5, 20, 75))
    pulled, pushed = (
        average([hand_pass(weights, *client, 8, pull) for client in clients], sizes=[5, 20, 75])
        for pull in (0.7, -0.7)
    )
    federation = federated.build_fedavg(model, RATE, proximal_strength=0.7, batch_size=8, dtype=np.float32)
    assert_same_weights(federated.run_rounds(federation, clients, [[0, 1, 2]], weights).weights, pulled)
    process = stock.build_weighted_fed_prox(model, 0.7, sgd(RATE), sgd(1.0))
    broken = federated.build_federation(process, model, batch_size=8, dtype=np.float32)
    result = federated.run_rounds(broken, clients, [[0, 1, 2]], weights).weights
    assert_same_weights(result, pushed)
    with pytest.raises(AssertionError):
        assert_same_weights(result, pulled)


def test_a_client_that_diverges_counts_for_nothing(context, weights, model):
    # Its change is not a number: TFF leaves it out, and so do we.
    huge = federated.build_fedavg(model, 1.0, batch_size=8, dtype=np.float32)
    clients = [(np.full((20, 4), 3e38, np.float32), np.arange(20, dtype=np.int32) % 3), make_clients([20])[0]]
    both = federated.run_rounds(huge, clients, [[0, 1]], weights).weights
    assert_same_weights(both, federated.run_rounds(huge, clients[1:], [[0]], weights).weights)


@pytest.mark.parametrize("build", [tff.learning.secure_aggregator, tff.learning.compression_aggregator])
def test_tffs_aggregators_come_near_the_plain_mean(context, weights, model, build):
    settings = dict(client_learning_rate=0.1, batch_size=8, dtype=np.float32)
    plain, other = (
        federated.run_rounds(federated.build_fedavg(model, **settings, **more), UNEVEN, [[0, 1, 2]], weights)
        for more in ({}, {"aggregator": build(clipping=False)})
    )
    for one, mean in zip(other.weights, plain.weights, strict=True):
        np.testing.assert_allclose(one, mean, atol=1e-3)
    assert other.metrics[0] == pytest.approx(plain.metrics[0], rel=1e-2)


def clip(update, norm):
    size = np.sqrt(sum(np.sum(layer**2) for layer in update))
    return [layer * min(1, norm / size) for layer in update]


def test_a_private_aggregator_clips_each_clients_whole_change_and_adds_noise(context, weights, model):
    settings = dict(client_learning_rate=RATE, batch_size=8, dtype=np.float32)
    gaussian = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed

    def train(noise, norm):
        federation = federated.build_fedavg(model, **settings, aggregator=gaussian(noise, 3, norm))
        return federated.run_rounds(federation, UNEVEN, [[0, 1, 2]], weights).weights

    reached = [hand_pass(weights, *client, 8) for client in UNEVEN[:3]]
    changes = [[new - old for new, old in zip(one, weights, strict=True)] for one in reached]
    # Every client counts alike, whatever its size; a broken twin clips nothing.
    clipped, whole = (average([clip(change, norm) for change in changes], [1, 1, 1]) for norm in (0.05, 1e9))
    quiet = train(0.0, 0.05)
    assert_same_weights(quiet, [old + step for old, step in zip(weights, clipped, strict=True)])
    with pytest.raises(AssertionError):
        assert_same_weights(quiet, [old + step for old, step in zip(weights, whole, strict=True)])
    # The mean of three has noise of deviation 10 * 1 / 3 in each of 15 weights: outside these bounds once in ten million runs.
    noisy = zip(train(10.0, 1.0), weights, strict=True)
    assert 0.7 < np.std(np.concatenate([(new - old).ravel() for new, old in noisy])) < 8


def test_compressed_bytes_are_those_of_the_encoded_arrays():
    large, small = np.zeros((300, 100), np.float32), np.zeros(100, np.float32)
    # 8 bits a number, of which 28 fill an int32 of 32, and two numbers for the range; the small array stays as it is.
    assert federated.count_compressed_bytes([large, small]) == 30_000 * 32 // 28 // 4 * 4 + 4 + 8 + 400
    assert federated.count_compressed_bytes([large], threshold=30_000) == large.nbytes
    assert federated.count_compressed_bytes([large], bits=4) < 0.2 * large.nbytes
    with pytest.raises(ValueError, match="give 1 to 16"):
        federated.count_compressed_bytes([large], bits=0)


# --- a Keras model --------------------------------------------------------------------------------------------------------


def make_keras(*layers):
    tf.keras.utils.set_random_seed(0)
    return tf.keras.Sequential([tf.keras.Input((6, 6, 1)), *layers])


def make_cnn(*more):
    flatten, conv = tf.keras.layers.Flatten(), tf.keras.layers.Conv2D(4, 3, activation="relu")
    return make_keras(conv, *more, tf.keras.layers.MaxPooling2D(), flatten, tf.keras.layers.Dense(3))


def make_pictures(sizes):
    rng = np.random.default_rng(0)
    return [
        (rng.random((n, 6, 6, 1)).astype(np.float32), rng.integers(0, 3, n).astype(np.int32)) for n in sizes
    ]


def keras_pass(weights, x, y):
    """One pass of Keras's own SGD in batches of 8."""
    keras_model = make_cnn()
    keras_model.set_weights(weights)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    keras_model.compile(tf.keras.optimizers.SGD(RATE), loss)
    keras_model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    return keras_model.get_weights()


def test_a_round_of_a_keras_model_is_the_mean_of_keras_passes(context):
    # Keras first: TFF's tracing leaves its classes in graph mode.
    clients, start = make_pictures((20, 9)), make_cnn().get_weights()
    passes = [keras_pass(start, *client) for client in clients]
    model = federated.from_keras(make_cnn())
    assert_same_weights(model.initial_weights[0], start)
    federation = federated.build_fedavg(model, RATE, batch_size=8, dtype=np.float32)
    training = federated.run_rounds(federation, clients, [[0, 1]], start)
    assert_same_weights(training.weights, average(passes, [20, 9]))
    assert set(training.metrics[0]) == {"loss", "accuracy"}
    with pytest.raises(AssertionError):
        assert_same_weights(training.weights, average(passes, [1, 1]))
    kernel, bias, last, last_bias = training.weights
    hidden = tf.nn.max_pool2d(
        tf.nn.relu(tf.nn.conv2d(clients[0][0], kernel, 1, "VALID") + bias), 2, 2, "VALID"
    )
    first_choices = np.argmax(tf.reshape(hidden, (20, -1)) @ last + last_bias, axis=1)
    assert federated.measure_accuracy(model, training.weights, clients[0][0], first_choices) == 1


def test_a_keras_model_that_cannot_be_averaged_is_refused():
    with pytest.raises(ValueError, match="fit no client. Use tf.keras.layers.GroupNormalization"):
        federated.from_keras(make_cnn(tf.keras.layers.BatchNormalization()))
    frozen = make_cnn()
    frozen.layers[0].trainable = False
    with pytest.raises(ValueError, match="not trained"):
        federated.from_keras(frozen)
    with pytest.raises(ValueError, match="leave the softmax out"):
        federated.from_keras(
            make_keras(tf.keras.layers.Flatten(), tf.keras.layers.Dense(3, activation="softmax"))
        )
    layers = tf.keras.layers
    for ending in (
        [layers.Softmax()],
        [layers.Activation("softmax")],
        [tf.keras.Sequential([layers.Softmax()])],
    ):
        with pytest.raises(ValueError, match="leave the softmax out"):
            federated.from_keras(make_keras(layers.Flatten(), layers.Dense(3), *ending))
    federated.from_keras(make_cnn(tf.keras.layers.GroupNormalization(2)))


# --- bad input, refused before TFF is asked for anything -------------------------------------------------------------------


class Unused:
    """A process that no refused call may touch."""

    def __getattr__(self, name):
        raise AssertionError(f"work had started: {name}")


GOOD = make_clients((10, 12))


@pytest.mark.parametrize(
    ("clients", "schedule", "fix"),
    [
        ([], [[0]], "does not fit 0 clients"),
        (GOOD, [[0, 2]], "does not fit 2 clients"),
        (GOOD, [[-1]], "does not fit"),
        (GOOD, [], "use sample_clients"),
        (GOOD, [[]], "use sample_clients"),
        (GOOD, [0, 1], "use sample_clients"),
        (GOOD, [[0, 1, 0]], "calls a client twice"),
        (
            [GOOD[0], (GOOD[1][0][:0], GOOD[1][1][:0])],
            [[0]],
            "client 1: 0 records, 0 labels: mend it or leave it out",
        ),
        ([(GOOD[0][0], GOOD[0][1][:-1])], [[0]], "client 0: 10 records, 9 labels"),
        ([(GOOD[0][0].astype(np.float64), GOOD[0][1])], [[0]], "client 0: convert its arrays"),
        ([(GOOD[0][0], GOOD[0][1].astype(np.int64))], [[0]], "client 0: convert its arrays"),
        ([(GOOD[0][0][:, :3], GOOD[0][1])], [[0]], "client 0: convert its arrays"),
        (
            [GOOD[0], (GOOD[1][0] * np.float32("nan"), GOOD[1][1])],
            [[0]],
            "client 1: a feature is not a finite number",
        ),
        ([(GOOD[0][0] * np.float32("inf"), GOOD[0][1])], [[0]], "client 0: a feature is not a finite number"),
        ([GOOD[0], (GOOD[1][0], GOOD[1][1] + 2)], [[0]], "client 1: its labels are . to .: give 0 to 2"),
        ([(GOOD[0][0], GOOD[0][1] - 1)], [[0]], "client 0: its labels are -1 to 1: give 0 to 2"),
    ],
)
def test_clients_that_do_not_fit_are_refused(context, weights, fedavg, clients, schedule, fix):
    untouched = fedavg._replace(process=Unused())
    with pytest.raises(ValueError, match=fix):
        federated.run_rounds(untouched, clients, schedule, weights)


def test_no_clients_and_no_batch_are_refused(context, weights, model, fedavg):
    with pytest.raises(ValueError, match="one client or more"):
        federated.collect_updates(fedavg._replace(process=Unused()), [], weights)
    with pytest.raises(ValueError, match="give 1 or more"):
        federated.build_fedavg(model, RATE, batch_size=0)


def test_a_client_with_one_label_is_no_error(context, weights, fedavg):
    x, y = make_clients([40])[0]
    only = [(x[y == 0], y[y == 0])]
    expected = hand_pass(weights, *only[0], 8)
    assert_same_weights(federated.run_rounds(fedavg, only, [[0]], weights).weights, expected)


@pytest.mark.parametrize(
    ("setting", "fix"),
    [
        ({"local_epochs": 0}, "give 1 or more"),
        ({"batch_size": -3}, "give 1 or more"),
        ({"proximal_strength": -0.1}, "0 or more"),
        ({"proximal_strength": float("nan")}, "0 or more"),
        ({"client_learning_rate": 0.0}, "above 0"),
        ({"client_learning_rate": float("inf")}, "above 0"),
    ],
)
def test_settings_out_of_range_are_refused(model, setting, fix):
    with pytest.raises(ValueError, match=fix):
        federated.build_fedavg(model, **{"client_learning_rate": RATE, **setting})
    with pytest.raises(ValueError, match="above 0"):
        federated.build_fedsgd(model, -RATE)


def test_training_without_a_context_is_refused(weights, fedavg, monkeypatch):
    monkeypatch.setattr(_context, "_open_contexts", 0)
    with pytest.raises(ValueError, match="inside `with federated_context"):
        federated.run_rounds(fedavg._replace(process=Unused()), GOOD, [[0]], weights)


# --- the worker process -----------------------------------------------------------------------------------------------


def compute_one():
    return tff.tensorflow.computation(lambda: tf.constant(1))()


@pytest.fixture
def other_workers():
    """Workers of the module's shared context, which these tests must leave alone."""
    return _context._find_workers()


def test_no_worker_is_left_and_none_is_taken_from_another_context(other_workers):
    with federated.federated_context():
        (worker,) = _context._find_workers() - other_workers
        assert compute_one() == 1
        with pytest.raises(AssertionError):
            assert_no_worker()
    assert not worker.is_running()
    assert _context._find_workers() == other_workers
    assert subprocess.Popen is _context._Popen


def test_what_one_context_compiled_serves_the_next(weights, fedavg):
    results = []
    for _ in range(2):
        with federated.federated_context():
            before = _context._compile.cache_info().misses
            results.append(federated.run_rounds(fedavg, make_clients((16, 16)), [[0, 1]], weights))
            compiled = _context._compile.cache_info().misses - before
    assert compiled == 0
    for one, other in zip(*(result.weights for result in results), strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_the_scheduled_clients_are_stored(context, weights, fedavg, monkeypatch):
    stored, write = [], Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: stored.append(path.name) or write(path, data))
    federated.run_rounds(fedavg, make_clients((16, 16, 16)), [[2], [0]], weights)
    assert sorted(stored) == ["0.x", "0.y", "2.x", "2.y"]


def test_no_worker_is_left_by_an_error(other_workers):
    with pytest.raises(ZeroDivisionError), federated.federated_context():
        compute_one()
        raise ZeroDivisionError
    assert _context._find_workers() == other_workers


def test_a_worker_that_died_inside_the_block_does_no_harm(other_workers):
    with federated.federated_context():
        (worker,) = _context._find_workers() - other_workers
        os.kill(worker.pid, signal.SIGKILL)
    assert _context._find_workers() == other_workers


def test_the_worker_is_silent(other_workers):
    with federated.federated_context():
        (worker,) = _context._find_workers() - other_workers
        assert {os.readlink(f"/proc/{worker.pid}/fd/{number}") for number in (1, 2)} == {os.devnull}


START = {
    "a thread that has ended": """
import threading, time
from pprml import _processes
started = []
thread = threading.Thread(target=lambda: started.append(_processes.start_bound(["/bin/sleep", "300"]).pid))
thread.start()
thread.join()
time.sleep(0.5)
print(started[0], flush=True)
""",
    "a context": """
import psutil
from pprml import federated
context = federated.federated_context()
context.__enter__()
print(*(child.pid for child in psutil.Process().children() if child.name() == "worker_binary"), flush=True)
""",
    "broken": """
import subprocess
print(subprocess.Popen(["/bin/sleep", "300"], stdout=subprocess.DEVNULL).pid, flush=True)
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("name", START)
def test_what_a_killed_parent_had_started_is_ended(name):
    code = START[name] + "import time; time.sleep(300)"
    quiet = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with subprocess.Popen([sys.executable, "-c", code], **quiet) as parent:
        try:
            child = psutil.Process(int(parent.stdout.readline()))
            assert child.status() != psutil.STATUS_ZOMBIE
        finally:
            parent.kill()

    def is_left():  # nobody may have collected a process that has ended
        return child.is_running() and child.status() != psutil.STATUS_ZOMBIE

    deadline = time.monotonic() + (1 if name == "broken" else 30)
    while is_left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert is_left() == (name == "broken")
    if is_left():
        child.kill()


# --- what an update shows ---------------------------------------------------------------------------------------------


def test_one_record_is_read_from_a_clients_update(context):
    weights = federated.init_mlp((4, 16, 3), seed=0)
    federation = federated.build_fedavg(federated.build_mlp(weights), 0.1, batch_size=8, dtype=np.float32)
    x, y = np.array([[0.1, 0.9, 0.0, 1.0]], np.float32), np.array([2], np.int32)
    (kernel, bias, *_), *_ = federated.collect_updates(federation, [(x, y)], weights)
    candidates = federated.attack_dense_layer(kernel, bias)
    assert candidates.shape[1] == 4 and len(candidates) >= 1
    np.testing.assert_allclose(candidates, np.broadcast_to(x, candidates.shape), atol=1e-3)


def test_without_the_biases_part_nothing_is_read():
    # The broken attack takes a kernel's gradient for the input itself: it is the input times an unknown number.
    x, errors = np.array([0.1, 0.9, 0.0, 1.0]), np.array([-0.2, 0.3])
    np.testing.assert_allclose(federated.attack_dense_layer(np.outer(x, errors), errors), [x, x])
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(np.outer(x, errors).T, [x, x], atol=1e-3)


def test_a_mixture_is_weighted_by_how_much_each_input_moved_the_unit():
    inputs, errors = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.3], [0.1]])
    np.testing.assert_allclose(federated.attack_dense_layer(inputs.T @ errors, errors.sum(0)), [[0.25, 0.75]])


def test_units_that_did_not_move_give_no_candidate():
    assert federated.attack_dense_layer(np.zeros((4, 3)), np.zeros(3)).shape == (0, 4)
    kernel, bias = np.ones((4, 3)), np.array([1.0, 0.0, 1e-5])
    assert federated.attack_dense_layer(kernel, bias).shape == (1, 4)


def test_updates_of_two_layers_are_refused():
    with pytest.raises(ValueError, match="both of one layer"):
        federated.attack_dense_layer(np.zeros((4, 3)), np.zeros(4))
