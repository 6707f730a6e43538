"""Genomes without names: who is in a pool, where somebody's ancestors lived, whom a risk model was trained on.

For teaching. All genomes are simulated: no person's data is used, and none could be published in a notebook.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import stdpopsim
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from pprml._noise import add_laplace, check_epsilon
from pprml.accounting import PrivacyGuarantee, laplace_guarantee

#: Three populations with fitted sizes, splits and migration: Yoruba, Utah (European ancestry), Han Chinese.
DEMOGRAPHY = "OutOfAfrica_3G09"


class Genomes(NamedTuple):
    """Genotypes int8 (people, SNPs): copies 0, 1 or 2 of the newer variant; and each person's population (people,)."""

    genotypes: np.ndarray
    population: np.ndarray


class Attack(NamedTuple):
    """Area under the ROC curve, and the share of members found at the stated rate of false alarms."""

    auc: float
    found: float


def simulate_genomes(
    people: Mapping[str, int],
    common_in: str = "CEU",
    least_frequency: float = 0.05,
    stretches: int = 10,
    length: int = 2_000_000,
    seed: int = 1,
) -> Genomes:
    """Simulate genotypes at common SNPs with stdpopsim and msprime.

    `people` says how many of each population (``"YRI"``, ``"CEU"``, ``"CHB"``); a SNP is kept where both variants have
    `least_frequency` in the population `common_in`, as on a chip designed for it. There are `stretches` independent stretches of
    `length` base pairs. Raises ValueError where a population is unknown or empty, or `common_in` is not simulated.

    References
    ----------
    Gutenkunst et al. 2009, DOI 10.1371/journal.pgen.1000695 (the demography); Adrion et al. 2020, DOI 10.7554/eLife.54967
    (stdpopsim); Baumdicker et al. 2022, DOI 10.1093/genetics/iyab229 (msprime).
    """
    model = stdpopsim.get_species("HomSap").get_demographic_model(DEMOGRAPHY)
    known = [population.name for population in model.populations]
    if set(people) - set(known) or min(people.values(), default=0) < 1:
        raise ValueError(f"people must give 1 or more for populations among {', '.join(known)}, got {people}")
    if common_in not in people:
        raise ValueError(f"common_in is {common_in!r}, of which nobody is simulated: add it to people")
    if seed < 1 or stretches < 1:
        raise ValueError("seed and stretches must be 1 or more")
    contig = stdpopsim.get_species("HomSap").get_contig(length=length, mutation_rate=model.mutation_rate)
    engine = stdpopsim.get_engine("msprime")
    # stdpopsim samples the populations in the model's order, whatever the order of the mapping.
    population = np.repeat(known, [people.get(name, 0) for name in known])
    kept = []
    for stretch in range(stretches):
        trees = engine.simulate(model, contig, dict(people), seed=seed * 1000 + stretch)
        # A site hit twice has several newer variants: they are counted as one.
        newer = trees.genotype_matrix() > 0
        copies = newer[:, ::2].astype(np.int8) + newer[:, 1::2]
        frequency = copies[:, population == common_in].mean(axis=1) / 2
        kept.append(copies[np.abs(frequency - 0.5) <= 0.5 - least_frequency].T)
    return Genomes(np.hstack(kept), population)


def variant_frequencies(genotypes: np.ndarray) -> np.ndarray:
    """Return the frequency of each SNP's newer variant among people (people, SNPs): what a study publishes, (SNPs,)."""
    genotypes = _check_genotypes(genotypes)
    return genotypes.mean(axis=0) / 2


