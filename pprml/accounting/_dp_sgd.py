"""What DP-SGD promises, for three ways of drawing batches."""

import math
from collections.abc import Callable
from dataclasses import replace

import dp_accounting
from dp_accounting import rdp

from pprml.accounting._guarantee import PrivacyGuarantee, compare_accountants, demand_number

SAMPLINGS = ("poisson", "shuffled", "fixed_size")


class SamplingMismatchError(ValueError):
    """The accountant assumes one way of drawing batches and the training used another."""


def count_steps(records: int, batch_size: int, epochs: float) -> int:
    """Return how many batches of (expected) size `batch_size` make `epochs` passes over `records` records."""
    # The small slack keeps epochs = steps * batch_size / records, computed in floating point, at `steps`.
    return math.ceil(epochs * records / batch_size - 1e-6)


def dp_sgd_guarantee(
    records: int,
    batch_size: int,
    epochs: float,
    noise_multiplier: float,
    delta: float,
    sampling: str = "poisson",
    loader: str | None = None,
    accept_mismatch: bool = False,
) -> PrivacyGuarantee:
    """Compute the guarantee of DP-SGD with per-record clipping and Gaussian noise.

    Parameters
    ----------
    records : int
        Training records; their number is treated as public.
    batch_size : int
        Batch size; the expected one under Poisson sampling.
    epochs : float
        Passes over the data, as an expectation under Poisson sampling; a whole number for ``"shuffled"``.
    noise_multiplier : float
        Standard deviation of the noise on the summed gradient, in units of the clipping norm.
    delta : float
        Probability with which the bound may fail.
    sampling : {"poisson", "shuffled", "fixed_size"}
        What the accountant assumes. ``"poisson"``: each record joins each batch independently (add/remove adjacency).
        ``"shuffled"``: each record is in one batch an epoch; no amplification is claimed, since none is proved here (zero-out
        adjacency). ``"fixed_size"``: batches of one size drawn without replacement (replace adjacency).
    loader : str, optional
        How the training really drew its batches; by default as `sampling` says.
    accept_mismatch : bool
        Compute the guarantee although `loader` differs: the unamplified bound is printed beside it, and the guarantee says
        that its assumption is not met.

    Returns
    -------
    PrivacyGuarantee

    Raises
    ------
    ValueError
        A parameter is out of range or not a number.
    SamplingMismatchError
        `loader` is not what `sampling` assumes, and `accept_mismatch` is not set.
    AccountingError
        RDP and PLD differ by more than `ACCOUNTANT_GAP`.

    References
    ----------
    Abadi et al. 2016, arXiv 1607.00133; Wang, Balle and Kasiviswanathan 2019, arXiv 1808.00087 (fixed size); Koskela,
    Jälkö and Honkela 2020, arXiv 1906.03049 (PLD).
    """
    loader = loader or sampling
    for name, value in (("sampling", sampling), ("loader", loader)):
        if value not in SAMPLINGS:
            raise ValueError(f"{name} must be one of {', '.join(SAMPLINGS)}, got {value!r}")
    demand_number("records", records, 0)
    demand_number("batch_size", batch_size, 0)
    if batch_size > records:
        raise ValueError(f"batch_size {batch_size} is larger than the {records} records; lower it")
    demand_number("epochs", epochs, 0)
    demand_number("noise_multiplier", noise_multiplier, 0, fix="; without noise there is no guarantee at all")
    demand_number("delta", delta, 0, 1)
    if sampling == "shuffled" and epochs != int(epochs):
        raise ValueError(f"a shuffled loader makes whole passes: epochs must be a whole number, got {epochs}")
    if loader != sampling and not accept_mismatch:
        raise SamplingMismatchError(
            f"the accountant assumes {sampling} sampling, but the loader is {loader}: draw batches as the accountant assumes, "
            f"or ask for sampling={loader!r}, or pass accept_mismatch=True to see how far apart they are"
        )
    guarantee = _ACCOUNT[sampling](records, batch_size, epochs, noise_multiplier, delta)
    if delta >= 1 / records:
        caution = (
            f"delta is not below 1/records = {1 / records:.1g}: publishing one whole record would satisfy it"
        )
        guarantee = replace(guarantee, assumptions=(*guarantee.assumptions, caution))
    if loader != sampling:
        honest = dp_sgd_guarantee(records, batch_size, math.ceil(epochs), noise_multiplier, delta, "shuffled")
        unmet = (
            f"NOT MET: the loader is {loader}; without amplification the bound is epsilon = {honest.epsilon:.3g} at "
            f"delta = {delta:g} ({honest.adjacency} adjacency)"
        )
        guarantee = replace(guarantee, assumptions=(unmet, *guarantee.assumptions))
        print(guarantee)
    return guarantee


_CLIPPED = "each record's gradient was clipped, and the noise has noise_multiplier times that norm"


def _account_poisson(records, batch_size, epochs, noise_multiplier, delta) -> PrivacyGuarantee:
    steps = count_steps(records, batch_size, epochs)
    tight, loose = compare_accountants(_poisson_event(noise_multiplier, batch_size / records, steps), delta)
    assumptions = (
        f"each record joins each batch independently with probability {batch_size / records:.4g}",
        _CLIPPED,
        "sums are divided by the expected batch size, not by the one drawn",
        "the number of records is public",
    )
    return PrivacyGuarantee(
        tight, delta, "record", "add/remove", "poisson", "PLD", steps, "RDP", loose, assumptions
    )


def _poisson_event(noise_multiplier: float, rate: float, steps: int) -> dp_accounting.DpEvent:
    # Sensitivity is one clipping norm: adding or removing a record changes the sum by its clipped gradient and nothing else.
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    return dp_accounting.SelfComposedDpEvent(step, steps)


def _account_shuffled(records, batch_size, epochs, noise_multiplier, delta) -> PrivacyGuarantee:
    # A record touches one batch an epoch, so an epoch costs one Gaussian mechanism however many batches it has.
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise_multiplier), int(epochs))
    tight, loose = compare_accountants(event, delta)
    assumptions = (
        "each record is in exactly one batch an epoch, and no amplification by shuffling is claimed",
        _CLIPPED,
        "sums are divided by a batch size that does not depend on the data",
    )
    steps = int(epochs) * math.ceil(records / batch_size)
    return PrivacyGuarantee(
        tight, delta, "record", "zero-out", "shuffled", "PLD", steps, "RDP", loose, assumptions
    )


def _account_fixed_size(records, batch_size, epochs, noise_multiplier, delta) -> PrivacyGuarantee:
    steps = count_steps(records, batch_size, epochs)
    # Sensitivity is two clipping norms: replacing a record takes one clipped gradient from the sum and adds another. The accountant
    # wants the noise in units of the sensitivity, and does not double it itself.
    step = dp_accounting.SampledWithoutReplacementDpEvent(
        records, batch_size, dp_accounting.GaussianDpEvent(noise_multiplier / 2)
    )
    accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    epsilon = accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps)).get_epsilon(delta)
    assumptions = (
        f"each batch is {batch_size} records drawn without replacement, afresh at each step",
        _CLIPPED,
    )
    return PrivacyGuarantee(
        epsilon, delta, "record", "replace", "fixed_size", "RDP", steps, "", math.nan, assumptions
    )


_ACCOUNT: dict[str, Callable[..., PrivacyGuarantee]] = {
    "poisson": _account_poisson,
    "shuffled": _account_shuffled,
    "fixed_size": _account_fixed_size,
}
