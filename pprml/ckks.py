"""CKKS with SEAL: parameters at 128-bit security, arithmetic that keeps count of levels, the keys, and what travels as files.

Keys, ciphertexts and every operation on them are SEAL's (through ``tenseal.sealapi``). Ours is the bookkeeping of scales.
(TenSEAL's own tensors do it too, but take about six times as long for a product with a known number, and offer no rotations.)
"""

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import tenseal.sealapi as seal

DEGREES = (8192, 16384, 32768)
SECURITY = seal.SEC_LEVEL_TYPE.TC128


def max_modulus_bits(degree: int) -> int:
    """Largest modulus, in bits, at 128-bit security: SEAL's table, from the 2018 standard (eprint 2019/939)."""
    return seal.CoeffModulus.MaxBitCount(degree, SECURITY)


def plan_modulus(levels: int, scale_bits: int = 30, head_bits: int = 8) -> list[int]:
    """Return the sizes of the primes: one for the answer, one a level, one for switching keys."""
    return [scale_bits + head_bits, *[scale_bits] * levels, scale_bits + head_bits]


def make_parameters(
    degree: int, levels: int, scale_bits: int = 30, head_bits: int = 8
) -> seal.EncryptionParameters:
    """Return CKKS parameters for a circuit of some depth.

    Parameters
    ----------
    degree : int
        Ring degree N: 8192, 16384 or 32768; a ciphertext has N / 2 slots.
    levels : int
        Multiplications one after the other that the circuit needs.
    scale_bits : int
        Bits after the binary point.
    head_bits : int
        Bits before it in an answer, with the sign.

    Raises
    ------
    ValueError
        The modulus would be below 128-bit security; the message names the degree that would do.
    """
    bits = plan_modulus(levels, scale_bits, head_bits)
    if degree not in DEGREES or sum(bits) > max_modulus_bits(degree):
        fitting = [str(d) for d in DEGREES if sum(bits) <= max_modulus_bits(d)]
        remedy = (
            f"use degree {fitting[0]}" if fitting else "no degree here has room: make the circuit shallower"
        )
        raise ValueError(
            f"{levels} levels need {sum(bits)} bits, too deep for degree {degree} at 128-bit security: {remedy}"
        )
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(degree)
    parameters.set_coeff_modulus(seal.CoeffModulus.Create(degree, bits))
    return parameters


