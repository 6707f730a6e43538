"""Secure aggregation from scratch, as a lesson: pairwise masks that cancel, and shares for clients that drop out.

The protocol is Bonawitz et al. 2017 (DOI 10.1145/3133956.3133982) for a server that follows it and is merely curious. Keys,
key derivation, encryption and mask expansion are the `cryptography` package's; only the protocol's steps and the secret
sharing are written out here. Not for production: there are no signatures, so a server that forges keys is not caught.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PRIME = 2**521 - 1  # shares are points of polynomials over this field; every 32-byte secret is below it
SCALE = 2**16  # fixed point: updates are whole multiples of 1/65,536


class Transcript(NamedTuple):
    """All that the server received in a round, the sum it computed, and the bytes that each client sent."""

    public_keys: dict[int, tuple[bytes, bytes]]
    sealed_shares: dict[tuple[int, int], bytes]  # (from, to): the server passes them on and cannot open them
    masked: dict[int, np.ndarray]
    revealed: dict[int, dict[int, int]]  # client of whom, client by whom: a share
    total: np.ndarray
    bytes_sent: dict[int, int]


def encode_update(values: np.ndarray) -> np.ndarray:
    """Turn numbers into whole numbers modulo 2**32, where a uniform mask hides everything; ValueError if too large."""
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) >= 2**31 / SCALE / 1024:
        raise ValueError(f"values must be finite and below {2**31 / SCALE / 1024:g}: clip the update first")
    return np.round(np.asarray(values, float) * SCALE).astype(np.int64).astype(np.uint32)


def decode_update(ring: np.ndarray) -> np.ndarray:
    """Turn whole numbers modulo 2**32 back; right where the true sum is below 32,768, as for up to 1,024 clients."""
    return ring.astype(np.uint32).view(np.int32) / SCALE


def expand_mask(seed: bytes, size: int) -> np.ndarray:
    """Stretch a 32-byte seed to `size` uniform whole numbers modulo 2**32: ChaCha20's key stream."""
    # The nonce is constant, so a seed must serve once: `_derive` binds each to its round.
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(4 * size))
    return np.frombuffer(stream, np.uint32)


