"""DP-SGD: the sampler that the accountant assumes, clipped sums in one pass, and training that can be interrupted."""

from pprml.dp_sgd._gradients import (
    ClippedSum,
    SlowGradientsWarning,
    clipped_gradient_sum,
    explain_slow,
    softmax_loss,
)
from pprml.dp_sgd._measures import attack_by_threshold, make_cnn, measure_accuracy
from pprml.dp_sgd._sampling import PoissonBatches
from pprml.dp_sgd._tfp import make_registry
from pprml.dp_sgd._training import Trained, train

__all__ = [
    "ClippedSum",
    "PoissonBatches",
    "SlowGradientsWarning",
    "Trained",
    "attack_by_threshold",
    "clipped_gradient_sum",
    "explain_slow",
    "make_cnn",
    "make_registry",
    "measure_accuracy",
    "softmax_loss",
    "train",
]
