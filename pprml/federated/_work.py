"""What a client computes in a round, and how the server combines what the clients send."""

import collections
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_model_optimization.python.core.internal.tensor_encoding import encoders

from pprml.federated._models import Model, as_input, count_classes
from pprml.partition import Weights

Process = tff.learning.templates.LearningProcess
Optimizer = tff.learning.optimizers.Optimizer
Aggregator = tff.aggregators.WeightedAggregationFactory | tff.aggregators.UnweightedAggregationFactory

_build_sgd = tff.learning.optimizers.build_sgdm
_compose_data = tff.simulation.compose_dataset_computation_with_learning_process


class Federation(NamedTuple):
    """A TFF process whose clients read their own files; the (type, record shape) of features and labels.

    Labels are below `classes`, where they are class numbers.
    """

    process: Process
    kinds: tuple
    classes: int | None = None


def build_fedavg(
    model: Model,
    client_learning_rate: float | Optimizer,
    *,
    batch_size: int = 20,
    local_epochs: int = 1,
    proximal_strength: float = 0.0,
    server_optimizer: Optimizer | None = None,
    aggregator: Aggregator | None = None,
    dtype: Any = np.uint8,
) -> Federation:
    """FedAvg (arXiv 1602.05629): clients train on their records, the server averages by number of records.

    The same as TFF's own FedAvg in every weight and training metric, and faster: a client's steps are one loop over arrays
    that it has read from its file, not over a data set that is built anew in every round.

    Parameters
    ----------
    model : FunctionalModel
        From `build_mlp` or `from_keras`, or your own.
    client_learning_rate : float or TFF optimizer
        A rate for SGD, or one of ``tff.learning.optimizers``; a client starts it anew in every round.
    batch_size, local_epochs : int
        1 or more. Batches follow the stored order in every epoch; the last of an epoch may be smaller.
    proximal_strength : float
        0 or more. FedProx (arXiv 1812.06127): each step is also pulled to the server's weights, by this number times the distance.
    server_optimizer : TFF optimizer, optional
        Takes the mean change for a gradient: ``build_adam`` or ``build_yogi`` make FedAdam and FedYogi (arXiv 2003.00295).
        By default the server adds the mean change.
    aggregator : TFF aggregation factory, optional
        By default the mean weighted by number of records; an unweighted one counts every client alike. Secure sums are
        replaced by TFF's test arithmetic, without the cryptography.
    dtype : numpy type
        Of the stored features; bytes become numbers from 0 to 1 where they are used.

    Raises
    ------
    ValueError
        A number outside its range.
    """
    rate = client_learning_rate
    if not isinstance(rate, Optimizer) and not (np.isfinite(rate) and rate > 0):
        raise ValueError(f"client_learning_rate is {rate}: give a finite number above 0, or a TFF optimizer")
    if batch_size < 1 or local_epochs < 1:
        raise ValueError(f"batch_size {batch_size}, local_epochs {local_epochs}: give 1 or more")
    if not (np.isfinite(proximal_strength) and proximal_strength >= 0):
        raise ValueError(f"proximal_strength is {proximal_strength}: give a finite number, 0 or more")
    client_optimizer = rate if isinstance(rate, Optimizer) else _build_sgd(rate)
    work = client_optimizer, batch_size, local_epochs, proximal_strength
    return _build_averaging(model, work, server_optimizer or _build_sgd(1.0), aggregator, dtype)


def build_fedsgd(
    model: Model, server_learning_rate: float, *, aggregator: Aggregator | None = None, dtype: Any = np.uint8
) -> Federation:
    """FedSGD: clients send the gradient of all their records, the server averages them and makes one step.

    A client takes all its records in one batch. A rate that is not a finite number above 0 raises ValueError.
    """
    if not (np.isfinite(server_learning_rate) and server_learning_rate > 0):
        raise ValueError(f"server_learning_rate is {server_learning_rate}: give a finite number above 0")
    # One step at rate 1 moves a client by minus its gradient, and the server scales the mean of these moves.
    work = _build_sgd(1.0), None, 1, 0.0
    return _build_averaging(model, work, _build_sgd(server_learning_rate), aggregator, dtype)


def build_federation(
    process: Process, model: Model, batch_size: int = 20, dtype: Any = np.uint8
) -> Federation:
    """Let the clients of any TFF process read their own files, so that a round sends weights and no records.

    Features are stored as `dtype` (bytes become 0 to 1), labels as the model takes them. Batches of `batch_size`
    records (1 or more, else ValueError) follow the stored order. `build_fedavg` is faster where it will do.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give 1 or more")
    kinds = _find_kinds(model, dtype)

    @tff.tensorflow.computation(np.str_)
    def read_client(path):
        data = tf.data.Dataset.from_tensor_slices(_read_records(path, kinds))
        return data.batch(batch_size).map(lambda features, labels: (as_input(features), labels))

    return Federation(_compose_data(read_client, process), kinds, count_classes(model))


def count_compressed_bytes(update: Weights, bits: int = 8, threshold: int = 20_000) -> int:
    """Count what a client sends where TFF's `compression_aggregator` quantizes arrays of more than `threshold` numbers.

    Each array is encoded as that aggregator encodes it, and the bytes of every encoded tensor are added up: the packed
    numbers, the range of each array, and the small arrays, which stay as they are. `bits` outside 1 to 16 raise ValueError.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"bits is {bits}: give 1 to 16")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        sent = []
        for layer in update:
            stage = encoders.uniform_quantization(bits) if layer.size > threshold else encoders.identity()
            encoder = encoders.as_gather_encoder(stage, tf.TensorSpec(layer.shape, layer.dtype))
            parameters = encoder.get_params(encoder.initial_state())[0]
            sent += tf.nest.flatten(encoder.encode(tf.constant(layer), parameters)[0])
        return sum(tensor.nbytes for tensor in session.run(sent))


