"""The two encryptions of chapter 10 behind the same five methods. Keys and ciphertexts are TenSEAL's and phe's; only packing is ours."""

from contextlib import suppress

import numpy as np
import tenseal as ts
from phe import paillier

VALUE_BITS = 16
MAX_PARTIES = 7  # 7 * 2^VALUE_BITS * CKKS_SCALE stays below half of CKKS's 60-bit modulus
CKKS_SCALE = 2.0**40
#: Largest modulus in bits of each ring degree at 128-bit security, as in SEAL and the 2018 standard (eprint 2019/939).
MAX_MODULUS_BITS = {2048: 54, 4096: 109, 8192: 218, 16384: 438}
PAILLIER_BITS = 3072  # 128-bit security (NIST SP 800-57)
SLOT_BITS = 64


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
