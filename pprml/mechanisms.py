"""Noise with a promise: Laplace, Gaussian and randomised response, a budget, the fixes that fail, and the attacks on them.

For teaching. The noise here is drawn in floating point by a seeded generator, so that a notebook repeats; `attack_rounding_errors`
shows what that gives away. A deployment draws it with a library made for it, such as OpenDP, from a cryptographic source.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from numbers import Real
from threading import Lock
from typing import TypeVar

import numpy as np
from scipy.special import xlogy
from scipy.stats import norm

Answer = TypeVar("Answer")
#: A person's yes or no, by row; a group of people is a mask of the same shape, and a question asks how many of it say yes.
Question = Callable[[np.ndarray], float]


class BudgetError(ValueError):
    """The question would take the total beyond the budget; it was not answered."""


def _demand(name: str, value: Real, low: float = 0.0, high: float = math.inf, fix: str = "") -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not low < value < high:
        above = f"above {low:g} and " + (f"below {high:g}" if high < math.inf else "finite")
        raise ValueError(f"{name} must be a number {above}, got {value!r}{fix}")
    return float(value)


def laplace_scale(epsilon: float, sensitivity: float = 1.0) -> float:
    """Return the scale of Laplace noise, ``sensitivity / epsilon``: the higher the epsilon, the less noise.

    Parameters
    ----------
    epsilon : float
        What one release may cost.
    sensitivity : float
        How far one record can move the result, in its own unit (all numbers of the release together).

    References
    ----------
    Dwork, McSherry, Nissim and Smith 2006, DOI 10.1007/11681878_14.
    """
    _demand("epsilon", epsilon, fix="; it points down: a smaller one means more noise")
    _demand("sensitivity", sensitivity, fix="; clip the values, so that one record has a bounded effect")
    # A density exp(-|x|/scale) that is shifted by the sensitivity changes by a factor of at most exp(sensitivity/scale).
    return sensitivity / epsilon


def laplace_noise(epsilon: float, sensitivity: float, shape, rng: np.random.Generator) -> np.ndarray:
    """Draw Laplace noise for one release; parameters as in `laplace_scale`, with the shape and the generator."""
    return add_laplace(0.0, laplace_scale(epsilon, sensitivity), rng.random(shape))


def add_laplace(value: float, scale: float, uniform: np.ndarray) -> np.ndarray:
    """Add Laplace noise as textbooks and `numpy.random.Generator.laplace` do: uniform numbers in [0, 1), a logarithm, doubles.

    The doubles are numpy's to the last bit; exactly 0 gives infinity. `is_possible` shows what they give away.
    """
    # xlogy(1, u) is log(u) by the C library; the last bit of NumPy's own depends on the processor.
    return value - scale * np.where(uniform >= 0.5, xlogy(1, 2 - uniform - uniform), -xlogy(1, 2 * uniform))


def integer_laplace_noise(
    epsilon: float, shape, rng: np.random.Generator, sensitivity: int = 1
) -> np.ndarray:
    """Draw whole-number Laplace noise for counts (the geometric mechanism: Ghosh et al. 2012, DOI 10.1137/09076828X)."""
    return add_whole_laplace(np.zeros(shape, int), 1 / laplace_scale(epsilon, sensitivity), rng)


def add_whole_laplace(counts: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Add whole-number Laplace noise to counts that one record moves by one."""
    # Each step away is a factor e^epsilon rarer, and the difference of two waiting times falls off so on both sides.
    up, down = rng.geometric(-math.expm1(-epsilon), (2, *np.shape(counts)))
    return counts + up - down


def gaussian_delta(sigma: float, epsilon: float, sensitivity: float = 1.0) -> float:
    """Return the smallest delta that Gaussian noise reaches at an epsilon (Balle and Wang 2018, arXiv 1805.06530, theorem 8)."""
    shift = _demand("sensitivity", sensitivity) / _demand("sigma", sigma)
    away = epsilon / shift
    # In logarithms, because exp(epsilon) overflows where the factor beside it is nearly zero.
    return float(norm.cdf(shift / 2 - away) - np.exp(epsilon + norm.logcdf(-shift / 2 - away)))


