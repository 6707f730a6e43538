"""A peer that takes steps on demand: one JSON line in for each measurement, one out. Run by a peer's own interpreter, without pprml."""

import json
import statistics
import sys
import time
from collections.abc import Callable


def serve(make_step: Callable[[str, int, str], Callable[[], None]]) -> None:
    """Answer requests ``{"network", "batch", "mode", "steps", "limit"}`` with the median seconds of a step, of `steps` or of `limit` seconds.

    Parameters
    ----------
    make_step : callable
        ``make_step(network, batch, mode)`` returns a function that takes one whole step and returns when it is done.
    """
    made = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = request["network"], request["batch"], request["mode"]
        if key not in made:
            made[key] = make_step(*key)
            made[key]()  # compilation is not counted
        taken = []
        while len(taken) < request["steps"] and sum(taken) < request["limit"]:
            start = time.perf_counter()
            made[key]()
            taken.append(time.perf_counter() - start)
        print(json.dumps({"seconds": statistics.median(taken)}), flush=True)
