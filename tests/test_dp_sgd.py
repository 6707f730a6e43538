"""DP-SGD clips, adds the noise it says, divides by the expected batch and samples what the accountant assumes.

Every check has a broken twin that it must reject. Statistical checks use fixed seeds; with a fresh seed each would fail in fewer than
1 run of 10^5 (4.5 standard deviations or more).
"""

import math

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_privacy.privacy.fast_gradient_clipping import clip_grads, layer_registry

from pprml import accounting, dp_sgd

L = tf.keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 10, 9, 2)).astype(np.float32)
Y = RNG.integers(0, 3, 12).astype(np.int32)


def conv_model(registry, **convolution):
    layers = [L.Conv2D(4, 3, input_shape=X.shape[1:], **convolution), L.Flatten(), L.Dense(3)]
    model = dp_sgd.DPSequential(0.1, 0.0, use_xla=False, layer_registry=registry, layers=layers)
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"))
    model.layers[0].bias.assign([0.1, -0.2, 0.3, 0.0]) if convolution.get("use_bias", True) else None
    return model


def fast_norms(model, registry):
    return clip_grads.compute_gradient_norms(model, registry, X, Y).numpy()


def slow_norms(model):
    """One gradient a record, the definition itself."""
    norms = []
    for x, y in zip(X, Y, strict=True):
        with tf.GradientTape() as tape:
            loss = model.loss(y[None], model(x[None]))
        norms.append(tf.linalg.global_norm(tape.gradient(loss, model.trainable_variables)).numpy())
    return np.array(norms)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2, (2, 1)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_fast_norms_are_those_of_one_gradient_a_record(padding, strides, use_bias):
    registry = dp_sgd.make_registry()
    model = conv_model(registry, padding=padding, strides=strides, use_bias=use_bias, activation="tanh")
    np.testing.assert_allclose(fast_norms(model, registry), slow_norms(model), rtol=1e-4)


def test_twin_that_forgets_the_bias_is_rejected():
    def forgetful(layer, args, kwargs, tape, num_microbatches=None):
        z, out, squared = dp_sgd._register_conv2d(layer, args, kwargs, tape, num_microbatches)

        def without_bias(gradient):
            flat = tf.reduce_sum(gradient, axis=[1, 2])
            return squared(gradient) - tf.reduce_sum(tf.square(flat), axis=1)

        return z, out, without_bias

    registry = layer_registry.make_default_layer_registry()
    registry.insert(L.Conv2D, forgetful)
    model = conv_model(registry)
    assert np.abs(fast_norms(model, registry) / slow_norms(model) - 1).max() > 1e-3


RECORDS, DIMENSION = 200, 300
FLAT_X = np.random.default_rng(1).normal(size=(RECORDS, DIMENSION)).astype(np.float32)
FLAT_Y = np.random.default_rng(2).integers(0, 3, RECORDS).astype(np.int32)


def one_step(x=FLAT_X, y=FLAT_Y, batches=None, **options):
    """The change of the weights in one step at learning rate 1, from the same start."""
    tf.keras.utils.set_random_seed(7)
    network = [L.Dense(3, kernel_initializer="zeros", input_shape=(DIMENSION,))]
    batches = batches or dp_sgd.PoissonBatches(len(x), len(x), 1, 0)
    model = dp_sgd.train(network, x, y, batches, 1.0, momentum=0.0, **options)
    return np.concatenate([w.ravel() for w in model.get_weights()])


def sensitivity(**options):
    """How far the clipped sum moves when one record, a large one, is added."""
    big = np.concatenate([FLAT_X, 100 * FLAT_X[:1]]), np.append(FLAT_Y, FLAT_Y[:1])
    return np.linalg.norm(one_step(*big, **options) * (RECORDS + 1) - one_step(**options) * RECORDS)


def test_one_record_moves_the_sum_by_the_clip_norm_at_most():
    assert sensitivity(clip_norm=0.5) <= 0.5 * 1.001
    assert sensitivity(clip_norm=0.5) > 0.49  # the bound is met, so a doubled one would be noticed
    assert sensitivity() > 50  # the twin without clipping


def noise_scale(noise_multiplier, clip_norm=0.5):
    clean, noisy = (one_step(clip_norm=clip_norm, noise_multiplier=m) for m in (0.0, noise_multiplier))
    return (noisy - clean).std() * RECORDS / clip_norm


def test_noise_is_the_multiple_of_the_clip_norm_that_was_asked_for():
    # 903 weights: the relative error of a standard deviation is 1 / sqrt(2 * 903) = 2.4 %; 11 % is 4.7 of those.
    assert noise_scale(2.0) == pytest.approx(2.0, rel=0.11)
    assert noise_scale(1.0) != pytest.approx(2.0, rel=0.11)  # the twin with half the noise


def noise_correlation():
    """Correlation of the first step's noise with the second's; the gradients are drowned."""
    one, two = (
        one_step(batches=dp_sgd.PoissonBatches(RECORDS, RECORDS, n, 0), clip_norm=0.5, noise_multiplier=1e4)
        for n in (1, 2)
    )
    return np.corrcoef(one, two - one)[0, 1]


