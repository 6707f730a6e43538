"""The network, the phones and the settings of chapter 06, in PyTorch."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pprml import datasets
from pprml._files import name_nearest
from pprml.partition import Weights, init_mlp, partition_records

Phone = tuple[np.ndarray, np.ndarray]  # grey levels as uint8 (records, inputs) and labels (records,)

SIZES = (784, 128, 10)
#: Flower's own names are written with dashes. `records` keeps the first so many of each phone's pictures (0: all),
#: `patience` is the seconds that the server waits, for the sites to appear and then for a round's replies.
DEFAULTS = {
    "seed": 0,
    "phones": 100,
    "alpha": 0.1,
    "records": 0,
    "phones-per-round": 10,
    "rounds": 3,
    "rate": 0.1,
    "batch-size": 20,
    "sites": 3,
    "patience": 600.0,
    "result-file": "",
}

# A step on twenty pictures is too small to share between cores; one thread is faster, and rounds the same everywhere.
torch.set_num_threads(1)


def make_settings(**changes: Any) -> dict[str, Any]:
    """Return `DEFAULTS` with changes, named with underscores for dashes; ValueError where no training could follow."""
    settings = dict(DEFAULTS)
    for name, value in changes.items():
        if name.replace("_", "-") not in DEFAULTS:
            raise ValueError(name_nearest("setting", name, [key.replace("-", "_") for key in DEFAULTS]))
        settings[name.replace("_", "-")] = value
    return check_settings(settings)


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as a dict, or raise a ValueError that names the one to add or to change."""
    missing = [name for name in DEFAULTS if name not in settings]
    if missing:
        raise ValueError(
            f"the settings lack {', '.join(missing)}: start from `make_settings`, and write a project for `flwr run` "
            "with `write_project`, which puts them all under [tool.flwr.app.config]"
        )
    for name in ("phones", "phones-per-round", "rounds", "batch-size", "sites", "rate", "alpha", "patience"):
        if not (np.isfinite(settings[name]) and settings[name] > 0):
            raise ValueError(f"{name} is {settings[name]}: give a number above 0")
    for name in ("phones-per-round", "sites"):
        if settings[name] > settings["phones"]:
            raise ValueError(
                f"{name} is {settings[name]}: there are {settings['phones']} phones, give as many or fewer"
            )
    if settings["records"] < 0:
        raise ValueError(f"records is {settings['records']}: give a number of pictures, or 0 for all")
    return dict(settings)


@lru_cache(maxsize=3)
def _deal(seed: int, num_phones: int, alpha: float) -> tuple[Phone, ...]:
    images = datasets.load("fashion_mnist")
    x, y = images.x_train.reshape(-1, SIZES[0]), images.y_train.astype(np.int64)
    return tuple((x[part], y[part]) for part in partition_records(y, num_phones, alpha, seed))


def load_phones(settings: Mapping[str, Any]) -> list[Phone]:
    """Deal Fashion-MNIST to the phones as chapter 06 does: its pictures, its seed, its order."""
    dealt = _deal(settings["seed"], settings["phones"], settings["alpha"])
    return [(x[: settings["records"] or None], y[: settings["records"] or None]) for x, y in dealt]


def load_test() -> Phone:
    """Return the 10,000 test pictures and their labels."""
    images = datasets.load("fashion_mnist")
    return images.x_test.reshape(-1, SIZES[0]), images.y_test.astype(np.int64)


def build_mlp(weights: Weights) -> torch.nn.Sequential:
    """Make a ReLU network with these weights: kernels of (inputs, units), each followed by its bias."""
    layers: list[torch.nn.Module] = []
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        layer = torch.nn.Linear(*kernel.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.array(kernel.T)))  # torch keeps (units, inputs)
            layer.bias.copy_(torch.from_numpy(np.array(bias)))
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def get_weights(model: torch.nn.Module) -> Weights:
    """Return a model's weights in the shapes that `build_mlp` takes."""
    arrays = [parameter.detach().numpy() for parameter in model.parameters()]
    return [np.array(array.T, order="C") for array in arrays]


def as_tensors(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn grey levels into numbers from 0 to 1, and labels into what the loss takes."""
    return torch.tensor(x).float() / 255, torch.tensor(y)


def check_phone(number: int, x: np.ndarray, y: np.ndarray, weights: Weights) -> None:
    """Raise a ValueError that names the phone if its records do not fit the network."""
    inputs, labels = len(weights[0]), len(weights[-1])
    if len(x) != len(y) or not len(x):
        raise ValueError(f"phone {number}: {len(x)} records, {len(y)} labels: mend it or leave it out")
    if x.shape[1:] != (inputs,):
        raise ValueError(f"phone {number}: records of shape {x.shape[1:]}: the network takes ({inputs},)")
    if not np.isfinite(x).all():
        raise ValueError(f"phone {number}: a record has a value that is not finite: mend it or leave it out")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= labels:
        raise ValueError(f"phone {number}: labels must be whole numbers from 0 to {labels - 1}")


def train_phone(weights: Weights, x: np.ndarray, y: np.ndarray, rate: float, batch_size: int = 20) -> Weights:
    """Make one pass of SGD over a phone's records in their order, as the clients of chapter 06 do."""
    model, (x, y) = build_mlp(weights), as_tensors(x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for inputs, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return get_weights(model)


def average_weights(trained: Sequence[Weights], sizes: Sequence[int]) -> Weights:
    """Average layer by layer, each set of weights counting as its number of records (arXiv 1602.05629)."""
    return [
        np.average(layer, axis=0, weights=sizes).astype(np.float32) for layer in zip(*trained, strict=True)
    ]


def measure_accuracy(weights: Weights, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of records whose label is the model's first choice."""
    x, y = as_tensors(x, y)
    with torch.no_grad():
        return float((build_mlp(weights)(x).argmax(dim=1) == y).float().mean())


def init_weights(settings: Mapping[str, Any]) -> Weights:
    """Draw the first weights: chapter 06's for the same seed."""
    return init_mlp(SIZES, settings["seed"])
