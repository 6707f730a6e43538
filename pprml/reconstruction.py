"""Records out of statistics: secret bits from sums with errors, and the people of a block from its published tables.

For teaching. The people are rows of Adult dealt into made-up blocks; no function prints or returns anybody's row to publish.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_matrix, hstack, identity, vstack
from scipy.stats import binom

from pprml._noise import add_laplace, check_epsilon
from pprml.accounting import PrivacyGuarantee, laplace_guarantee

#: Where a search among noisy tables ends. In 1,597 of them 77 nodes and two seconds were enough, but a rare draw of the noise lets it
#: grow until the memory is gone.
SEARCH = {"node_limit": 2_000, "time_limit": 20.0}
#: What `milp` calls a problem that has no solution.
INFEASIBLE = 2


class Tables(NamedTuple):
    """What tables a block gets; everybody is in one cell of each of the `number` tables.

    `counts` and `ages` are sparse (cells, kinds): times a block (people of each kind) they give each cell's people, and its sum of
    ages less `center`, the middle of the ages. `reach` is how far an age can be from it.
    """

    counts: csr_matrix
    ages: csr_matrix
    center: int
    reach: int
    number: int


class Release(NamedTuple):
    """Published numbers as intervals (cells,): number of people, and sum of ages less the center; equal ends where exact."""

    low: np.ndarray
    high: np.ndarray


def ask_sums(secret: np.ndarray, queries: np.ndarray, error: int, seed: int) -> np.ndarray:
    """Answer how many people of each group have the secret bit, each answer off by a whole number drawn from -error to error.

    `secret` is (people,), `queries` is (questions, people): who is in the group; both of 0 and 1.
    """
    secret, queries = _check_bits(secret, queries)
    if error < 0 or error != int(error):
        raise ValueError(f"error must be a whole number, 0 or more; got {error}")
    return queries @ secret + np.random.default_rng(seed).integers(-error, error + 1, size=len(queries))


def answer_privately(
    secret: np.ndarray, queries: np.ndarray, epsilon: float
) -> tuple[np.ndarray, PrivacyGuarantee]:
    """Answer the same questions with OpenDP's discrete Laplace noise, fresh in each call; `epsilon` is for all answers together."""
    # One record, replaced: its bit moves every answer by up to 1, so the L1 sensitivity is the number of questions.
    secret, queries = _check_bits(secret, queries)
    check_epsilon(epsilon)
    scale = len(queries) / epsilon
    guarantee = laplace_guarantee(scale, 1, "record", "replace", releases=len(queries))
    return add_laplace(np.rint(queries @ secret).astype(int), scale), guarantee


def attack_least_squares(
    queries: np.ndarray, answers: np.ndarray, share: float, error_sd: float
) -> np.ndarray:
    """Guess secret bits by least squares, bool (people,).

    The attacker knows the share of people with the bit, and leans towards it as far as the errors leave the answers in doubt.
    """
    queries = _check_bits(np.zeros(np.shape(queries)[1], int), queries)[1]
    if not 0 < share < 1 or error_sd < 0:
        raise ValueError("share must be inside 0 to 1 and error_sd 0 or more")
    return solve_bits(queries, answers, share, error_sd)


def solve_bits(queries: np.ndarray, answers: np.ndarray, share: float, error_sd: float) -> np.ndarray:
    """Do what `attack_least_squares` does, without its checks."""
    # How far to trust the share rather than the answers: the more they err, the further.
    lean = max(error_sd**2 / (share * (1 - share)), 1e-6)
    sums = queries.T @ queries + lean * np.eye(queries.shape[1])
    return share + np.linalg.solve(sums, queries.T @ (answers - share * queries.sum(axis=1))) > 0.5


