"""The pytorch track is set up and its libraries work together."""

import importlib.metadata


def test_opacus_takes_gradients_of_each_record():
    import flwr
    import opacus
    import torch

    layer = opacus.GradSampleModule(torch.nn.Linear(3, 1))
    layer(torch.ones(5, 3, requires_grad=True)).sum().backward()
    assert layer.get_parameter("_module.weight").grad_sample.shape == (5, 1, 3)
    assert flwr.__version__ == importlib.metadata.version("flwr")
