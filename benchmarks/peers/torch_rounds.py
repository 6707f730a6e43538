"""A bare loop in PyTorch: two processes take the clients in turn, and send sums of weights back through shared memory."""

import sys

import torch
import torch.multiprocessing as mp
from torch_training import Network, train_client
from work import main, read_work


def serve(folder, network, shared, total, requests, done):
    torch.set_num_threads(1)
    work = read_work(folder)
    model = Network(network, work.weights)
    while (clients := requests.get()) is not None:
        for k, client in enumerate(clients):
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), shared)
            train_client(model, work.x[client], work.y[client])
            with torch.no_grad():
                if k:
                    torch._foreach_add_(total, list(model.parameters()))
                else:
                    torch._foreach_copy_(total, list(model.parameters()))
        done.put(True)


def run(work, network, lap):
    torch.set_num_threads(1)
    context = mp.get_context("spawn")
    model = Network(network, work.weights)
    shared = [w.detach().clone().share_memory_() for w in model.parameters()]
    totals = [[torch.zeros_like(w).share_memory_() for w in shared] for _ in range(2)]
    requests, done = [context.Queue() for _ in totals], context.Queue()
    workers = [
        context.Process(target=serve, args=(sys.argv[1], network, shared, total, queue, done), daemon=True)
        for total, queue in zip(totals, requests, strict=True)
    ]
    for worker in workers:
        worker.start()
    for clients in work.schedule:
        half = len(clients) // 2
        for queue, part in zip(requests, (clients[:half], clients[half:]), strict=True):
            queue.put(part.tolist())
        for _ in workers:
            done.get()
        for w, *sums in zip(shared, *totals, strict=True):
            torch.add(*sums, out=w).div_(len(clients))  # all clients have as many records
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), shared)
        lap(model.to_arrays())
    for queue in requests:
        queue.put(None)
    return model.to_arrays()


if __name__ == "__main__":
    main(run)
