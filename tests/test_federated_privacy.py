"""Chapter 07: what an update gives away, masks that cancel, what noise promises to a user, and averages that survive liars."""

import dp_accounting
import numpy as np
import psutil
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from cryptography.exceptions import InvalidTag
from dp_accounting import rdp

from pprml import accounting, datasets, federated
from pprml import federated_privacy as fp
from pprml.federated_privacy import _masking

FACTORY = tff.aggregators.DifferentiallyPrivateFactory
SIZES = (784, 8, 10)


@pytest.fixture(scope="module")
def images():
    loaded = datasets.load("fashion_mnist")
    return loaded.x_train.reshape(-1, 784), loaded.y_train.astype(np.int32)


@pytest.fixture(scope="module")
def unit(images):
    return (images[0][:3000] / 255).astype(np.float32).reshape(-1, 28, 28, 1)


@pytest.fixture(scope="module")
def weights():
    return federated.init_mlp(SIZES, seed=1)


@pytest.fixture(scope="module")
def model(weights):
    return federated.build_mlp(weights)


@pytest.fixture(scope="module")
def plain(model):
    return fp.build_rounds(model, 0.1)


@pytest.fixture(scope="module")
def clients(images):
    x, y = images
    return [(x[start : start + 20], y[start : start + 20]) for start in range(0, 600, 20)]


@pytest.fixture
def paths(clients):
    with fp.store_clients(clients) as stored:
        yield stored


def flatten(update):
    return np.concatenate([layer.ravel() for layer in update])


def step_once(rounds, paths, chosen, weights, **kwargs):
    after = fp.run_rounds(rounds, paths, [np.asarray(chosen)], weights, **kwargs).weights
    return flatten(after) - flatten(weights)


# --- reading pictures and labels ----------------------------------------------------------------------------------------


def test_one_picture_comes_back_from_an_untrained_smooth_network(unit, images):
    network = fp.init_network("sigmoid", seed=2)
    gradient = fp.observe_gradient(network, unit[:1], images[1][:1])
    assert fp.attack_label(gradient) == images[1][0]
    found = fp.attack_gradient(network, gradient, images[1][:1], seed=0)
    assert fp.measure_psnr(found, unit[:1])[0] > 60 and fp.measure_ssim(found, unit[:1])[0] > 0.999


@pytest.mark.parametrize("attack", [fp.attack_gradient, fp.attack_gradient_cosine])
def test_the_search_finds_nothing_in_noise(attack, unit, images):
    """Of a gradient of pure noise nothing can be read; one that did would have looked at the picture."""
    network = fp.init_network("sigmoid", seed=2)
    rng = np.random.default_rng(0)
    gradient = fp.observe_gradient(network, unit[:1], images[1][:1])
    noise = [np.std(g) * rng.normal(size=g.shape).astype(np.float32) for g in gradient]
    found = attack(network, noise, images[1][:1], seed=0)
    assert fp.measure_psnr(found, unit[:1])[0] < 15


def test_gradients_are_alike_at_the_picture_and_the_slope_is_that_of_the_gap(unit, images):
    network, y = fp.init_network("sigmoid", seed=2), images[1][:1]
    gradient = fp.observe_gradient(network, unit[:1], y)
    picture, rng = unit[:1].astype(float), np.random.default_rng(0)
    assert fp.compare_gradients(network, gradient, picture, y)[0] < 1e-9
    other, way = rng.random(picture.shape), rng.normal(size=picture.shape)
    gap, slope = fp.compare_gradients(network, gradient, other, y)
    ahead, behind = (fp.compare_gradients(network, gradient, other + h * way, y)[0] for h in (1e-5, -1e-5))
    assert gap > 1e-3 and (ahead - behind) / 2e-5 == pytest.approx((slope * way).sum(), rel=1e-4)


def test_direction_and_smoothness_read_a_relu_network_better_than_distance(unit, images):
    network, y = fp.init_network("relu", seed=2), images[1]
    scores = {fp.attack_gradient: [], fp.attack_gradient_cosine: []}
    for k in range(3):
        gradient = fp.observe_gradient(network, unit[k : k + 1], y[k : k + 1])
        for attack, found in scores.items():
            found += list(fp.measure_psnr(attack(network, gradient, y[k : k + 1], 0), unit[k : k + 1]))
    assert np.mean(scores[fp.attack_gradient_cosine]) > np.mean(scores[fp.attack_gradient]) + 3


