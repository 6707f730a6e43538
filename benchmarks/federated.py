"""A round of federated averaging: ours against bare loops, TFF as its tutorials use it, Flower, pfl-research and FedJAX, in turns.

Fashion-MNIST's 60,000 records at 100, 1,000 or 10,000 clients with label mixes of their own (Dirichlet, 0.1), an MLP of 784, 128 and 10
units and a convolutional network of 431,080 weights, one local pass with batches of 20 at a rate of 0.1, ten rounds. Every side gets the
same records in the same order, the same first weights and the same clients a round, and must come to the same weights after the first:
that is the check that it is the same work. The accuracy after ten must agree too. Each run is a process of its own; a round is the
median of those after the first, the start is the time until the first round is over (for a peer with an environment of its own it
includes laying that out, a second or two), and memory is the largest sum over the side's processes, shared pages counted once.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.run import Case, PeakMemory
from pprml import ROOT

SIZES = {"MLP": (784, 128, 10), "CNN": (5, 5, 1, 20, 50, 500, 10)}
ROUNDS, ALPHA, SEED = 10, 0.1, 0
#: Weights of two sides may differ so much after 30 steps: sums of 32-bit numbers in another order, which tip a ReLU here and there.
SAME = 0.01
#: And their accuracies so much, after 3,000 steps of which the differences grow.
SAME_ACCURACY = 0.02
#: Seconds within which a side must have ended.
PATIENCE = 3600
_TORCH = ["torch==2.15.0", "numpy==2.4.6"]
#: Each peer's program and the packages it runs on; none: this environment.
PEERS = {
    "bare PyTorch loop": ("torch", _TORCH),
    "bare TensorFlow loop": ("tensorflow", None),
    "TFF, tutorial": ("tff", None),
    "Flower": ("flower", [*_TORCH, "flwr[simulation]==1.41.0", "ray==2.55.1"]),
    "pfl-research": ("pfl", [*_TORCH, "pfl==0.6.0"]),
    "FedJAX": (
        "fedjax",
        [
            "fedjax==0.0.16",
            "jax==0.4.18",
            "jaxlib==0.4.18",
            "dm-haiku==0.0.10",
            "numpy==1.26.4",
            "scipy==1.10.1",
        ],
    ),
}
#: Network, clients, clients a round: 300 steps of SGD a round, and 100 clients of one step each at the end.
WORK = (("MLP", 100, 10), ("CNN", 100, 10), ("MLP", 1000, 100), ("CNN", 1000, 100))
LARGEST = ("MLP", 10_000, 100)


def draw_weights(network: str) -> list[np.ndarray]:
    """Draw Glorot uniform kernels and zero biases."""
    from pprml.partition import init_mlp

    if network == "MLP":
        return init_mlp(SIZES["MLP"], SEED)
    rng, weights = np.random.default_rng(SEED), []
    for shape in ((5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)):
        field = int(np.prod(shape[:-2]))
        limit = np.sqrt(6 / (field * (shape[-2] + shape[-1])))
        weights += [rng.uniform(-limit, limit, shape).astype(np.float32), np.zeros(shape[-1], np.float32)]
    return weights


@cache
def write_work(network: str, clients: int, clients_per_round: int) -> str:
    """Write what every side reads, and return the folder."""
    from pprml import datasets
    from pprml.partition import partition_records, sample_clients

    folder = tempfile.TemporaryDirectory(prefix="pprml_benchmark_")
    write_work.keep = [*getattr(write_work, "keep", []), folder]  # removed when the process ends
    images = datasets.load("fashion_mnist")
    parts = np.array(partition_records(images.y_train, clients, ALPHA, SEED))
    path = Path(folder.name)
    np.save(path / "x.npy", images.x_train.reshape(-1, 784)[parts])
    np.save(path / "y.npy", images.y_train.astype(np.int32)[parts])
    np.save(path / "schedule.npy", sample_clients(clients, clients_per_round, ROUNDS, SEED))
    np.savez(path / "weights.npz", **{f"{k:02d}": w for k, w in enumerate(draw_weights(network))})
    return folder.name


@cache
def find_peer(name: str) -> list[str]:
    """Return the command of a peer's interpreter; its environment is made here, before any clock runs."""
    requirements = PEERS[name][1]
    if requirements is None:
        return [sys.executable]
    uv = shutil.which("uv") or ROOT / ".uv" / "bin" / "uv"
    command = [str(uv), "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable]
    for requirement in requirements:
        command += ["--with", requirement]
    command.append("python")
    done = subprocess.run(
        [*command, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{name} cannot be installed: {done.stderr.strip()[-500:]}")
    return command


def measure_side(command: list[str], network: str, clients: int, clients_per_round: int) -> dict[str, float]:
    """Run one side's program; returns seconds a round, seconds to start, gigabytes and accuracy."""
    folder = write_work(network, clients, clients_per_round)
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environment |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(Path(__file__).parent / "peers")))
    with tempfile.TemporaryFile("w+") as errors:
        start = time.time()
        arguments = [*command, folder, network]
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=folder
        )
        with PeakMemory(process.pid, every=0.5) as peak:
            try:
                output = process.communicate(timeout=PATIENCE)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                raise RuntimeError(f"{command[-1]} did not end within {PATIENCE} s") from None
        lines = [line for line in output.splitlines() if line.startswith('{"first"')]
        if process.returncode or not lines:
            errors.seek(0)
            raise RuntimeError(f"{command[-1]} failed: {errors.read()[-1500:]}")
    answer = json.loads(lines[-1])
    return {
        "seconds a round": statistics.median(answer["rounds"]),
        "seconds to start": answer["first"] - start,
        "gigabytes": peak.gigabytes,
        "accuracy": score(folder, network),
        "first": _take(folder, "first"),
    }


