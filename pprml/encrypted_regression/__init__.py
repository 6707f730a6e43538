"""Linear regression on encrypted numbers (chapter 10).

Hospitals encrypt the sums of products of their own rows under the key-holder's public key; a server that cannot decrypt adds
them (`protocol`). Or one owner encrypts its rows and the server forms the products (`outsourcing`), or the server descends on
encrypted sums (`descent`). Each party is a process. Keys and ciphertexts are libraries'; only the packing of numbers is ours.
A demonstration, not a deployment: what is altered on the way is refused, but nobody checks the inputs of another party.
"""

import importlib
from typing import Any

_MODULES = {
    "pprml.encrypted_regression.crew": "Message",
    "pprml.encrypted_regression.descent": "chebyshev_weights descend descend_encrypted seal_system train_outsourced",
    "pprml.encrypted_regression.masking": "attack_divide mask_all_but_sum refresh",
    "pprml.encrypted_regression.outsourcing": "Outsourced choose_packing fit_outsourced fit_stream naive_fit_dot",
    "pprml.encrypted_regression.prediction": "Predicted attack_predictions predict_outsourced",
    "pprml.encrypted_regression.private_sums": "attack_membership clip_rows clip_sums noise_sums sums_sensitivity",
    "pprml.encrypted_regression.products": "multiply_pairs read_sealed",
    "pprml.encrypted_regression.protocol": "PUBLISHED_DECIMALS Result run_protocol",
    "pprml.encrypted_regression.schemes": "CKKS_SCALE MAX_MODULUS_BITS MAX_PARTIES PAILLIER_BITS SCHEMES SLOT_BITS VALUE_BITS "
    "Ckks Paillier PaillierUnpacked",
    "pprml.encrypted_regression.summary": "Summary choose_penalty cross_validate solve_ridge summarize_sums",
    "pprml.encrypted_regression.vertical": "Vertical fit_vertical",
    # In the clear: shared with chapter 12, and read through this package by chapter 10.
    "pprml.least_squares": "REFERENCE TARGET compute_sums solve_sums split_rows",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a name's module when the name is first used: each party is a process, and waits only for what it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
