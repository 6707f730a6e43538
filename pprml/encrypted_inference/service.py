"""A client that holds the key, and a server that holds the model: separate processes that share a folder of public bytes.

A demonstration, not a deployment: the server follows the protocol but is curious. File fingerprints travel beside the folder, on a
pipe that nobody else can write to, so a file altered on the way is refused. What was checked is copied, and the copy is used.
"""

import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import tenseal.sealapi as seal

from pprml import PATIENCE
from pprml.ckks import KeyHolder, find_secret_key, fingerprint, open_ring, read_ciphertext, receive

KEY_FILES = ("parameters", "relin_keys", "galois_keys")
PUBLISHED_DECIMALS = 2


class Received(NamedTuple):
    """One file as the server recorded it."""

    name: str
    size: int
    sha256: str


def publish(scores: np.ndarray) -> np.ndarray:
    """Round decrypted scores before anyone else sees them: raw CKKS decryptions depend on the key (eprint 2020/1533)."""
    return np.round(scores, PUBLISHED_DECIMALS) + 0.0


class Session:
    """A running server for one model, and the client's side of it.

    Parameters
    ----------
    model : Forest, Network or RecordNetwork
        Goes to the server's processes; of it, the client uses only the `card`.
    degree : int
        Ring degree: 8192, 16384 or 32768.
    levels : int, optional
        Planned depth; as deep as the model by default.
    scale_bits : int
        Bits after the binary point.
    timeout : float
        Seconds for one batch.
    make_keys : callable
        Makes the `KeyHolder`.

    Raises
    ------
    ValueError
        The model is too deep for the ring: before any work, with the degree that would do. Or what the server refused.

    Notes
    -----
    SEAL's Python binding holds the interpreter's lock, so threads gain nothing: the server is a process for each part of the model.
    """

    def __init__(
        self,
        model: Any,
        degree: int,
        levels: int | None = None,
        scale_bits: int = 30,
        timeout: float = PATIENCE,
        make_keys: Callable = KeyHolder,
    ):
        self.card, self.timeout = model.card, timeout
        if levels is not None and levels < self.card.levels:
            raise ValueError(f"the model needs {self.card.levels} levels, but {levels} are planned")
        depth = levels or self.card.levels
        self.keys = make_keys(degree, depth, self.card.steps, scale_bits, self.card.head_bits)
        self._shared, self._workers = TemporaryDirectory(prefix="pprml_"), []
        place = Path(self._shared.name)
        self.folder, self._own, self.seconds, self.answer_bytes = place / "sent", place / "client", {}, 0
        private = place / "server"  # parts of an answer would tell a client more than the answer
        spawn = multiprocessing.get_context("spawn")
        try:
            self.folder.mkdir()
            private.mkdir()
            self.keys.export(self.folder)
            for number, part in enumerate(model.split()):
                ours, theirs = spawn.Pipe()
                arguments = theirs, self.folder, private, part, number
                process = spawn.Process(target=_serve, args=arguments, name=f"server_{number}", daemon=True)
                process.start()
                theirs.close()
                self._workers.append((process, ours))
            self._ask("open", fingerprint(self.folder, [file.name for file in self.folder.iterdir()]))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Encrypt records, let the server work, and decrypt.

        Parameters
        ----------
        X : ndarray of shape (n, features)
            Scaled as the card says.

        Returns
        -------
        ndarray of shape (n, outputs)
            Scores or logits, for the client's eyes: `publish` them before they go further.

        Raises
        ------
        ValueError
            Records that the card does not allow, before any work; or a file that either side refuses.
        RuntimeError, TimeoutError
            The server ended, or did not answer in time. No process is left.
        """
        batches, rows = self.card.lay_out(X, self.keys.slots), []
        self.seconds = dict.fromkeys(("encrypt", "server", "decrypt"), 0.0)
        for batch in batches:
            started = time.perf_counter()
            names = [f"input_{number}" for number in range(len(batch))]
            for name, vector in zip(names, batch, strict=True):
                self.keys.encrypt_to(vector, self.folder / name)
            sealed = fingerprint(self.folder, names)
            encrypted = time.perf_counter()
            answers = self.evaluate(sealed)
            answered = time.perf_counter()
            opened = [self.keys.decrypt(read_ciphertext(self.keys, self._own / name, 0)) for name in answers]
            rows.append(self.card.read(np.array(opened), batch.shape[1]))
            steps = encrypted - started, answered - encrypted, time.perf_counter() - answered
            self.seconds = {
                key: self.seconds[key] + step for key, step in zip(self.seconds, steps, strict=True)
            }
        return np.concatenate(rows)

    def evaluate(self, sealed: dict[str, str]) -> list[str]:
        """Let the server answer for encrypted inputs, given as file names with fingerprints; return the answers' names."""
        parts = self._ask("evaluate", sealed)
        (answers,) = self._ask("combine", parts, self._workers[:1])
        receive(self.folder, answers, self._own)
        self.answer_bytes = sum((self._own / name).stat().st_size for name in answers)
        return list(answers)

    def received(self) -> list[Received]:
        """Return what the server's first process recorded of all that reached it."""
        return self._ask("list", {}, self._workers[:1])[0]

    def pry(self) -> tuple[list[str], np.ndarray]:
        """Let the server try to read: what it holds that is a secret key, and its input under a key of its own making."""
        return self._ask("pry", {}, self._workers[:1])[0]

    def close(self) -> None:
        """End the server's processes and remove the shared folder."""
        for process, pipe in self._workers:
            pipe.close()
            process.kill()
            process.join()
        self._workers = []
        self._shared.cleanup()

    def _ask(self, command, content, workers=None):
        workers, deadline, replies = workers or self._workers, time.monotonic() + self.timeout, []
        for _, pipe in workers:
            with suppress(OSError):  # that a process ended is told below
                pipe.send((command, content))
        for process, pipe in workers:
            try:
                if not pipe.poll(max(0.0, deadline - time.monotonic())):
                    self.close()
                    raise TimeoutError(
                        f"{process.name} did not answer within {self.timeout:g} s; PPRML_PATIENCE sets how long is waited"
                    )
                replies.append(pipe.recv())
            except (EOFError, OSError) as error:
                if isinstance(error, TimeoutError):
                    raise
                self.close()
                raise RuntimeError(f"{process.name} ended before it answered") from None
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies


def _serve(pipe, *arguments):
    """Be one of the server's processes, until the other side of the pipe is gone."""
    state = _Worker(*arguments)
    with suppress(EOFError, OSError):
        while True:
            command, content = pipe.recv()
            try:
                reply = getattr(state, command)(content)
            except Exception as error:
                known = isinstance(error, ValueError)
                reply = error if known else RuntimeError(f"{type(error).__name__}: {error}")
            pipe.send(reply)


class _Worker:
    """The server: it holds a part of the model and what it received, and no secret key."""

    def __init__(self, folder, private, model, number):
        self.folder, self.private, self.model, self.number = folder, private, model, number
        self.own = private / f"received_{number}"
        self.received = []

    def open(self, files):
        self._receive(files)
        self.ring = open_ring(self.own)
        if keys := find_secret_key(self.ring, [self.own / name for name in files]):
            raise ValueError(f"refused: {keys[0]} holds the secret key; send only {', '.join(KEY_FILES)}")
        if self.ring.levels < self.model.card.levels:
            raise ValueError(
                f"refused: the model needs {self.model.card.levels} levels, sent {self.ring.levels}"
            )
        self.ring.load_keys(self.own)

    def evaluate(self, files):
        self._receive(files)
        inputs = [read_ciphertext(self.ring, self.own / name, self.ring.levels) for name in files]
        if len(inputs) != self.model.card.ciphertexts:
            raise ValueError(f"refused: {len(inputs)} ciphertexts, expected {self.model.card.ciphertexts}")
        # Answers leave at the lowest level: the fewest bytes, and nothing that tells the depth of a branch.
        answers = [self.ring.lower(answer, 0) for answer in self.model.evaluate(self.ring, inputs)]
        names = [f"{self.number}_{place}" for place in range(len(answers))]
        for name, answer in zip(names, answers, strict=True):
            answer.save(f"{self.private}/{name}")
        return names

    def combine(self, parts):
        totals = {}
        for name in (name for names in parts for name in names):
            place, ct = name.partition("_")[2], read_ciphertext(self.ring, self.private / name, 0)
            totals[place] = self.ring.add(totals[place], ct) if place in totals else ct
        for place, total in totals.items():
            total.save(f"{self.folder}/answer_{place}")
        return fingerprint(self.folder, [f"answer_{place}" for place in totals])

    def list(self, _):
        return self.received

    def pry(self, _):
        files = [self.own / name for name, *_ in self.received]
        own = seal.KeyGenerator(self.ring.context).secret_key()
        ct, plain = read_ciphertext(self.ring, files[-1], self.ring.levels), seal.Plaintext()
        seal.Decryptor(self.ring.context, own).decrypt(ct, plain)
        return find_secret_key(self.ring, files), np.array(self.ring.encoder.decode_double(plain))

    def _receive(self, files):
        receive(self.folder, files, self.own)
        self.received += [Received(n, (self.own / n).stat().st_size, seen) for n, seen in files.items()]
