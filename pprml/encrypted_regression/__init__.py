"""Linear regression on encrypted numbers (chapter 10).

Hospitals encrypt the sums of products of their own rows under the key-holder's public key; a server that cannot decrypt adds
them (`protocol`). Or one owner encrypts its rows and the server forms the products (`outsourcing`), or the server descends on
encrypted sums (`descent`). Each party is a process. Keys and ciphertexts are libraries'; only the packing of numbers is ours.
A demonstration, not a deployment: what is altered on the way is refused, but nobody checks the inputs of another party.
"""

from pprml.encrypted_regression.crew import Message
from pprml.encrypted_regression.descent import (
    chebyshev_weights,
    descend,
    descend_encrypted,
    seal_system,
    train_outsourced,
)
from pprml.encrypted_regression.masking import attack_divide, mask_all_but_sum, refresh
from pprml.encrypted_regression.outsourcing import (
    Outsourced,
    choose_packing,
    fit_outsourced,
    fit_stream,
    naive_fit_dot,
)
from pprml.encrypted_regression.prediction import Predicted, attack_predictions, predict_outsourced
from pprml.encrypted_regression.private_sums import (
    attack_membership,
    clip_rows,
    clip_sums,
    noise_sums,
    sums_sensitivity,
)
from pprml.encrypted_regression.products import multiply_pairs, read_sealed
from pprml.encrypted_regression.protocol import PUBLISHED_DECIMALS, Result, run_protocol
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
from pprml.encrypted_regression.summary import (
    Summary,
    choose_penalty,
    cross_validate,
    solve_ridge,
    summarize_sums,
)
from pprml.encrypted_regression.vertical import Vertical, fit_vertical

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
    "Predicted",
    "Result",
    "Summary",
    "Vertical",
    "attack_divide",
    "attack_membership",
    "attack_predictions",
    "chebyshev_weights",
    "choose_packing",
    "choose_penalty",
    "clip_rows",
    "clip_sums",
    "compute_sums",
    "cross_validate",
    "descend",
    "descend_encrypted",
    "fit_outsourced",
    "fit_stream",
    "fit_vertical",
    "mask_all_but_sum",
    "multiply_pairs",
    "naive_fit_dot",
    "noise_sums",
    "predict_outsourced",
    "read_sealed",
    "refresh",
    "run_protocol",
    "seal_system",
    "solve_ridge",
    "solve_sums",
    "split_rows",
    "summarize_sums",
    "sums_sensitivity",
    "train_outsourced",
]