class Ring:
    """What anyone can do with public parameters and evaluation keys: compute, not decrypt.

    A ciphertext starts at `levels` and every multiplication takes one away. All ciphertexts of one level have one scale, so
    that they can be added: `scales[0]` is 2^scale_bits, and `scales[k]` is such that squaring and rescaling gives `scales[k - 1]`.
    """

    def __init__(self, parameters: seal.EncryptionParameters):
        # SEAL itself judges the security of parameters, whoever made them.
        self.context = seal.SEALContext(parameters, True, SECURITY)
        if not self.context.parameters_set():
            raise ValueError(f"refused: {self.context.parameters_error_message()}")
        self.degree = parameters.poly_modulus_degree()
        self.slots = self.degree // 2
        # The last prime belongs to the keys, not to a ciphertext.
        self.primes = [prime.value() for prime in parameters.coeff_modulus()][:-1]
        self.levels = len(self.primes) - 1
        # The sizes of the primes tell the agreed scale; without a level there is nothing to tell it.
        self.scales = [2.0 ** round(math.log2(self.primes[-1]))]
        for prime in self.primes[1:]:
            self.scales.append(math.sqrt(self.scales[-1] * prime))
        self.ids, data = {}, self.context.first_context_data()
        while data:
            self.ids[data.chain_index()], data = data.parms_id(), data.next_context_data()
        self.encoder, self.seal = seal.CKKSEncoder(self.context), seal.Evaluator(self.context)
        self.relin_keys, self.galois_keys = seal.RelinKeys(), seal.GaloisKeys()
        self._encoded = {}

    def load_keys(self, folder: Path) -> None:
        """Load the evaluation keys that `KeyHolder.export` wrote."""
        self.relin_keys.load(self.context, f"{folder}/relin_keys")
        self.galois_keys.load(self.context, f"{folder}/galois_keys")

    def load_public_key(self, folder: Path) -> None:
        """Load the key that `KeyHolder.export_public_key` wrote: from then on this ring encrypts, and still cannot decrypt."""
        public_key = seal.PublicKey()
        public_key.load(self.context, f"{folder}/public_key")
        self.encryptor = seal.Encryptor(self.context, public_key)

    def encrypt(self, numbers: Sequence[float]) -> seal.Ciphertext:
        """Return one ciphertext with a number a slot, under the public key that was loaded and fresh randomness."""
        ct = seal.Ciphertext()
        self.encryptor.encrypt(self.encode(numbers, self.levels), ct)
        return ct

    def level(self, ct: seal.Ciphertext) -> int:
        """Return how many multiplications a ciphertext still allows."""
        return ct.coeff_modulus_size() - 1

    def encode(
        self, numbers: float | Sequence[float], level: int, scale: float | None = None
    ) -> seal.Plaintext:
        """Encode one number for all slots, or a number a slot; a slot can hold a complex number."""
        plain = seal.Plaintext()
        kind = complex if np.iscomplexobj(numbers) else float
        numbers = kind(numbers) if np.ndim(numbers) == 0 else np.asarray(numbers, kind).tolist()
        self.encoder.encode(numbers, self.ids[level], scale or self.scales[level], plain)
        return plain

    def lower(self, ct: seal.Ciphertext, level: int, weight: float = 1.0) -> seal.Ciphertext:
        """Bring a ciphertext down to a level, with the scale of that level, and times a weight: that rides along for nothing."""
        if self.level(ct) == level and weight == 1.0:
            return ct
        lowered = seal.Ciphertext()
        self.seal.mod_switch_to(ct, self.ids[level + 1], lowered)
        # At the scale that makes the outcome exact: its neighbours' scales differ by a thousandth.
        factor = self.encode(weight, level + 1, self.scales[level] * self.primes[level + 1] / lowered.scale)
        self.seal.multiply_plain_inplace(lowered, factor)
        return self.rescale(lowered)

    def add(self, a: seal.Ciphertext, b: seal.Ciphertext) -> seal.Ciphertext:
        """Return a + b, slot by slot."""
        a, b = self._meet(a, b)
        total = seal.Ciphertext()
        self.seal.add(a, b, total)
        return total

    def multiply(self, a: seal.Ciphertext, b: seal.Ciphertext) -> seal.Ciphertext:
        """Return a * b, slot by slot; one level lower."""
        a, b = self._meet(a, b)
        self._demand_level(a)
        product = seal.Ciphertext()
        self.seal.multiply(a, b, product)
        self.relinearize(product)
        return self.rescale(product)

    def negate(self, ct: seal.Ciphertext) -> seal.Ciphertext:
        """Return -a, slot by slot."""
        negative = seal.Ciphertext()
        self.seal.negate(ct, negative)
        return negative

    def add_number(self, ct: seal.Ciphertext, number: float) -> seal.Ciphertext:
        """Return the ciphertext with a known number added in every slot."""
        total = seal.Ciphertext()
        self.seal.add_plain(ct, self.encode(number, self.level(ct)), total)
        return total

    def weighted_sum(self, cts: Sequence[seal.Ciphertext], weights: Sequence[float]) -> seal.Ciphertext:
        """Return the sum of weights times ciphertexts of one level; one level lower, with a single rescaling."""
        self._demand_level(cts[0])
        level, total, term = self.level(cts[0]), seal.Ciphertext(), seal.Ciphertext()
        started, plain = False, seal.Plaintext()
        for ct, weight in zip(cts, weights, strict=True):
            # SEAL refuses a product with zero, since that would encrypt nothing. A weight this small is zero.
            if abs(weight) * self.scales[level] < 1:
                continue
            self.encoder.encode(float(weight), self.ids[level], self.scales[level], plain)
            self.seal.multiply_plain(ct, plain, term if started else total)
            if started:
                self.seal.add_inplace(total, term)
            started = True
        if not started:
            raise ValueError("all weights are zero: leave this sum out")
        return self.rescale(total)

    def add_vector(self, ct: seal.Ciphertext, vector: np.ndarray) -> seal.Ciphertext:
        """Return the ciphertext with known numbers added, repeated over the slots."""
        total = seal.Ciphertext()
        self.seal.add_plain(ct, self._encode_once(vector, self.level(ct)), total)
        return total

    def weigh(self, ct: seal.Ciphertext, vector: np.ndarray) -> seal.Ciphertext:
        """Return the ciphertext times known numbers, repeated over the slots; `rescale` is still to come."""
        self._demand_level(ct)
        weighed = seal.Ciphertext()
        self.seal.multiply_plain(ct, self._encode_once(vector, self.level(ct)), weighed)
        return weighed

    def rotate(self, ct: seal.Ciphertext, step: int) -> seal.Ciphertext:
        """Return the ciphertext with its slots moved `step` places to the left, in a circle."""
        rotated = seal.Ciphertext()
        self.seal.rotate_vector(ct, step, self.galois_keys, rotated)
        return rotated

    def _encode_once(self, vector, level):
        """Encode a model's vector when it is first used; a second evaluation finds it ready."""
        key = level, vector.tobytes()
        if key not in self._encoded:
            self._encoded[key] = self.encode(np.resize(vector, self.slots), level)
        return self._encoded[key]

    def _demand_level(self, ct):
        if self.level(ct) == 0:
            raise ValueError("no level is left for another multiplication: plan a deeper modulus")

    def _meet(self, a, b):
        level = min(self.level(a), self.level(b))
        return self.lower(a, level), self.lower(b, level)

    def relinearize(self, ct):
        """Turn a product of three polynomials back into a ciphertext of two."""
        self.seal.relinearize_inplace(ct, self.relin_keys)

    def rescale(self, ct: seal.Ciphertext) -> seal.Ciphertext:
        """Divide by the prime of the level, in place: what a product needs after it. One level lower."""
        self.seal.rescale_to_next_inplace(ct)
        # The same up to the last bit of a float, on which SEAL insists.
        ct.scale = self.scales[self.level(ct)]
        return ct