def test_labels_of_a_batch_are_counted_and_a_stranger_is_not(unit, images):
    network, y = fp.init_network("relu", seed=2), images[1]
    odds = tf.nn.softmax(fp.predict_logits(network, unit[1000:2000])).numpy()
    boots = np.flatnonzero(y[:1000] == 9)[:20]
    counts = fp.attack_label_counts(fp.observe_gradient(network, unit[boots], y[boots]), odds, 20)
    assert counts.argmax() == 9 and counts[9] > 18 and abs(counts.sum() - 20) < 0.1
    other = fp.attack_label_counts(fp.observe_gradient(network, unit[:20], y[:20]), odds, 20)
    assert other[9] < 10


def test_training_changes_the_weights_and_raises_accuracy(unit, images):
    fresh, y = fp.init_network("relu", seed=2), images[1]
    trained = fp.train_network(fresh, unit, y[:3000], steps=60, seed=0)
    right = [np.mean(fp.predict_logits(n, unit).argmax(axis=1) == y[:3000]) for n in (fresh, trained)]
    assert right[1] > 0.6 > 0.3 > right[0]


def test_psnr_is_twenty_decibels_for_an_error_of_a_tenth():
    truth = np.full((2, 28, 28, 1), 0.5)
    np.testing.assert_allclose(fp.measure_psnr(truth + [[[[0.1]]], [[[0.01]]]], truth), [20, 40])
    assert fp.measure_psnr(truth, truth)[0] == pytest.approx(120)


def test_pairing_undoes_a_shuffle(unit):
    np.testing.assert_array_equal(fp.pair_pictures(unit[[2, 0, 1]], unit[:3]), unit[:3])


@pytest.mark.parametrize("fault", ["range", "nan", "shape", "labels", "empty"])
def test_pictures_that_do_not_fit_are_refused(fault, unit, images):
    x, y = unit[:2].copy(), images[1][:2]
    if fault == "nan":
        x[0, 0, 0] = np.nan
    x = dict(range=x * 255, shape=x.reshape(2, 784), empty=x[:0]).get(fault, x)
    y = dict(labels=y[:1], empty=y[:0]).get(fault, y)
    with pytest.raises(ValueError, match="give|divide"):
        fp.observe_gradient(fp.init_network("relu", 0), x, y)


def test_gradients_that_do_not_fit_are_refused(unit, images):
    network = fp.init_network("relu", 0)
    gradient = fp.observe_gradient(network, unit[:1], images[1][:1])
    broken = [np.full_like(gradient[0], np.nan), *gradient[1:]]
    for bad in (gradient[:-1], broken):
        with pytest.raises(ValueError, match="finite arrays, one for each"):
            fp.attack_gradient(network, bad, images[1][:1], 0)
    with pytest.raises(ValueError, match="pairs"):
        fp.measure_psnr(unit[:2], unit[:3])
    with pytest.raises(ValueError, match="sigmoid, relu"):
        fp.init_network("tanh", 0)


# --- masks ------------------------------------------------------------------------------------------------------------------


def make_vectors(count=6, size=500, seed=0):
    rng = np.random.default_rng(seed)
    return {k: fp.encode_update(rng.normal(0, 0.1, size)) for k in range(count)}


def add(vectors, who):
    return np.sum([vectors[k] for k in who], axis=0, dtype=np.uint32)


@pytest.mark.parametrize("dropped", [(), (0,), (1, 4), (5,)])
def test_the_sum_over_those_that_stay_is_exact(dropped):
    vectors = make_vectors()
    seen = fp.aggregate_masked(vectors, threshold=4, round_number=1, dropped=dropped)
    np.testing.assert_array_equal(seen.total, add(vectors, set(vectors) - set(dropped)))
    assert set(seen.masked) == set(vectors) - set(dropped)


