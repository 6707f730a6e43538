"""TFF's worker process: silent, and ended with the block that started it, or with this Python if that is killed."""

import contextlib
import functools
import os
import subprocess
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import psutil
import tensorflow as tf
import tensorflow_federated as tff

from pprml._processes import start_bound

_Popen = subprocess.Popen
_open_contexts = 0
#: What TFF makes of a computation for its worker: half a second each, and the same in every context.
_compile = functools.lru_cache(maxsize=64)(tff.backends.native.desugar_and_transform_to_native)


def is_open() -> bool:
    """Tell whether a `federated_context` is open."""
    return _open_contexts > 0


def _start_worker(command: Sequence[str], **_: Any) -> SimpleNamespace:
    """Start TFF's worker silently; not as a `Popen`, so that TFF leaves ending it to `federated_context`."""
    # Clients run side by side: an operation of one that is itself cut over the cores waits for those of another, and they take turns.
    process = start_bound(command, env={"TF_NUM_INTRAOP_THREADS": "1"} | os.environ)
    return SimpleNamespace(pid=process.pid, wait=process.wait)


def _find_workers() -> set[psutil.Process]:
    return {child for child in psutil.Process().children() if child.name() == "worker_binary"}


@contextlib.contextmanager
def federated_context() -> Iterator[None]:
    """Run TFF inside this block, one client a core; its worker is silent and ends with the block.

    Left alone, TFF's ``worker_binary`` writes to the notebook and outlives a Python that is killed. Here an error ends it, and
    Linux ends it with a Python that is killed; on another system it would outlive that.
    """
    global _open_contexts
    earlier, framework = _find_workers(), tff.framework
    # TFF's `create_sync_local_cpp_execution_context`, which would compile anew what an earlier context has compiled.
    context = framework.SyncExecutionContext(
        framework.local_cpp_executor_factory(max_concurrent_computation_calls=os.cpu_count()),
        _compile,
        transform_args=tff.tensorflow.transform_args,
        transform_result=tff.tensorflow.transform_result,
    )
    _open_contexts += 1
    try:
        with tff.framework.get_context_stack().install(context):
            subprocess.Popen = _start_worker
            try:  # TFF starts its worker at the first computation
                tff.tensorflow.computation(lambda: tf.constant(0))()
            finally:
                subprocess.Popen = _Popen
            yield
    finally:
        _open_contexts -= 1
        workers = _find_workers() - earlier
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for worker in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(worker)
            workers = set(psutil.wait_procs(workers, timeout=5)[1])