def test_each_step_draws_its_noise_afresh(monkeypatch):
    # 903 weights: the correlation of independent noise has sd 0.033.
    assert abs(noise_correlation()) < 0.15

    def reused(shape, mean=0.0, stddev=1.0, **_):
        return tf.random.stateless_normal(shape, (1, 2), mean, stddev)

    monkeypatch.setattr(tf.random, "normal", reused)
    assert noise_correlation() > 0.9  # the twin that adds the same noise at every step


class _Half(dp_sgd.PoissonBatches):
    """Draws exactly the first half of the records, whatever is expected."""

    def __iter__(self):
        yield np.arange(self.records // 2)


def test_the_update_is_divided_by_the_expected_batch_size():
    half = one_step(batches=_Half(RECORDS, RECORDS, 1, 0), clip_norm=0.5)
    alone = one_step(FLAT_X[: RECORDS // 2], FLAT_Y[: RECORDS // 2], clip_norm=0.5)
    np.testing.assert_allclose(half, alone / 2, atol=1e-7)  # the realised size would give `alone` itself
    assert np.linalg.norm(half - alone) > 1e-3


def size_spread(batches):
    return np.var([len(batch) for batch in batches])


def test_batches_are_poisson_and_a_shuffled_twin_is_rejected():
    batches = dp_sgd.PoissonBatches(1000, 100, 2000, 3)
    sizes = [len(batch) for batch in batches]
    # Binomial: mean 100, variance 90. Over 2,000 draws the mean has sd 0.21, the variance about 3 %.
    assert np.mean(sizes) == pytest.approx(100, abs=1.0)
    assert size_spread(batches) == pytest.approx(90, rel=0.15)
    counts = np.bincount(np.concatenate(list(batches)), minlength=1000)
    assert counts.var() == pytest.approx(180, rel=0.25)  # each record joins each batch on its own
    shuffled = [np.arange(100)] * 2000
    assert size_spread(shuffled) != pytest.approx(90, rel=0.15)


def test_the_guarantee_of_the_batches_is_the_accountants():
    guarantee = dp_sgd.PoissonBatches(60_000, 256, 3516, 0).guarantee(1.3, 1e-5)
    assert guarantee == accounting.dp_sgd_guarantee(60_000, 256, 15, 1.3, 1e-5)
    assert guarantee.sampling == dp_sgd.PoissonBatches.sampling and guarantee.steps == 3516


def test_the_attack_finds_a_model_that_remembers_and_not_one_that_does_not():
    tf.keras.utils.set_random_seed(0)
    labels = np.random.default_rng(5).integers(0, 3, 2 * RECORDS).astype(np.int32)
    x = np.random.default_rng(6).normal(size=(2 * RECORDS, DIMENSION)).astype(np.float32)
    members, others = (x[:RECORDS], labels[:RECORDS]), (x[RECORDS:], labels[RECORDS:])
    batches = dp_sgd.PoissonBatches(RECORDS, 50, 300, 0)
    remembering = dp_sgd.train([L.Dense(3, input_shape=(DIMENSION,))], *members, batches, 0.1)
    # Not near 1: a third of the outsiders' random labels are right by luck, and some of those have a small loss too.
    assert dp_sgd.attack_by_threshold(remembering, members, others) > 0.85
    untrained = tf.keras.Sequential([L.Dense(3, input_shape=(DIMENSION,))])
    # Two samples of 200: the AUC of a blind guess has sd 0.029.
    assert abs(dp_sgd.attack_by_threshold(untrained, members, others) - 0.5) < 0.14


@pytest.mark.parametrize(
    "change, fault",
    [
        (dict(clip_norm=0.0), "clip_norm"),
        (dict(clip_norm=-1.0), "clip_norm"),
        (dict(clip_norm=math.nan), "clip_norm"),
        (dict(clip_norm=1.0, noise_multiplier=-1.0), "noise_multiplier"),
        (dict(clip_norm=1.0, noise_multiplier=math.nan), "noise_multiplier"),
        (dict(noise_multiplier=1.0), "noise without clipping"),
        (dict(y=FLAT_Y + 1), "labels run from"),
        (dict(y=FLAT_Y[:-1]), "make them equal"),
        (dict(x=np.full_like(FLAT_X, np.nan)), "NaN"),
    ],
)
def test_bad_input_is_refused(change, fault):
    with pytest.raises(ValueError, match=fault):
        one_step(**change)


@pytest.mark.parametrize("size, steps", [(0, 1), (201, 1), (10, 0)])
def test_impossible_batches_are_refused(size, steps):
    with pytest.raises(ValueError, match="batch_size|steps"):
        dp_sgd.PoissonBatches(RECORDS, size, steps, 0)


def test_a_layer_without_a_fast_norm_is_refused_and_not_silently_slow():
    network = [L.LayerNormalization(input_shape=(DIMENSION,)), L.Dense(3)]
    with pytest.raises(ValueError, match="no fast gradient norm"):
        dp_sgd.train(network, FLAT_X, FLAT_Y, dp_sgd.PoissonBatches(RECORDS, 50, 1, 0), 0.1, clip_norm=1.0)
