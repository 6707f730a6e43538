"""DP-SGD clips, adds the noise it says, divides by the expected batch and samples what the accountant assumes.

Every check has a broken twin that it must reject. Statistical checks use fixed seeds; with a fresh seed each would fail in fewer than
1 run of 10^5 (4.5 standard deviations or more).
"""

import math
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_privacy.privacy.fast_gradient_clipping import clip_grads, layer_registry
from tensorflow_privacy.privacy.keras_models.dp_keras_model import DPSequential

from pprml import accounting, dp_sgd
from pprml.dp_sgd import _gradients, _sampling, _tfp, _training

L = tf.keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 10, 9, 2)).astype(np.float32)
Y = RNG.integers(0, 3, 12).astype(np.int32)


def conv_model(registry, **convolution):
    layers = [L.Conv2D(4, 3, input_shape=X.shape[1:], **convolution), L.Flatten(), L.Dense(3)]
    model = DPSequential(0.1, 0.0, use_xla=False, layer_registry=registry, layers=layers)
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
        z, out, squared = _tfp._register_conv2d(layer, args, kwargs, tape, num_microbatches)

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
    model = dp_sgd.train(network, x, y, batches, 1.0, momentum=0.0, **options).model
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

    def reused(batches, step, size, scale):
        return np.random.default_rng(0).normal(0, scale, size).astype(np.float32)

    monkeypatch.setattr(dp_sgd.PoissonBatches, "draw_noise", reused)
    assert noise_correlation() > 0.9  # the twin that adds the same noise at every step


def test_batches_and_noise_are_drawn_apart():
    # One stream for both would tell who joined from the noise. 10,000 numbers: independent ones correlate with sd 0.01.
    batches = dp_sgd.PoissonBatches(1000, 100, 2, 3)

    def correlate(one, other):
        return np.corrcoef(*(batches._generator(*key).random(10_000) for key in (one, other)))[0, 1]

    for other in ((_sampling._NOISE, 0), (_sampling._BATCH, 1)):
        assert abs(correlate((_sampling._BATCH, 0), other)) < 0.05
    assert correlate((_sampling._BATCH, 0), (_sampling._BATCH, 0)) > 0.99  # the twin with one stream


class _Half(dp_sgd.PoissonBatches):
    """Draws exactly the first half of the records, whatever is expected."""

    def draw(self, step):
        return np.arange(self.records // 2)


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
    guarantee = dp_sgd.PoissonBatches(60_000, 256, 3516, None).guarantee(1.3, 1e-5)
    assert guarantee == accounting.dp_sgd_guarantee(60_000, 256, 15, 1.3, 1e-5)
    seeded = dp_sgd.PoissonBatches(60_000, 256, 3516, 0).guarantee(1.3, 1e-5)
    assert seeded.epsilon == guarantee.epsilon and "the seed" in seeded.assumptions[-1]
    assert guarantee.sampling == dp_sgd.PoissonBatches.sampling and guarantee.steps == 3516


def test_the_attack_finds_a_model_that_remembers_and_not_one_that_does_not():
    tf.keras.utils.set_random_seed(0)
    labels = np.random.default_rng(5).integers(0, 3, 2 * RECORDS).astype(np.int32)
    x = np.random.default_rng(6).normal(size=(2 * RECORDS, DIMENSION)).astype(np.float32)
    members, others = (x[:RECORDS], labels[:RECORDS]), (x[RECORDS:], labels[RECORDS:])
    batches = dp_sgd.PoissonBatches(RECORDS, 50, 300, 0)
    remembering = dp_sgd.train([L.Dense(3, input_shape=(DIMENSION,))], *members, batches, 0.1).model
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
        (dict(y=FLAT_Y - 1), "labels run from"),
        (dict(x=np.full_like(FLAT_X, np.nan)), "NaN"),
        (dict(clip_norm=1.0, noise_multiplier=1.0, delta=0.0), "delta"),
        (dict(clip_norm=1.0, noise_multiplier=1.0, delta=math.nan), "delta"),
    ],
)
def test_bad_input_is_refused(change, fault):
    with pytest.raises(ValueError, match=fault):
        one_step(**change)


@pytest.mark.parametrize(
    "change, fault", [(dict(learning_rate=math.nan), "learning_rate"), (dict(momentum=1.0), "momentum")]
)
def test_impossible_descents_are_refused(change, fault):
    batches, how = dp_sgd.PoissonBatches(RECORDS, 10, 1, 0), dict(learning_rate=1.0) | change
    with pytest.raises(ValueError, match=fault):
        dp_sgd.train([L.Dense(3, input_shape=(DIMENSION,))], FLAT_X, FLAT_Y, batches, **how)


