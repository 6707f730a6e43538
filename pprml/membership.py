"""Who was in the training set: the attacks of tensorflow-empirical-privacy, judged where few are accused falsely."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import joblib
import numpy as np
import sklearn.utils
from scipy.stats import mannwhitneyu
from statsmodels.stats.proportion import proportion_confint

# The library (0.1.0) imports its parallel backend from scikit-learn, which gave the name up in 1.5. It is joblib's function.
sklearn.utils.parallel_backend = joblib.parallel_backend

from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import advanced_mia  # noqa: E402
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.data_structures import (  # noqa: E402
    AttackInputData,
    AttackType,
)
from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.membership_inference_attack import (  # noqa: E402
    run_attacks,
)

#: Attacks of `run_attacks` that are of use: a forest's grid asks for `max_features="auto"`, which scikit-learn 1.3 removed, so that half
#: of its fits fail; three to seven neighbours give too few different scores for a small false-positive rate.
ATTACKS = ("THRESHOLD_ATTACK", "LOGISTIC_REGRESSION", "MULTI_LAYERED_PERCEPTRON")


def attack_answers(
    logits: np.ndarray, y: np.ndarray, members: np.ndarray, attack: str = "THRESHOLD_ATTACK", seed: int = 0
) -> np.ndarray:
    """Score membership by a model's answers alone, with an attack of `run_attacks`.

    Parameters
    ----------
    logits : ndarray, shape (records, classes)
        Of the model under attack.
    y : ndarray of int, shape (records,)
        True labels.
    members : ndarray of bool, shape (records,)
        Who was trained on. An attack model learns from one half of the records and is asked about the other, and conversely.
    attack : str
        One of `ATTACKS`.
    seed : int
        Of the halves.

    Returns
    -------
    ndarray, shape (records,)
        Large where membership is likely.

    Raises
    ------
    ValueError
        An unknown attack, logits that are not finite, a label that is no class, or arrays of different lengths.

    References
    ----------
    Yeom et al. 2018, arXiv 1709.01604 (threshold); Shokri et al. 2017, arXiv 1610.05820 (attack models).
    """
    if attack not in ATTACKS:
        raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {attack!r}")
    # In double precision: in single a probability near 1 is 1, and the surest records are tied.
    logits, y, members = np.asarray(logits, dtype=float), np.asarray(y, dtype=int), np.asarray(members, bool)
    if logits.ndim != 2 or not len(logits) == len(y) == len(members):
        raise ValueError(
            f"logits need one row, y and members one entry a record, got {logits.shape}, {y.shape}, {members.shape}"
        )
    if not np.isfinite(logits).all() or not ((y >= 0) & (y < logits.shape[1])).all():
        raise ValueError(f"logits must be finite and labels from 0 to {logits.shape[1] - 1}")
    if members.all() or not members.any():
        raise ValueError("all records are members or none is: there is nobody to tell apart")
    data = AttackInputData(
        logits_train=logits[members],
        logits_test=logits[~members],
        labels_train=y[members],
        labels_test=y[~members],
    )
    np.random.seed(seed)  # noqa: NPY002  the library draws the halves from this global state
    # The library also bounds epsilon, which divides by counts of zero; `auditing` says why that bound is not used.
    with np.errstate(divide="ignore", invalid="ignore"):
        (result,) = run_attacks(data, attack_types=[AttackType[attack]]).single_attack_results
    scores = np.empty(len(members))
    scores[members], scores[~members] = result.membership_scores_train, result.membership_scores_test
    return scores


def attack_lira(
    target: np.ndarray, shadows: np.ndarray, members: np.ndarray, fix_variance: bool = True
) -> np.ndarray:
    """Score each record's membership in a model by the likelihood ratio that the attacker's own models suggest.

    Parameters
    ----------
    target : ndarray, shape (records,)
        From `advanced_mia.calculate_statistic`, of the model under attack.
    shadows : ndarray, shape (models, records)
        The same of the attacker's models, trained as the target was.
    members : ndarray of bool, shape (models, records)
        Which records each of the attacker's models was trained on.
    fix_variance : bool
        One variance for all records. The library's default is one for each, which a few models cannot estimate.

    Returns
    -------
    ndarray, shape (records,)
        Large where membership is likely.

    Raises
    ------
    ValueError
        Some record is in all of the attacker's models, or in none; a value is not finite; or the shapes differ.

    References
    ----------
    Carlini et al. 2022, arXiv 2112.03570.
    """
    if shadows.shape != members.shape or target.shape != shadows.shape[1:]:
        raise ValueError(
            f"target needs one value a record, shadows and members a row a model of as many, "
            f"got {target.shape}, {shadows.shape} and {members.shape}"
        )
    if not (np.isfinite(target).all() and np.isfinite(shadows).all()):
        raise ValueError("target or shadows has a value that is not finite: one of the models has diverged")
    if not (members.any(axis=0) & ~members.all(axis=0)).all():
        # The library would put the mean of all other records in its place, and say nothing.
        raise ValueError("some record is in all of the attacker's models or in none; train more of them")
    sides = (
        [shadows[side[:, record], record, None] for record in range(len(target))]
        for side in (members, ~members)
    )
    # A column: of a plain vector the library makes a matrix, each record against every other's means, and averages.
    return -advanced_mia.compute_score_lira(
        target[:, None], *sides, fix_variance=fix_variance, median_or_mean="mean"
    )


def measure_tpr(inside: np.ndarray, outside: np.ndarray, fpr: float) -> tuple[float, float, float]:
    """Return the share of members found when at most a share `fpr` of the others is accused, with its 95 % interval.

    The library reports AUC, advantage and predictive value, but not this. The interval is Clopper-Pearson's for the members; the threshold,
    from the others' scores, is taken as given.
    """
    if np.isnan(inside).any() or np.isnan(outside).any():
        # It is above no threshold: the member behind it would count as safe.
        raise ValueError("a score is not a number")
    allowed = _count_allowed(len(outside), fpr)
    hits, size = int((inside > np.sort(outside)[-allowed - 1]).sum()), len(inside)
    return hits / size, *map(float, proportion_confint(hits, size, 0.05, method="beta"))


def guess_tpr(outsiders: int, fpr: float) -> float:
    """Return the share of members that random scores find by `measure_tpr`, on average: a little more than `fpr`.

    The threshold is the outsider who comes after the accused ones, and a member's random score is as likely as theirs to lie in any of
    the gaps between them.
    """
    return (_count_allowed(outsiders, fpr) + 1) / (outsiders + 1)


def _count_allowed(outsiders: int, fpr: float) -> int:
    if outsiders < 1 or not 0 <= fpr < 1:
        raise ValueError(f"need an outsider and an fpr from 0 to below 1, got {outsiders} and {fpr}")
    return math.floor(fpr * outsiders + 1e-9)


@dataclass(frozen=True)
class HeldOutAudit:
    """Whether records that were promised to be held out look as if they had been trained on (`p_value` below `level`)."""

    p_value: float
    level: float
    promised: int
    fresh: int

    @property
    def caught(self) -> bool:
        """Whether the promise is rejected; an honest training is, with probability `level` at most."""
        return self.p_value < self.level

    def __str__(self) -> str:
        verdict = "CAUGHT: they were trained on" if self.caught else "nothing against the promise"
        return (
            f"{self.promised} held-out records against {self.fresh} fresh ones: p = {self.p_value:.2g}; "
            f"{verdict} (level {self.level:g})"
        )


def audit_held_out(
    fit: Callable, x: np.ndarray, y: np.ndarray, held_out: int, level: float = 0.05, seed: int = 0
) -> HeldOutAudit:
    """Test whether records that a training promised to hold out were trained on.

    Parameters
    ----------
    fit : callable
        ``fit((x, y), (x_held_out, y_held_out), seed)`` trains on the first, may look at the second for validation
        only, and returns a function from ``(x, y)`` to one loss a record.
    x, y : ndarray
        Records, which are split at random here: `held_out` are given as validation, as many are kept back, and `fit`
        trains on the rest.
    held_out : int
        Number of records promised to be held out.
    level : float
        False-alarm rate: the two groups are exchangeable if nothing leaked.
    seed : int
        Of the split and of the training.

    Returns
    -------
    HeldOutAudit
        One-sided Mann-Whitney test that the promised records have smaller losses than the fresh ones.

    Raises
    ------
    ValueError
        Records and labels differ in number, a record or a loss is not a number, or `held_out` or `level` is out of range.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} records, but {len(y)} labels")
    if np.isnan(x).any():
        raise ValueError("a record has a value that is not a number: fill it in or drop it first")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if not 2 <= held_out <= (len(y) - 1) // 2:
        raise ValueError(f"held_out must be from 2 to below half of the {len(y)} records, got {held_out}")
    held, fresh, rest = np.split(np.random.default_rng(seed).permutation(len(y)), [held_out, 2 * held_out])
    loss = fit((x[rest], y[rest]), (x[held], y[held]), seed)
    losses = [np.asarray(loss(x[part], y[part]), float) for part in (held, fresh)]
    if any(part.shape != (held_out,) or np.isnan(part).any() for part in losses):
        # With one of them the p-value is not a number either, and below no level: a leak would pass.
        raise ValueError("fit must return a function that gives one loss a record, each of them a number")
    test = mannwhitneyu(*losses, alternative="less")
    return HeldOutAudit(float(test.pvalue), level, held_out, held_out)
