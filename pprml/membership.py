"""Who was in the training set: three membership attacks, judged at few false accusations; and a secret's exposure."""

import math

import numpy as np
from scipy.special import logsumexp
from scipy.stats import beta, norm
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def scale_confidence(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ``log(p / (1 - p))`` of each true label's probability p: large where the model is sure and right.

    Logits are (..., records, classes). Carlini et al. 2022, arXiv 2112.03570.
    """
    label = np.broadcast_to(np.eye(logits.shape[-1], dtype=bool)[y], logits.shape)
    return logits[label].reshape(label.shape[:-1]) - logsumexp(np.where(label, -np.inf, logits), axis=-1)


def attack_lira(target: np.ndarray, shadows: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Score each record's membership in a model by the likelihood ratio that the attacker's own models suggest.

    Parameters
    ----------
    target : ndarray, shape (records,)
        From `scale_confidence`, of the model under attack.
    shadows : ndarray, shape (models, records)
        The same of the attacker's models, trained as the target was.
    members : ndarray of bool, shape (models, records)
        Which records each of the attacker's models was trained on.

    Returns
    -------
    ndarray, shape (records,)
        Large where membership is likely. Means are per record; with few models one deviation for all is more reliable.

    Raises
    ------
    ValueError
        Some record is in all of the attacker's models, or in none.

    References
    ----------
    Carlini et al. 2022, arXiv 2112.03570.
    """
    scores = []
    for side in (members, ~members):
        if not side.any(axis=0).all():
            raise ValueError("some record is in all of the attacker's models or in none; train more of them")
        values = np.where(side, shadows, np.nan)
        mean = np.nanmean(values, axis=0)
        # The attacker's values lie closer to their own mean than a new one does: divide by one less than their number.
        spread = np.sqrt(np.nansum((values - mean) ** 2) / (side.sum() - side.shape[1]))
        scores.append(norm.logpdf(target, mean, spread))
    return scores[0] - scores[1]


def attack_by_model(
    target: np.ndarray, shadows: np.ndarray, members: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Score membership with a classifier that learned from the attacker's own models how members are answered.

    Parameters
    ----------
    target : ndarray, shape (records, classes)
        Logits of the model under attack.
    shadows : ndarray, shape (models, records, classes)
        Logits of the attacker's models.
    members : ndarray of bool, shape (models, records)
        Which records each of the attacker's models was trained on.
    y : ndarray of int, shape (records,)
        True labels.

    Returns
    -------
    ndarray, shape (records,)
        Large where membership is likely.

    References
    ----------
    Shokri et al. 2017, arXiv 1610.05820; here one logistic regression serves all classes.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(_describe(shadows, y).reshape(-1, 4), members.ravel())
    return model.decision_function(_describe(target, y))


def _describe(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the label's confidence and the three largest log-probabilities: (..., records, 4)."""
    top = np.sort(logits - logsumexp(logits, axis=-1, keepdims=True), axis=-1)[..., -3:]
    return np.concatenate([scale_confidence(logits, y)[..., None], top], axis=-1)


def measure_tpr(inside: np.ndarray, outside: np.ndarray, fpr: float) -> tuple[float, float, float]:
    """Return the share of members found when at most a share `fpr` of the others is accused, with its 95 % interval.

    The interval is Clopper-Pearson's for the members; the threshold, from the others' scores, is taken as given.
    """
    allowed = math.floor(fpr * len(outside) + 1e-9)
    hits, size = int((inside > np.sort(outside)[-allowed - 1]).sum()), len(inside)
    interval = binomial_interval(hits, size)
    return hits / size, *interval


def binomial_interval(hits: int, size: int) -> tuple[float, float]:
    """Return Clopper and Pearson's two-sided 95 % interval of a share."""
    low = beta.ppf(0.025, hits, size - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, size - hits) if hits < size else 1.0
    return float(low), float(high)


def measure_exposure(log_likelihoods: np.ndarray, secret: int) -> float:
    """Return the exposure of a secret in bits: ``log2`` of all candidates less ``log2`` of its rank among them.

    `log_likelihoods` (candidates,) is the model's for every candidate. A secret that was never seen has 1.44 bits on average.
    Carlini et al. 2019, arXiv 1802.08232.
    """
    rank = 1 + int((log_likelihoods > log_likelihoods[secret]).sum())
    return math.log2(len(log_likelihoods) / rank)