def test_a_gradient_that_overflows_stops_the_training():
    x = np.where(np.arange(RECORDS)[:, None] == 3, np.float32(3e38), FLAT_X)
    network = [L.Dense(2, kernel_initializer="ones", input_shape=(DIMENSION,)), L.Dense(3)]
    with pytest.raises(FloatingPointError, match="scale the inputs"):
        dp_sgd.train(network, x, FLAT_Y, dp_sgd.PoissonBatches(RECORDS, RECORDS, 1, 0), 0.1, clip_norm=1.0)


@pytest.mark.parametrize(
    "size, steps", [(0, 1), (201, 1), (10, 0), (math.nan, 1), (10.5, 1), (10, math.nan), (10, 2.5)]
)
def test_impossible_batches_are_refused(size, steps):
    with pytest.raises(ValueError, match="batch_size|steps"):
        dp_sgd.PoissonBatches(RECORDS, size, steps, 0)


# Clipped sums in one pass

loss = dp_sgd.softmax_loss


def build_residual():
    inputs = tf.keras.Input((10, 9, 2))
    hidden = L.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    again = L.GroupNormalization(4)(L.Conv2D(8, 3, padding="same", use_bias=False)(hidden))
    joined = L.Add()([hidden, L.Activation("relu")(again)])
    return tf.keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(joined)))


def build_text():
    embedded = [L.Embedding(11, 6, input_length=7), L.LayerNormalization(), L.Dense(5, activation="tanh")]
    return tf.keras.Sequential([*embedded, L.Flatten(), L.Dense(3)])


def build_nested():
    inner = tf.keras.Sequential(
        [L.Dense(6, activation="relu", input_shape=(180,)), L.LayerNormalization(center=False)]
    )
    return tf.keras.Sequential([L.Flatten(input_shape=(10, 9, 2)), inner, L.Dense(3, use_bias=False)])


def build_wide():
    return tf.keras.Sequential(
        [
            L.Conv2D(9, (4, 2), strides=(2, 1), activation="tanh", input_shape=(10, 9, 2)),
            L.MaxPool2D(2, 1),
            L.Conv2D(5, 2, strides=2, padding="same"),
            L.LayerNormalization(axis=[1, 3]),
            L.Flatten(),
            L.Dense(3),
        ]
    )


def build_uneven():
    """Strides that do not divide the kernels, for few channels and for many."""
    first = L.Conv2D(9, (5, 3), strides=(3, 2), activation="tanh", input_shape=(10, 9, 2))
    return tf.keras.Sequential([first, L.Conv2D(5, 3, strides=2, padding="same"), L.Flatten(), L.Dense(3)])


def build_views():
    """Two views of each record go through the same layers: fewer positions than weights."""
    shared = [L.Dense(8, activation="tanh", input_shape=(2, 90)), L.Dense(5, use_bias=False)]
    return tf.keras.Sequential([*shared, L.Flatten(), L.Dense(3)])


TOKENS = np.random.default_rng(8).integers(0, 4, (12, 7))  # few, so that they repeat within a record
MODELS = {
    "residual": (build_residual, X),
    "text": (build_text, TOKENS),
    "nested": (build_nested, X),
    "views": (build_views, X.reshape(12, 2, 90)),
    "wide": (build_wide, X),
    "uneven": (build_uneven, X),
    "cnn": (
        lambda: tf.keras.Sequential(dp_sgd.make_cnn()),
        RNG.normal(size=(12, 28, 28, 1)).astype(np.float32),
    ),
}


def sum_one_by_one(model, x, y, clip_norm):
    """The definition: one gradient a record, clipped, added."""
    total = [np.zeros(variable.shape) for variable in model.trainable_variables]
    norms = []
    for one, label in zip(x, y, strict=True):
        with tf.GradientTape() as tape:
            value = loss(label[None], model(one[None]))
        gradients = tape.gradient(value, model.trainable_variables)
        gradients = [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]
        norms.append(np.sqrt(sum(np.sum(np.square(gradient, dtype=float)) for gradient in gradients)))
        weight = min(1, clip_norm / norms[-1])
        total = [one + weight * gradient for one, gradient in zip(total, gradients, strict=True)]
    return total, np.array(norms)


