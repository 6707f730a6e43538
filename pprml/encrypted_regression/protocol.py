"""Each party owns rows: encrypted sums, added by a server that cannot decrypt, each party a process (chapter 10)."""

import json
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pprml import PATIENCE
from pprml.encrypted_regression.crew import Crew, Message, Rows
from pprml.encrypted_regression.schemes import MAX_PARTIES, SCHEMES
from pprml.least_squares import compute_sums, solve_sums

PUBLISHED_DECIMALS = 4


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
    (published,) = yield "encrypted sums", scheme(key).encrypt(compute_sums(table))
    yield json.loads(published)


def _server(scheme):
    key, *ciphertexts = yield
    yield "encrypted total", scheme(key).add(ciphertexts)


def _key_holder(scheme, columns):
    key = scheme()
    (total,) = yield [("public key", key.export(True)), ("parameters", key.export(False))]
    coefficients = solve_sums(key.decrypt(total), columns)
    # A raw CKKS decryption depends on the secret key: what leaves is rounded, far above its noise.
    published = json.dumps(np.round(coefficients, PUBLISHED_DECIMALS).tolist()).encode()
    others = yield [coefficients, ("coefficients", published)]
    pieces = [s[i : i + 32] for s in key.secrets() for i in range(0, len(s) - 31, 32)]
    yield [any(piece in payload for piece in pieces) for payload in others]


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


def run_protocol(tables: list, scheme: Any = "ckks", timeout: float = PATIENCE) -> Result:
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
        Bad input, before a process starts; or what a party refused, with its name: also a message that was altered on the way.
    RuntimeError, TimeoutError
        A party ended, or did not answer in time. No process is left.
    """
    columns = _check_tables(tables)
    if isinstance(scheme, str) and scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}: use {', '.join(SCHEMES)}, or a class")
    count = len(columns) * (len(columns) + 3) // 2
    scheme = partial(SCHEMES.get(scheme, scheme), len(tables), count)
    hospitals = [f"hospital_{number}" for number in range(1, len(tables) + 1)]
    roles = {name: (_hospital, scheme, Rows(table)) for name, table in zip(hospitals, tables, strict=True)}
    roles |= {"server": (_server, scheme), "key_holder": (_key_holder, scheme, columns[:-1])}
    with Crew(roles, timeout) as crew:
        public, parameters = crew.answer("key_holder")
        for name in hospitals:
            crew.send(name, public)
        crew.send("server", parameters, *[crew.answer(name) for name in hospitals])
        crew.send("key_holder", crew.answer("server"))
        coefficients, published = crew.answer("key_holder")
        for name in hospitals:
            crew.send(name, published)
        views = [crew.answer(name) for name in hospitals]
        record = coefficients, views[0], dict(crew.transcript), dict(crew.seconds)
        # Only the key-holder can search for its key: it looks through everything that the others received.
        others = [(name, m.payload) for name in [*hospitals, "server"] for m in crew.transcript[name]]
        crew.show("key_holder", [payload for _, payload in others])
        found = zip(others, crew.answer("key_holder"), strict=True)
        return Result(*record, sorted({name for (name, _), leaked in found if leaked}))
