"""What a federation promises to a user, that is to a whole client."""

import math
from dataclasses import replace

from pprml.accounting._dp_sgd import dp_sgd_guarantee
from pprml.accounting._guarantee import PrivacyGuarantee
from pprml.accounting._releases import gaussian_guarantee


def dp_fedavg_guarantee(
    num_clients: int, clients_per_round: float, num_rounds: int, noise_multiplier: float, delta: float
) -> PrivacyGuarantee:
    """Compute the guarantee of DP-FedAvg: rounds drawn by `sample_poisson`, whole updates clipped, the sum noised.

    It is DP-SGD with a client in the place of a record. That exchange is sound because the client's *whole update* is clipped,
    whatever number of records made it; clipping each record's gradient would give a guarantee per record.

    Parameters
    ----------
    num_clients, clients_per_round, num_rounds
        As in `sample_poisson`.
    noise_multiplier : float
        Of the whole round, as `tff.learning.dp_aggregator` takes it: its adaptive clipping spends a part on the count of
        clipped clients and adds that much more noise to the updates (arXiv 1905.03871, theorem 1).
    delta : float
        Below one in the number of clients, else ValueError.

    References
    ----------
    McMahan, Ramage, Talwar and Zhang 2018, arXiv 1710.06963.
    """
    if not 0 < delta < 1 / max(num_clients, 1):
        raise ValueError(f"delta {delta} must be above 0 and below 1 / {num_clients} clients")
    passes = num_rounds * clients_per_round / num_clients
    alike = dp_sgd_guarantee(num_clients, clients_per_round, passes, noise_multiplier, delta)
    assumptions = (
        f"each client joins each round independently with probability {clients_per_round / num_clients:.4g}",
        "each client's whole update was clipped, and the sum's noise has noise_multiplier times that norm",
        "sums are divided by the expected number of clients, not by the one drawn",
        "the server that adds the noise is trusted; the number of clients is public",
    )
    return replace(alike, unit="user", assumptions=assumptions)


def dp_ftrl_guarantee(
    rounds_per_pass: int, passes: int, noise_multiplier: float, delta: float
) -> PrivacyGuarantee:
    """Compute the guarantee of DP-FTRL with a new tree each pass, every client once a pass (`sample_passes`).

    No chance is involved in who takes part, so nothing is amplified. An update enters the nodes above its leaf: a tree of n
    rounds has at most ceil(log2(n + 1)) of them, each with noise of its own.

    Parameters
    ----------
    rounds_per_pass, passes : int
        Leaves of a tree, and trees.
    noise_multiplier : float
        Of each node, in units of the clipping norm.
    delta : float

    References
    ----------
    Kairouz et al. 2021, arXiv 2103.00039, appendix D.1 (tree restart).
    """
    if rounds_per_pass < 1 or passes < 1:
        raise ValueError(f"{passes} passes of {rounds_per_pass} rounds: give 1 or more of each")
    nodes = math.ceil(math.log2(rounds_per_pass + 1))
    # Sensitivity of all nodes of a tree together: each of `nodes` moves by one clipping norm, so sqrt(nodes) in L2.
    alike = gaussian_guarantee(
        noise_multiplier, math.sqrt(nodes), delta, unit="user", adjacency="zero-out", releases=passes
    )
    assumptions = (
        f"each client takes part exactly once a pass of {rounds_per_pass} rounds, in an order that ignores the data",
        f"a new tree starts with each pass; one update touches {nodes} of its nodes at most",
        "each client's whole update was clipped; the server that adds the noise is trusted",
    )
    return replace(alike, sampling="no", assumptions=assumptions)


def local_dp_guarantee(participations: int, noise_multiplier: float, delta: float) -> PrivacyGuarantee:
    """Compute the guarantee of clients that clip and noise their own updates: the server need not be trusted.

    Parameters
    ----------
    participations : int
        The most rounds that one client takes part in.
    noise_multiplier : float
        Standard deviation of the noise in units of the clipping norm.
    delta : float
    """
    # Replacing a client's data moves its clipped update by two clipping norms at most.
    alike = gaussian_guarantee(
        noise_multiplier, 2.0, delta, unit="user", adjacency="replace", releases=participations
    )
    assumptions = (
        f"each client sends at most {participations} updates; that it takes part is not hidden",
        "each client clips its whole update and draws its own noise before it sends; nobody else is trusted",
    )
    return replace(alike, sampling="no", assumptions=assumptions)
