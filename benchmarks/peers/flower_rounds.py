"""Flower's simulation: FedAvg, Ray, two actors, one virtual node a client."""

import os
import sys
import time

os.environ["FLWR_TELEMETRY_ENABLED"] = os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch_training import Network, train_client
from work import main, read_work


class ScheduledFedAvg(FedAvg):
    """FedAvg that asks the clients of the schedule."""

    def __init__(self, schedule, extra):
        super().__init__(fraction_evaluate=0.0)
        self.schedule, self.extra = schedule, extra

    def configure_train(self, server_round, arrays, config, grid):
        """Send each client of the round the weights and its number."""
        while len(nodes := sorted(grid.get_node_ids())) < self.extra["clients"]:
            time.sleep(0.1)
        settings = {key: self.extra[key] for key in ("folder", "network")}
        return [
            Message(
                RecordDict({"arrays": arrays, "config": ConfigRecord(settings | {"client": int(client)})}),
                dst_node_id=nodes[client],
                message_type=MessageType.TRAIN,
            )
            for client in self.schedule[server_round - 1]
        ]


def build_client():
    app = ClientApp()

    @app.train()
    def train(message, context):
        torch.set_num_threads(1)
        settings = message.content["config"]
        work = read_work(settings["folder"])
        model = Network(settings["network"], message.content["arrays"].to_numpy_ndarrays())
        train_client(model, work.x[settings["client"]], work.y[settings["client"]])
        metrics = MetricRecord({"num-examples": work.x.shape[1]})
        return Message(
            RecordDict({"arrays": ArrayRecord(model.to_arrays()), "metrics": metrics}), reply_to=message
        )

    return app


def run(work, network, lap):
    server, result = ServerApp(), []
    extra = {"folder": sys.argv[1], "network": network, "clients": len(work.x)}

    @server.main()
    def serve(grid, context):
        def note(server_round, arrays):
            if server_round:
                lap(arrays.to_numpy_ndarrays())

        strategy = ScheduledFedAvg(work.schedule, extra)
        trained = strategy.start(
            grid, ArrayRecord(work.weights), num_rounds=len(work.schedule), evaluate_fn=note
        )
        result.extend(trained.arrays.to_numpy_ndarrays())

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(server, build_client(), len(work.x), backend_config=resources)
    return result


if __name__ == "__main__":
    main(run)
