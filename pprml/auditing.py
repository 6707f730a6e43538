"""Does a training keep the promise it printed? Lower bounds on epsilon, at a stated confidence, that can contradict it.

An audit hands its own data to any callable ``train(x, y, seed)`` and reads the published updates of a softmax regression with two classes
and no bias, shape (steps, features, 2); final weights alone are one step. The promise is for all data, so the auditor takes the worst: each
record has a feature column of its own, and a canary's gradient is so large that only clipping bounds it. tensorflow-empirical-privacy
has neither a bound that holds after a choice of thresholds nor an audit in one run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom
from statsmodels.stats.proportion import proportion_confint

from pprml.accounting import PrivacyGuarantee

Train = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
#: Feature value of a record of the auditor: its gradient is hundreds of clipping norms long.
_BRIGHT = 1000.0
#: Columns that belong to no record: all that is published there is noise.
_SPARE = 64


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes
    ----------
    method, score : str
        Which audit, and which of its scores decided.
    epsilon_bound : float
        With probability `confidence` or more, the training's true epsilon at ``claim.delta`` is at least this.
    confidence : float
        One less the false-alarm rate: an honest training is caught with probability ``1 - confidence`` at most.
    trials : int
        Training runs that the bound rests on, or canaries in the one run.
    claim : PrivacyGuarantee
    """

    method: str
    score: str
    epsilon_bound: float
    confidence: float
    trials: int
    claim: PrivacyGuarantee

    @property
    def caught(self) -> bool:
        """Whether the bound contradicts the claim."""
        return self.epsilon_bound > self.claim.epsilon

    def __str__(self) -> str:
        verdict = "CAUGHT: the claim is false" if self.caught else "the claim is not contradicted"
        return (
            f"{self.method}, {self.trials} trials, score '{self.score}': epsilon >= {self.epsilon_bound:.3g} with confidence "
            f"{self.confidence:g}; {verdict}\n  claimed: {str(self.claim).splitlines()[0]}"
        )


def bound_epsilon(likely: int, unlikely: int, runs: int, delta: float, confidence: float) -> np.ndarray:
    """Bound epsilon from below by how often one event happens in each of two neighbouring worlds.

    Parameters
    ----------
    likely, unlikely : int or ndarray of int
        How many of the runs of each world show the event. The event must have been fixed before these runs were seen.
    runs : int
        Runs of each world.
    delta : float
        The claim's delta.
    confidence : float
        Of the bound; each of the two Clopper-Pearson intervals gets half of the error.

    Returns
    -------
    ndarray
        ``log((p_likely - delta) / p_unlikely)`` at the worst ends of the intervals, and 0 at least.

    References
    ----------
    Jagielski, Ullman and Oprea 2020, arXiv 2006.07709; Nasr et al. 2023, arXiv 2302.07956.
    """
    # `RatioBound` of tensorflow-empirical-privacy is this without delta; but with a delta, some rare event may be likelier in one world by
    # any factor. Its `EpsilonLowerBound` is the best of all thresholds on the runs that it judges, and above the truth far too often.
    low, high = proportion_confint(np.arange(runs + 1), runs, 1 - confidence, method="beta")
    return np.log(np.maximum((low[likely] - delta) / high[unlikely], 1.0))