def assert_looks_uniform(masked, plain):
    """Mean and correlation within 5 standard errors of a uniform draw's: a false alarm in a million."""
    values = masked.astype(float) / 2**32 - 0.5
    assert abs(values.mean()) < 5 * np.sqrt(1 / 12 / len(values))
    assert abs(np.corrcoef(values, fp.decode_update(plain))[0, 1]) < 5 / np.sqrt(len(values))


def test_what_arrives_from_one_client_looks_uniform_and_a_bare_vector_does_not():
    vectors = make_vectors(size=20_000)
    seen = fp.aggregate_masked(vectors, threshold=4, round_number=1)
    for k, masked in seen.masked.items():
        assert_looks_uniform(masked, vectors[k])
    with pytest.raises(AssertionError):
        assert_looks_uniform(vectors[0], vectors[0])


def make_clients(count=6, threshold=4, round_number=1):
    clients = {k: fp.Client(k, threshold, round_number) for k in range(count)}
    keys = {k: client.announce() for k, client in clients.items()}
    sealed = {k: client.share(keys) for k, client in clients.items()}
    for k, boxes in sealed.items():
        for other, box in boxes.items():
            clients[other].receive(k, box)
    return clients, keys


def assert_hides_the_difference(first, second, before, after):
    assert not np.array_equal(second - first, after - before)


def test_masks_reused_in_a_second_round_are_caught():
    """Broken twin: clients that keep their keys, seed and round number give away how their update changed."""
    before, after = make_vectors(seed=1), make_vectors(seed=2)
    rounds = [fp.aggregate_masked(v, 4, number) for number, v in enumerate((before, after))]
    assert_hides_the_difference(rounds[0].masked[0], rounds[1].masked[0], before[0], after[0])
    clients, _ = make_clients()
    with pytest.raises(AssertionError):
        assert_hides_the_difference(
            clients[0].mask(before[0]), clients[0].mask(after[0]), before[0], after[0]
        )


def test_the_same_keys_give_other_pair_masks_in_another_round():
    first, second = _masking.X25519PrivateKey.generate(), _masking.X25519PrivateKey.generate()
    public = second.public_key().public_bytes_raw()
    seeds = {_masking._derive(first, public, "mask", number) for number in (1, 2)}
    assert len(seeds) == 2
    back = _masking._derive(second, first.public_key().public_bytes_raw(), "mask", 1)
    assert back in seeds


def find_secret(seen, secrets_of_clients):
    """Search all that the server received for a secret in the clear."""
    sent = b"".join(
        [*(key for pair in seen.public_keys.values() for key in pair), *seen.sealed_shares.values()]
    )
    return [secret for secret in secrets_of_clients if secret in sent]


def test_a_seed_sent_in_the_clear_is_caught(monkeypatch):
    made = []

    class Remembered(fp.Client):
        def announce(self):
            made.extend([self.seed, self.mask_key.private_bytes_raw(), self.seal_key.private_bytes_raw()])
            return super().announce()

    class Leaking(Remembered):
        def announce(self):
            super().announce()
            return super().announce()[0], self.seed

    monkeypatch.setattr(_masking, "Client", Remembered)
    seen = fp.aggregate_masked(make_vectors(), 4, 1)
    assert len(made) == 18 and find_secret(seen, made) == []
    clients = [Leaking(k, 4, 1) for k in range(3)]
    leaked = seen._replace(public_keys={k: client.announce() for k, client in enumerate(clients)})
    assert find_secret(leaked, made)


def test_the_server_never_gets_enough_for_both_masks_of_one_client():
    """Below the threshold a share is a uniform number; the shares revealed of one client are of one secret only."""
    vectors = make_vectors()
    seen = fp.aggregate_masked(vectors, 4, 1, dropped=(2,))
    assert all(len(shares) == 4 for shares in seen.revealed.values())
    clients, _ = make_clients()
    clients[0].reveal([0, 1, 3, 4, 5])
    with pytest.raises(ValueError, match="has answered"):
        clients[0].reveal([0, 1, 2, 3, 4])