class KeyHolder(Ring):
    """A ring with its secret key: encrypts and decrypts.

    Parameters
    ----------
    degree, levels, scale_bits, head_bits
        As for `make_parameters`.
    steps : sequence of int, optional
        Rotations that the circuit uses; None if it neither rotates nor relinearises, which saves making keys.
    """

    def __init__(
        self,
        degree: int,
        levels: int,
        steps: Sequence[int] | None = (),
        scale_bits: int = 30,
        head_bits: int = 8,
    ):
        self.parameters = make_parameters(degree, levels, scale_bits, head_bits)
        super().__init__(self.parameters)
        self._keys = keys = seal.KeyGenerator(self.context)
        self._secret = keys.secret_key()
        if steps is not None:
            keys.create_relin_keys(self.relin_keys)
            # A rotation by `step` slots is the map X -> X^(3^step); SEAL asks for the exponents.
            keys.create_galois_keys([pow(3, step, 2 * degree) for step in steps], self.galois_keys)
        self.encryptor = seal.Encryptor(self.context, self._secret)
        self.decryptor = seal.Decryptor(self.context, self._secret)

    def export(self, folder: Path) -> None:
        """Write what a server needs: parameters and evaluation keys. The secret key is not among them."""
        self.parameters.save(f"{folder}/parameters")
        self.relin_keys.save(f"{folder}/relin_keys")
        self.galois_keys.save(f"{folder}/galois_keys")

    def export_public_key(self, folder: Path) -> None:
        """Write the key with which others encrypt."""
        public_key = seal.PublicKey()
        self._keys.create_public_key(public_key)
        public_key.save(f"{folder}/public_key")

    def encrypt(self, numbers: Sequence[float]) -> seal.Ciphertext:
        """Return one ciphertext with a number a slot, under the secret key and fresh randomness: less noise than under a public one."""
        ct = seal.Ciphertext()
        self.encryptor.encrypt_symmetric(self.encode(numbers, self.levels), ct)
        return ct

    def encrypt_to(self, numbers: Sequence[float], path: Path) -> None:
        """Write one ciphertext with a seed in place of its random half: half the bytes."""
        self.encryptor.encrypt_symmetric(self.encode(numbers, self.levels)).save(str(path))

    def decrypt(self, ct: seal.Ciphertext) -> np.ndarray:
        """Return the number in each slot."""
        plain = seal.Plaintext()
        self.decryptor.decrypt(ct, plain)
        return np.array(self.encoder.decode_double(plain))


def open_ring(folder: Path) -> Ring:
    """Load the parameters that arrived; SEAL refuses them below 128-bit security."""
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.load(f"{folder}/parameters")
    return Ring(parameters)


def fingerprint(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the SHA-256 of each file, which the client tells the server beside the folder."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def receive(folder: Path, sealed: dict[str, str], own: Path) -> None:
    """Copy files to a place of one's own, where they are used: each is read once, so what was checked is what is used.

    Parameters
    ----------
    folder : Path
        Where the files lie, and where others may write.
    sealed : dict
        The `fingerprint` of the files, which came by another way.
    own : Path
        A folder that nobody else writes to; it is made if it is not there.

    Raises
    ------
    ValueError
        A file is missing, or is not the one that was sent: altered, cut off, or another's.
    """
    own.mkdir(exist_ok=True)
    for name, seen in sealed.items():
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            raise ValueError(f"refused: {name} is missing") from None
        if hashlib.sha256(content).hexdigest() != seen:
            raise ValueError(f"refused: {name} was altered on the way")
        (own / name).write_bytes(content)


def find_secret_key(ring: Ring, files: list[Path]) -> list[str]:
    """Return the names of files that are a secret key, whatever they are called."""
    found = []
    for file in files:
        with suppress(ValueError, RuntimeError):
            seal.SecretKey().load(ring.context, str(file))
            found.append(file.name)
    return found


def read_ciphertext(
    ring: Ring, file: Path, level: int, parts: int = 2, scale: float | None = None
) -> seal.Ciphertext:
    """Read a ciphertext, or refuse what is damaged, of other parameters, level or scale, or has too many parts.

    That it is under the right key cannot be seen from it: only a fingerprint tells, see `receive`.
    """
    ct = seal.Ciphertext()
    try:
        ct.load(ring.context, str(file))
        sound = ct.size() == parts and ring.level(ct) == level and ct.scale == (scale or ring.scales[level])
    except (ValueError, RuntimeError):
        sound = False
    if not sound:
        raise ValueError(
            f"refused: {file.name} is not a whole ciphertext of {parts} parts at level {level} and its scale"
        )
    return ct
