"""pfl-research: federated averaging in one process, as its simulations run without a launcher."""

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.dataset import Dataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch_training import Network
from work import BATCH, RATE, main


class LossNetwork(Network):
    """With the two methods that pfl asks a model for."""

    def loss(self, x, y, eval=False):
        """Return the mean cross-entropy."""
        return nn.functional.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x, y, eval=False):
        """Measure nothing: the benchmark scores the weights."""
        return {}


def run(work, network, lap):
    class Lap(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            lap(network.to_arrays())
            return False, Metrics()

    def read_client(k):
        x = torch.tensor(work.x[k]).float() / 255
        return Dataset(raw_data=[x, torch.tensor(work.y[k]).long()])

    order = iter([int(k) for clients in work.schedule for k in clients])
    data = FederatedDataset(read_client, lambda: next(order))
    network = LossNetwork(network, work.weights)
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    rounds, cohort = work.schedule.shape
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=cohort,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=None, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=RATE),
        NNEvalHyperParams(local_batch_size=None),
        [Lap()],
    )
    return network.to_arrays()


if __name__ == "__main__":
    main(run)
