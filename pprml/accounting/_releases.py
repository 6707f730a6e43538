"""What numbers released with noise promise: one release, several, and a group of records."""

import math

import dp_accounting
from dp_accounting import rdp
from dp_accounting.pld import privacy_loss_distribution

from pprml.accounting._guarantee import AccountingError, PrivacyGuarantee, compare_accountants, demand_number

#: For a pure guarantee the second accountant is asked at this delta, with orders high enough to come close to it.
_OTHER_DELTA = 1e-9
_ORDERS = [1 + 2**power for power in range(-3, 18)] + [3.5, 4, 6, 7, 11, 13, 24, 48, 96]


def _demand_releases(releases: int) -> int:
    if isinstance(releases, bool) or releases != int(releases) or releases < 1:
        raise ValueError(f"releases must be a whole number of 1 or more, got {releases!r}")
    return int(releases)


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
        ``epsilon = releases * sensitivity / scale``; the other accountant is RDP at delta 1e-9.

    Raises
    ------
    ValueError
        A parameter is out of range or not a number.
    AccountingError
        The sum and RDP disagree.

    References
    ----------
    Dwork, McSherry, Nissim and Smith 2006, DOI 10.1007/11681878_14.
    """
    demand_number("scale", scale, 0, fix="; without noise there is no guarantee at all")
    demand_number("sensitivity", sensitivity, 0)
    releases = _demand_releases(releases)
    epsilon = releases * sensitivity / scale
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.LaplaceDpEvent(scale / sensitivity), releases)
    other = rdp.RdpAccountant(_ORDERS).compose(event).get_epsilon(_OTHER_DELTA)
    # Composing many releases saves something at so small a delta; one release saves nothing.
    if other > epsilon + 1e-3 or (releases == 1 and other < epsilon * 0.999 - 1e-6):
        raise AccountingError(f"the sum gives {epsilon:.4g} and RDP {other:.4g}")
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
        releases,
        "RDP",
        other,
        assumptions,
    )


def gaussian_guarantee(
    sigma: float,
    sensitivity: float,
    delta: float,
    unit: str = "record",
    adjacency: str = "add/remove",
    releases: int = 1,
) -> PrivacyGuarantee:
    """Compute the guarantee of releasing numbers with Gaussian noise.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise on every number, in the number's own unit.
    sensitivity : float
        How far all numbers of one release together (L2 norm) can move between neighbouring tables.
    delta : float
        Probability with which the bound may fail, over all releases.
    unit : str
        Whose presence is protected: ``"record"`` or ``"user"``.
    adjacency : str
        What "neighbouring" means: ``"add/remove"`` or ``"replace"``; `sensitivity` must be the one for it.
    releases : int
        How many such releases are made of the same data.

    Returns
    -------
    PrivacyGuarantee
        By PLD; the other accountant is RDP.

    Raises
    ------
    ValueError
        A parameter is out of range or not a number.
    AccountingError
        RDP and PLD differ by more than `ACCOUNTANT_GAP`.

    References
    ----------
    Balle and Wang 2018, arXiv 1805.06530; Koskela, Jälkö and Honkela 2020, arXiv 1906.03049 (PLD).
    """
    demand_number("sigma", sigma, 0, fix="; without noise there is no guarantee at all")
    demand_number("sensitivity", sensitivity, 0, fix="; clip each record first")
    demand_number("delta", delta, 0, 1, fix="; Gaussian noise has no guarantee with delta 0")
    releases = _demand_releases(releases)
    # k releases are one with the noise divided by sqrt(k); said as a composition, so that both accountants do the work.
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(sigma / sensitivity), releases)
    tight, loose = compare_accountants(event, delta)
    assumptions = (
        f"one {unit} moves all numbers of a release together by at most {sensitivity:g} in L2 norm",
        f"each number carries its own Gaussian noise of standard deviation {sigma:g}, drawn for this release alone",
    )
    return PrivacyGuarantee(
        tight, delta, unit, adjacency, "every record, no", "PLD", releases, "RDP", loose, assumptions
    )


def randomized_response_guarantee(truth_probability: float, releases: int = 1) -> PrivacyGuarantee:
    """Compute the guarantee of one person's yes or no, reported truly with a given probability and else turned over.

    Parameters
    ----------
    truth_probability : float
        Above one half and below one.
    releases : int
        How many times the same person reports, each time with a new coin.

    Returns
    -------
    PrivacyGuarantee
        In the local model: nobody needs to be trusted. Replace adjacency, delta 0; the other accountant is PLD at delta 1e-9.

    Raises
    ------
    ValueError
        The probability is not between one half and one.
    AccountingError
        The closed form and PLD disagree.

    References
    ----------
    Warner 1965, DOI 10.1080/01621459.1965.10480775.
    """
    demand_number("truth_probability", truth_probability, 0.5, 1, "; at one half a report says nothing")
    releases = _demand_releases(releases)
    epsilon = releases * math.log(truth_probability / (1 - truth_probability))
    # dp_accounting's parameter is the chance of a uniformly drawn answer, which is right half of the time.
    loss = privacy_loss_distribution.from_randomized_response(2 * (1 - truth_probability), 2)
    other = loss.self_compose(releases).get_epsilon_for_delta(1e-9)
    if not other <= epsilon * 1.01 or (releases == 1 and other < epsilon * 0.9 - 1e-6):
        raise AccountingError(f"the closed form gives {epsilon:.4g} and PLD {other:.4g}")
    assumptions = (
        f"each report is true with probability {truth_probability:.4g}, by a coin that only its person sees",
        "a person's answer is one yes or no; whether the person answered at all is not hidden",
    )
    return PrivacyGuarantee(
        epsilon,
        0.0,
        "record",
        "replace",
        "every record, no",
        "sum of epsilons",
        releases,
        "PLD",
        other,
        assumptions,
    )


def compare_compositions(
    scale: float, sensitivity: float, releases: int, delta: float
) -> dict[str, PrivacyGuarantee]:
    """Account for the same Laplace releases in four ways, each an upper bound.

    Parameters
    ----------
    scale, sensitivity, releases
        As in `laplace_guarantee`.
    delta : float
        Probability with which the bound may fail, over all releases; ``"basic"`` needs none.

    Returns
    -------
    dict of str to PrivacyGuarantee
        ``"basic"`` (the sum), ``"advanced"``, ``"RDP"`` and ``"PLD"``, from the oldest to the tightest.

    Raises
    ------
    ValueError
        A parameter is out of range or not a number.
    AccountingError
        PLD lies above another bound.

    References
    ----------
    Dwork, Rothblum and Vadhan 2010, DOI 10.1109/FOCS.2010.12 (advanced); Mironov 2017, arXiv 1702.07476 (RDP); Koskela, Jälkö and
    Honkela 2020, arXiv 1906.03049 (PLD).
    """
    demand_number("delta", delta, 0, 1)
    basic = laplace_guarantee(scale, sensitivity, releases=releases)
    each = sensitivity / scale
    advanced = each * math.sqrt(2 * releases * math.log(1 / delta)) + releases * each * math.expm1(each)
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.LaplaceDpEvent(scale / sensitivity), int(releases)
    )
    tight, loose = compare_accountants(event, delta)
    if tight > 1.01 * min(basic.epsilon, advanced):
        raise AccountingError(f"PLD gives {tight:.4g}, above {min(basic.epsilon, advanced):.4g}")

    def by(accountant: str, epsilon: float) -> PrivacyGuarantee:
        return PrivacyGuarantee(
            epsilon, delta, "record", "add/remove", "every record, no", accountant, int(releases),
            "sum of epsilons", basic.epsilon, basic.assumptions,
        )  # fmt: skip

    return {
        "basic": basic,
        "advanced": by("advanced composition", advanced),
        "RDP": by("RDP", loose),
        "PLD": by("PLD", tight),
    }


def group_guarantee(guarantee: PrivacyGuarantee, records: int) -> PrivacyGuarantee:
    """Turn a guarantee for one record into the weaker one for somebody with several.

    Parameters
    ----------
    guarantee : PrivacyGuarantee
        Per record.
    records : int
        The most that one person has in the table.

    Returns
    -------
    PrivacyGuarantee
        Per user: epsilon times `records`, and delta times the sum of ``exp(i * epsilon)`` for ``i`` from 0 to ``records - 1``.

    Raises
    ------
    ValueError
        `records` is not a whole number of 1 or more, or the guarantee is not per record.

    References
    ----------
    Dwork and Roth 2014, DOI 10.1561/0400000042, theorem 2.2 (delta 0) and, for delta, Vadhan 2017, DOI 10.1007/978-3-319-57048-8_7.
    """
    if guarantee.unit != "record":
        raise ValueError(f"the guarantee must be per record, not per {guarantee.unit}")
    records = _demand_releases(records)
    epsilon = guarantee.epsilon
    delta = (
        guarantee.delta * math.fsum(math.exp(i * epsilon) for i in range(records)) if guarantee.delta else 0.0
    )
    return PrivacyGuarantee(
        records * epsilon, min(delta, 1.0), "user", guarantee.adjacency, guarantee.sampling, guarantee.accountant,
        guarantee.steps, "", math.nan, (f"a user has at most {records} records", *guarantee.assumptions),
    )  # fmt: skip