def _find_kinds(model: Model, dtype: Any) -> tuple:
    x_spec, y_spec = model.input_spec
    return (np.dtype(dtype), tuple(x_spec.shape[1:])), (y_spec.dtype.as_numpy_dtype, tuple(y_spec.shape[1:]))


def _read_records(path: tf.Tensor, kinds: tuple) -> list[tf.Tensor]:
    def read(suffix, kind, shape):
        return tf.reshape(tf.io.decode_raw(tf.io.read_file(path + suffix), kind), (-1, *shape))

    return tuple(read(suffix, *kind) for suffix, kind in zip("xy", kinds, strict=True))


def _build_averaging(
    model: Model, work: tuple, server_optimizer: Optimizer, aggregator: Aggregator | None, dtype: Any
) -> Federation:
    templates, kinds = tff.learning.templates, _find_kinds(model, dtype)
    if isinstance(aggregator, tff.aggregators.UnweightedAggregationFactory):
        aggregator = tff.aggregators.as_weighted_aggregator(aggregator)

    @tff.tensorflow.computation
    def initialize_weights():
        return tff.learning.models.ModelWeights(tuple(tf.constant(w) for w in model.initial_weights[0]), ())

    weights_type = initialize_weights.type_signature.result
    combine = (aggregator or tff.aggregators.MeanFactory()).create(
        weights_type.trainable, tff.TensorType(np.float32)
    )
    process = templates.compose_learning_process(
        initialize_weights,
        templates.build_broadcast_process(weights_type),
        _build_client_work(model, weights_type, kinds, *work),
        combine,
        templates.build_apply_optimizer_finalizer(server_optimizer, weights_type),
    )
    # TFF wants a client's data to be a data set: here it has one element, the name of the client's file.
    named = tff.tensorflow.computation(lambda path: tf.data.Dataset.from_tensors(path), np.str_)
    process = _compose_data(named, process)
    if aggregator is None:
        return Federation(process, kinds, count_classes(model))
    parts = dict(initialize=process.initialize, set_model_weights=process.set_model_weights)
    replaced = SimpleNamespace(next=_replace_secure_sums(process.next), **parts)
    return Federation(replaced, kinds, count_classes(model))


def _replace_secure_sums(next_round: Any) -> Any:
    # TFF's native context runs no secure sum, and what it is given instead has lost the names of its results.
    replaced = tff.backends.test.replace_secure_intrinsics_with_bodies(next_round)

    def run(state, paths):
        output = replaced(state, paths)
        parts = dict(output["state"])
        parts["global_model_weights"] = tff.learning.models.ModelWeights(**parts["global_model_weights"])
        state = tff.learning.templates.LearningAlgorithmState(**parts)
        return tff.learning.templates.LearningProcessOutput(state, output["metrics"])

    return run


def _build_client_work(
    model: Model,
    weights_type: tff.Type,
    kinds: tuple,
    optimizer: Optimizer,
    batch_size: int | None,
    local_epochs: int,
    proximal_strength: float,
) -> tff.learning.templates.ClientWorkProcess:
    """Train for the epochs, and send the change with the number of records; a change that is not finite counts nothing."""

    @tf.function
    def train(start, x, y):
        size = tf.shape(y)[0]
        step = size if batch_size is None else batch_size
        steps = (size + step - 1) // step
        weights, metrics = start, model.initialize_metrics_state()
        state = optimizer.initialize(tf.nest.map_structure(tf.TensorSpec.from_tensor, start))
        for number in tf.range(local_epochs * steps):
            first = number % steps * step
            batch, labels = as_input(x[first : first + step]), y[first : first + step]
            with tf.GradientTape() as tape:
                tape.watch(weights)
                output = model.predict_on_batch((weights, ()), batch, training=True)
                loss = model.loss(output, labels)
            slopes = tape.gradient(loss, weights)
            if proximal_strength:
                pull = [proximal_strength * (w - w0) for w, w0 in zip(weights, start, strict=True)]
                slopes = tuple(slope + back for slope, back in zip(slopes, pull, strict=True))
            state, weights = optimizer.next(state, weights, slopes)
            seen = tff.learning.models.BatchOutput(
                loss=loss, predictions=output, num_examples=tf.shape(labels)[0]
            )
            metrics = model.update_metrics_state(metrics, batch_output=seen, labels=labels)
        change = tf.nest.map_structure(tf.subtract, start, weights)
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(layer)) for layer in change])
        if not finite:
            return tf.nest.map_structure(tf.zeros_like, change), 0.0, model.initialize_metrics_state()
        return change, tf.cast(size, tf.float32), metrics

    paths_type = tff.SequenceType(np.str_)

    @tff.tensorflow.computation(weights_type, paths_type)
    def work(weights, paths):
        x, y = _read_records(paths.get_single_element(), kinds)
        change, size, metrics = train(weights.trainable, x, y)
        return tff.learning.templates.ClientResult(change, size), metrics

    @tff.federated_computation
    def initialize():
        return tff.federated_value((), tff.SERVER)

    at_server = initialize.type_signature.result
    at_clients = [tff.FederatedType(kind, tff.CLIENTS) for kind in (weights_type, paths_type)]

    @tff.federated_computation(at_server, *at_clients)
    def next_round(state, weights, paths):
        result, metrics = tff.federated_map(work, (weights, paths))
        totals = tff.learning.metrics.sum_then_finalize(model.finalize_metrics)(metrics)
        shown = tff.federated_zip(collections.OrderedDict(train=totals))
        return tff.templates.MeasuredProcessOutput(state, result, shown)

    return tff.learning.templates.ClientWorkProcess(initialize, next_round)