def gaussian_scale(epsilon: float, delta: float, sensitivity: float = 1.0) -> float:
    """Return the standard deviation of Gaussian noise that just keeps (epsilon, delta), from `gaussian_delta`.

    Parameters
    ----------
    epsilon, delta : float
        What one release may cost.
    sensitivity : float
        How far one record can move the released numbers: their L2 distance, in their own unit.
    """
    _demand("epsilon", epsilon, 0, 1e6)
    _demand("delta", delta, 0, 1, "; Gaussian noise has no guarantee with delta 0")
    _demand("sensitivity", sensitivity, fix="; clip the values, so that one record has a bounded effect")
    return sensitivity * gaussian_sigma(epsilon, delta)


def gaussian_sigma(epsilon: float, delta: float, low: float = 1e-4, high: float = 1e6) -> float:
    """Search the smallest standard deviation that keeps (epsilon, delta) for sensitivity 1: more noise, less delta."""
    for _ in range(100):  # halve the interval
        sigma = (low + high) / 2
        low, high = (low, sigma) if gaussian_delta(sigma, epsilon) < delta else (sigma, high)
    return high


def gaussian_noise(sigma: float, shape, rng: np.random.Generator) -> np.ndarray:
    """Draw Gaussian noise with standard deviation `sigma`, from `gaussian_scale`."""
    return rng.normal(0, _demand("sigma", sigma), shape)


def truth_probability(epsilon: float) -> float:
    """Return how often randomised response tells the truth, ``e^epsilon / (1 + e^epsilon)``."""
    # True and false reports are then exactly a factor e^epsilon apart.
    return 1 / (1 + math.exp(-_demand("epsilon", epsilon)))