def bound_epsilon_one_run(
    canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> float:
    """Bound epsilon from below by correct guesses about many canaries of one run.

    Parameters
    ----------
    canaries : int
        Each was put into the data by a fair coin of its own.
    guesses, correct : int
        Guesses made, their number fixed in advance, and how many were right. The other canaries are abstained from.
    delta : float
        The claim's delta.
    confidence : float
        Of the bound.

    Returns
    -------
    float
        The largest epsilon that so many correct guesses reject.

    References
    ----------
    Steinke, Nasr and Jagielski 2023, arXiv 2305.08846, theorem 5.2.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"need correct <= guesses <= canaries, got {correct}, {guesses} and {canaries}")

    def excess(epsilon: float) -> float:
        tail = binom.cdf(np.arange(-1, correct), guesses, expit(epsilon))
        # P(correct - i <= guesses right < correct) / i, for i from 1 to correct
        slack = (tail[-1] - tail[-2::-1]) / np.arange(1, correct + 1) if correct else np.zeros(1)
        return 1 - tail[-1] + 2 * canaries * delta * slack.max() - (1 - confidence)

    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, 60.0)) if excess(60.0) > 0 else 60.0


def plant_canaries(records: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `records` records of which each has a feature column of its own; the last `_SPARE` columns are nobody's."""
    x = np.zeros((records, records + _SPARE))
    np.fill_diagonal(x, _BRIGHT)
    return x, np.ones(records, dtype=int)


def _project(published: np.ndarray) -> np.ndarray:
    """Project updates (steps, features, 2) onto the direction of each feature's gradient: (steps, features)."""
    return (published[..., 0] - published[..., 1]) / math.sqrt(2)


#: Each takes the canary's own coordinate and the size of the noise in nobody's columns, both (runs, steps).
SCORES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sum over the steps": lambda own, noise: own.sum(axis=1),
    "largest step": lambda own, noise: own.max(axis=1),
    "last step": lambda own, noise: own[:, -1],
    "spread between steps": lambda own, noise: np.ptp(own, axis=1),
    "least noise": lambda own, noise: -noise.min(axis=1),
}


