"""Processes of one's own: bound to this one, ports that are free for them, and found again by a mark in their environment."""

import concurrent.futures
import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from subprocess import DEVNULL, Popen
from typing import Any, BinaryIO

import psutil

# Linux ends the child when the thread that started it ends, and a process that is killed loses all its threads. The line after
# it is for a parent that died before. What is executed in place of the launcher keeps both its number and this bond.
_LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux": ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]): sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
# The bond is to a thread: this one lives as long as the process, whoever asks it to start something.
_starter = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")


def start_bound(command: Sequence[str], output: BinaryIO | int = DEVNULL, **options: Any) -> Popen:
    """Start a process that Linux ends with this one, however this one ends; `command` begins with a program's path.

    What it writes goes to `output`; `options` are those of `Popen`.
    """
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]
    options |= {"stdin": DEVNULL, "stdout": output, "stderr": output}
    return _starter.submit(Popen, launcher, **options).result()


def find_ports(count: int) -> list[int]:
    """Return ports of the loopback device that are free now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def list_marked(variable: str) -> Iterator[tuple[psutil.Process, str]]:
    """Yield the living processes that have this environment variable, and its value."""
    for process in psutil.process_iter():
        # A process may end, or be another user's, while it is looked at.
        with contextlib.suppress(psutil.Error, OSError):
            mark = process.environ().get(variable)
            if mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process, mark
