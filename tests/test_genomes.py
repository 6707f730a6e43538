"""Chapter 02, genomes: attacks find members and nobody else, noise has the size it is said to have; broken twins are rejected.

Simulated people are drawn once with fixed seeds. Where a bound is statistical its error rate is stated.
"""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pprml import genomes as gen


def draw_people(people, frequencies, seed):
    return np.random.default_rng(seed).binomial(2, frequencies, size=(people, len(frequencies)))


FREQUENCIES = np.random.default_rng(0).uniform(0.05, 0.95, size=1500)
POOL, OUTSIDERS, OTHERS = (draw_people(n, FREQUENCIES, seed) for n, seed in ((100, 1), (400, 2), (400, 3)))
RELEASED, REFERENCE = gen.variant_frequencies(POOL), gen.variant_frequencies(OTHERS)


def likelihood(targets, released=RELEASED, reference=REFERENCE):
    return gen.attack_likelihood(targets, released, reference, floor=1 / 400)


def test_simulated_genomes_are_common_snps_of_people_who_differ_by_population():
    genomes = gen.simulate_genomes({"CEU": 40, "YRI": 20}, stretches=2, length=200_000, seed=3)
    again = gen.simulate_genomes({"YRI": 20, "CEU": 40}, stretches=2, length=200_000, seed=3)
    assert (genomes.genotypes == again.genotypes).all()
    assert list(genomes.population) == ["YRI"] * 20 + ["CEU"] * 40
    frequency = {
        p: gen.variant_frequencies(genomes.genotypes[genomes.population == p]) for p in ("CEU", "YRI")
    }
    assert ((frequency["CEU"] >= 0.05) & (frequency["CEU"] <= 0.95)).all()
    # Only in the named population are they all common: a swap of the labels would be seen here.
    assert (np.abs(frequency["YRI"] - 0.5) > 0.45).any()


def test_likelihood_by_hand():
    score = likelihood(np.array([[2, 0]]), np.array([0.5, 0.2]), np.array([0.25, 0.4]))
    assert score == pytest.approx([2 * np.log(2) + 2 * np.log(0.8 / 0.6)])
    # A variant that nobody in the pool has counts against, but not infinitely.
    assert np.isfinite(likelihood(np.array([[1]]), np.array([0.0]), np.array([0.5]))).all()


def test_distance_by_hand():
    assert gen.attack_distance(np.array([[2]]), np.array([0.75]), np.array([0.5])) == pytest.approx([0.25])


@pytest.mark.parametrize(
    "attack", [likelihood, lambda t, f=RELEASED, r=REFERENCE: gen.attack_distance(t, f, r)]
)
def test_members_are_found_and_swapped_pools_are_not(attack):
    found = gen.measure_attack(attack(POOL), attack(OUTSIDERS))
    assert found.auc > 0.9 and found.found > 0.2
    # The broken twin mistakes the reference for the pool.
    swapped = gen.measure_attack(attack(POOL, REFERENCE, RELEASED), attack(OUTSIDERS, REFERENCE, RELEASED))
    assert swapped.auc < 0.1


def test_people_in_neither_pool_are_indistinguishable():
    scores = likelihood(OUTSIDERS)
    # Standard error of an AUC of 200 against 200 is 0.029: four of them, 6 in 100,000 seeds.
    assert abs(gen.measure_attack(scores[:200], scores[200:]).auc - 0.5) < 0.116
    # The broken control: half of the "outsiders" were in the pool after all.
    assert gen.measure_attack(likelihood(POOL), scores[200:]).auc > 0.616


def test_measured_attack_by_hand():
    outsiders = np.arange(100.0)
    assert gen.measure_attack(np.array([200.0, -1.0]), outsiders) == (0.5, 0.5)
    # 98.5 stands above all outsiders but one: found at one false alarm in 100, not at none.
    assert gen.measure_attack(np.array([98.5, 98.5]), outsiders).found == 1
    assert gen.measure_attack(np.array([97.5, 97.5]), outsiders).found == 0


def test_noisy_attack_without_noise_finds_members_and_is_blind_under_much_noise():
    counts = POOL.sum(axis=0)
    exact = [gen.attack_noisy_counts(t, counts, REFERENCE, 100, scale=0.01) for t in (POOL, OUTSIDERS)]
    assert gen.measure_attack(*exact).auc > 0.9
    noise = np.random.default_rng(4).laplace(scale=3000, size=len(counts))
    blind = [
        gen.attack_noisy_counts(t, counts + noise, REFERENCE, 100, scale=3000) for t in (POOL, OUTSIDERS)
    ]
    # Standard error 0.032: four of them.
    assert abs(gen.measure_attack(*blind).auc - 0.5) < 0.13


def test_noisy_attack_is_the_ratio_of_two_probabilities():
    # One SNP, one other person, rate 1/2, noise too small to matter: 3 copies in all.
    def ratio(copies):
        return gen.attack_noisy_counts(np.array([[copies]]), np.array([3]), np.array([0.5]), 2, 0.01)[0]

    # With a target of 2 copies the other has 1 (chance 1/2); without, 3 of 4 (chance 4/16).
    assert ratio(2) == pytest.approx(np.log(0.5 / 0.25))
    assert ratio(1) == pytest.approx(np.log(0.25 / 0.25))
    assert ratio(0) < -50


def noise_of(count, epsilon, runs=20):
    pool = np.ones((3, count), int)
    return np.concatenate([gen.release_frequencies(pool, epsilon)[0] - 3 for _ in range(runs)])