def score(folder: str, network: str) -> float:
    """Return the test accuracy of the weights that a side left."""
    from benchmarks.peers.tensorflow_training import predict
    from pprml import datasets

    images, weights = datasets.load("fashion_mnist"), _take(folder, "last")
    x = (images.x_test.reshape(-1, 784) / 255).astype(np.float32)
    return float(np.mean(predict(network, weights, x).numpy().argmax(1) == images.y_test))


def _take(folder: str, name: str) -> list[np.ndarray]:
    path = Path(folder) / f"{name}.npz"
    with np.load(path) as file:
        weights = [file[name] for name in sorted(file.files)]
    path.unlink()
    return weights


def run_ours(work, network: str, lap) -> list[np.ndarray]:
    """Run the rounds by `pprml.federated`, as a notebook would."""
    from pprml import federated

    clients = [(x.reshape(len(x), -1), y) for x, y in zip(work.x, work.y, strict=True)]
    if network == "MLP":
        model = federated.build_mlp(work.weights)
    else:
        from benchmarks.peers.tensorflow_training import build_keras

        model = federated.from_keras(build_keras(network, work.weights))
    fedavg = federated.build_fedavg(model, client_learning_rate=0.1, batch_size=20)
    with federated.federated_context():
        trained = federated.run_rounds(
            fedavg, clients, work.schedule, work.weights, lambda weights: lap(weights) or 0.0
        )
    return trained.weights


def _compare(network: str, clients: int, clients_per_round: int) -> Case:
    work = network, clients, clients_per_round
    reference = {}

    def check(side: str, taken: dict) -> dict[str, float]:
        weights = taken.pop("first")
        first = reference.setdefault("weights", weights)
        gap = max(np.abs(one - other).max() for one, other in zip(weights, first, strict=True))
        if not gap < SAME:
            raise RuntimeError(f"{work}, {side}: not the same work, weights differ by {gap} after one round")
        gap = abs(taken["accuracy"] - reference.setdefault("accuracy", taken["accuracy"]))
        if not gap < SAME_ACCURACY:
            raise RuntimeError(f"{work}, {side}: not the same work, accuracies differ by {gap} at the end")
        return taken

    def ours() -> dict[str, float]:
        taken = check("ours", measure_side([sys.executable, "-m", "benchmarks.federated"], *work))
        return {f"{metric}, {name}": value for metric, value in taken.items() for name in PEERS}

    def theirs() -> dict[str, float]:
        answers = {}
        for name, (program, _) in PEERS.items():
            path = Path(__file__).parent / "peers" / f"{program}_rounds.py"
            taken = check(name, measure_side([*find_peer(name), str(path)], *work))
            answers |= {f"{metric}, {name}": value for metric, value in taken.items()}
        return answers

    title = f"{network}, {clients:,} clients, {clients_per_round} a round"
    return Case(title, ours, theirs, rounds=3, warm_up=False)


def measure_alone(command: list[str]) -> dict[str, float]:
    """Run the most clients that are tried."""
    taken = measure_side(command, *LARGEST)
    del taken["first"]
    return taken


def list_cases() -> list[Case]:
    for name in PEERS:
        find_peer(name)
    largest = "{}, {:,} clients, {} a round".format(*LARGEST)
    alone = [sys.executable, "-m", "benchmarks.federated"]
    return [
        *(_compare(*work) for work in WORK),
        Case(largest, lambda: measure_alone(alone), rounds=3, warm_up=False),
    ]


if __name__ == "__main__":
    from benchmarks.peers import work as peers_work

    peers_work.main(run_ours)
