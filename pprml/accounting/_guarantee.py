"""A guarantee with what it depends on, and the check that two accountants agree about it."""

import math
from dataclasses import dataclass
from numbers import Real
from textwrap import fill

import dp_accounting
from dp_accounting import pld, rdp

#: How far the looser accountant (RDP) may lie above the tighter one (PLD): a share of PLD's value, and an absolute part for
#: epsilons near zero. Outside it one of the two is wrong, or there are so few steps that RDP says little; neither is printed.
ACCOUNTANT_GAP = (0.6, 0.1)


#: Characters that a line of a guarantee has room for in a printed notebook.
_WIDTH = 95
#: Below this epsilon PLD is computed on a finer grid.
_SMALL = 0.2


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
            else "no second accountant covers this"
        )
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        first = (
            f"epsilon = {self.epsilon:.3g} at delta = {self.delta:g}, per {self.unit}, {self.adjacency} adjacency, "
            f"{self.sampling} sampling, {steps}, {self.accountant} accountant ({other}); assumes:"
        )
        points = [fill(f"* {point}", _WIDTH, subsequent_indent="  ") for point in self.assumptions]
        return "\n".join([fill(first, _WIDTH), *points])


def demand_number(name: str, value: Real, low: float, high: float = math.inf, fix: str = "") -> None:
    """Refuse what is not a finite number between the two bounds."""
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or not math.isfinite(value)
        or not low < value < high
    ):
        above = f"above {low:g}" + (f" and below {high:g}" if high < math.inf else "")
        raise ValueError(f"{name} must be a finite number {above}, got {value!r}{fix}")


def compare_accountants(event: dp_accounting.DpEvent, delta: float) -> tuple[float, float]:
    """Epsilon by PLD and by RDP, for add/remove adjacency, after checking that they agree."""
    adjacency = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    tight = pld.PLDAccountant(adjacency).compose(event).get_epsilon(delta)
    if tight < _SMALL:
        # The library's grid of 1e-4 rounds so small an epsilon up, by 5 % over 20,000 steps; this one by 0.1 %.
        tight = pld.PLDAccountant(adjacency, 1e-5).compose(event).get_epsilon(delta)
    loose = rdp.RdpAccountant(neighboring_relation=adjacency).compose(event).get_epsilon(delta)
    relative, absolute = ACCOUNTANT_GAP
    if not tight * 0.99 <= loose <= tight * (1 + relative) + absolute:
        raise AccountingError(
            f"PLD gives {tight:.4g} and RDP {loose:.4g}: further apart than the stated gap (RDP is loose under 100 steps)"
        )
    return tight, loose
