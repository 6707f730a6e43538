"""Additive secret sharing from scratch, as a lesson: shares, a Beaver triple, fixed point, and a test of the shares.

The library does the real work in `pprml.multiparty.regression`. Numbers live in the ring of integers modulo 2^64, where NumPy's
uint64 arithmetic wraps by itself.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

Source = Callable[[Sequence[int]], np.ndarray]


def draw_ring(shape: Sequence[int]) -> np.ndarray:
    """Draw uniform ring elements from the system's cryptographic source; uint64 of `shape`."""
    return np.frombuffer(secrets.token_bytes(8 * int(np.prod(shape))), np.uint64).reshape(shape).copy()


def share_secret(values: np.ndarray, servers: int = 3, source: Source = draw_ring) -> np.ndarray:
    """Split ring elements into shares that add up to them.

    Parameters
    ----------
    values : ndarray of uint64
        As from `encode_fixed`, or whole numbers.
    servers : int
        Shares a value; fewer than all of them are independent of it.
    source : callable
        Takes a shape and returns ring elements; anything but a cryptographic source is unsafe.

    Returns
    -------
    ndarray of uint64, shape (servers, *values.shape)
    """
    values = np.asarray(values)
    if values.dtype != np.uint64 or servers < 2:
        raise ValueError("share uint64 ring elements (see encode_fixed) among 2 servers or more")
    masks = source((servers - 1, *values.shape))
    return np.concatenate([masks, (values - masks.sum(axis=0, dtype=np.uint64))[None]])


def add_shares(messages: Sequence[tuple[str, np.ndarray]], senders: Sequence[str]) -> np.ndarray:
    """Add what one server received, one share from each sender.

    Parameters
    ----------
    messages : sequence of (sender, share)
    senders : sequence of str
        Who must be heard, once each.

    Returns
    -------
    ndarray of uint64

    Raises
    ------
    ValueError
        A share that is missing, from a stranger, or came twice: the sum would be silently wrong.
    """
    heard = [sender for sender, _ in messages]
    if twice := sorted({name for name in heard if heard.count(name) > 1}):
        raise ValueError(f"a repeated message from {', '.join(twice)}: drop the copy, or start again")
    if odd := sorted(set(heard) ^ set(senders)):
        raise ValueError(f"expected one share from each sender: missing or unknown are {', '.join(odd)}")
    return sum((share for _, share in messages[1:]), messages[0][1])


def encode_fixed(values: np.ndarray, fraction_bits: int = 16, integer_bits: int = 20) -> np.ndarray:
    """Write real numbers as ring elements: scaled by 2^fraction_bits and rounded, negative ones in two's complement.

    Raises
    ------
    ValueError
        A value that is missing, infinite, or beyond 2^integer_bits.
    """
    values = np.asarray(values, float)
    # NaN fails the comparison too.
    if not np.all(np.abs(values) < 2.0**integer_bits):
        raise ValueError(
            f"a value is missing or beyond 2^{integer_bits}: impute it, or scale the column first"
        )
    return np.round(values * 2.0**fraction_bits).astype(np.int64).view(np.uint64)


def decode_fixed(ring: np.ndarray, fraction_bits: int = 16) -> np.ndarray:
    """Undo `encode_fixed`; after a product, pass twice its `fraction_bits`."""
    return np.ascontiguousarray(ring).view(np.int64) / 2.0**fraction_bits


class Triple(NamedTuple):
    """Shares (servers, *shape) of random a and b and of their product c; to be used once."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray


def deal_triple(shape: Sequence[int], servers: int = 2) -> Triple:
    """Play the dealer of Beaver (1991): somebody who is trusted to make triples and who sees no data."""
    a, b = draw_ring(shape), draw_ring(shape)
    return Triple(*(share_secret(value, servers) for value in (a, b, a * b)))


def multiply_shares(
    x: np.ndarray, y: np.ndarray, triple: Triple
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Multiply shared numbers with one triple.

    Parameters
    ----------
    x, y : ndarray of uint64, shape (servers, *shape)

    Returns
    -------
    product : ndarray of uint64, shape (servers, *shape)
        Shares of x y.
    opened_x, opened_y : ndarray of uint64
        x - a and y - b, which every server sees. One use of a triple makes them uniform.
    """
    opened_x = (x - triple.a).sum(axis=0, dtype=np.uint64)
    opened_y = (y - triple.b).sum(axis=0, dtype=np.uint64)
    product = triple.c + opened_x * triple.b + triple.a * opened_y
    product[0] += opened_x * opened_y  # a public number is added by one server only
    return product, opened_x, opened_y


def uniformity_pvalues(draws: np.ndarray, bins: int = 16) -> dict[str, float]:
    """Test whether ring elements look uniform and unrelated, by three chi-square tests.

    Parameters
    ----------
    draws : ndarray of uint64, shape (n,)
        What one server received, in order; 80 draws a bin or more.
    bins : int
        A power of two.

    Returns
    -------
    dict of str to float
        P-values of the highest bits, of the lowest bits, and of the highest bits of successive differences. Uniform draws fall below
        p once in 1/p tests. Passing proves nothing: a generator with a guessable seed passes too.
    """
    draws = np.asarray(draws, np.uint64).ravel()
    if len(draws) < 80 * bins:
        raise ValueError(f"{len(draws)} draws are too few for {bins} bins: take {80 * bins} or more")
    shift, mask = np.uint64(64 - (bins.bit_length() - 1)), np.uint64(bins - 1)
    # Every other pair, so that the differences are independent of one another.
    pairs = draws[: len(draws) // 2 * 2].reshape(-1, 2)
    looks = {
        "high bits": draws >> shift,
        "low bits": draws & mask,
        "differences": (pairs[:, 1] - pairs[:, 0]) >> shift,
    }
    counts = {name: np.bincount(look.astype(int), minlength=bins) for name, look in looks.items()}
    return {name: float(stats.chisquare(count).pvalue) for name, count in counts.items()}