def test_both_masks_of_one_client_would_unmask_it():
    """Broken twin: clients that also hand out the mask key of a client that stayed."""
    vectors = make_vectors()
    clients, keys = make_clients()
    masked = clients[0].mask(vectors[0])
    seed, key = ({k: client.held[0][part] for k, client in clients.items()} for part in (1, 0))
    bare = masked - fp.expand_mask(fp.join_secret(seed).to_bytes(32, "big"), 500)
    private = _masking.X25519PrivateKey.from_private_bytes(fp.join_secret(key).to_bytes(32, "big"))
    for other in range(1, 6):
        bare = bare - fp.expand_mask(_masking._derive(private, keys[other][0], "mask", 1), 500)
    np.testing.assert_array_equal(bare, vectors[0])


def test_a_sealed_share_opens_for_its_holder_only():
    clients, keys = make_clients()
    box = clients[0].share(keys)[1]
    clients[1].receive(0, box)
    for wrong, sender in ((clients[2], 0), (clients[1], 3)):
        with pytest.raises(InvalidTag):
            wrong.receive(sender, box)


def test_threshold_shares_restore_a_secret_and_fewer_do_not():
    secret = 2**255 + 12345
    shares = fp.split_secret(secret, 3, range(5))
    for chosen in ((0, 1, 2), (1, 3, 4), (0, 1, 2, 3, 4)):
        assert fp.join_secret({k: shares[k] for k in chosen}) == secret
    assert fp.join_secret({k: shares[k] for k in (0, 4)}) != secret
    with pytest.raises(ValueError, match="threshold 6"):
        fp.split_secret(secret, 6, range(5))


def test_rounding_is_all_that_encoding_costs():
    values = np.random.default_rng(0).normal(0, 1, 1000)
    assert np.abs(fp.decode_update(fp.encode_update(values)) - values).max() <= 0.5 / 2**16
    total = add({k: fp.encode_update(np.full(3, -31.0)) for k in range(1024)}, range(1024))
    np.testing.assert_array_equal(fp.decode_update(total), -31.0 * 1024)


@pytest.mark.parametrize("values", [[np.nan], [np.inf], [40.0]])
def test_updates_that_do_not_fit_the_ring_are_refused(values):
    with pytest.raises(ValueError, match="clip the update first"):
        fp.encode_update(np.array(values))


@pytest.mark.parametrize(
    ("count", "threshold", "dropped", "message"),
    [(2, 2, (), "three or more"), (6, 3, (), "above half"), (6, 5, (0, 1), "above half, at most those")],
)
def test_rounds_that_could_not_be_kept_secret_or_finished_are_refused(count, threshold, dropped, message):
    with pytest.raises(ValueError, match=message):
        fp.aggregate_masked(make_vectors(count), threshold, 1, dropped)


def test_vectors_that_disagree_are_refused():
    vectors = make_vectors()
    for bad in (vectors[0][:-1], vectors[0].astype(float)):
        with pytest.raises(ValueError, match="alike, from encode_update"):
            fp.aggregate_masked({**vectors, 3: bad}, 4, 1)


# --- rounds under TFF ---------------------------------------------------------------------------------------------------


def test_a_round_is_chapter_06s_fedavg(context, plain, paths, clients, model, weights):
    chosen = [0, 3, 5]
    fedavg = federated.build_fedavg(model, 0.1)
    other = federated.run_rounds(fedavg, clients, np.array([chosen]), weights).weights
    np.testing.assert_allclose(
        step_once(plain, paths, chosen, weights), flatten(other) - flatten(weights), atol=1e-6
    )
    alone = federated.collect_updates(fedavg, clients[3:4], weights)[0]
    np.testing.assert_allclose(
        flatten(fp.collect_updates(plain, paths, [3], weights)[0]), flatten(alone), atol=1e-6
    )


def test_tffs_secure_sum_is_the_mean_and_of_one_client_its_update(context, plain, paths, model, weights):
    secure = fp.build_rounds(
        model, 0.1, tff.learning.secure_aggregator(zeroing=False, clipping=False, weighted=False)
    )
    mean = step_once(plain, paths, range(8), weights)
    np.testing.assert_allclose(step_once(secure, paths, range(8), weights), mean, atol=1e-5)
    (alone,) = fp.collect_updates(plain, paths, [2], weights)
    np.testing.assert_allclose(step_once(secure, paths, [2], weights), flatten(alone), atol=1e-5)