def attack_distance(targets: np.ndarray, released: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Score who is in a pool by Homer's distance: how much nearer each person is to the pool than to a reference.

    `targets` are genotypes (people, SNPs); `released` and `reference` the frequencies published of the pool, and those of other
    people of the same population (SNPs,). Scores are higher for members (people,).

    Homer et al. 2008, DOI 10.1371/journal.pgen.1000167.
    """
    share = _check_genotypes(targets, released, reference) / 2
    return (np.abs(share - reference) - np.abs(share - released)).sum(axis=1)


def attack_likelihood(
    targets: np.ndarray, released: np.ndarray, reference: np.ndarray, floor: float
) -> np.ndarray:
    """Score who is in a pool by the likelihood ratio: drawn with the pool's frequencies, or with the reference's.

    `floor` replaces frequencies nearer to 0 or 1 than itself: half of the smallest step between published frequencies is a good
    choice. The rest is as in `attack_distance`.

    Sankararaman et al. 2009, DOI 10.1038/ng.436.
    """
    targets = _check_genotypes(targets, released, reference)
    if not 0 < floor < 0.5:
        raise ValueError(f"floor must be above 0 and below 0.5, a frequency; got {floor}")
    return likelihood_ratio(targets, released, reference, floor)


def likelihood_ratio(
    targets: np.ndarray, released: np.ndarray, reference: np.ndarray, floor: float
) -> np.ndarray:
    """Do what `attack_likelihood` does, without its checks."""
    pool, others = (np.clip(f, floor, 1 - floor) for f in (released, reference))
    newer, older = np.log(pool / others), np.log((1 - pool) / (1 - others))
    return targets.astype(float) @ (newer - older) + 2 * older.sum()


def attack_noisy_counts(
    targets: np.ndarray, noisy: np.ndarray, reference: np.ndarray, pool_size: int, scale: float
) -> np.ndarray:
    """Score who is in a pool whose counts carry Laplace noise: the likelihood ratio of an attacker who knows the noise's scale.

    `noisy` are the published counts of the newer variant (SNPs,) among `pool_size` people, `scale` is that of the noise in copies;
    the rest is as in `attack_distance`.
    """
    targets = _check_genotypes(targets, noisy, reference)
    copies, rate = np.arange(2 * pool_size + 1), np.clip(reference, 1e-3, 1 - 1e-3)[:, None]
    # Without the target all copies are strangers'; with the target two of them are known.
    chance = [binom.logpmf(copies[: 2 * n + 1], 2 * n, rate) for n in (pool_size, pool_size - 1)]
    outside, *inside = (
        logsumexp(log_chance - np.abs(noisy[:, None] - known - copies[: log_chance.shape[1]]) / scale, axis=1)
        for log_chance, known in ((chance[0], 0), *((chance[1], g) for g in range(3)))
    )
    ratio = np.array(inside) - outside
    return np.take_along_axis(ratio, targets.astype(int), axis=0).sum(axis=1)


def measure_attack(members: np.ndarray, outsiders: np.ndarray, false_alarms: float = 0.01) -> Attack:
    """Compare scores of members with scores of outsiders; a guesser has AUC 0.5 and finds the share `false_alarms`."""
    if len(outsiders) * false_alarms < 1:
        raise ValueError(f"take more than {len(outsiders)} outsiders, or allow more than {false_alarms}")
    scores = np.r_[members, outsiders]
    truth = np.repeat([1, 0], [len(members), len(outsiders)])
    alarms, found, _ = roc_curve(truth, scores, drop_intermediate=False)
    return Attack(float(roc_auc_score(truth, scores)), float(found[alarms <= false_alarms + 1e-12].max()))


def release_frequencies(genotypes: np.ndarray, epsilon: float) -> tuple[np.ndarray, PrivacyGuarantee]:
    """Release noisy counts of the newer variant: OpenDP's discrete Laplace noise, fresh in each call.

    Replacing one genome by any other can move every SNP's count by 2, so the L1 sensitivity is twice the number of SNPs. The number
    of people is public. Divide by twice that number for frequencies.

    Returns the counts (SNPs,) and the guarantee for one genome, replace adjacency.
    """
    genotypes = _check_genotypes(genotypes)
    check_epsilon(epsilon)
    sensitivity = 2 * genotypes.shape[1]
    scale = sensitivity / epsilon
    return add_laplace(genotypes.sum(axis=0, dtype=int), scale), laplace_guarantee(
        scale, sensitivity, unit="record", adjacency="replace"
    )


def agreement(groups: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of people whose group is right, under the best naming of the groups."""
    table = confusion_matrix(np.unique(truth, return_inverse=True)[1], groups)
    return float(table[linear_sum_assignment(-table)].sum() / len(truth))


def simulate_disease(
    genotypes: np.ndarray, causal: int = 50, heritability: float = 0.5, prevalence: float = 0.3, seed: int = 0
) -> np.ndarray:
    """Simulate who falls ill by the liability-threshold model, bool (people,).

    `causal` SNPs drawn at random have normal effects; together they make up the share `heritability` of the liability's variance.
    The share `prevalence` with the highest liability is ill.
    """
    genotypes = _check_genotypes(genotypes)
    if not (1 <= causal <= genotypes.shape[1] and 0 <= heritability <= 1 and 0 < prevalence < 1):
        raise ValueError(
            "causal must be 1 to the number of SNPs, heritability 0 to 1, prevalence inside 0 to 1"
        )
    generator = np.random.default_rng(seed)
    chosen = genotypes[:, generator.choice(genotypes.shape[1], causal, replace=False)]
    spread = np.where(chosen.std(axis=0) > 0, chosen.std(axis=0), 1)
    genetic = (chosen - chosen.mean(axis=0)) / spread @ generator.normal(size=causal)
    genetic = (genetic - genetic.mean()) / (genetic.std() or 1)
    chance = generator.normal(size=len(genotypes))
    liability = np.sqrt(heritability) * genetic + np.sqrt(1 - heritability) * chance
    return liability > np.quantile(liability, 1 - prevalence)


def predict_risk(genotypes: np.ndarray, ill: np.ndarray, train: np.ndarray, penalty: float) -> np.ndarray:
    """Fit logistic regression on the genotypes of some people and return everybody's predicted risk.

    `train` are the positions of the people to learn from (only their labels in `ill` are used); `penalty` weighs the squared
    coefficients, as a multiple of the number of SNPs. Returns the chance of illness (people,).
    """
    genotypes = _check_genotypes(genotypes)
    if penalty <= 0 or len(np.unique(np.asarray(ill)[train])) < 2:
        raise ValueError("penalty must be above 0, and both the ill and the healthy must be among train")
    mean, spread = genotypes[train].mean(axis=0), genotypes[train].std(axis=0)
    scaled = ((genotypes - mean) / np.where(spread > 0, spread, 1) / np.sqrt(genotypes.shape[1])).astype("f4")
    # Ridge needs products between people only: a rotation leaves as many columns as people, and the fit is the same.
    products = (scaled @ scaled[train].T).astype(float)
    values, vectors = np.linalg.eigh(products[train])
    keep = values > values.max() * 1e-6
    columns = products @ vectors[:, keep] / np.sqrt(values[keep])
    model = LogisticRegression(C=1 / penalty, max_iter=2000).fit(columns[train], np.asarray(ill)[train])
    return model.predict_proba(columns)[:, 1]


def attack_risk_model(risk: np.ndarray, ill: np.ndarray) -> np.ndarray:
    """Score who was trained on: the (log) probability that the model gives to what is true, higher for members (people,)."""
    return np.log(np.clip(np.where(ill, risk, 1 - risk), 1e-300, 1))


def _check_genotypes(genotypes: np.ndarray, *per_snp: np.ndarray) -> np.ndarray:
    genotypes = np.asarray(genotypes)
    if genotypes.ndim != 2 or genotypes.dtype.kind not in "iu" or not genotypes.size:
        raise ValueError(
            "genotypes must be a whole-number array (people, SNPs): add a first axis to one person"
        )
    if genotypes.min() < 0 or genotypes.max() > 2:
        raise ValueError("genotypes must be 0, 1 or 2 copies: the sensitivity is computed from that range")
    if any(np.shape(f) != genotypes.shape[1:] for f in per_snp):
        raise ValueError("give one frequency for each SNP of the genotypes, in the same order")
    return genotypes