def fits_scale(noise, scale):
    """Mean absolute noise within five standard errors of the scale: a right one fails for 6 in 10 million runs."""
    return abs(np.abs(noise).mean() / scale - 1) < 5 / np.sqrt(len(noise)) + 0.5 / scale**2


def test_noise_is_scaled_by_twice_the_number_of_snps():
    count, epsilon = 200, 2.0
    noise = noise_of(count, epsilon)
    assert fits_scale(noise, 2 * count / epsilon)
    assert not fits_scale(noise / 2, 2 * count / epsilon)  # half of the noise
    assert not fits_scale(np.random.default_rng(5).laplace(scale=2 / epsilon, size=4000), 2 * count / epsilon)
    guarantee = gen.release_frequencies(np.ones((3, count), int), epsilon)[1]
    assert guarantee.epsilon == pytest.approx(epsilon) and guarantee.delta == 0
    assert (guarantee.unit, guarantee.adjacency) == ("record", "replace")


def test_replacing_one_genome_moves_the_counts_by_the_sensitivity_at_most():
    pool, other = np.zeros((5, 30), int), np.zeros((5, 30), int)
    other[0] = 2
    moved = np.abs(pool.sum(axis=0) - other.sum(axis=0)).sum()
    guarantee = gen.release_frequencies(pool, 1.0)[1]
    assert any(f"at most {moved}" in text for text in guarantee.assumptions)


def test_noise_is_fresh_in_each_release():
    first, second = (noise_of(500, 1.0, runs=1) for _ in range(2))
    # Independent noise of scale 1,000 on 500 SNPs is never the same twice; reused noise is.
    assert (first != second).mean() > 0.9


def test_agreement_allows_any_naming_and_sees_a_wrong_sort():
    truth = np.array(["a", "a", "b", "b", "c", "c"])
    assert gen.agreement(np.array([2, 2, 0, 0, 1, 1]), truth) == 1
    assert gen.agreement(np.array([2, 2, 0, 1, 1, 1]), truth) == pytest.approx(5 / 6)
    assert gen.agreement(np.zeros(6, int), truth) == pytest.approx(1 / 3)


def test_illness_follows_the_genome_as_heritability_says():
    people = draw_people(600, FREQUENCIES, 6)
    ill = gen.simulate_disease(people, causal=1, heritability=1.0, prevalence=0.25, seed=7)
    cause = np.random.default_rng(7).choice(people.shape[1], 1, replace=False)[0]
    by_copies = [ill[people[:, cause] == copies] for copies in range(3)]
    # With one cause and no chance, the copies decide: groups are all ill or all healthy.
    assert all(len(group) == 0 or group.all() or not group.any() for group in by_copies)
    chance = gen.simulate_disease(people, causal=1, heritability=0.0, prevalence=0.25, seed=7)
    assert chance.mean() == pytest.approx(0.25, abs=0.01)
    assert 0.1 < chance[people[:, cause] == 1].mean() < 0.4


def test_risk_model_leaks_its_training_people_and_only_them():
    people = draw_people(400, FREQUENCIES, 8)
    ill = gen.simulate_disease(people, causal=20, seed=9)
    train, test = np.arange(200), np.arange(200, 400)
    sure = {p: gen.attack_risk_model(gen.predict_risk(people, ill, train, p), ill) for p in (0.001, 100)}
    plain, strong = (gen.measure_attack(sure[p][train], sure[p][test]).auc for p in (0.001, 100))
    assert plain > 0.8 and strong < plain
    # Between people it never saw: standard error 0.041, four of them.
    assert abs(gen.measure_attack(sure[0.001][test[::2]], sure[0.001][test[1::2]]).auc - 0.5) < 0.165


def test_risk_ignores_the_labels_of_people_not_trained_on():
    people = draw_people(60, FREQUENCIES[:80], 10)
    ill = np.arange(60) % 3 == 0
    flipped = np.where(np.arange(60) < 30, ill, ~ill)
    train = np.arange(30)
    same = gen.predict_risk(people, ill, train, 1.0) == gen.predict_risk(people, flipped, train, 1.0)
    assert same.all()
    assert roc_auc_score(ill[train], gen.predict_risk(people, ill, train, 0.01)[train]) == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: gen.simulate_genomes({"CEU": 5, "GBR": 5}), "populations among"),
        (lambda: gen.simulate_genomes({"CEU": 0}), "1 or more"),
        (lambda: gen.simulate_genomes({"YRI": 5}), "add it to people"),
        (lambda: gen.simulate_genomes({"CEU": 5}, seed=0), "seed"),
        (lambda: gen.variant_frequencies(np.array([0, 1])), "first axis"),
        (lambda: gen.variant_frequencies(np.array([[0, 3]])), "0, 1 or 2"),
        (lambda: gen.variant_frequencies(np.array([[0.5]])), "whole-number"),
        (lambda: gen.attack_distance(POOL, RELEASED[:-1], REFERENCE), "same order"),
        (lambda: gen.attack_likelihood(POOL, RELEASED, REFERENCE, floor=0), "floor"),
        (lambda: gen.measure_attack(np.ones(5), np.ones(50)), "outsiders"),
        (lambda: gen.release_frequencies(POOL, 0), "epsilon"),
        (lambda: gen.release_frequencies(POOL, 0), "above 0"),
        (lambda: gen.simulate_disease(POOL, causal=0), "causal"),
        (lambda: gen.predict_risk(POOL, np.zeros(100, bool), np.arange(50), 1.0), "healthy"),
        (lambda: gen.predict_risk(POOL, np.arange(100) % 2, np.arange(50), 0), "penalty"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