def assert_clipped_and_noised(step, clip_norm, noise, clients):
    """The norm of n noise values is within 5 standard errors of sqrt(n) times their deviation; an update adds its clip."""
    expected = noise * clip_norm / clients * np.sqrt(len(step))
    slack = 5 * expected / np.sqrt(2 * len(step))
    assert expected - slack - clip_norm <= np.linalg.norm(step) <= expected + slack + clip_norm


def test_private_rounds_carry_their_noise_and_broken_ones_are_caught(context, paths, model, weights):
    """Broken twins: no noise, half the noise, noise for another number of clients. Error rate below one in a million."""
    boosts, clip_norm = np.full(30, 1e3), 0.5

    def step(noise, clients=10.0):
        rounds = fp.build_rounds(model, 0.1, FACTORY.gaussian_fixed(noise, clients, clip_norm))
        return step_once(rounds, paths, range(10), weights, boosts=boosts)

    assert_clipped_and_noised(step(4.0), clip_norm, 4.0, 10)
    for broken in (step(0.0), step(2.0), step(4.0, clients=30.0)):
        with pytest.raises(AssertionError):
            assert_clipped_and_noised(broken, clip_norm, 4.0, 10)


def test_a_run_without_clipping_is_caught(context, plain, paths, model, weights):
    """A client that sends a thousand times too much moves a clipped mean by its share, and a bare mean by far more."""
    clip_norm, boosts = 0.1, np.where(np.arange(30) == 4, 1e3, 1)
    rounds = fp.build_rounds(model, 0.1, FACTORY.gaussian_fixed(0.0, 10.0, clip_norm))

    def influence(rounds):
        with_boost, without = (step_once(rounds, paths, range(10), weights, boosts=b) for b in (boosts, None))
        return np.linalg.norm(with_boost - without)

    assert influence(rounds) <= 2 * clip_norm / 10 + 1e-6 < 1 < influence(plain)


def test_local_noise_is_each_clients_own(context, paths, model, weights):
    """Two clients with the same data: their difference has the noise of both. Shared noise, the broken twin, has none."""
    rounds = fp.build_rounds(model, 0.1, local_noise=(0.2, 3.0))
    one, other = (flatten(u) for u in fp.collect_updates(rounds, paths, [5, 5], weights))
    assert_clipped_and_noised(one - other, 0.2, 3.0 * np.sqrt(2), 1)
    assert_clipped_and_noised(one, 0.2, 3.0, 1)
    with pytest.raises(AssertionError):
        assert_clipped_and_noised(one - one, 0.2, 3.0 * np.sqrt(2), 1)


def test_a_local_update_is_clipped_before_its_noise(context, paths, model, plain, weights):
    """The noise here is a tenth of the norm at most; the same client's update without a clip is many times too long."""
    rounds = fp.build_rounds(model, 0.1, local_noise=(0.01, 1e-3))
    clipped, bare = (flatten(fp.collect_updates(r, paths, [5], weights)[0]) for r in (rounds, plain))
    assert np.linalg.norm(clipped) < 0.011 < 0.05 < np.linalg.norm(bare)


def test_each_call_starts_a_new_tree_and_a_tree_carries_noise_on(context, paths, model, weights):
    """In a tree, the noise of the sum after 2 rounds is not larger than after 1; independent noises would add up.

    The tree's root has one noise value where two independent rounds have two: the ratio of norms, 1 against 1.41, is 20
    standard errors from the limit.
    """
    specs = [tf.TensorSpec(w.shape, tf.float32) for w in weights]
    tree = fp.build_rounds(model, 0.1, FACTORY.tree_aggregation(50.0, 10.0, 0.1, specs))
    fixed = fp.build_rounds(model, 0.1, FACTORY.gaussian_fixed(50.0, 10.0, 0.1))

    def growth(rounds):
        norms = []
        for count in (1, 2):
            after = fp.run_rounds(rounds, paths, [np.arange(10)] * count, weights).weights
            norms.append(np.linalg.norm(flatten(after) - flatten(weights)))
        return norms[1] / norms[0]

    assert growth(tree) < 1.2 < growth(fixed)
    first, second = (step_once(tree, paths, range(10), weights) for _ in range(2))
    assert np.linalg.norm(first - second) > np.linalg.norm(first)


