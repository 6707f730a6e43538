"""Federated analytics: the words that many phones type, found without and with a guarantee."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import opendp.prelude as dp
import tensorflow as tf
import tensorflow_federated as tff

from pprml.accounting import PrivacyGuarantee, laplace_guarantee


def choose_words(text: str, number: int, shortest: int = 4) -> list[str]:
    """Return the words that a phone typed most, `number` at most, each once; ties in the order of the alphabet."""
    kept = "".join(symbol if symbol.isalnum() else " " for symbol in text.lower().replace("'", ""))
    counts = Counter(word for word in kept.split() if len(word) >= shortest)
    return sorted(counts, key=lambda word: (-counts[word], word))[:number]


def count_words(
    phones: Sequence[Sequence[str]], at_least: int = 1, capacity: int = 10_000, longest: int = 16
) -> dict[str, int]:
    """Count how many phones report each word, with TFF's invertible Bloom lookup tables, inside a `federated_context`.

    Parameters
    ----------
    phones : sequence of sequences of str
        From `choose_words`.
    at_least : int
        Words of fewer phones are not told (TFF calls it k_anonymity).
    capacity : int
        The most different words that the table can hold.
    longest : int
        Longer words are cut, in bytes.

    Raises
    ------
    ValueError
        No phone, or more different words than `capacity`.
    """
    different = len({word for words in phones for word in words})
    if not phones or not different or different > capacity:
        raise ValueError(
            f"{different} different words from {len(phones)} phones: give some, and raise capacity"
        )
    find = tff.analytics.heavy_hitters.iblt.build_iblt_computation(
        string_max_bytes=longest,
        multi_contribution=False,
        capacity=capacity,
        k_anonymity=at_least,
        batch_size=50,
    )
    data = [tf.data.Dataset.from_tensor_slices(list(words)).batch(50) for words in phones if len(words)]
    found = find(data)
    if int(found.num_not_decoded):
        raise ValueError(f"{int(found.num_not_decoded)} words could not be read: raise capacity")
    names, counts = found.heavy_hitters, found.heavy_hitters_counts
    return {name.decode(): int(count) for name, count in zip(names, counts, strict=True)}


def release_words(
    counts: dict[str, int], words_per_phone: int, epsilon: float, delta: float
) -> tuple[dict[str, int], PrivacyGuarantee]:
    """Add OpenDP's Laplace noise to counts of an open list of words and tell only those above a threshold.

    Parameters
    ----------
    counts : dict of str to int
        From `count_words`: what a trusted aggregator holds.
    words_per_phone : int
        The most words that one phone reported: it moves that many counts by 1 each.
    epsilon, delta : float
        Of the release, per phone.

    Returns
    -------
    (noisy counts, PrivacyGuarantee)
        Add/remove adjacency, one release. The delta pays for words that one phone alone holds: their appearing at all would
        tell of it.

    References
    ----------
    Korolova, Kenthapadi, Mishra and Ntoulas 2009, DOI 10.1145/1526709.1526733.
    """
    if words_per_phone < 1 or not epsilon > 0 or not 0 < delta < 1:
        raise ValueError("give words_per_phone of 1 or more, epsilon above 0, delta between 0 and 1")
    dp.enable_features("contrib")
    # Sensitivity: a phone adds 1 to each of `words_per_phone` counts, so their L1 norm moves by that number.
    bound, scale = (words_per_phone, words_per_phone, 1), words_per_phone / epsilon

    def build(threshold: int) -> Any:
        space = (
            dp.map_domain(dp.atom_domain(T=str), dp.atom_domain(T=int)),
            dp.l01inf_distance(dp.absolute_distance(T=int)),
        )
        return dp.m.make_laplace_threshold(*space, scale=scale, threshold=threshold)

    threshold = dp.binary_search(lambda t: build(t).map(bound)[1] <= delta, bounds=(1, 1_000_000))
    release = build(threshold)
    spent = release.map(bound)
    alike = laplace_guarantee(scale, float(words_per_phone), unit="user")
    assumptions = (
        f"each phone reports at most {words_per_phone} words, each once",
        f"counts have Laplace noise of scale {scale:.4g}, and only those of {threshold} or more are told",
        "the server that adds the noise is trusted; the counts before noise are told to nobody",
    )
    if not abs(spent[0] - alike.epsilon) < 1e-6 * alike.epsilon + 1e-9:
        raise RuntimeError(f"OpenDP says epsilon {spent[0]}, pprml.accounting {alike.epsilon}")
    # RDP speaks of the noise alone, without the threshold that the delta pays for.
    alone = dict(other_accountant="", other_epsilon=math.nan)
    return dict(release(counts)), replace(alike, delta=spent[1], assumptions=assumptions, **alone)
