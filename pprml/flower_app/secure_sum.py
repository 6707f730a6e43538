"""Secure aggregation in Flower (SecAgg+, DOI 10.1145/3372297.3417885): the server learns the sites' sum and no site's own weights."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.common.serde import recorddict_to_proto
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

from pprml.flower_app.apps import FederationError, Training, train_site
from pprml.flower_app.simulation import LocalGrid, Tap
from pprml.flower_app.training import (
    check_settings,
    init_weights,
    load_phones,
    load_test,
    measure_accuracy,
    train_phone,
)
from pprml.partition import Weights, sample_clients

#: SecAgg+ adds whole numbers: a weight is clipped to this size either way and rounded to one of so many steps.
CLIPPING_RANGE, STEPS, MODULUS = 8.0, 2**22, 2**32


class _Site(NumPyClient):
    """A site in the form that Flower's secure aggregation still wants."""

    def __init__(self, context: Context):
        self.settings, self.node = check_settings(context.run_config), context.node_config

    def fit(self, parameters: Weights, config: Mapping[str, Any]) -> tuple[Weights, int, dict]:
        numbers = [int(number) for number in config["phones"].split()]
        mine = [
            number for number in numbers if number % self.node["num-partitions"] == self.node["partition-id"]
        ]
        weights, records = train_site(
            parameters, mine, load_phones(self.settings), self.settings, train_phone
        )
        return weights, records, {}


def build_site_app(masked: bool = True) -> ClientApp:
    """Make the app of a site that masks what it sends; without the mask it is the broken twin."""
    mods = [secaggplus_mod] if masked else []
    return ClientApp(client_fn=lambda context: _Site(context).to_client(), mods=mods)


def simulate_secure_sum(settings: Mapping[str, Any], masked: bool = True, tap: Tap | None = None) -> Training:
    """Run the rounds of `simulate` with the sites' weights added under SecAgg+.

    Parameters
    ----------
    settings : mapping
        From `make_settings`. There must be 3 sites or more: with 2, each learns the other's weights from the sum. More
        than half of them must reply, or there is no sum.
    masked : bool
        False leaves the masks out, for comparison.
    tap : callable of a message and its reply, optional
        Sees all that the server sees.

    Raises
    ------
    FederationError
        A round came to nothing; Flower itself writes a line and goes on with the old weights.
    """
    settings, test, seen = check_settings(settings), load_test(), []
    if settings["sites"] < 3:
        raise ValueError(
            f"sites is {settings['sites']}: with fewer than 3, a site's weights follow from the sum"
        )
    schedule = sample_clients(*(settings[k] for k in ("phones", "phones-per-round", "rounds", "seed")))
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_fit_clients=settings["sites"],
        min_available_clients=settings["sites"],
        initial_parameters=ndarrays_to_parameters(init_weights(settings)),
        on_fit_config_fn=lambda number: {"phones": " ".join(map(str, schedule[number - 1]))},
        evaluate_fn=lambda number, weights, config: seen.append([np.array(array) for array in weights]),
    )
    shares = {"num_shares": settings["sites"], "reconstruction_threshold": settings["sites"] // 2 + 1}
    numbers = {"clipping_range": CLIPPING_RANGE, "quantization_range": STEPS, "modulus_range": MODULUS}
    # The largest weight that one site may have: it averages all phones of a round.
    most = settings["phones-per-round"] * max(len(x) for x, _ in load_phones(settings))
    secure = SecAggPlusWorkflow(**shares, **numbers, max_weight=most, timeout=settings["patience"])
    grid = LocalGrid(build_site_app(masked), settings["sites"], settings, tap)
    grid.set_run(SimpleNamespace(run_id=1))
    context = Context(1, SUPERLINK_NODE_ID, {}, RecordDict(), {})
    context = LegacyContext(context, ServerConfig(num_rounds=settings["rounds"]), strategy)
    DefaultWorkflow(fit_workflow=secure if masked else None)(grid, context)
    for number, (old, new) in enumerate(zip(seen[:-1], seen[1:], strict=True), start=1):
        if all(np.array_equal(a, b) for a, b in zip(old, new, strict=True)):
            raise FederationError(f"round {number}: too few sites replied: the sum cannot be unmasked")
    return Training(np.array([measure_accuracy(weights, *test) for weights in seen[1:]]), seen[-1], [])


class Ledger:
    """A tap that keeps what the server receives: each site's masked vector, and all bytes of the content."""

    def __init__(self) -> None:
        self.vectors: list[np.ndarray] = []
        self.bytes = 0

    def __call__(self, message: Message, reply: Message) -> None:
        """Take down one reply."""
        configs = reply.content.config_records.get(RECORD_KEY_CONFIGS, {})
        if Key.MASKED_PARAMETERS in configs:
            parts = [bytes_to_ndarray(part) for part in configs[Key.MASKED_PARAMETERS]]
            self.vectors.append(
                np.concatenate([part.ravel() for part in parts[1:]])
            )  # the first is its weight
        self.bytes += sum(recorddict_to_proto(one.content).ByteSize() for one in (message, reply))


def measure_unevenness(vector: np.ndarray, bins: int = 64) -> float:
    """Return chi-squared over its degrees of freedom for whole numbers spread over the modulus: about 1 if even."""
    counts = np.bincount(np.asarray(vector, np.uint64) * bins // MODULUS, minlength=bins)
    expected = len(vector) / bins
    return float(((counts - expected) ** 2 / expected).sum() / (bins - 1))


def quantize_weights(weights: Weights) -> np.ndarray:
    """Round weights to SecAgg+'s whole numbers, as a site sends them where the mask is missing."""
    flat = np.concatenate([array.ravel() for array in weights])
    return np.round(
        (np.clip(flat, -CLIPPING_RANGE, CLIPPING_RANGE) + CLIPPING_RANGE) * (STEPS - 1) / (2 * CLIPPING_RANGE)
    )
