"""Chapter 06: who has which record, what a round computes, what is left behind, and what an update shows."""

import os
import signal
import subprocess

import numpy as np
import psutil
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from pprml import federated

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


def hand_pass(weights, x, y, batch_size):
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        weights = [
            w - RATE * g for w, g in zip(weights, hand_gradient(weights, x[rows], y[rows]), strict=True)
        ]
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
    fedsgd = federated.build_fedsgd(model, RATE, batch_size=100, dtype=np.float32)
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
        (
            [GOOD[0], (GOOD[1][0][:0], GOOD[1][1][:0])],
            [[0]],
            "client 1: 0 records, 0 labels: mend it or leave it out",
        ),
        ([(GOOD[0][0], GOOD[0][1][:-1])], [[0]], "client 0: 10 records, 9 labels"),
        ([(GOOD[0][0].astype(np.float64), GOOD[0][1])], [[0]], "client 0: convert its arrays"),
        ([(GOOD[0][0], GOOD[0][1].astype(np.int64))], [[0]], "client 0: convert its arrays"),
        ([(GOOD[0][0][:, :3], GOOD[0][1])], [[0]], "client 0: convert its arrays"),
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


def test_training_without_a_context_is_refused(weights, fedavg, monkeypatch):
    monkeypatch.setattr(federated, "_open_contexts", 0)
    with pytest.raises(ValueError, match="inside `with federated_context"):
        federated.run_rounds(fedavg._replace(process=Unused()), GOOD, [[0]], weights)


# --- the worker process -----------------------------------------------------------------------------------------------


def compute_one():
    return tff.tensorflow.computation(lambda: tf.constant(1))()


@pytest.fixture
def other_workers():
    """Workers of the module's shared context, which these tests must leave alone."""
    return federated._find_workers()


def test_no_worker_is_left_and_none_is_taken_from_another_context(other_workers):
    with federated.federated_context():
        (worker,) = federated._find_workers() - other_workers
        assert compute_one() == 1
        with pytest.raises(AssertionError):
            assert_no_worker()
    assert not worker.is_running()
    assert federated._find_workers() == other_workers
    assert subprocess.Popen is federated._Popen


def test_no_worker_is_left_by_an_error(other_workers):
    with pytest.raises(ZeroDivisionError), federated.federated_context():
        compute_one()
        raise ZeroDivisionError
    assert federated._find_workers() == other_workers


def test_a_worker_that_died_inside_the_block_does_no_harm(other_workers):
    with federated.federated_context():
        (worker,) = federated._find_workers() - other_workers
        os.kill(worker.pid, signal.SIGKILL)
    assert federated._find_workers() == other_workers


def test_the_worker_is_silent(other_workers):
    with federated.federated_context():
        (worker,) = federated._find_workers() - other_workers
        assert {os.readlink(f"/proc/{worker.pid}/fd/{number}") for number in (1, 2)} == {os.devnull}


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