def audit_many_runs(
    train: Train,
    claim: PrivacyGuarantee,
    runs: int = 2000,
    background: int = 1,
    confidence: float = 0.95,
    seed: int = 0,
) -> Audit:
    """Train often, with a canary and without, and bound epsilon by how well the two can be told apart.

    Parameters
    ----------
    train : callable
        ``train(x, y, seed)`` returns its published updates, shape (steps, features, 2).
    claim : PrivacyGuarantee
        Per record, add/remove. A large delta such as 0.01 is easier to contradict: all pairs of the curve were promised.
    runs : int
        Runs of each of the two worlds. Half of them choose score, threshold and direction, the other half give the bound.
    background : int
        Records beside the canary, which comes last. Few of them make a batch's size tell.
    confidence : float
        Of the bound. The choice is made on other runs, so that it needs no correction.
    seed : int

    Returns
    -------
    Audit

    References
    ----------
    Nasr et al. 2023, arXiv 2302.07956 (the attacker sees every update, and chooses the data).
    """
    _check_claim(claim, confidence)
    if runs < 100:
        raise ValueError(f"{runs} runs can show nothing; take 100 or more")
    x, y = plant_canaries(background + 1)
    seeds = np.random.default_rng(seed).integers(0, 2**63, (2, runs))
    worlds = []
    for world, rows in enumerate((background, background + 1)):
        own, noise = [], []
        for run_seed in seeds[world]:
            published = _check_updates(train(x[:rows], y[:rows], int(run_seed)), x.shape[1])
            own.append(_project(published)[:, background])
            noise.append(np.sqrt(np.square(published[:, -_SPARE:]).mean(axis=(1, 2))))
        worlds.append((np.array(own), np.array(noise)))
    without, with_it = ({name: score(*world) for name, score in SCORES.items()} for world in worlds)
    bound, name = bound_by_split(without, with_it, claim.delta, confidence)
    return Audit("many runs", name, bound, confidence, 2 * (runs - runs // 2), claim)


def bound_by_split(
    without: dict[str, np.ndarray], with_it: dict[str, np.ndarray], delta: float, confidence: float
) -> tuple[float, str]:
    """Bound epsilon by the best of several scores, chosen on one half of the runs and judged on the other.

    Parameters
    ----------
    without, with_it : dict of str to ndarray, shape (runs,)
        Each score of the runs of either world.
    delta, confidence : float
        As for `bound_epsilon`. However many scores and thresholds there are, one event is judged: nothing is to be corrected.

    Returns
    -------
    bound : float
    score : str
    """
    runs = len(next(iter(without.values())))
    worlds = [*without.values(), *with_it.values()]
    if any(len(scores) != runs or np.isnan(scores).any() for scores in worlds):
        raise ValueError("each score needs one number a run, and as many runs in one world as in the other")
    half = runs // 2
    # Stricter where it chooses: the best of many bounds is else one that a lucky handful of runs made large.
    cautious = 1 - (1 - confidence) / 100
    best = (-1.0, next(iter(without)), 0.0, 0)
    for name in without:
        values = np.unique(np.concatenate([without[name][:half], with_it[name][:half]]))
        # Between the values and not on them: of two values that differ by rounding, neither should be a threshold.
        thresholds = (values[1:] + values[:-1]) / 2
        bounds = _bound_events(without[name][:half], with_it[name][:half], thresholds, delta, cautious)
        if bounds.size and bounds.max() > best[0]:
            event, place = np.unravel_index(bounds.argmax(), bounds.shape)
            best = (bounds.max(), name, thresholds[place], event)
    _, name, threshold, event = best
    judged = _bound_events(
        without[name][half:], with_it[name][half:], np.array([threshold]), delta, confidence
    )
    return float(judged[event, 0]), name


def _bound_events(without, with_it, thresholds, delta, confidence) -> np.ndarray:
    """Bounds by four events, (4, thresholds): a score above or not above, likelier with the canary or without."""
    runs = len(without)
    out, inside = (
        runs - np.searchsorted(np.sort(scores), thresholds, side="right") for scores in (without, with_it)
    )
    likely = np.stack([inside, out, runs - out, runs - inside])
    unlikely = np.stack([out, inside, runs - inside, runs - out])
    return bound_epsilon(likely, unlikely, runs, delta, confidence)


def audit_one_run(
    train: Train,
    claim: PrivacyGuarantee,
    canaries: int = 1000,
    guesses: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Audit:
    """Train once on canaries that each joined by a coin, and bound epsilon by how many coins can be guessed.

    Parameters
    ----------
    train, claim, confidence
        As for `audit_many_runs`. The claim's delta is multiplied by the number of canaries: make it small.
    canaries : int
        Half of them, by their coins, are in the data.
    guesses : int
        Fixed in advance: the half with the largest scores is guessed to be in, the half with the smallest to be out.
    seed : int

    Returns
    -------
    Audit

    References
    ----------
    Steinke, Nasr and Jagielski 2023, arXiv 2305.08846.
    """
    _check_claim(claim, confidence)
    if not 2 <= guesses <= canaries:
        raise ValueError(f"guesses must be from 2 to the {canaries} canaries, got {guesses}")
    rng = np.random.default_rng(seed)
    joined = rng.random(canaries) < 0.5
    x, y = plant_canaries(canaries)
    published = _check_updates(train(x[joined], y[joined], int(rng.integers(0, 2**31))), x.shape[1])
    order = np.argsort(_project(published).sum(axis=0)[:canaries])
    half = guesses // 2
    correct = int(joined[order[-half:]].sum() + (~joined[order[:half]]).sum())
    bound = bound_epsilon_one_run(canaries, 2 * half, correct, claim.delta, confidence)
    return Audit("one run", f"{correct} of {2 * half} coins guessed", bound, confidence, canaries, claim)


def _check_updates(published: np.ndarray, features: int) -> np.ndarray:
    published = np.asarray(published)
    if published.ndim != 3 or published.shape[1:] != (features, 2):
        raise ValueError(f"train must return updates of shape (steps, {features}, 2), got {published.shape}")
    if not np.isfinite(published).all():
        # A score that is not a number is above no threshold: a training that diverged would pass.
        raise ValueError("train returned an update that is not finite; lower its learning rate")
    return published


def _check_claim(claim: PrivacyGuarantee, confidence: float) -> None:
    if claim.unit != "record" or claim.adjacency != "add/remove":
        raise ValueError(
            f"the audit adds and removes one record; it cannot judge a claim per {claim.unit}, {claim.adjacency}"
        )
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must be from 0.5 to below 1, got {confidence}")
