"""Linear regression on encrypted numbers (chapter 10).

Hospitals encrypt the sums of products of their own rows under the key-holder's public key; a server that cannot decrypt adds
them (`protocol`). Or one owner encrypts its rows and the server forms the products (`outsourcing`), or the server descends on
encrypted sums (`descent`). Each party is a process. Keys and ciphertexts are libraries'; only the packing of numbers is ours.
A demonstration, not a deployment: messages are not authenticated, and nobody checks the inputs of another party.
"""

from pprml.encrypted_regression.descent import (
    chebyshev_weights,
    descend,
    descend_encrypted,
    seal_system,
    train_outsourced,
)
from pprml.encrypted_regression.outsourcing import (
    Outsourced,
    choose_packing,
    fit_outsourced,
    multiply_pairs,
    naive_fit_dot,
    read_sealed,
)
from pprml.encrypted_regression.private_sums import (
    attack_membership,
    clip_rows,
    clip_sums,
    noise_sums,
    sums_sensitivity,
)
from pprml.encrypted_regression.protocol import PUBLISHED_DECIMALS, Message, Result, run_protocol
from pprml.encrypted_regression.schemes import (
    CKKS_SCALE,
    MAX_MODULUS_BITS,
    MAX_PARTIES,
    PAILLIER_BITS,
    SCHEMES,
    SLOT_BITS,
    VALUE_BITS,
    Ckks,
    Paillier,
    PaillierUnpacked,
)

# In the clear: shared with chapter 12, and read through this package by chapter 10.
from pprml.least_squares import REFERENCE, TARGET, compute_sums, solve_sums, split_rows

__all__ = [
    "CKKS_SCALE",
    "MAX_MODULUS_BITS",
    "MAX_PARTIES",
    "PAILLIER_BITS",
    "PUBLISHED_DECIMALS",
    "REFERENCE",
    "SCHEMES",
    "SLOT_BITS",
    "TARGET",
    "VALUE_BITS",
    "Ckks",
    "Message",
    "Outsourced",
    "Paillier",
    "PaillierUnpacked",
    "Result",
    "attack_membership",
    "chebyshev_weights",
    "choose_packing",
    "clip_rows",
    "clip_sums",
    "compute_sums",
    "descend",
    "descend_encrypted",
    "fit_outsourced",
    "multiply_pairs",
    "naive_fit_dot",
    "noise_sums",
    "read_sealed",
    "run_protocol",
    "seal_system",
    "solve_sums",
    "split_rows",
    "sums_sensitivity",
    "train_outsourced",
]