def gap(found, model, x, clip_norm):
    total, norms = sum_one_by_one(model, x, Y, clip_norm)
    size = np.sqrt(sum(np.sum(np.square(one)) for one in total))
    sums = max(
        np.abs(one - np.asarray(other)).max() for one, other in zip(total, found.gradients, strict=True)
    )
    return max(sums / size, np.abs(found.norms / norms - 1).max())


def make_model(name):
    tf.keras.utils.set_random_seed(3)
    build, x = MODELS[name]
    model = build()
    for variable in model.trainable_variables:  # no zeros left at which a forgotten term would not show
        variable.assign_add(0.1 * tf.random.normal(variable.shape))
    return model, x


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clip_share", [0.5, 2.0])
def test_the_one_pass_sum_is_the_definition(name, clip_share, recwarn):
    model, x = make_model(name)
    clip_norm = float(clip_share * np.median(sum_one_by_one(model, x, Y, 1.0)[1]))
    found = tf.function(dp_sgd.clipped_gradient_sum)(model, x, Y, loss, clip_norm)
    assert gap(found, model, x, clip_norm) < 2e-5
    assert not [one for one in recwarn if one.category is dp_sgd.SlowGradientsWarning]


def test_a_gap_shows_what_is_left_out():
    model, x = make_model("wide")
    clip_norm = float(np.median(sum_one_by_one(model, x, Y, 1.0)[1]))
    for twin in (10 * clip_norm, 0.99 * clip_norm):  # hardly clipping, and clipping a hundredth too much
        assert gap(dp_sgd.clipped_gradient_sum(model, x, Y, loss, twin), model, x, clip_norm) > 1e-3


def test_a_rule_that_takes_a_repeated_token_for_two_is_rejected(monkeypatch):
    def forgetful(layer, inputs):
        before, finish = _gradients._run_embedding(layer, inputs)
        return before, lambda gradient: (tf.reduce_sum(tf.square(gradient), axis=[1, 2]), finish(gradient)[1])

    model, x = make_model("text")
    monkeypatch.setitem(_gradients._RULES, L.Embedding, _gradients._Rule(forgetful))
    assert gap(dp_sgd.clipped_gradient_sum(model, x, Y, loss, 1.0), model, x, 1.0) > 1e-3


def measure_cancelling():
    """The norm found of a gradient whose two large parts cancel, over its norm."""
    row, rest, error = (np.random.default_rng(n).normal(size=40).astype("f4") for n in range(3))
    inputs = np.array([[1e4 * row, 1e4 * row + rest]], "f4")
    gradient = np.array([[error, -error]], "f4")
    layer = L.Dense(40, use_bias=False)
    squared, _ = _gradients._finish_few_positions(layer, tf.constant(inputs), tf.constant(gradient))
    kernel = inputs[0].astype(float).T @ gradient[0].astype(float)
    return float(np.sqrt(squared[0]) / np.linalg.norm(kernel))


def test_a_gradient_whose_parts_cancel_is_not_called_short(monkeypatch):
    assert measure_cancelling() == pytest.approx(1, abs=1e-3)

    def multiply_in_single_precision(rows):
        return tf.matmul(rows, rows, transpose_b=True)

    monkeypatch.setattr(_gradients, "_multiply_pairs", multiply_in_single_precision)
    assert abs(measure_cancelling() - 1) > 0.05


def build_slow(kind):
    inputs = tf.keras.Input((10, 9, 2))
    if kind == "depthwise":
        hidden = L.Flatten()(L.DepthwiseConv2D(3)(inputs))
    elif kind == "dilated":
        hidden = L.Flatten()(L.Conv2D(3, 2, dilation_rate=2)(inputs))
    elif kind == "mixing":
        # Each record less the batch's mean: in one pass a record would move the others' gradients too.
        hidden = L.Flatten()(L.Lambda(lambda t: t - 0.5 * tf.reduce_mean(t, 0, keepdims=True))(inputs))
    else:
        shared = L.Dense(2)
        hidden = L.Flatten()(shared(shared(inputs)))
    return tf.keras.Model(inputs, L.Dense(3)(hidden))


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("depthwise", "no one-pass rule"),
        ("dilated", "no one-pass rule"),
        ("shared", "more than once"),
        ("mixing", "keep records apart"),
    ],
)
def test_other_layers_take_the_slow_way_and_say_so(kind, reason):
    model = build_slow(kind)
    with pytest.warns(dp_sgd.SlowGradientsWarning, match=reason):
        found = dp_sgd.clipped_gradient_sum(model, X, Y, loss, 0.5)
    assert gap(found, model, X, 0.5) < 2e-5


