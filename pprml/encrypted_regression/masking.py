"""Return an encrypted inner product and nothing else: what a product of ciphertext and plaintext still tells, and how to hide it.

Three things besides the sum would reach the key-holder. The slots hold the products of single rows. The second polynomial of the product
is the one that the key-holder made itself times the other's numbers: it divides and has them. And the noise was multiplied too.
`refresh` hides the second, `mask_all_but_sum` the first and the third. All of it against a key-holder that made its public key and its
ciphertexts as it should: one that did not can weaken `refresh`, and ask for any sum that it likes. Polynomials are kept as
SEAL keeps them: values modulo each prime.
"""

import os
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tenseal.sealapi as seal

from pprml.ckks import Ring

#: The other's noise is at most 2^73 (21 a coefficient, times 8192 coefficients of at most 8 * 2^52): this is 2^40 times as much.
SMUDGE_BITS = 113


def to_bytes(thing: Any) -> bytes:
    """Return what SEAL writes to a file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "thing"
        thing.save(str(path))
        return path.read_bytes()


def from_bytes(ring: Ring, kind: type, data: bytes) -> Any:
    """Read a ciphertext, plaintext or key, or refuse what SEAL finds damaged or of other parameters."""
    with TemporaryDirectory() as folder:
        path, thing = Path(folder) / "thing", kind()
        path.write_bytes(data)
        try:
            thing.load(ring.context, str(path))
        except (ValueError, RuntimeError):
            raise ValueError(f"refused: not a whole {kind.__name__} under these parameters") from None
        return thing


def make_plain(ring: Ring, residues: np.ndarray, scale: float) -> seal.Plaintext:
    """Make a plaintext at the top level from the values of its polynomial modulo each prime; shape (primes, degree)."""
    values = np.ascontiguousarray(residues, "<u8").ravel()
    inner = struct.pack("<Q", len(values)) + values.tobytes()
    inner = _make_header(inner) + inner
    body = struct.pack("<4QQd", *ring.ids[ring.levels], len(values), scale) + inner
    return from_bytes(ring, seal.Plaintext, _make_header(body) + body)


def _make_header(body):
    # SEAL's own: magic number, its length and the version as this library writes them, no compression, length of the whole.
    return _write_version() + struct.pack("<BHQ", 0, 0, 16 + len(body))


@cache
def _write_version():
    return to_bytes(seal.Plaintext("1"))[:5]


def read_residues(ring: Ring, thing: Any, part: int = 0) -> np.ndarray:
    """Return the values of a plaintext, or of one polynomial of a ciphertext, modulo each prime; shape (primes, degree)."""
    size = len(ring.primes) * ring.degree
    values = [thing[i] for i in range(part * size, (part + 1) * size)]
    return np.array(values, np.uint64).reshape(len(ring.primes), ring.degree)


def _add_up(values, prime):
    """Add 64-bit numbers modulo a prime: in halves, so that nothing overflows."""
    low = np.uint64(2**32 - 1)
    return (int((values >> np.uint64(32)).sum()) * 2**32 + int((values & low).sum())) % prime


def read_constant(ring: Ring, plain: seal.Plaintext) -> int:
    """Return the constant coefficient, exactly: twice the sum of the slots over the degree, times the scale.

    The values modulo a prime are those at all roots, so they add up to the degree times the constant coefficient.
    """
    modulus, constant = int(np.prod([int(p) for p in ring.primes], dtype=object)), 0
    for values, prime in zip(read_residues(ring, plain), ring.primes, strict=True):
        rest = modulus // prime
        residue = _add_up(values, prime) * pow(ring.degree, -1, prime)
        constant += residue * rest * pow(rest, -1, prime)
    constant %= modulus
    return constant - modulus if constant > modulus // 2 else constant


def refresh(ring: Ring, public_key: seal.PublicKey, ct: seal.Ciphertext) -> None:
    """Add a fresh encryption of zero, in place: without it, the key-holder divides out what its ciphertext was multiplied by."""
    zero = seal.Ciphertext()
    seal.Encryptor(ring.context, public_key).encrypt_zero(ring.ids[ring.level(ct)], zero)
    zero.scale = ct.scale
    ring.seal.add_inplace(ct, zero)


def mask_all_but_sum(ring: Ring, ct: seal.Ciphertext, smudge_bits: int = SMUDGE_BITS) -> seal.Ciphertext:
    """Return a ciphertext whose constant coefficient, the sum of the slots, is kept to within a smudge, and all others are random.

    The mask is drawn uniformly among the polynomials whose constant coefficient is zero, so the other coefficients are uniform modulo
    the primes: they tell nothing, whoever opens them. The constant coefficient gets a uniform number below `2**smudge_bits`.
    """
    smudge = int.from_bytes(os.urandom(smudge_bits // 8 + 1), "big") % 2**smudge_bits - 2 ** (smudge_bits - 1)
    residues = []
    for prime in ring.primes:
        values = _draw_below(prime, ring.degree)
        values[-1] = (int(values[-1]) - _add_up(values, prime)) % prime
        residues.append([(v + smudge) % prime for v in values.tolist()])
    masked = seal.Ciphertext()
    ring.seal.add_plain(ct, make_plain(ring, np.array(residues, np.uint64), ct.scale), masked)
    return masked


def _draw_below(prime, count):
    """Uniform numbers below a prime, from the system's cryptographic source: those at or above it are drawn again."""
    drawn, spare = np.empty(0, np.uint64), np.uint64(64 - prime.bit_length())
    while len(drawn) < count:
        more = np.frombuffer(os.urandom(8 * count), np.uint64) >> spare
        drawn = np.r_[drawn, more[more < prime]]
    return drawn[:count].copy()


def attack_divide(ring: Ring, sent: seal.Ciphertext, returned: seal.Ciphertext, scale: float) -> np.ndarray:
    """Read the other party's numbers off a returned product: its second polynomial over the second one that was sent.

    Parameters
    ----------
    sent, returned : Ciphertext
        What the key-holder encrypted, and the product that came back.
    scale : float
        At which the other party encodes its numbers.

    Returns
    -------
    ndarray
        A number a slot.
    """
    ours, theirs = read_residues(ring, sent, 1), read_residues(ring, returned, 1)
    quotient = [
        [t * pow(o, -1, prime) % prime if o else 0 for o, t in zip(a.tolist(), b.tolist(), strict=True)]
        for a, b, prime in zip(ours, theirs, ring.primes, strict=True)
    ]
    return np.array(ring.encoder.decode_double(make_plain(ring, np.array(quotient, np.uint64), scale)))