def split_secret(secret: int, threshold: int, holders: Collection[int]) -> dict[int, int]:
    """Share a secret so that any `threshold` holders can restore it and fewer learn nothing (Shamir 1979)."""
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"threshold {threshold} of {len(holders)} holders: give 1 to {len(holders)}")
    terms = [secret] + [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return {
        k: sum(term * pow(k + 1, power, PRIME) for power, term in enumerate(terms)) % PRIME for k in holders
    }


def join_secret(shares: Mapping[int, int]) -> int:
    """Restore a secret from the shares of `threshold` holders or more: Lagrange's polynomial at zero."""
    total = 0
    for k, share in shares.items():
        for other in shares:
            if other != k:
                share = share * (other + 1) * pow(other - k, -1, PRIME) % PRIME
        total += share
    return total % PRIME


def _derive(private: X25519PrivateKey, public: bytes, purpose: str, round_number: int) -> bytes:
    shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(hashes.SHA256(), 32, salt=None, info=f"{purpose} {round_number}".encode()).derive(shared)


@dataclass
class Client:
    """One client in one round. Its keys and its seed never leave it, except as shares.

    A client is made for one round: new keys, so that a mask never returns.
    """

    number: int
    threshold: int
    round_number: int
    mask_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    seal_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    seed: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    keys: dict[int, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    held: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)

    def announce(self) -> tuple[bytes, bytes]:
        """Publish two public keys: one for masks, one to seal messages to this client."""
        return self.mask_key.public_key().public_bytes_raw(), self.seal_key.public_key().public_bytes_raw()

    def share(self, keys: Mapping[int, tuple[bytes, bytes]]) -> dict[int, bytes]:
        """Split the mask key and the seed among all clients, each share sealed to its holder."""
        self.keys = dict(keys)
        secret_key = int.from_bytes(self.mask_key.private_bytes_raw(), "big")
        of_key = split_secret(secret_key, self.threshold, keys)
        of_seed = split_secret(int.from_bytes(self.seed, "big"), self.threshold, keys)
        self.held[self.number] = of_key[self.number], of_seed[self.number]
        sealed = {}
        for other in keys:
            if other != self.number:
                message = b"".join(part[other].to_bytes(66, "big") for part in (of_key, of_seed))
                nonce = secrets.token_bytes(12)
                sealed[other] = nonce + self._cipher(other).encrypt(nonce, message, None)
        return sealed

    def _cipher(self, other: int) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(_derive(self.seal_key, self.keys[other][1], "seal", self.round_number))

    def receive(self, sender: int, sealed: bytes) -> None:
        """Open the shares that another client sealed to this one."""
        message = self._cipher(sender).decrypt(sealed[:12], sealed[12:], None)
        self.held[sender] = int.from_bytes(message[:66], "big"), int.from_bytes(message[66:], "big")

    def mask(self, ring: np.ndarray) -> np.ndarray:
        """Add one's own mask, and for each other client a mask that the other subtracts."""
        masked = ring + expand_mask(self.seed, len(ring))
        for other, (public, _) in self.keys.items():
            if other != self.number:
                pair = expand_mask(_derive(self.mask_key, public, "mask", self.round_number), len(ring))
                masked = masked + pair if self.number < other else masked - pair
        return masked

    def reveal(self, survivors: Collection[int]) -> dict[int, int]:
        """Hand over, for each client, the share of its seed if it survived and of its mask key if it did not.

        Never both: with both the server could unmask that client alone. A ValueError refuses too few survivors, and a
        second answer.
        """
        if len(survivors) < self.threshold:
            raise ValueError(f"{len(survivors)} survivors, threshold {self.threshold}: abandon the round")
        if not self.held:
            raise ValueError("this client has answered for the round: two answers could unmask somebody")
        shares = {k: of_seed if k in survivors else of_key for k, (of_key, of_seed) in self.held.items()}
        self.held = {}
        return shares


def aggregate_masked(
    vectors: Mapping[int, np.ndarray], threshold: int, round_number: int, dropped: Collection[int] = ()
) -> Transcript:
    """Run one round: the server learns the sum over the clients that did not drop out, and nothing else of them.

    Parameters
    ----------
    vectors : mapping of int to ndarray of uint32, shape (size,)
        By client, from `encode_update`.
    threshold : int
        How many clients must answer at the end; above half, so that no two different sums can be asked for.
    round_number : int
    dropped : collection of int
        Clients that share their secrets and then fall silent.

    Raises
    ------
    ValueError
        Vectors of different shapes or types, fewer than three clients, a threshold of half or less, or too few survivors.
    """
    vectors, dropped = {int(k): vector for k, vector in vectors.items()}, {int(k) for k in dropped}
    shapes = {(vector.shape, vector.dtype.str) for vector in vectors.values()}
    if len(vectors) < 3 or len(shapes) != 1 or np.dtype(next(iter(shapes))[1]) != np.uint32:
        raise ValueError(f"{len(vectors)} vectors of {shapes}: give three or more alike, from encode_update")
    survivors = [k for k in vectors if k not in dropped]
    if not len(vectors) / 2 < threshold <= len(survivors):
        raise ValueError(
            f"threshold {threshold} of {len(vectors)}, {len(survivors)} left: above half, at most those"
        )
    clients = {k: Client(k, threshold, round_number) for k in vectors}
    keys = {k: client.announce() for k, client in clients.items()}
    sealed = {(k, other): box for k, client in clients.items() for other, box in client.share(keys).items()}
    for (sender, other), box in sealed.items():
        clients[other].receive(sender, box)
    masked = {k: clients[k].mask(vectors[k]) for k in survivors}
    answers = {k: clients[k].reveal(survivors) for k in survivors[:threshold]}
    revealed = {k: {by: shares[k] for by, shares in answers.items()} for k in vectors}
    total = unmask_sum(keys, masked, revealed, round_number)
    sent = {k: 64 + sum(len(box) for (sender, _), box in sealed.items() if sender == k) for k in vectors}
    for k in survivors:
        sent[k] += masked[k].nbytes + (66 * len(vectors) if k in answers else 0)
    return Transcript(keys, sealed, masked, revealed, total, sent)


def unmask_sum(keys, masked, revealed, round_number: int) -> np.ndarray:
    """Do the server's part: add what arrived, and take away the masks that did not cancel."""
    total = np.sum(list(masked.values()), axis=0, dtype=np.uint32)
    for k, shares in revealed.items():
        secret = join_secret(shares).to_bytes(32, "big")
        if k in masked:
            total = total - expand_mask(secret, len(total))
            continue
        lost = X25519PrivateKey.from_private_bytes(secret)
        for other in masked:
            pair = expand_mask(_derive(lost, keys[other][0], "mask", round_number), len(total))
            # The survivor had added the pair's mask if its number is the lower one.
            total = total - pair if other < k else total + pair
    return total