def test_the_one_pass_would_let_a_mixing_layer_pass(monkeypatch):
    monkeypatch.setattr(_gradients, "_APART", _gradients._APART | {L.Lambda})
    model = build_slow("mixing")
    assert gap(dp_sgd.clipped_gradient_sum(model, X, Y, loss, 0.5), model, X, 0.5) > 1e-2


@pytest.mark.parametrize("kind", ["fast", "slow"])
def test_a_loss_averaged_over_the_batch_is_refused(kind):
    model = make_model("cnn")[0] if kind == "fast" else build_slow("dilated")
    averaged = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x = MODELS["cnn"][1] if kind == "fast" else X
    with pytest.raises(ValueError, match="one number a record"):
        dp_sgd.clipped_gradient_sum(model, x, Y, averaged, 1.0)
    averaged.reduction = "none"
    assert dp_sgd.clipped_gradient_sum(model, x, Y, averaged, 1.0).norms.shape == (len(x),)


def test_a_slow_model_is_summed_in_small_parts(monkeypatch):
    seen = []

    def record(model, x, y, loss, clip_norm):
        seen.append(x.shape[0])
        return dp_sgd.clipped_gradient_sum(model, x, y, loss, clip_norm)

    monkeypatch.setattr(_training, "SLOW_BATCH", 5)
    monkeypatch.setattr(_training, "clipped_gradient_sum", record)
    with pytest.warns(dp_sgd.SlowGradientsWarning):
        dp_sgd.train(build_slow("dilated"), X, Y, dp_sgd.PoissonBatches(12, 12, 1, 0), 0.1, clip_norm=1.0)
    assert seen and all(size in (5, 2, None) for size in seen)


def test_what_has_no_gradient_a_record_is_refused():
    synchronized = L.experimental.SyncBatchNormalization(input_shape=(10, 9, 2))
    with pytest.raises(ValueError, match="GroupNormalization"):
        dp_sgd.clipped_gradient_sum(
            tf.keras.Sequential([synchronized, L.Flatten(), L.Dense(3)]), X, Y, loss, 1.0
        )
    normalized = tf.keras.Sequential([L.BatchNormalization(input_shape=(10, 9, 2)), L.Flatten(), L.Dense(3)])
    with pytest.raises(ValueError, match="GroupNormalization"):
        dp_sgd.clipped_gradient_sum(normalized, X, Y, loss, 1.0)
    regularized = tf.keras.Sequential(
        [L.Flatten(input_shape=(10, 9, 2)), L.Dense(3, kernel_regularizer="l2")]
    )
    with pytest.raises(ValueError, match="regularizer"):
        dp_sgd.clipped_gradient_sum(regularized, X, Y, loss, 1.0)
    with pytest.raises(ValueError, match="clip_norm"):
        dp_sgd.clipped_gradient_sum(make_model("cnn")[0], MODELS["cnn"][1], Y, loss, math.nan)


# Training


class _Nobody(dp_sgd.PoissonBatches):
    def draw(self, step):
        return np.arange(0)


def test_an_empty_batch_still_gets_its_noise():
    nobody = _Nobody(RECORDS, 20, 1, 0)
    convolutional, labels = dp_sgd.make_cnn(), np.zeros(RECORDS, int)
    pictures = np.zeros((RECORDS, 28, 28, 1), np.float32)
    model = dp_sgd.train(convolutional, pictures, labels, nobody, 0.1, 1.0, 1.0).model
    assert all(np.isfinite(weights).all() for weights in model.get_weights())
    assert np.abs(one_step(batches=nobody, clip_norm=0.5)).max() == 0
    # 903 weights: the relative sd of a standard deviation is 2.4 %.
    assert one_step(batches=nobody, clip_norm=0.5, noise_multiplier=2.0).std() == pytest.approx(
        0.05, rel=0.11
    )


