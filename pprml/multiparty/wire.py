"""The wire between the parties: relays that count, record or encrypt what passes, and what an eavesdropper reads.

TF Encrypted's own link has neither encryption nor authentication. `run_relay` is one process for all links into all parties, with one
certificate for all senders; on separate machines each party would run its own half. Certificates are made with the `cryptography`
package, TLS is Python's.
"""

import asyncio
import re
import ssl
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: What an attacker on the wire does to a chunk: (party, to_party, number of the chunk, bytes) -> bytes.
Meddler = Callable[[str, bool, int, bytes], bytes]


class Tensor(NamedTuple):
    """One tensor as an eavesdropper finds it: who sent it, who received it, the edge of the graph, and its values."""

    sender: str
    receiver: str
    edge: str
    value: np.ndarray


def name_taken_port(port: int) -> ValueError:
    """Return the error for a port that something else listens on."""
    return ValueError(f"port {port} is in use: end what listens there, or choose another port")


def tls_context(folder: Path, name: str, server: bool) -> ssl.SSLContext:
    """TLS 1.3 with both sides authenticated by the study's own authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(folder / "ca.crt")
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


class _Relay:
    """Relays for all parties in one event loop: [TLS entry ->] tap [-> TLS exit] -> party."""

    def __init__(self, record: bool, meddle: Meddler | None):
        self.record, self.meddle = record, meddle
        self.sent: dict[str, int] = {}
        self.recorded: dict[str, list[tuple[bytearray, bytearray]]] = {}

    async def listen(self, party: str, port: int, target: int, tap: bool, outer=None, inner=None) -> None:
        """Accept connections at `port`, with TLS if `outer` is given, and pass them on to `target`, with TLS if `inner` is."""

        async def serve(reader, writer):
            name = party if inner else None
            try:
                far_reader, far_writer = await asyncio.open_connection(
                    "127.0.0.1", target, ssl=inner, server_hostname=name
                )
            except OSError:  # the party is gone, or refuses our certificate
                writer.close()
                return
            kept = (bytearray(), bytearray())
            if tap and self.record:
                self.recorded.setdefault(party, []).append(kept)
            await asyncio.gather(
                self._pump(reader, far_writer, party, tap, True, kept[0]),
                self._pump(far_reader, writer, party, tap, False, kept[1]),
            )

        try:
            await asyncio.start_server(serve, "127.0.0.1", port, ssl=outer)
        except OSError:
            raise name_taken_port(port) from None

    async def _pump(self, reader, writer, party, tap, inward, kept):
        number = 0
        with suppress(OSError):
            while chunk := await reader.read(65536):
                if tap:
                    self.sent[party] = self.sent.get(party, 0) + len(chunk)
                    if self.record:
                        kept += chunk
                    if self.meddle:
                        chunk = self.meddle(party, inward, number, chunk)
                    number += 1
                writer.write(chunk)
                await writer.drain()
        with suppress(OSError):
            writer.close()


def run_relay(
    pipe: Connection,
    links: dict[str, Sequence[int]],
    folder: Path | None,
    record: bool,
    meddle: Meddler | None,
) -> None:
    """Be the wire, as a process, until the other side of the pipe is gone.

    Parameters
    ----------
    pipe : Connection
        Says "ready", then answers "sent" (bytes by party, both directions) and "recorded" (connections by party).
    links : dict of party to ports
        Where others reach the party and where it listens; with TLS, two more in between.
    folder : Path or None
        Certificates, for TLS; None for the bare link.
    record : bool
        Keep what passes, as an eavesdropper would.
    meddle : callable or None
        Applied to each chunk on the wire.
    """

    async def main():
        relay = _Relay(record, meddle)
        for party, (public, *middle, private) in links.items():
            if folder is None:
                await relay.listen(party, public, private, tap=True)
                continue
            outside, inside = middle
            await relay.listen(party, public, outside, False, inner=tls_context(folder, "sender", False))
            await relay.listen(party, outside, inside, tap=True)
            await relay.listen(party, inside, private, False, outer=tls_context(folder, party, True))
        pipe.send("ready")
        loop = asyncio.get_running_loop()
        with suppress(EOFError):
            while True:
                pipe.send(getattr(relay, await loop.run_in_executor(None, pipe.recv)))

    asyncio.run(main())


def read_tensors(recorded: dict[str, list[tuple[bytes, bytes]]], names: Sequence[str]) -> list[Tensor]:
    """Find the tensors in recorded bytes, as anybody on the wire can: gRPC's frames, then TensorFlow's messages.

    Parameters
    ----------
    recorded : dict of party to connections
        Each a pair of bytes (towards the party, from it).
    names : sequence of str
        The parties, in the order of the cluster.

    Returns
    -------
    list of Tensor
        From and to whom, which edge of the computation, and the values. Empty where the bytes are no HTTP/2, as under TLS.
    """
    from tensorflow.core.framework import tensor_pb2

    def name(device):
        job, number = re.match(rb"/job:(\w+)/replica:0/task:(\d+)/", device).groups()
        return names[int(number)] if job == b"tfe" else "analyst"

    found = []
    for connections in recorded.values():
        for inward, outward in connections:
            asked, answered = _streams(inward), _streams(outward)
            for stream in asked.keys() & answered.keys():
                key = _fields(asked[stream][5:]).get(2, b"")
                if not (key.startswith(b"/job:") and key.count(b";") == 4):
                    continue
                sender, _, receiver, edge, _ = key.split(b";")
                # Field 1 of the answer is the tensor.
                tensor = tensor_pb2.TensorProto.FromString(_fields(answered[stream][5:]).get(1, b""))
                value = _read_array(tensor)
                if value.size:  # an empty one only says that a step is done
                    found.append(Tensor(name(sender), name(receiver), edge.decode(), value))
    return found


def rebuild_input(tensors: Sequence[Tensor], owner: str, receivers: Sequence[str]) -> tuple[np.ndarray, bool]:
    """Put together what `receivers` were sent of an owner's ABY3 input in 64-bit shares, as they or somebody on their links could.

    An owner sends each server two of three pieces: two seeds, each of which stands for a whole share, and one share in full.

    Returns
    -------
    values : ndarray
        The sum of the pieces at hand, in fixed point of 16 bits after the point.
    whole : bool
        Whether all three were there.
    """
    from tf_encrypted.tensor import int64factory

    pieces = {}
    for tensor in tensors:
        if tensor.sender == owner and tensor.receiver in receivers and "/share/" in tensor.edge:
            pieces.setdefault(tensor.edge.rpartition("/share/")[2], tensor.value)
    seeds = [pieces[name] for name in ("SecureSeed", "SecureSeed_1") if name in pieces]
    shares = [value for name, value in pieces.items() if name.startswith("sub")]
    shape = next(t.value.shape for t in tensors if t.sender == owner and "/share/sub" in t.edge)
    total = sum([int64factory.sample_seeded_uniform(shape, seed).value.numpy() for seed in seeds] + shares)
    return total / 2.0**16, len(pieces) == 3


def _read_array(tensor) -> np.ndarray:
    from tensorflow import make_ndarray, string

    # A file's content: lengths, then bytes.
    if tensor.dtype == string.as_datatype_enum and tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, np.uint8)
    return make_ndarray(tensor)


def _streams(raw: bytes) -> dict[int, bytes]:
    """Join the DATA frames of each HTTP/2 stream (RFC 9113): 3 bytes of length, type, flags, 4 bytes of stream."""
    preface, streams = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {}
    at = len(preface) if bytes(raw[: len(preface)]) == preface else 0
    while at + 9 <= len(raw):
        length, kind, flags = int.from_bytes(raw[at : at + 3], "big"), raw[at + 3], raw[at + 4]
        (stream,) = struct.unpack(">I", raw[at + 5 : at + 9])
        if kind > 9 or stream >> 31:
            return {}
        if kind == 0:
            body = bytes(raw[at + 9 : at + 9 + length])
            streams[stream] = streams.get(stream, b"") + (body[1 : length - body[0]] if flags & 8 else body)
        at += 9 + length
    return streams


def _fields(message: bytes) -> dict[int, bytes]:
    """Return the length-delimited fields of a protocol-buffer message, joined where they repeat; stop at what is none."""
    fields, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while at < len(message):
            byte = message[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value
        return value

    while at < len(message):
        tag = varint()
        if tag & 7 == 2:
            length = varint()
            fields[tag >> 3] = fields.get(tag >> 3, b"") + message[at : at + length]
            at += length
        elif tag & 7 == 0:
            varint()
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        else:
            break
    return fields
