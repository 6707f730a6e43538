"""Every guarantee with what it depends on: the only place in the course where an epsilon is computed.

The accounting itself is Google's dp_accounting; this module states its assumptions, refuses those that the training does not
meet, and sets two accountants beside each other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real

import dp_accounting
from dp_accounting import pld, rdp

SAMPLINGS = ("poisson", "shuffled", "fixed_size")

#: How far the looser accountant (RDP) may lie above the tighter one (PLD): a share of PLD's value, and an absolute part for
#: epsilons near zero. Outside it one of the two is wrong, or there are so few steps that RDP says little; neither is printed.
ACCOUNTANT_GAP = (0.6, 0.1)


class SamplingMismatchError(ValueError):
    """The accountant assumes one way of drawing batches and the training used another."""


class AccountingError(RuntimeError):
    """The two accountants disagree by more than the stated gap."""


@dataclass(frozen=True)
class PrivacyGuarantee:
    """An (epsilon, delta) guarantee and everything that it depends on.

    Attributes
    ----------
    epsilon, delta : float
        The guarantee, by the accountant named.
    unit : str
        Whose presence is protected: ``"record"`` or ``"user"``.
    adjacency : str
        What "neighbouring" means: ``"add/remove"``, ``"replace"``, or ``"zero-out"`` (one record's gradient becomes zero).
    sampling : str
        How the accountant takes batches to be drawn.
    accountant, other_accountant : str
        ``"PLD"`` or ``"RDP"``; the other one is empty where there is none for this sampling.
    other_epsilon : float
        The other accountant's value; NaN where there is none.
    steps : int
        Noisy steps composed.
    assumptions : tuple of str
        What must be true of the training for the guarantee to hold.
    """

    epsilon: float
    delta: float
    unit: str
    adjacency: str
    sampling: str
    accountant: str
    steps: int
    other_accountant: str
    other_epsilon: float
    assumptions: tuple[str, ...]

    def __str__(self) -> str:
        other = (
            f"{self.other_accountant} gives {self.other_epsilon:.3g}"
            if self.other_accountant
            else "no second accountant covers this sampling"
        )
        return (
            f"epsilon = {self.epsilon:.3g} at delta = {self.delta:g}, per {self.unit}, {self.adjacency} adjacency, "
            f"{self.sampling} sampling, {self.steps} steps, {self.accountant} accountant ({other})\n  assumes: "
            + "; ".join(self.assumptions)
        )


def _demand_number(name: str, value: Real, low: float, high: float = math.inf, fix: str = "") -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or not math.isfinite(value)
        or not low < value < high
    ):
        above = f"above {low:g}" + (f" and below {high:g}" if high < math.inf else "")
        raise ValueError(f"{name} must be a finite number {above}, got {value!r}{fix}")


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
    _demand_number("records", records, 0)
    _demand_number("batch_size", batch_size, 0)
    if batch_size > records:
        raise ValueError(f"batch_size {batch_size} is larger than the {records} records; lower it")
    _demand_number("epochs", epochs, 0)
    _demand_number(
        "noise_multiplier", noise_multiplier, 0, fix="; without noise there is no guarantee at all"
    )
    _demand_number("delta", delta, 0, 1)
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


def laplace_guarantee(
    scale: float, sensitivity: float, unit: str = "record", adjacency: str = "add/remove", releases: int = 1
) -> PrivacyGuarantee:
    """Compute the guarantee of releasing numbers with Laplace noise, delta 0.

    Parameters
    ----------
    scale : float
        Scale of the noise on every number, in the number's own unit.
    sensitivity : float
        How much all numbers of one release together (L1 norm) can change between neighbouring tables.
    unit : str
        Whose presence is protected: ``"record"`` or ``"user"``.
    adjacency : str
        What "neighbouring" means: ``"add/remove"`` or ``"replace"``.
    releases : int
        How many such releases are made of the same data.

    Returns
    -------
    PrivacyGuarantee
        ``epsilon = releases * sensitivity / scale``; the other accountant is PLD at delta 1e-9.

    Raises
    ------
    ValueError
        A parameter is out of range or not a number.
    AccountingError
        The sum and PLD disagree.

    References
    ----------
    Dwork, McSherry, Nissim and Smith 2006, DOI 10.1007/11681878_14.
    """
    _demand_number("scale", scale, 0, fix="; without noise there is no guarantee at all")
    _demand_number("sensitivity", sensitivity, 0)
    if isinstance(releases, bool) or releases != int(releases) or releases < 1:
        raise ValueError(f"releases must be a whole number of 1 or more, got {releases!r}")
    epsilon = releases * sensitivity / scale
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.LaplaceDpEvent(scale / sensitivity), int(releases)
    )
    other = (
        pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
        .compose(event)
        .get_epsilon(1e-9)
    )
    # Composing a few Laplace releases saves nothing at so small a delta; many save some, and never cost more.
    if not other <= epsilon * 1.01 or (releases == 1 and other < epsilon * 0.9 - 1e-6):
        raise AccountingError(f"the sum gives {epsilon:.4g} and PLD {other:.4g}")
    assumptions = (
        f"one {unit} changes all numbers of a release together by at most {sensitivity:g}",
        f"each number carries its own Laplace noise of scale {scale:g}, drawn for this release alone",
    )
    return PrivacyGuarantee(
        epsilon,
        0.0,
        unit,
        adjacency,
        "every record, no",
        "sum of epsilons",
        int(releases),
        "PLD",
        other,
        assumptions,
    )


def _both(event: dp_accounting.DpEvent, delta: float) -> tuple[float, float]:
    """Epsilon by PLD and by RDP, for add/remove adjacency, after checking that they agree."""
    adjacency = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    tight = pld.PLDAccountant(adjacency).compose(event).get_epsilon(delta)
    loose = rdp.RdpAccountant(neighboring_relation=adjacency).compose(event).get_epsilon(delta)
    relative, absolute = ACCOUNTANT_GAP
    if not tight * 0.99 <= loose <= tight * (1 + relative) + absolute:
        raise AccountingError(
            f"PLD gives {tight:.4g} and RDP {loose:.4g}: further apart than the stated gap (RDP is loose under 100 steps)"
        )
    return tight, loose


_CLIPPED = "each record's gradient was clipped, and the noise has noise_multiplier times that norm"


def _account_poisson(records, batch_size, epochs, noise_multiplier, delta) -> PrivacyGuarantee:
    steps = count_steps(records, batch_size, epochs)
    tight, loose = _both(_poisson_event(noise_multiplier, batch_size / records, steps), delta)
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
    tight, loose = _both(event, delta)
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
    # Replacing a record swaps one clipped gradient for another: the accountant doubles the sensitivity itself.
    step = dp_accounting.SampledWithoutReplacementDpEvent(
        records, batch_size, dp_accounting.GaussianDpEvent(noise_multiplier)
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