@pytest.mark.parametrize("records, noise", [(1, 2**20), (2**15, 2000), (2**15, 2**20)])
def test_stretches_of_any_length_take_the_same_steps(records, noise, monkeypatch):
    batches, seen = dp_sgd.PoissonBatches(RECORDS, 20, 7, 0), []
    how = dict(batches=batches, clip_norm=0.5, noise_multiplier=1.0)
    moved = one_step(**how)
    monkeypatch.setattr(_training, "STRETCH_RECORDS", records)
    monkeypatch.setattr(_training, "STRETCH_NOISE", noise)
    again = one_step(**how, observe=lambda step, update: seen.append((step, update)))
    np.testing.assert_array_equal(again, moved)
    assert [step for step, _ in seen] == list(range(7))
    np.testing.assert_allclose(-sum(update for _, update in seen), moved, atol=1e-6)


def test_a_step_that_overflows_is_named_and_is_the_last(monkeypatch):
    seen, draw = [], dp_sgd.PoissonBatches.draw_noise

    def overflow(batches, step, size, scale):
        return draw(batches, step, size, scale) * (np.inf if step == 3 else 1)

    monkeypatch.setattr(dp_sgd.PoissonBatches, "draw_noise", overflow)
    batches = dp_sgd.PoissonBatches(RECORDS, 20, 7, 0)
    with pytest.raises(FloatingPointError, match="step 3"):
        one_step(batches=batches, clip_norm=0.5, noise_multiplier=1.0, observe=lambda *one: seen.append(one))
    assert len(seen) <= 3


def test_what_goes_wrong_in_a_draw_is_raised_here(monkeypatch):
    def broken(batches, step, size, scale):
        raise OSError("no randomness")

    monkeypatch.setattr(dp_sgd.PoissonBatches, "draw_noise", broken)
    with pytest.raises(OSError, match="no randomness"):
        one_step(clip_norm=0.5, noise_multiplier=1.0)


def test_parts_of_a_batch_add_up():
    whole, parts = (one_step(clip_norm=0.5, max_batch=size) for size in (1000, 7))
    np.testing.assert_allclose(whole, parts, atol=1e-6)


def test_a_part_makes_no_more_numbers_than_it_may(monkeypatch):
    seen = []

    def sum_part(model, x, *others):
        noted = tf.numpy_function(lambda part: np.int32(seen.append(len(part)) or 0), [x], tf.int32)
        with tf.control_dependencies([noted]):
            return dp_sgd.clipped_gradient_sum(model, x, *others)

    monkeypatch.setattr(_training, "clipped_gradient_sum", sum_part)
    monkeypatch.setattr(_training, "PART_NUMBERS", 9 * (DIMENSION + 3) + 1)
    one_step(clip_norm=0.5)
    assert seen[:-1] == [9] * (sum(seen[:-1]) // 9)
    assert max(seen) == 9
    assert sum(seen) > RECORDS / 2  # a batch that everybody is expected to join


def test_the_numbers_of_a_record_are_those_of_every_layer_and_unknown_where_the_model_does_not_tell():
    inner = tf.keras.Sequential([L.Dense(5, input_shape=(4,)), L.ReLU()])
    entry = L.Input((3,))
    model = tf.keras.Model(entry, L.Dense(2)(inner(L.Dense(4)(entry))))
    assert (
        _gradients.count_numbers(model) == 3 + 4 + (4 + 5 + 5) + 2
    )  # the inner model has an input of its own
    assert _gradients.count_numbers(tf.keras.Sequential([L.Embedding(9, 2, input_length=None)])) == 0
    words = L.Input((None,), dtype=tf.int32)
    assert _gradients.count_numbers(tf.keras.Model(words, L.Embedding(9, 2)(words))) == 0


def test_noise_from_the_operating_system_is_gaussian_of_the_scale_asked_for_and_never_the_same():
    batches = dp_sgd.PoissonBatches(1000, 100, 50, None)
    first, second = (batches.draw_noise(0, 4000, 2.0) for _ in range(2))
    # 4,000 draws: the relative sd of a standard deviation is 1.1 %, the sd of a correlation 0.016.
    assert first.std() == pytest.approx(2.0, rel=0.05)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.075
    # 50 draws of 100 expected: the mean size has sd 1.3.
    assert np.mean([len(batch) for batch in batches]) == pytest.approx(100, abs=6)


def test_the_guarantee_comes_with_the_model():
    batches = dp_sgd.PoissonBatches(RECORDS, 50, 200, 0)
    network = [L.Dense(3, input_shape=(DIMENSION,))]
    trained = dp_sgd.train(network, FLAT_X, FLAT_Y, batches, 0.1, 1.0, 2.0, delta=1e-3)
    assert trained.guarantee == batches.guarantee(2.0, 1e-3)


def test_what_is_observed_is_what_moves_the_weights():
    seen = []
    moved = one_step(clip_norm=0.5, noise_multiplier=1.0, observe=lambda step, update: seen.append(update))
    np.testing.assert_allclose(moved, -seen[0], atol=1e-7)


PROGRAM = """
import os, signal, sys
import numpy as np, tensorflow as tf
from pprml import dp_sgd
path, die_at = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(1)
x, y = rng.normal(size=(300, 20)).astype(np.float32), rng.integers(0, 3, 300)
def observe(step, update):
    if step == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
tf.keras.utils.set_random_seed(5)
network = [tf.keras.layers.Dense(8, activation="tanh", input_shape=(20,)), tf.keras.layers.Dense(3)]
batches = dp_sgd.PoissonBatches(300, 30, 120, 4)
trained = dp_sgd.train(network, x, y, batches, 0.5, 1.0, 1.0, delta=1e-3, checkpoint=path, every=4, observe=observe)
np.save(path + ".npy", np.concatenate([w.ravel() for w in trained.model.get_weights()]))
print(trained.guarantee)
"""


def run_until(path, die_at):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(die_at)], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    done = run_until(path, -1)
    assert done.returncode == 0, done.stderr
    return np.load(f"{path}.npy"), done.stdout


