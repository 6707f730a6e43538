"""Steps of the two networks in PyTorch: plain, and private by Opacus with hooks and with ghost clipping."""

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn
from worker import serve


def build(network):
    if network == "MLP":
        layers = [
            nn.Flatten(),
            nn.Linear(784, 512),
            nn.ReLU(),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Linear(256, 10),
        ]
        return nn.Sequential(*layers)
    # "same" padding of 28 pixels for a kernel of 8 at stride 2 is three before and three after.
    convolutions = [
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.ReLU(),
    ]
    return nn.Sequential(
        *convolutions, nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def make_step(network, batch, mode):
    mode, _, tuned = mode.partition(", ")
    model = build(network)
    x, y = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    if tuned == "channels_last":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    loss = nn.CrossEntropyLoss()
    if mode == "hooks":
        model = GradSampleModule(model)
    elif mode == "ghost":
        model = GradSampleModuleFastGradientClipping(model, max_grad_norm=1.0, use_ghost_clipping=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    private = dict(noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=batch)
    if mode == "hooks":
        optimizer = DPOptimizer(optimizer, **private)
    elif mode == "ghost":
        optimizer = DPOptimizerFastGradientClipping(optimizer, **private)
        loss = DPLossFastGradientClipping(model, optimizer, loss)
    forward = torch.compile(model) if tuned == "compiled" else model

    def step():
        optimizer.zero_grad()
        loss(forward(x), y).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    serve(make_step)