def test_tff_refuses_noise_too_large_for_the_clients_of_a_round():
    with pytest.raises(ValueError, match="too low to achieve the desired effective `noise_multiplier`"):
        tff.learning.dp_aggregator(1.0, 10)
    tff.learning.dp_aggregator(1.0, 11)


def test_tffs_default_zeroing_learns_without_noise():
    """Why the chapter switches zeroing off: its threshold is estimated by a process that adds no noise."""
    process = tff.learning.dp_aggregator(1.0, 100).create(tff.TensorType(np.float32, (3,)))
    assert "zeroing_norm" in str(process.initialize.type_signature)
    bare = tff.learning.dp_aggregator(1.0, 100, zeroing=False).create(tff.TensorType(np.float32, (3,)))
    assert "zeroing_norm" not in str(bare.initialize.type_signature)


def test_distributed_dp_does_not_compile_here(model):
    """If this fails, TFF's distributed DP has come to life: use it in the chapter."""
    from google.protobuf.message import DecodeError

    with pytest.raises(DecodeError):
        fp.build_rounds(model, 0.1, tff.learning.ddp_secure_aggregator(1.0, 20, zeroing=False))


def test_poisson_rounds_vary_and_passes_call_everyone_once():
    rounds = fp.sample_poisson(1000, 100, 400, seed=0)
    sizes = np.array([len(chosen) for chosen in rounds])
    # Binomial with standard deviation 9.5; bounds of 5 standard errors.
    assert abs(sizes.mean() - 100) < 5 * 9.5 / 20 and 7.5 < sizes.std() < 11.5
    for order in fp.sample_passes(60, 10, 3, seed=0):
        np.testing.assert_array_equal(np.sort(order.ravel()), np.arange(60))


@pytest.mark.parametrize("call", [(10, 0, 5), (10, 11, 5), (10, 5, 0)])
def test_rounds_that_cannot_be_drawn_are_refused(call):
    with pytest.raises(ValueError, match="give 1 or more"):
        fp.sample_poisson(*call, seed=0)


def test_passes_that_do_not_come_out_even_are_refused():
    with pytest.raises(ValueError, match="must divide"):
        fp.sample_passes(10, 3, 1, seed=0)


@pytest.mark.parametrize("fault", ["empty", "labels", "floats", "width"])
def test_clients_that_do_not_fit_are_refused(fault, clients):
    x, y = clients[0]
    bad = dict(empty=(x[:0], y[:0]), labels=(x, y[:3]), floats=(x / 255, y), width=(x[:, :5], y))[fault]
    with pytest.raises(ValueError, match="client 1"), fp.store_clients([clients[0], bad]):
        pass


def test_schedules_that_do_not_fit_are_refused(plain, paths, weights):
    for schedule in ([np.array([], int)], [np.array([30])], [np.array([-1])]):
        with pytest.raises(ValueError, match="round 1"):
            fp.run_rounds(plain, paths, schedule, weights)


def test_a_client_with_a_single_label_takes_part(context, plain, clients, weights):
    with fp.store_clients([(clients[0][0], np.full(20, 3, np.int32))]) as stored:
        assert np.isfinite(step_once(plain, stored, [0], weights)).all()


def test_no_worker_survives(model, weights, clients):
    workers = {p.pid for p in psutil.Process().children() if p.name() == "worker_binary"}
    rounds = fp.build_rounds(model, 0.1)
    with federated.federated_context(), fp.store_clients(clients) as stored:
        step_once(rounds, stored, [0], weights)
    assert {p.pid for p in psutil.Process().children() if p.name() == "worker_binary"} == workers


# --- guarantees -----------------------------------------------------------------------------------------------------------------


