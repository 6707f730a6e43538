"""The federation of chapter 06 in PyTorch, with Flower: simulated, and as processes that talk over a network.

A phone holds records. A site hosts phones: it is one SuperNode, and trains those of its phones that the server names. The
server is one SuperLink. The same two apps run in a simulation, on one machine and on several.
"""

from pprml.certificates import (
    Authority,
    ServerFiles,
    issue_certificate,
    make_authority,
    make_site_key,
    write_certificate,
)
from pprml.flower_app.apps import FederationError, Training, build_client_app, read_result
from pprml.flower_app.deployment import Lab, find_marked
from pprml.flower_app.local_privacy import Noise, build_private_trainer, opacus_epsilon, phone_guarantee
from pprml.flower_app.project import write_project
from pprml.flower_app.secure_sum import Ledger, measure_unevenness, quantize_weights, simulate_secure_sum
from pprml.flower_app.simulation import find_largest_difference, simulate
from pprml.flower_app.training import (
    init_weights,
    load_phones,
    load_test,
    make_settings,
    measure_accuracy,
    train_phone,
)
from pprml.flower_app.wire import Relay, attack_read_arrays, measure_byte_entropy

__all__ = [
    "Authority",
    "FederationError",
    "Lab",
    "Ledger",
    "Noise",
    "Relay",
    "ServerFiles",
    "Training",
    "attack_read_arrays",
    "build_client_app",
    "build_private_trainer",
    "find_largest_difference",
    "find_marked",
    "init_weights",
    "issue_certificate",
    "load_phones",
    "load_test",
    "make_authority",
    "make_settings",
    "make_site_key",
    "train_phone",
    "measure_accuracy",
    "measure_byte_entropy",
    "measure_unevenness",
    "opacus_epsilon",
    "phone_guarantee",
    "quantize_weights",
    "read_result",
    "simulate",
    "simulate_secure_sum",
    "write_certificate",
    "write_project",
]
