"""Processes of one's own: ports that are free for them, and finding all of them again by a mark in their environment."""

import contextlib
import socket
from collections.abc import Iterator

import psutil


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