def randomized_response(answers: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Return what each person reports: the truth or its opposite, by a coin of their own (Warner 1965).

    Parameters
    ----------
    answers : ndarray of bool
        The true yes or no of each person, any shape.
    epsilon : float
        What one report may cost its person.
    rng : numpy.random.Generator
        The coins.
    """
    answers = _as_mask("answers", answers)
    return answers ^ (rng.random(answers.shape) >= truth_probability(epsilon))


def estimate_share(reports: np.ndarray, epsilon: float) -> float:
    """Estimate the true share of yes from reports of `randomized_response`; unbiased, so it may fall outside 0 to 1."""
    truth = truth_probability(epsilon)
    # mean = share * truth + (1 - share) * (1 - truth), solved for the share.
    return float((np.mean(_as_mask("reports", reports)) - (1 - truth)) / (2 * truth - 1))


def clip_values(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Move every value into [`low`, `high`]; the bounds must be chosen without looking at the records."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"clip needs finite bounds, low below high, got {low!r} and {high!r}")
    values = np.asarray(values, float)
    if np.isnan(values).any():
        raise ValueError(
            "a value is missing: fill it in or drop it first; clipping lets it pass, and no sum survives it"
        )
    return np.clip(values, low, high)


def private_sum(
    values: np.ndarray, low: float, high: float, epsilon: float, rng: np.random.Generator, answers: int = 1
) -> np.ndarray:
    """Return `answers` sums of clipped values, each with its own Laplace noise of `epsilon` (add/remove adjacency)."""
    total = clip_values(values, low, high).sum()
    # Sensitivity is the larger bound: one record more or less adds or takes away one clipped value.
    return total + laplace_noise(epsilon, max(abs(low), abs(high)), answers, rng)


class Budget:
    """A total that the answers about one table may cost together; the guarantee is their sum (basic composition).

    Parameters
    ----------
    epsilon : float
        The total.
    """

    def __init__(self, epsilon: float):
        # Kept as the decimals that were written: as binary fractions, 0.1 + 0.2 is more than 0.3.
        self._left = Fraction(repr(_demand("epsilon", epsilon)))
        self._lock = Lock()

    @property
    def remaining(self) -> float:
        """What is left."""
        return float(self._left)

    def release(self, measure: Callable[[], Answer], epsilon: float) -> Answer:
        """Charge `epsilon`, then call `measure` and return its answer.

        Raises
        ------
        BudgetError
            Too little is left; `measure` was not called, and nothing was charged.
        """
        price = Fraction(repr(_demand("epsilon", epsilon)))
        with self._lock:
            if price > self._left:
                raise BudgetError(
                    f"{epsilon:g} asked, {self.remaining:g} left: not answered; ask with a smaller epsilon, or not at all"
                )
            # Charged first: a question that fails half-way may have told something already.
            self._left -= price
        return measure()


def naive_suppress(ask: Question, least: int = 10) -> Question:
    """Answer exactly, and with NaN where fewer than `least` people say yes."""
    return lambda group: ask(group) if ask(group) >= least else math.nan


def naive_round(ask: Question, step: int = 10) -> Question:
    """Answer rounded to the nearest multiple of `step`."""
    return lambda group: step * math.floor(ask(group) / step + 0.5)


def naive_uniform(ask: Question, rng: np.random.Generator, most: int = 10) -> Question:
    """Answer with a whole number between `-most` and `most` added, drawn afresh each time."""
    return lambda group: ask(group) + rng.integers(-most, most + 1)


def naive_fixed_seed(ask: Question, epsilon: float, seed: int) -> Question:
    """Answer with Laplace noise that starts from the same seed for every question."""
    return lambda group: ask(group) + np.random.default_rng(seed).laplace(0, 1 / epsilon)


def attack_difference(ask: Question, group: np.ndarray, target: int) -> bool:
    """Ask about a group with and without one person; return whether the answer was larger with that person.

    Parameters
    ----------
    ask : callable
        Takes a mask of people and answers how many of them say yes.
    group : ndarray of bool
        A mask; it is not changed.
    target : int
        Row of the person.
    """
    with_target, without = group.copy(), group.copy()
    with_target[target], without[target] = True, False
    return ask(with_target) - ask(without) > 0.5


def attack_threshold(outputs: np.ndarray, without: float, with_record: float) -> np.ndarray:
    """Guess for each noisy answer whether the record was there, by whether it is nearer to the result with it or without."""
    return np.asarray(outputs) > (without + with_record) / 2


def attack_rounding_errors(
    outputs: np.ndarray, without: float, with_record: float, scale: float
) -> np.ndarray:
    """Find answers that `add_laplace` can give for one of two results only (Mironov 2012, DOI 10.1145/2382196.2382264).

    Parameters
    ----------
    outputs : ndarray of float (n,)
        Noisy answers, in full precision.
    without, with_record : float
        The two possible results.
    scale : float
        Scale of the noise.

    Returns
    -------
    ndarray of int (n,)
        1 where only the result with the record is possible, -1 where only the other is, 0 where nothing is proved.
    """
    _demand("scale", scale)
    possible = [is_possible(np.asarray(outputs, float), value, scale) for value in (without, with_record)]
    return possible[1].astype(int) - possible[0].astype(int)


def is_possible(outputs: np.ndarray, value: float, scale: float) -> np.ndarray:
    """Tell for each answer whether `add_laplace` can give it at all for this value and scale."""
    # A generator's uniform numbers are multiples of 2^-53. Invert the noise, and try the multiples around that point.
    steps = np.rint(-np.expm1(-np.abs(outputs - value) / scale) * 2.0**52)
    found = np.zeros(len(outputs), bool)
    for nearby in range(-6, 7):
        for sign in (-1, 1):
            uniform = np.clip(0.5 + sign * np.maximum(steps + nearby, 0) * 2.0**-53, 0, 1 - 2.0**-53)
            found |= add_laplace(value, scale, uniform) == outputs
    return found


def bound_attacker(epsilon: float, records: int = 1) -> float:
    """Return the most often that any attacker can be right about a coin toss, whether these records were in the table (delta 0)."""
    # Group privacy: one record at a time, each by a factor e^epsilon at most.
    return 1 / (1 + math.exp(-_demand("epsilon", epsilon) * _demand("records", records)))


def _as_mask(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype != bool or values.size == 0:
        raise ValueError(
            f"{name} must be a non-empty array of bool, got {values.dtype} of shape {values.shape}"
        )
    return values