def test_dp_fedavg_is_a_users_guarantee_by_both_accountants():
    guarantee = fp.dp_fedavg_guarantee(1000, 100, 40, 1.0, 1e-4)
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0)), 40
    )
    assert guarantee.other_epsilon == pytest.approx(rdp.RdpAccountant().compose(event).get_epsilon(1e-4))
    assert (guarantee.unit, guarantee.adjacency, guarantee.sampling) == ("user", "add/remove", "poisson")
    assert guarantee.steps == 40 and guarantee.epsilon < guarantee.other_epsilon


def test_a_record_guarantee_is_not_a_users():
    """Broken twin: DP-SGD over the 60,000 pictures, whose epsilon is quoted for a phone that holds 60 of them."""
    record = accounting.dp_sgd_guarantee(60_000, 6000, 4.0, 1.0, 1e-6)
    assert record.unit == "record"
    claimed, honest = record.epsilon, accounting.group_guarantee(record, 60)
    assert honest.unit == "user" and honest.epsilon > 50 * claimed
    # The users' own accounting asks for noise in proportion to the whole update and divides by users.
    assert fp.dp_fedavg_guarantee(1000, 100, 40, 1.0, 1e-6).epsilon < honest.epsilon


def test_dp_ftrl_agrees_with_the_librarys_tree_event():
    guarantee = fp.dp_ftrl_guarantee(10, 4, 4.0, 1e-4)
    tree = dp_accounting.SingleEpochTreeAggregationDpEvent(4.0, 10)
    relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    accountant = rdp.RdpAccountant(neighboring_relation=relation)
    accountant.compose(dp_accounting.SelfComposedDpEvent(tree, 4))
    assert guarantee.other_epsilon == pytest.approx(accountant.get_epsilon(1e-4), rel=1e-6)
    assert guarantee.unit == "user" and guarantee.steps == 4
    # Forgetting that an update is in several nodes, or in several trees, would claim less than the event does.
    for broken in (fp.dp_ftrl_guarantee(1, 4, 4.0, 1e-4), fp.dp_ftrl_guarantee(10, 1, 4.0, 1e-4)):
        assert broken.other_epsilon < 0.7 * accountant.get_epsilon(1e-4)


def test_local_noise_pays_for_replacing_and_for_every_participation():
    guarantee = fp.local_dp_guarantee(4, 4.0, 1e-4)
    # One release of sensitivity 2 and four of them: mu = 2 * sqrt(4) / 4 = 1.
    same = accounting.gaussian_guarantee(1.0, 1.0, 1e-4, unit="user")
    assert guarantee.epsilon == pytest.approx(same.epsilon, rel=1e-3)
    assert (guarantee.unit, guarantee.adjacency) == ("user", "replace")
    assert fp.local_dp_guarantee(1, 4.0, 1e-4).epsilon < guarantee.epsilon


def test_guarantees_refuse_what_promises_nothing():
    with pytest.raises(ValueError, match="below 1 / 1000"):
        fp.dp_fedavg_guarantee(1000, 100, 40, 1.0, 1e-3)
    with pytest.raises(ValueError, match="noise"):
        fp.dp_fedavg_guarantee(1000, 100, 40, 0.0, 1e-4)
    with pytest.raises(ValueError, match="give 1 or more"):
        fp.dp_ftrl_guarantee(0, 4, 4.0, 1e-4)


# --- liars ------------------------------------------------------------------------------------------------------------------


def make_layers(honest=16, liars=4, size=(5, 3), lie=100.0):
    rng = np.random.default_rng(0)
    layer = rng.normal(1, 0.1, (honest + liars, *size))
    layer[honest:] = lie
    return [layer, layer[:, 0]]


def assert_survives(combine, layers):
    for part in combine(layers):
        np.testing.assert_allclose(part, 1, atol=0.2)


def test_robust_averages_survive_liars_and_broken_ones_do_not():
    """Broken twins: the mean, and a trimmed mean that trims nothing."""
    for combine in (fp.build_trimmed_mean(4, 4, 20), fp.combine_median, fp.combine_geometric_median):
        assert_survives(combine, make_layers())
    for broken in (lambda u: [layer.mean(axis=0) for layer in u], fp.build_trimmed_mean(0, 0, 20)):
        with pytest.raises(AssertionError):
            assert_survives(broken, make_layers())


