"""Predictions for records that the server cannot read: trees and networks on encrypted inputs (chapter 11)."""

import importlib
from typing import Any

_MODULES = {
    "pprml.ckks": "KeyHolder Ring find_secret_key fingerprint make_parameters max_modulus_bits plan_modulus read_ciphertext",
    "pprml.encrypted_inference.cards": "Card Grid",
    "pprml.encrypted_inference.clear": "Clear",
    "pprml.encrypted_inference.networks": "Network RecordNetwork list_steps multiply_matrix",
    "pprml.encrypted_inference.service": "Received Session publish",
    "pprml.encrypted_inference.training": "Descent RowsCard",
    "pprml.encrypted_inference.trees": "Forest evaluate_odd fit_sign",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a name's module when the name is first used: a server is a process, and waits only for what it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
