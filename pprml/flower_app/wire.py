"""Somebody on the way: a relay that records what passes, and what can be read from the recording."""

import contextlib
import io
import select
import socket
import threading

import numpy as np

from pprml.flower_app.deployment import HOST


class Relay:
    """A TCP relay in front of a port of this machine, for the length of a `with` block.

    Attributes
    ----------
    port : int
        Where it listens.
    up, down : dict of int to bytearray
        What each connection sent towards the server, and what came back.
    """

    def __init__(self, target: int):
        self.target, self.up, self.down = target, {}, {}

    def __enter__(self) -> "Relay":
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._closed.set()
        self._listener.close()

    def _accept(self) -> None:
        number = 0
        while not self._closed.is_set():
            if not select.select([self._listener], [], [], 0.2)[0]:
                continue
            try:
                near, far = self._listener.accept()[0], socket.create_connection((HOST, self.target))
            except OSError:
                continue  # the server is away; the site will try again
            self.up[number], self.down[number] = bytearray(), bytearray()
            pairs = (near, far, self.up[number]), (far, near, self.down[number])
            threading.Thread(target=self._pass_on, args=pairs, daemon=True).start()
            number += 1

    def _pass_on(self, *pairs: tuple[socket.socket, socket.socket, bytearray]) -> None:
        ways = {source: (sink, record) for source, sink, record in pairs}
        with pairs[0][0], pairs[0][1]:
            while not self._closed.is_set():
                for source in select.select(list(ways), [], [], 0.2)[0]:
                    try:
                        data = source.recv(1 << 16)
                        if not data:
                            return
                        ways[source][1].extend(data)
                        ways[source][0].sendall(data)
                    except OSError:
                        return

    def record(self, way: str) -> bytes:
        """Return all that passed `"up"` to the server or `"down"` from it, connection after connection."""
        return b"".join(bytes(stream) for stream in getattr(self, way).values())


def attack_read_arrays(stream: bytes) -> list[np.ndarray]:
    """Read every NumPy array that lies open in a stream of bytes, in the order in which it passed."""
    magic = b"\x93NUMPY"
    found, start = [], stream.find(magic)
    while start >= 0:
        # Not an array: the words of the format by chance, or one that is cut off.
        with contextlib.suppress(ValueError, EOFError):
            found.append(np.lib.format.read_array(io.BytesIO(stream[start:]), allow_pickle=False))
        start = stream.find(magic, start + 1)
    return found


def measure_byte_entropy(stream: bytes) -> float:
    """Return the entropy of a stream's bytes, in bits a byte: 8 if all values are as frequent."""
    shares = np.bincount(np.frombuffer(stream, np.uint8), minlength=256) / len(stream)
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())