def test_a_killed_run_goes_on_to_the_same_model_and_guarantee(uninterrupted, tmp_path):
    for die_at in (
        0,
        5,
        63,
        119,
    ):  # before the first checkpoint, just after one, between two, in the last step
        assert run_until(tmp_path / "run", die_at).returncode == -signal.SIGKILL
    done = run_until(tmp_path / "run", -1)
    np.testing.assert_array_equal(np.load(tmp_path / "run.npy"), uninterrupted[0])
    assert done.stdout == uninterrupted[1]


def double_loss(y, output):
    return 2 * loss(y, output)


def resume(path, seed=4, size=50, steps=3, **change):
    tf.keras.utils.set_random_seed(7)
    options = dict(clip_norm=0.5, noise_multiplier=1.0, checkpoint=path, every=1) | change
    return one_step(batches=dp_sgd.PoissonBatches(RECORDS, size, steps, seed), **options)


def test_a_resumed_run_that_forgets_its_velocity_is_rejected(uninterrupted, tmp_path, monkeypatch):
    run_until(tmp_path / "run", 63)
    with np.load(tmp_path / "run", allow_pickle=False) as saved:
        broken = {name: saved[name] for name in saved.files}
    broken |= {name: 0 * array for name, array in broken.items() if name.startswith("velocity")}
    with open(tmp_path / "run", "wb") as file:
        np.savez(file, **broken)
    run_until(tmp_path / "run", -1)
    assert np.abs(np.load(tmp_path / "run.npy") - uninterrupted[0]).max() > 1e-3


@pytest.mark.parametrize(
    "change",
    [
        *(dict(seed=5), dict(size=51), dict(steps=4), dict(clip_norm=0.6), dict(noise_multiplier=2.0)),
        *(dict(x=FLAT_X + 1), dict(y=(FLAT_Y + 1) % 3), dict(loss=double_loss)),
        dict(loss=lambda y, output: 3 * loss(y, output)),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, tmp_path):
    resume(tmp_path / "run")
    with pytest.raises(ValueError, match="another run"):
        resume(tmp_path / "run", **change)


def test_two_losses_without_a_name_are_told_apart():
    one, other, same = (
        (lambda y, o: 2 * loss(y, o)),
        (lambda y, o: 3 * loss(y, o)),
        lambda y, o: 2 * loss(y, o),
    )
    assert _training._describe_loss(one) == _training._describe_loss(same) != _training._describe_loss(other)


def test_a_seed_of_numpys_is_a_seed(tmp_path):
    np.testing.assert_array_equal(
        resume(tmp_path / "run", seed=np.int64(4)), resume(tmp_path / "other", seed=4)
    )


def test_a_finished_run_is_not_trained_again(tmp_path):
    np.testing.assert_array_equal(resume(tmp_path / "run"), resume(tmp_path / "run"))


@pytest.mark.parametrize(
    "change, fault",
    [(dict(max_batch=0), "max_batch"), (dict(every=0), "every"), (dict(y=FLAT_Y * 1.0), "whole numbers")],
)
def test_bad_settings_are_refused(change, fault):
    with pytest.raises(ValueError, match=fault):
        one_step(**change)
