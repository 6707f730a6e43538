"""Many clients, one model: federated averaging with TensorFlow Federated, and what an update gives away.

`_models` makes models, `_work` is what a client computes and how the server combines it, `_context` runs TFF's worker, `_rounds`
trains, and `_inversion` reads an update.
"""

from pprml.federated._context import federated_context
from pprml.federated._inversion import attack_dense_layer
from pprml.federated._models import Model, build_mlp, from_keras, measure_accuracy
from pprml.federated._rounds import Clients, Training, collect_updates, run_rounds
from pprml.federated._work import (
    Federation,
    Process,
    build_fedavg,
    build_federation,
    build_fedsgd,
    count_compressed_bytes,
)
from pprml.partition import Weights, init_mlp, partition_records, sample_clients

__all__ = [
    "Clients",
    "Federation",
    "Model",
    "Process",
    "Training",
    "Weights",
    "attack_dense_layer",
    "build_fedavg",
    "build_federation",
    "build_fedsgd",
    "build_mlp",
    "collect_updates",
    "count_compressed_bytes",
    "federated_context",
    "from_keras",
    "init_mlp",
    "measure_accuracy",
    "partition_records",
    "run_rounds",
    "sample_clients",
]
