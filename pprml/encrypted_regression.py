"""Linear regression on sums that only a key-holder can read (chapter 10).

Hospitals encrypt the sums of products of their own rows under the key-holder's public key; a server that cannot decrypt adds
them. Each party is a process. Keys and ciphertexts are TenSEAL's and phe's; only the packing of numbers is ours.
A demonstration, not a deployment: messages are not authenticated, and nobody checks the inputs of another party.
"""

import hashlib
import json
import multiprocessing
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tenseal as ts
from phe import paillier

# In the clear: shared with chapter 12, and read through this module by chapter 10.
from pprml.least_squares import REFERENCE, TARGET, compute_sums, solve_sums, split_rows  # noqa: F401

VALUE_BITS = 16
MAX_PARTIES = 7  # 7 * 2^VALUE_BITS * CKKS_SCALE stays below half of CKKS's 60-bit modulus
CKKS_SCALE = 2.0**40
#: Largest modulus in bits of each ring degree at 128-bit security, as in SEAL and the 2018 standard (eprint 2019/939).
MAX_MODULUS_BITS = {2048: 54, 4096: 109, 8192: 218, 16384: 438}
PAILLIER_BITS = 3072  # 128-bit security (NIST SP 800-57)
SLOT_BITS = 64
PUBLISHED_DECIMALS = 4


class Message(NamedTuple):
    """One message as its receiver recorded it."""

    sender: str
    kind: str
    sha256: str
    payload: bytes


class Result(NamedTuple):
    """Outcome of a run. `coefficients` (d + 1,) are the key-holder's own view, of which only `published` left it.

    `transcript` lists what each party received, `seconds` its CPU time, and `secret_seen_by` the parties, other than the
    key-holder, that received a piece of the secret key.
    """

    coefficients: np.ndarray
    published: list[float]
    transcript: dict[str, list[Message]]
    seconds: dict[str, float]
    secret_seen_by: list[str]


class Ckks:
    """CKKS by TenSEAL: `count` numbers in one ciphertext. Makes a key pair, or takes a received `key` unless it must refuse."""

    degree, modulus_bits = 4096, (60, 40)  # the first prime carries the sums; the second lowers the noise

    def __init__(self, parties: int, count: int, key: bytes | None = None):
        self.count = count
        try:
            if key is None:
                new = ts.SCHEME_TYPE.CKKS, self.degree, 0, list(self.modulus_bits)
                self.context = ts.context(*new, n_threads=1)
                self.context.global_scale = CKKS_SCALE
            else:
                self.context = ts.context_from(key, 1)
            data, scale = self.context.seal_context().data.key_context_data(), self.context.global_scale
        except (ValueError, RuntimeError):
            raise ValueError("refused: not a CKKS context of 128-bit security") from None
        if key is not None and self.context.is_private():
            raise ValueError("refused: it holds the secret key; serialize it with save_secret_key=False")
        degree, bits = data.parms().poly_modulus_degree(), data.total_coeff_modulus_bit_count()
        if bits > MAX_MODULUS_BITS.get(degree, 0) or scale != CKKS_SCALE:
            raise ValueError("refused: below 128-bit security, or not the agreed scale")

    def export(self, to_encrypt: bool) -> bytes:
        """Return the parameters, and with them the public key if the receiver is to encrypt."""
        return self.context.serialize(to_encrypt, False, False, False)

    def secrets(self) -> list[bytes]:
        """Return the bytes that must never leave: a private context is the public one and then the secret key."""
        return [self.context.serialize(True, True, False, False)[len(self.export(True)) + 64 :]]

    def encrypt(self, numbers: np.ndarray) -> bytes:
        """Return one ciphertext, under fresh randomness."""
        return ts.ckks_vector(self.context, _fit(numbers)).serialize()

    def add(self, messages: list[bytes]) -> bytes:
        """Return the encrypted sums."""
        first, *rest = map(self._read, messages)
        return sum(rest, first).serialize()

    def decrypt(self, message: bytes) -> np.ndarray:
        """Return the sums; only a key-holder can."""
        return np.array(self._read(message).decrypt())

    def _read(self, message: bytes) -> ts.CKKSVector:
        with suppress(ValueError, RuntimeError):
            vector = ts.ckks_vector_from(self.context, message)
            if vector.size() == self.count:
                return vector
        raise ValueError(f"refused: not a whole ciphertext of {self.count} numbers")


