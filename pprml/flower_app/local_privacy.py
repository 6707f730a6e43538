"""Differential privacy on the phone: Opacus trains, and what a phone sends is private for each of its records."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from opacus import PrivacyEngine
from opacus.accountants import PRVAccountant
from torch.utils.data import DataLoader, TensorDataset

from pprml.accounting import PrivacyGuarantee, dp_sgd_guarantee
from pprml.flower_app.training import as_tensors, build_mlp, get_weights
from pprml.partition import Weights


class Noise(NamedTuple):
    """The two numbers of DP-SGD: each record's gradient is clipped to a norm, and noise is a multiple of it."""

    multiplier: float
    clip_norm: float


def build_private_trainer(noise: Noise, seed: int) -> Callable:
    """Make a stand-in for `train_phone` that trains with Opacus's DP-SGD (arXiv 2109.12298).

    Parameters
    ----------
    noise : Noise
    seed : int
        Of the batches and the noise. A real phone must draw its noise so that nobody can draw it again: Opacus's
        `secure_mode`.

    Returns
    -------
    callable of weights, features, labels, rate and batch size
        One pass in expectation: as many steps as a pass has batches, each record in each batch by its own coin.
    """
    if noise.multiplier < 0 or noise.clip_norm <= 0:
        raise ValueError(f"{noise}: give a multiplier of 0 or more and a clip_norm above 0")
    generator = torch.Generator().manual_seed(seed)

    def train(weights: Weights, x: np.ndarray, y: np.ndarray, rate: float, batch_size: int = 20) -> Weights:
        model = build_mlp(weights)
        loader = DataLoader(TensorDataset(*as_tensors(x, y)), batch_size=batch_size, generator=generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of secure_mode, see above, and of hooks on a first layer
            model, optimizer, criterion, loader = PrivacyEngine().make_private(
                module=model,
                optimizer=torch.optim.SGD(model.parameters(), lr=rate),
                criterion=torch.nn.CrossEntropyLoss(),
                data_loader=loader,
                noise_multiplier=noise.multiplier,
                max_grad_norm=noise.clip_norm,
                poisson_sampling=True,
                noise_generator=generator,
                grad_sample_mode="ghost",  # each record's norm without its gradient (arXiv 2110.05679)
            )
            for inputs, labels in loader:
                optimizer.zero_grad()
                criterion(model(inputs), labels).backward()
                optimizer.step()
        return get_weights(model._module)

    return train


def phone_guarantee(
    records: int, batch_size: int, rounds: int, noise_multiplier: float, delta: float
) -> PrivacyGuarantee:
    """Compute the guarantee of one record of a phone that took part in so many rounds, against whoever sees its updates.

    Parameters
    ----------
    records, batch_size : int
        The phone's.
    rounds : int
        In which the phone took part, one pass in each.
    noise_multiplier, delta : float

    Returns
    -------
    PrivacyGuarantee
        Per record, add/remove, Poisson sampling, by dp_accounting; no round and no other phone is needed for it.

    Raises
    ------
    ValueError
        The batches do not divide the records: Opacus would draw with another probability than is accounted for.
    """
    if records % batch_size:
        raise ValueError(f"batches of {batch_size} do not divide {records} records: choose a divisor")
    return dp_sgd_guarantee(records, batch_size, rounds, noise_multiplier, delta)


def opacus_epsilon(
    records: int, batch_size: int, rounds: int, noise_multiplier: float, delta: float
) -> float:
    """Return the epsilon that Opacus's own accountant (PRV, arXiv 2106.02848) gives for the same steps."""
    accountant = PRVAccountant()
    steps = rounds * -(-records // batch_size)
    accountant.history = [(noise_multiplier, batch_size / records, steps)]
    return float(accountant.get_epsilon(delta))
