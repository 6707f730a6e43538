"""Each party owns rows: encrypted sums, added by a server that cannot decrypt, each party a process (chapter 10)."""

import hashlib
import json
import multiprocessing
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pprml.encrypted_regression.schemes import MAX_PARTIES, SCHEMES
from pprml.least_squares import compute_sums, solve_sums

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
