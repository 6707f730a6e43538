"""Predictions for records that the server cannot read: trees and networks on encrypted inputs (chapter 11)."""

from pprml.ckks import (
    KeyHolder,
    Ring,
    find_secret_key,
    fingerprint,
    make_parameters,
    max_modulus_bits,
    plan_modulus,
    read_ciphertext,
)
from pprml.encrypted_inference.cards import Card, Grid
from pprml.encrypted_inference.clear import Clear
from pprml.encrypted_inference.networks import Network, RecordNetwork, list_steps, multiply_matrix
from pprml.encrypted_inference.service import Received, Session, publish
from pprml.encrypted_inference.training import Descent, RowsCard
from pprml.encrypted_inference.trees import Forest, evaluate_odd, fit_sign

__all__ = [
    "Card",
    "Clear",
    "Descent",
    "Forest",
    "Grid",
    "KeyHolder",
    "Network",
    "Received",
    "RecordNetwork",
    "Ring",
    "RowsCard",
    "Session",
    "evaluate_odd",
    "find_secret_key",
    "fingerprint",
    "fit_sign",
    "list_steps",
    "make_parameters",
    "max_modulus_bits",
    "multiply_matrix",
    "plan_modulus",
    "publish",
    "read_ciphertext",
]
