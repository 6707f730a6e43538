"""A client's training in PyTorch, for each side that trains in it."""

import torch
from torch import nn
from work import BATCH, RATE


class Network(nn.Module):
    """The MLP or the convolutional network of the benchmark, with weights in TensorFlow's order and shapes."""

    def __init__(self, network, weights):
        super().__init__()
        self.weights = nn.ParameterList(self.from_arrays(weights))
        self.network = network

    @staticmethod
    def from_arrays(weights):
        """Turn kernels from (height, width, in, out) and (in, out) into PyTorch's order."""
        order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
        return [torch.tensor(w.transpose(order[w.ndim]).copy()) for w in weights]

    def to_arrays(self):
        """Return the weights in TensorFlow's order and shapes."""
        order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
        return [w.detach().permute(order[w.dim()]).contiguous().numpy() for w in self.weights]

    def forward(self, x):
        """Return the logits of grey levels (records, 784) from 0 to 1."""
        w, F = self.weights, nn.functional
        if self.network == "MLP":
            return F.linear(torch.relu(F.linear(x, w[0], w[1])), w[2], w[3])
        x = F.max_pool2d(torch.relu(F.conv2d(x.view(-1, 1, 28, 28), w[0], w[1])), 2)
        x = F.max_pool2d(torch.relu(F.conv2d(x, w[2], w[3])), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # channels last, as TensorFlow flattens
        return F.linear(torch.relu(F.linear(x, w[4], w[5])), w[6], w[7])


def train_client(model, x, y):
    """Make one pass of SGD over a client's records, in place."""
    x, y = torch.tensor(x).float() / 255, torch.tensor(y).long()
    parameters = list(model.parameters())
    for start in range(0, len(x), BATCH):
        loss = nn.functional.cross_entropy(model(x[start : start + BATCH]), y[start : start + BATCH])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-RATE)
