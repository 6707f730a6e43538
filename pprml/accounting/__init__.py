"""Every guarantee with what it depends on: the only place in the course where an epsilon is computed.

The accounting itself is Google's dp_accounting; these modules state its assumptions, refuse those that the training does not
meet, and set two accountants beside each other.
"""

from pprml.accounting._dp_sgd import SAMPLINGS, SamplingMismatchError, count_steps, dp_sgd_guarantee
from pprml.accounting._federated import dp_fedavg_guarantee, dp_ftrl_guarantee, local_dp_guarantee
from pprml.accounting._guarantee import ACCOUNTANT_GAP, AccountingError, PrivacyGuarantee
from pprml.accounting._releases import (
    compare_compositions,
    gaussian_guarantee,
    group_guarantee,
    laplace_guarantee,
    randomized_response_guarantee,
)

__all__ = [
    "ACCOUNTANT_GAP",
    "SAMPLINGS",
    "AccountingError",
    "PrivacyGuarantee",
    "SamplingMismatchError",
    "compare_compositions",
    "count_steps",
    "dp_fedavg_guarantee",
    "dp_ftrl_guarantee",
    "dp_sgd_guarantee",
    "gaussian_guarantee",
    "group_guarantee",
    "laplace_guarantee",
    "local_dp_guarantee",
    "randomized_response_guarantee",
]