class Paillier:
    """Paillier by phe, for fixed-point numbers in slots of each ciphertext. Takes the arguments of `Ckks`.

    A slot, from the top: headroom for the carries, a bit for the offset that makes a number positive, `VALUE_BITS`, a fraction.
    """

    key_bits, slots, headroom = PAILLIER_BITS, (PAILLIER_BITS - 1) // SLOT_BITS, 3

    def __init__(self, parties: int, count: int, key: bytes | None = None):
        if self.headroom < (needed := (parties - 1).bit_length()):
            raise ValueError(f"{self.headroom} headroom bits, but adding {parties} parties needs {needed}")
        if key is None:
            self.public, self.private = paillier.generate_paillier_keypair(n_length=self.key_bits)
        else:
            self.public, self.private = paillier.PaillierPublicKey(int.from_bytes(key, "big")), None
        if self.public.n.bit_length() < PAILLIER_BITS or self.public.n % 2 == 0:
            raise ValueError(f"refused: not a Paillier key of {PAILLIER_BITS} bits or more")
        self.parties, self.count, self.width = parties, count, -(-self.public.nsquare.bit_length() // 8)
        self.fraction = SLOT_BITS - 1 - VALUE_BITS - self.headroom
        self.offset = 1 << (VALUE_BITS + self.fraction)

    def export(self, to_encrypt: bool) -> bytes:
        """Return the public key."""
        return self.public.n.to_bytes(self.width // 2, "big")

    def secrets(self) -> list[bytes]:
        """Return both primes in the forms in which they could travel."""
        primes, size = (self.private.p, self.private.q), self.width // 4
        raw = [p.to_bytes(size, order) for p in primes for order in ("big", "little")]
        return [*raw, *(b"%d" % p for p in primes)]

    def encrypt(self, numbers: np.ndarray) -> bytes:
        """Return ciphertexts one after the other, each under fresh randomness."""
        fixed = [round(number * 2**self.fraction) + self.offset for number in _fit(numbers)]
        groups = [fixed[i : i + self.slots] for i in range(0, self.count, self.slots)]
        packed = [sum(value << (SLOT_BITS * i) for i, value in enumerate(group)) for group in groups]
        return b"".join(self.public.raw_encrypt(plain).to_bytes(self.width, "big") for plain in packed)

    def add(self, messages: list[bytes]) -> bytes:
        """Return the encrypted sums."""
        sums = [sum(rest, first) for first, *rest in zip(*map(self._read, messages), strict=True)]
        return b"".join(number.ciphertext(False).to_bytes(self.width, "big") for number in sums)

    def decrypt(self, message: bytes) -> np.ndarray:
        """Return the sums over all parties; only a key-holder can."""
        if self.private is None:
            raise ValueError("there is no private key here: only the key-holder can decrypt")
        plain = [self.private.raw_decrypt(number.ciphertext(False)) for number in self._read(message)]
        slots = [(p >> (SLOT_BITS * i)) % 2**SLOT_BITS for p in plain for i in range(self.slots)]
        return np.array([(s - self.parties * self.offset) / 2**self.fraction for s in slots[: self.count]])

    def _read(self, message: bytes) -> list[paillier.EncryptedNumber]:
        cuts = range(0, len(message), self.width)
        numbers = [int.from_bytes(message[cut : cut + self.width], "big") for cut in cuts]
        whole = len(message) == -(-self.count // self.slots) * self.width
        if not whole or not all(0 < number < self.public.nsquare for number in numbers):
            raise ValueError(f"refused: not whole ciphertexts of {self.count} numbers under this key")
        return [paillier.EncryptedNumber(self.public, number) for number in numbers]


class PaillierUnpacked(Paillier):
    """Paillier with one number in each ciphertext."""

    slots = 1


SCHEMES = {"ckks": Ckks, "paillier": Paillier, "paillier_unpacked": PaillierUnpacked}


def _fit(numbers: np.ndarray) -> list[float]:
    if not np.abs(numbers).max() <= 2**VALUE_BITS:
        raise ValueError(f"a sum beyond 2^{VALUE_BITS} could overflow: pool fewer rows in one party")
    return [float(number) for number in numbers]


# What each party does, step by step: a script takes the payloads that arrive and yields what it answers.
def _hospital(scheme, table):
    (key,) = yield
    (published,) = yield scheme(key).encrypt(compute_sums(table))
    yield json.loads(published)


def _server(scheme):
    key, *ciphertexts = yield
    yield scheme(key).add(ciphertexts)


def _key_holder(scheme, columns):
    key = scheme()
    (total,) = yield key.export(True), key.export(False)
    coefficients = solve_sums(key.decrypt(total), columns)
    # A raw CKKS decryption depends on the secret key: what leaves is rounded, far above its noise.
    others = yield coefficients, json.dumps(np.round(coefficients, PUBLISHED_DECIMALS).tolist()).encode()
    pieces = [s[i : i + 32] for s in key.secrets() for i in range(0, len(s) - 31, 32)]
    yield [any(piece in payload for piece in pieces) for payload in others]


def _run_party(pipe, role, *arguments):
    """Be one party, in its own process: record what arrives, answer, and end when the other side of the pipe is gone."""
    received, start = [], time.process_time()
    try:
        script = role(*arguments)
        answer = next(script)
        while True:
            if answer is not None:
                pipe.send((answer, received, time.process_time() - start))
            messages = pipe.recv()
            received += [Message(s, kind, hashlib.sha256(p).hexdigest(), p) for s, kind, p in messages]
            answer = script.send([payload for *_, payload in messages])
    except (EOFError, OSError):
        pass
    except Exception as error:
        known = isinstance(error, ValueError)
        pipe.send(ValueError(str(error)) if known else RuntimeError(f"{type(error).__name__}: {error}"))


def _check_tables(tables):
    """Refuse what cannot give an answer before a process starts, and return the columns."""
    if not 2 <= len(tables) <= MAX_PARTIES:
        raise ValueError(f"{len(tables)} parties: the protocol takes 2 to {MAX_PARTIES}")
    columns, needed, total = list(tables[0].columns), tables[0].shape[1], sum(map(len, tables))
    for number, table in enumerate(tables, 1):
        if list(table.columns) != columns:
            differing = ", ".join(sorted(set(columns) ^ set(table.columns))) or "the same in another order"
            raise ValueError(f"hospital_1 and hospital_{number} have different columns: {differing}")
        try:
            compute_sums(table)
        except ValueError as error:
            raise ValueError(f"hospital_{number}: {error}") from None
    if total < needed:
        raise ValueError(f"{total} rows in all cannot fix {needed} coefficients: find more parties")
    return columns


def run_protocol(tables: list, scheme: Any = "ckks", timeout: float = 120.0) -> Result:
    """Fit a line to rows that stay with their parties, each party a process of its own.

    Parameters
    ----------
    tables : list of DataFrame
        The rows of each hospital, as from `split_rows`.
    scheme : {"ckks", "paillier", "paillier_unpacked"} or a class with their methods
    timeout : float
        Seconds for the whole run.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        Bad input, before a process starts; or what a party refused, with its name.
    RuntimeError, TimeoutError
        A party ended, or did not answer in time. No process is left.
    """
    columns = _check_tables(tables)
    if isinstance(scheme, str) and scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}: use {', '.join(SCHEMES)}, or a class")
    count = len(columns) * (len(columns) + 3) // 2
    scheme = partial(SCHEMES.get(scheme, scheme), len(tables), count)
    hospitals = [f"hospital_{number}" for number in range(1, len(tables) + 1)]
    roles = {name: (_hospital, scheme, table) for name, table in zip(hospitals, tables, strict=True)}
    roles |= {"server": (_server, scheme), "key_holder": (_key_holder, scheme, columns[:-1])}
    spawn, deadline = multiprocessing.get_context("spawn"), time.monotonic() + timeout
    crew, transcript, seconds = {}, {}, {}

    def send(name, *messages):
        with suppress(OSError):  # that a party ended is told by `answer`
            crew[name][1].send(messages)

    def answer(name):
        try:
            reply = crew[name][1].recv()
        except (EOFError, OSError):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{name} did not answer: the run took over {timeout:g} s") from None
            raise RuntimeError(f"{name} ended before it answered") from None
        if isinstance(reply, Exception):
            raise type(reply)(f"{name}: {reply}")
        value, transcript[name], seconds[name] = reply
        return value

    # Killing is what unblocks a pipe, whichever way it was waiting.
    watchdog = threading.Timer(timeout, lambda: [process.kill() for process, _ in crew.values()])
    try:
        for name, role in roles.items():
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_run_party, args=(theirs, *role), name=name, daemon=True)
            process.start()
            theirs.close()
            crew[name] = process, ours
        watchdog.start()
        public, parameters = answer("key_holder")
        for name in hospitals:
            send(name, ("key_holder", "public key", public))
        encrypted = [(name, "encrypted sums", answer(name)) for name in hospitals]
        send("server", ("key_holder", "parameters", parameters), *encrypted)
        send("key_holder", ("server", "encrypted total", answer("server")))
        coefficients, published = answer("key_holder")
        for name in hospitals:
            send(name, ("key_holder", "coefficients", published))
        views = [answer(name) for name in hospitals]
        record = coefficients, views[0], dict(transcript), dict(seconds)
        # Only the key-holder can search for its key: it looks through everything that the others received.
        others = [(name, m.kind, m.payload) for name in [*hospitals, "server"] for m in transcript[name]]
        send("key_holder", *others)
        found = zip(others, answer("key_holder"), strict=True)
        return Result(*record, sorted({name for (name, *_), leaked in found if leaked}))
    finally:
        watchdog.cancel()
        for process, pipe in crew.values():
            process.kill()
            process.join()
            pipe.close()
