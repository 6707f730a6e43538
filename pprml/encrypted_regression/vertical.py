"""Each party owns columns of the same people: cross products under encryption (chapter 10, setting c).

The key-holder, which owns the target, encrypts its columns. The other party multiplies them by its own, in the clear, and returns the sum
of each product, masked so that nothing else of it can be opened. Both add their own sums in the clear. That the rows are in the same order
is assumed: finding the people that both have, without showing the others, is private set intersection and not done here.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import tenseal.sealapi as seal

from pprml import PATIENCE
from pprml.ckks import Ring, find_secret_key, open_ring
from pprml.encrypted_regression.crew import Crew, Message, Rows
from pprml.encrypted_regression.masking import (
    from_bytes,
    mask_all_but_sum,
    read_constant,
    refresh,
    to_bytes,
)
from pprml.encrypted_regression.protocol import PUBLISHED_DECIMALS
from pprml.least_squares import TARGET, scale_columns, solve_sums

DEGREE = 8192
#: Three primes for a ciphertext, and the one that SEAL sets apart: 218 bits, all that is allowed.
MODULUS_BITS = [60, 60, 60, 38]
#: The key-holder's numbers get the room that is left: then a smudge of 113 bits lies 49 bits below the last unit of a product.
KEY_HOLDER_SCALE, OTHER_SCALE = 2.0**110, 2.0**52


class Vertical(NamedTuple):
    """Outcome of a run. `coefficients` belong to the columns of the key-holder, then of the other; the other sees `published` only.

    `sums` are those of `compute_sums` over all columns, and the sum of the squared target last; the key-holder knows all of them.
    """

    coefficients: np.ndarray
    sums: np.ndarray
    published: list[float]
    transcript: dict[str, list[Message]]
    seconds: dict[str, float]


def make_vertical_ring() -> Ring:
    """Return the ring in which columns are multiplied; SEAL judges that it has 128 bits of security."""
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(DEGREE)
    parameters.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, MODULUS_BITS))
    ring = Ring(parameters)
    ring.parameters = parameters
    return ring


def multiply_column(ring: Ring, ct: seal.Ciphertext, column: np.ndarray) -> seal.Ciphertext:
    """Return an encrypted column times one in the clear, slot by slot. Not to be returned like that: see `masking`."""
    weighed = seal.Ciphertext()
    ring.seal.multiply_plain(ct, ring.encode(column, ring.levels, OTHER_SCALE), weighed)
    return weighed


def open_cross_product(ring: Ring, decryptor: seal.Decryptor, ct: seal.Ciphertext) -> float:
    """Return the sum over rows that a masked product holds."""
    plain = seal.Plaintext()
    decryptor.decrypt(ct, plain)
    return read_constant(ring, plain) / (KEY_HOLDER_SCALE * OTHER_SCALE) * ring.slots


def _key_holder(table):
    """Encrypt the columns, open the cross products, solve. The target is its last column."""
    own, ring = scale_columns(table), make_vertical_ring()
    keys, public_key = seal.KeyGenerator(ring.context), seal.PublicKey()
    keys.create_public_key(public_key)
    encryptor = seal.Encryptor(ring.context, keys.secret_key())
    messages = [("parameters", to_bytes(ring.parameters)), ("public key", to_bytes(public_key))]
    for name, column in zip(table.columns, own.T, strict=True):
        plain = ring.encode(column, ring.levels, KEY_HOLDER_SCALE)
        messages.append((f"encrypted {name}", to_bytes(encryptor.encrypt_symmetric(plain))))
    names, others, *returned = yield messages
    names = json.loads(names)
    decryptor = seal.Decryptor(ring.context, keys.secret_key())
    products = [_read_ciphertext(ring, data, KEY_HOLDER_SCALE * OTHER_SCALE) for data in returned]
    cross = [open_cross_product(ring, decryptor, ct) for ct in products]
    shape = len(names), len(names) + 1
    sums = _join_sums(own, np.frombuffer(others).reshape(shape), np.reshape(cross, (own.shape[1], shape[0])))
    coefficients = solve_sums(sums[:-1], [*table.columns[:-1], *names])
    published = json.dumps(np.round(coefficients, PUBLISHED_DECIMALS).tolist()).encode()
    yield [coefficients, sums, ("coefficients", published)]


def _join_sums(own, others, cross):
    """Lay out A'A, A'y and y'y with A = [1, own columns, the other's] from three blocks; `own` has the target last."""
    width, far = own.shape[1], len(others)
    near = np.column_stack([np.ones(len(own)), own])
    table = np.zeros((1 + width + far, 1 + width + far))
    table[: 1 + width, : 1 + width] = near.T @ near
    table[1 + width :, 1 + width :] = others[:, 1:]
    table[0, 1 + width :] = table[1 + width :, 0] = others[:, 0]
    table[1 : 1 + width, 1 + width :] = cross
    table[1 + width :, 1 : 1 + width] = cross.T
    order = [*range(width), *range(1 + width, 1 + width + far)]
    upper = np.triu_indices(len(order))
    return np.r_[table[np.ix_(order, order)][upper], table[order, width], table[width, width]]


def _read_ciphertext(ring, data, scale):
    ct = from_bytes(ring, seal.Ciphertext, data)
    if ct.size() != 2 or ring.level(ct) != ring.levels or ct.scale != scale:
        raise ValueError("refused: not a ciphertext of two parts at the agreed level and scale")
    return ct


def _other(table):
    """Multiply what is encrypted by its own columns, and return masked sums and its own sums."""
    own = scale_columns(table)
    parameters, public_key, *columns = yield
    with TemporaryDirectory() as folder:
        names = [f"message_{i}" for i in range(2 + len(columns))]
        for name, data in zip(names, (parameters, public_key, *columns), strict=True):
            Path(folder, name).write_bytes(data)
        Path(folder, "parameters").write_bytes(parameters)
        ring = open_ring(Path(folder))
        if find_secret_key(ring, [Path(folder, name) for name in names]):
            raise ValueError("refused: it was sent a secret key; a key-holder keeps that")
    public_key = from_bytes(ring, seal.PublicKey, public_key)
    A = np.column_stack([np.ones(len(own)), own])
    messages = [("names", json.dumps(list(table.columns)).encode()), ("own sums", (A.T @ A)[1:].tobytes())]
    for data in columns:
        ct = _read_ciphertext(ring, data, KEY_HOLDER_SCALE)
        for name, column in zip(table.columns, own.T, strict=True):
            product = multiply_column(ring, ct, column)
            refresh(ring, public_key, product)
            messages.append((f"masked product with {name}", to_bytes(mask_all_but_sum(ring, product))))
    (published,) = yield messages
    yield json.loads(published)


def _check_columns(own, other):
    """Refuse what cannot give an answer, or would give too much, before a process starts."""
    if list(own.index) != list(other.index):
        raise ValueError("the rows are not aligned: keep the people that both have, in one order")
    if own.columns[-1] != TARGET or TARGET in other.columns:
        raise ValueError(f"expected {TARGET} as the last column of the key-holder, and nowhere else")
    if shared := ", ".join(sorted(set(own.columns) & set(other.columns))):
        raise ValueError(f"both have column {shared}: leave it out at one of them")
    for table in (own, other):
        scaled = scale_columns(table)
        if flat := ", ".join(np.array(table.columns)[np.ptp(scaled, axis=0) == 0]):
            raise ValueError(f"constant column {flat}: drop it")
    # Each encrypted column is one equation for the other's unknown column.
    if len(own) <= 2 * own.shape[1] + other.shape[1]:
        raise ValueError(
            f"{len(own)} rows are too few: the cross products would nearly give the other's rows away"
        )


def fit_vertical(own: Any, other: Any, timeout: float = PATIENCE, roles: dict | None = None) -> Vertical:
    """Fit a line to columns that stay with two parties, each a process of its own.

    Parameters
    ----------
    own : DataFrame of shape (n, d1 + 1)
        Columns of the key-holder in clinical units, the target last.
    other : DataFrame of shape (n, d2)
        Columns of the other party, for the same people in the same order.
    timeout : float
        Seconds for the whole run.
    roles : dict, optional
        Other scripts for the two parties, for tests.

    Raises
    ------
    ValueError
        Rows that are not aligned, too few of them, or columns that are bad; or what a party refused, with its name.
    RuntimeError, TimeoutError
        A party ended, or did not answer in time. No process is left.
    """
    _check_columns(own, other)
    scripts = {"key_holder": (_key_holder, Rows(own)), "other": (_other, Rows(other))} | (roles or {})
    with Crew(scripts, timeout) as crew:
        crew.send("other", *crew.answer("key_holder"))
        crew.send("key_holder", *crew.answer("other"))
        coefficients, sums, published = crew.answer("key_holder")
        crew.send("other", published)
        view = crew.answer("other")
        return Vertical(coefficients, sums, view, crew.transcript, crew.seconds)
