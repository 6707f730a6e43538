"""The two Flower apps: what a site runs and what the server runs, the same in a simulation and over a network."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from pprml.flower_app.training import (
    Phone,
    average_weights,
    check_phone,
    check_settings,
    init_weights,
    load_phones,
    load_test,
    measure_accuracy,
    train_phone,
)
from pprml.partition import Weights, sample_clients


class Training(NamedTuple):
    """The test accuracy after each round, the weights after the last, and what was left out of which round."""

    scores: np.ndarray
    weights: Weights
    faults: list[str]


class FederationError(RuntimeError):
    """No training came about; the message says why, and what to change."""


def train_site(
    weights: Weights,
    numbers: Iterable[int],
    phones: list[Phone],
    settings: Mapping[str, Any],
    train: Callable,
) -> tuple[Weights, int]:
    """Train the phones of one site; return their average and the records behind it, which may be 0."""
    trained, sizes = [], []
    for number in numbers:
        x, y = phones[number]
        check_phone(number, x, y, weights)
        trained.append(train(weights, x, y, settings["rate"], settings["batch-size"]))
        sizes.append(len(x))
    return (average_weights(trained, sizes), sum(sizes)) if sizes else (weights, 0)


def build_client_app(load: Callable = load_phones, train: Callable = train_phone) -> ClientApp:
    """Make the app of a site: it keeps every so-manieth phone, and trains those that the server names.

    Parameters
    ----------
    load : callable of the settings
        Returns all phones, of which a site uses its own: here each site loads the whole data set, and a real one
        would have nothing else.
    train : callable of weights, features, labels, rate and batch size
        Returns a phone's new weights.
    """
    app = ClientApp()

    @app.train()
    def reply(message: Message, context: Context) -> Message:
        settings = check_settings(context.run_config)
        site, sites = context.node_config["partition-id"], context.node_config["num-partitions"]
        weights = message.content["arrays"].to_numpy_ndarrays()
        numbers = [number for number in message.content["config"]["phones"] if number % sites == site]
        weights, records = train_site(weights, numbers, load(settings), settings, train)
        metrics = MetricRecord({"num-examples": records, "phones": len(numbers), "site": site})
        return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=message)

    return app


class ScheduledFedAvg(FedAvg):
    """Flower's FedAvg, which names each round's phones and leaves out a reply that would spoil the mean."""

    def __init__(self, schedule: np.ndarray, shapes: list[tuple], sites: int):
        super().__init__(
            fraction_evaluate=0.0,
            min_train_nodes=1,
            min_available_nodes=1,
            train_metrics_aggr_fn=_add_metrics,
        )
        self.schedule, self.shapes, self.sites, self.faults = schedule, shapes, sites, []

    def summary(self) -> None:
        """Say nothing: the settings are in the run."""

    def configure_train(self, server_round, arrays, config, grid):
        """Send the weights and the numbers of this round's phones to every site."""
        config["phones"] = [int(number) for number in self.schedule[server_round - 1]]
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        """Average the replies that fit; a round without any is the end."""
        replies = list(replies)
        missing = self.sites - len(replies)
        faults = [f"{missing} of {self.sites} sites did not reply in time"] if missing > 0 else []
        good = []
        for reply in replies:
            fault = self._find_fault(reply)
            (faults if fault else good).append(fault or reply)
        self.faults += [f"round {server_round}: {fault}" for fault in faults]
        if not sum(reply.content["metrics"]["num-examples"] for reply in good):
            raise FederationError(
                f"round {server_round}: nothing to average: {'; '.join(faults) or 'no phone'}"
            )
        # Sums of rounded numbers depend on their order: in that of the sites every run is the same, bit for bit.
        good.sort(key=lambda reply: reply.content["metrics"].get("site", 0))
        return super().aggregate_train(server_round, good)

    def _find_fault(self, reply: Message) -> str | None:
        if reply.has_error():
            return f"a site failed: {reply.error.reason}"
        arrays = reply.content["arrays"].to_numpy_ndarrays()
        if [array.shape for array in arrays] != self.shapes:
            return f"a site sent weights of shapes {[array.shape for array in arrays]}"
        return (
            None
            if all(np.isfinite(array).all() for array in arrays)
            else "a site sent weights that are not finite"
        )


def _add_metrics(records: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    metrics = [record["metrics"] for record in records]
    return MetricRecord({key: sum(one[key] for one in metrics) for key in ("num-examples", "phones")})


def wait_for_sites(grid: Grid, sites: int, patience: float) -> None:
    """Wait until so many sites are connected; Flower's own strategies would wait for ever."""
    end = time.monotonic() + patience
    while (found := len(list(grid.get_node_ids()))) < sites:
        if time.monotonic() > end:
            raise FederationError(
                f"{found} of {sites} sites are connected after {patience:g} s: start the others"
            )
        time.sleep(0.5)


def serve(grid: Grid, settings: Mapping[str, Any], test: Phone | None = None) -> Training:
    """Run the rounds of chapter 06's schedule as the server, with the accuracy after each, by default on the test set.

    Raises
    ------
    FederationError
        Too few sites appear, or no site's reply can be used.
    """
    settings = check_settings(settings)
    weights, test, scores = init_weights(settings), test or load_test(), []
    schedule = sample_clients(*(settings[k] for k in ("phones", "phones-per-round", "rounds", "seed")))
    strategy = ScheduledFedAvg(schedule, [array.shape for array in weights], settings["sites"])

    def score(server_round: int, arrays: ArrayRecord) -> None:
        if server_round:
            scores.append(measure_accuracy(arrays.to_numpy_ndarrays(), *test))

    wait_for_sites(grid, settings["sites"], settings["patience"])
    result = strategy.start(
        grid,
        ArrayRecord(weights),
        num_rounds=settings["rounds"],
        timeout=settings["patience"],
        train_config=ConfigRecord(),
        evaluate_fn=score,
    )
    return Training(np.array(scores), result.arrays.to_numpy_ndarrays(), strategy.faults)


def write_result(path: Path, training: Training | None, error: str = "") -> None:
    """Write what a server found out, whole or not at all, for the process that started it."""
    scores, faults = ([float(s) for s in training.scores], training.faults) if training else ([], [])
    arrays = {f"{number:03d}": array for number, array in enumerate(training.weights if training else [])}
    part = Path(f"{path}.part")
    with part.open("wb") as file:
        np.savez(file, report=json.dumps({"scores": scores, "faults": faults, "error": error}), **arrays)
    part.rename(path)


def read_result(path: Path) -> Training:
    """Read what `write_result` wrote; a FederationError if the server had failed."""
    with np.load(path) as file:
        report = json.loads(str(file["report"]))
        weights = [file[name] for name in sorted(file.files) if name != "report"]
    if report["error"]:
        raise FederationError(report["error"])
    return Training(np.array(report["scores"]), weights, report["faults"])


client_app = build_client_app()
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve one run over a network, and leave its result in the file that the settings name."""
    if not context.run_config.get("result-file"):
        raise ValueError(
            "the settings lack result-file: write the project for `flwr run` with `write_project`"
        )
    path = Path(context.run_config["result-file"])
    try:
        write_result(path, serve(grid, context.run_config))
    except (FederationError, ValueError) as error:
        write_result(path, None, str(error))
        raise