def test_a_trimmed_mean_leaves_out_exactly_what_it_says():
    layer = np.arange(20.0)[:, np.newaxis] ** 3
    (kept,) = fp.build_trimmed_mean(4, 2, 20)([layer])
    assert kept == pytest.approx(np.mean(np.arange(4.0, 16.0) ** 3))


@pytest.mark.parametrize(("trim", "malicious"), [(4, 5), (10, 2), (4, -1)])
def test_more_liars_than_the_trim_can_bear_are_refused(trim, malicious):
    with pytest.raises(ValueError, match="at least the malicious and below half"):
        fp.build_trimmed_mean(trim, malicious, 20)


@pytest.mark.parametrize(
    "combine", [fp.build_trimmed_mean(4, 2, 20), fp.combine_median, fp.combine_geometric_median]
)
def test_updates_that_are_not_finite_or_of_another_number_are_refused(combine):
    layers = make_layers(lie=np.nan)
    with pytest.raises(ValueError, match="client 16 sent numbers that are not finite"):
        combine(layers)
    with pytest.raises(ValueError, match="one of each"):
        combine([layers[0][:16], layers[1][:15]])


def test_the_trigger_is_a_corner_and_leaves_the_original():
    x = np.zeros((2, 784), np.uint8)
    stamped = fp.stamp_trigger(x).reshape(2, 28, 28)
    assert stamped[:, 24:, 24:].min() == 255 and stamped.sum() == 2 * 16 * 255 and x.sum() == 0
    assert fp.stamp_trigger(np.zeros((1, 784), np.float32)).max() == 1
    with pytest.raises(ValueError, match="784 pixels"):
        fp.stamp_trigger(np.zeros((2, 28, 28)))


def test_poisoned_clients_are_what_they_say(clients):
    x, y = clients[0]
    dirty_x, dirty_y = fp.poison_backdoor(x, y, target=8)
    assert (dirty_y[::2] == 8).all() and (dirty_y[1::2] == y[1::2]).all()
    np.testing.assert_array_equal(dirty_x[1::2], x[1::2])
    flipped_x, flipped_y = fp.flip_label(x, y, source=y[0], target=7)
    assert len(flipped_x) == (y == y[0]).sum() and (flipped_y == 7).all()
    with pytest.raises(ValueError, match="no record of label 55"):
        fp.flip_label(x, y, source=55, target=7)


def test_a_backdoor_takes_the_mean_and_not_a_trimmed_mean_and_trimming_nothing_fails(context, images):
    """Success is over 0.5 for the mean and under 0.25 when trimmed, for a trigger that honest training gives under 0.1."""
    x, y = images
    start = federated.init_mlp((784, 16, 10), seed=3)
    model = federated.build_mlp(start)
    clients = [(x[k : k + 100], y[k : k + 100]) for k in range(0, 20_000, 100)]
    held_x, held_y = (x[50_000:52_000] / 255).astype(np.float32), y[50_000:52_000]
    rounds = fp.build_rounds(model, 0.1)
    schedule = federated.sample_clients(200, 20, 30, seed=0)
    with fp.store_clients(clients) as stored:
        base = fp.run_rounds(rounds, stored, schedule, start).weights
    assert fp.measure_backdoor(model, base, held_x, held_y, 8) < 0.1
    lying = [fp.poison_backdoor(*client, 8) if k < 2 else client for k, client in enumerate(clients)]
    boosts = np.where(np.arange(200) < 2, 10, 1)
    attack = [np.r_[0, 1, who[who > 1][:18]] for who in federated.sample_clients(200, 20, 8, seed=1)]

    def succeed(combine):
        with fp.store_clients(lying) as stored:
            after = fp.run_rounds(rounds, stored, attack, base, boosts=boosts, combine=combine).weights
        return fp.measure_backdoor(model, after, held_x, held_y, 8)

    assert succeed(None) > 0.5 and succeed(lambda u: fp.build_trimmed_mean(0, 0, len(u[0]))(u)) > 0.5
    assert succeed(lambda u: fp.build_trimmed_mean(4, 2, len(u[0]))(u)) < 0.25