def attack_linear_program(queries: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Guess secret bits by a linear program, bool (people,): the values from 0 to 1 whose largest error is smallest, rounded.

    Dinur and Nissim 2003, DOI 10.1145/773153.773173.
    """
    queries = _check_bits(np.zeros(np.shape(queries)[1], int), queries)[1]
    people, slack = queries.shape[1], np.ones((len(queries), 1))
    sides = np.block([[queries, -slack], [-queries, -slack]])
    cost, limits = np.r_[np.zeros(people), 1], [(0, 1)] * people + [(0, None)]
    return linprog(cost, A_ub=sides, b_ub=np.r_[answers, -answers], bounds=limits).x[:people] > 0.5


def list_kinds(ages: Sequence[int], sexes: Sequence, races: Sequence) -> pd.DataFrame:
    """List every kind of person, one row each: all combinations of age (years), sex and race."""
    return pd.MultiIndex.from_product([ages, sexes, races], names=["age", "sex", "race"]).to_frame(
        index=False
    )


def count_kinds(people: pd.DataFrame, kinds: pd.DataFrame) -> np.ndarray:
    """Count the people of each kind (kinds,); a ValueError where somebody is of no kind."""
    counts = people.groupby(list(kinds)).size().reindex(pd.MultiIndex.from_frame(kinds), fill_value=0)
    if counts.sum() != len(people):
        raise ValueError("somebody has an age, sex or race that is not listed: list it in kinds")
    return counts.to_numpy()


def plan_tables(kinds: pd.DataFrame, groupings: Sequence[Sequence[str]], band: int = 5) -> Tables:
    """Plan tables of counts and mean ages.

    For each table `groupings` has its columns: ``"sex"``, ``"race"``, ``"band"`` (of age, in years; bands start at multiples of it).
    """
    if not groupings or band < 1:
        raise ValueError("plan one table or more, and bands of one year or more")
    banded = kinds.assign(band=kinds.age // band)
    cells = [banded.groupby(list(columns)).ngroup().to_numpy() for columns in groupings]
    counts = np.vstack([(np.arange(cell.max() + 1)[:, None] == cell).astype(float) for cell in cells])
    center = int(kinds.age.min() + kinds.age.max()) // 2
    shifted, number = kinds.age.to_numpy() - center, len(cells)
    return Tables(
        csr_matrix(counts), csr_matrix(counts * shifted), center, int(np.abs(shifted).max()), number
    )


def publish_exact(tables: Tables, block: np.ndarray) -> Release:
    """Publish every count and every mean age exactly (a mean times its count is the sum of ages)."""
    exact = np.r_[tables.counts @ block, tables.ages @ block]
    return Release(exact, exact)


def naive_round_means(tables: Tables, block: np.ndarray) -> Release:
    """Publish exact counts, and mean ages to whole years."""
    count, total = tables.counts @ block, tables.ages @ block
    mean = np.rint(total / np.maximum(count, 1))
    return Release(np.r_[count, (mean - 0.5) * count], np.r_[count, (mean + 0.5) * count])


def naive_suppress(tables: Tables, block: np.ndarray, least: int = 3) -> Release:
    """Publish exact counts and mean ages, but hide both where the count is 1 to least - 1."""
    count, total = tables.counts @ block, tables.ages @ block
    hidden, far = (count > 0) & (count < least), tables.reach * (least - 1)
    low = np.r_[np.where(hidden, 1, count), np.where(hidden, -far, total)]
    return Release(low, np.r_[np.where(hidden, least - 1, count), np.where(hidden, far, total)])


def attack_tables(tables: Tables, release: Release, prior: np.ndarray, people: int) -> np.ndarray:
    """Solve tables back into people: of all blocks that give these tables, the one of the most common kinds of people.

    `prior` is the share of each kind in the population, above 0 (kinds,); `people` in the block are public. Returns the people of
    each kind (kinds,). Raises ValueError where no block gives these tables.

    Garfinkel, Abowd and Martindale 2019, DOI 10.1145/3287287.
    """
    return _solve(_rarity(tables, prior), _rules(tables, release, people), people, len(prior))


def certain_people(tables: Tables, release: Release, found: np.ndarray, people: int) -> int:
    """Count the people found who are in every block that gives these tables: those the attacker can be certain of."""
    rules, kinds = _rules(tables, release, people), len(found)
    fewest = [_solve((np.arange(kinds) == k) * 1.0, rules, people, kinds)[k] for k in np.flatnonzero(found)]
    return int(sum(fewest))


def count_right(found: np.ndarray, block: np.ndarray) -> int:
    """Count the people found with the right age, sex and race, each person of the block once."""
    return int(np.minimum(found, block).sum())


def best_guess(prior: np.ndarray, people: int) -> float:
    """Return the share of a block's people that the best guesser gets right on average who knows the population and no table."""
    # The k-th guess of a kind is right if the block has k of them or more.
    chances = np.concatenate([binom.sf(k, people, prior) for k in range(people)])
    return float(np.sort(chances)[-people:].sum() / people)


def release_tables(
    tables: Tables, block: np.ndarray, epsilon: float
) -> tuple[np.ndarray, float, PrivacyGuarantee]:
    """Release noisy counts and noisy sums of ages (less the center): OpenDP's discrete Laplace noise, fresh in each call.

    Replacing one person moves two counts of each table by 1, and two sums of each by up to `reach`. The noise on the sums is `reach`
    times larger; measured in that unit the numbers of one table together move by 4, and each table is a release. The number of people is public.

    Returns the numbers, counts before sums (2 x cells,), the scale of the noise on a count, and the guarantee (one record, replace).
    """
    check_epsilon(epsilon)
    scale = 4 * tables.number / epsilon
    counts = add_laplace(np.rint(tables.counts @ block).astype(int), scale)
    noisy = np.r_[counts, add_laplace(np.rint(tables.ages @ block).astype(int), scale * tables.reach)]
    return noisy, scale, laplace_guarantee(scale, 4, "record", "replace", releases=tables.number)


def attack_noisy_tables(
    tables: Tables, noisy: np.ndarray, scale: float, prior: np.ndarray, people: int
) -> np.ndarray:
    """Solve noisy tables back into people, no two of a kind: the most probable such block given the noise.

    That is the block whose tables lie nearest, by the sum of absolute differences in units of the noise, where common kinds of people
    are preferred to rare ones; the search ends with the nearest found after `SEARCH`. The rest is as in `attack_tables`.
    """
    unit = np.repeat([scale, scale * tables.reach], tables.counts.shape[0])
    rules = _rules(tables, Release(noisy, noisy), people)
    # A difference is an upward and a downward part, both 0 or more; the number of people has none.
    parts = identity(len(noisy) + 1, format="csr")[:, :-1]
    rules = LinearConstraint(hstack([rules.A, parts, -parts]).tocsr(), rules.lb, rules.ub)
    # Two of a kind are rare, and allowing them makes the solver many times slower.
    cost = np.r_[_rarity(tables, prior), 1 / unit, 1 / unit]
    return _solve(cost, rules, 1, len(prior), search=SEARCH)


def _rules(tables: Tables, release: Release, people: int) -> LinearConstraint:
    cells = vstack([tables.counts, tables.ages, np.ones(tables.counts.shape[1])])
    return LinearConstraint(cells.tocsr(), np.r_[release.low, people], np.r_[release.high, people])


def _solve(
    cost: np.ndarray, rules: LinearConstraint, most: int, kinds: int, search: dict | None = None
) -> np.ndarray:
    """Solve for the cheapest whole numbers of people, 0 to `most` of each of the first `kinds`; the rest is any number from 0.

    `search` are options of `milp`; where they end it early the cheapest found is returned.
    """
    whole = np.arange(len(cost)) < kinds
    limits = Bounds(0, np.where(whole, most, np.inf))
    solved = milp(cost, integrality=whole, constraints=rules, bounds=limits, options=search)
    if solved.status == INFEASIBLE:
        # SciPy 1.9's HiGHS calls some problems that have a solution infeasible when it simplifies them first.
        unsimplified = {**(search or {}), "presolve": False}
        solved = milp(cost, integrality=whole, constraints=rules, bounds=limits, options=unsimplified)
    if solved.x is None:
        raise ValueError(f"no block gives these tables: are they all of one block? ({solved.message})")
    return np.rint(solved.x[:kinds]).astype(int)


def _rarity(tables: Tables, prior: np.ndarray) -> np.ndarray:
    prior = np.asarray(prior, float)
    if prior.shape != (tables.counts.shape[1],) or not (prior > 0).all():
        raise ValueError("prior must give every kind a share above 0: add half a person to each count")
    return -np.log(prior)


def _check_bits(secret: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    secret, queries = np.asarray(secret), np.asarray(queries)
    if queries.ndim != 2 or secret.shape != queries.shape[1:]:
        raise ValueError("queries must be (questions, people), with one column for each secret bit")
    if not (np.isin(secret, [0, 1]).all() and np.isin(queries, [0, 1]).all()):
        raise ValueError("secret and queries must hold only 0 and 1")
    # Floating point: whole-number matrices multiply many times slower, and these sums are exact.
    return secret.astype(float), queries.astype(float)
