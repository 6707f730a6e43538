"""Decision trees as circuits: a comparison becomes a polynomial, a branch becomes a product.

A model is evaluated on a `Ring`, or on `Clear` numbers. It splits into two whose answers add up, for two processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pprml.encrypted_inference.cards import Card


def fit_sign(margin: float, degrees: Sequence[int] = (7, 7, 7)) -> tuple[list[np.ndarray], float]:
    """Approximate the sign on margin <= abs(x) <= 1 by odd polynomials, applied one after the other.

    Parameters
    ----------
    margin : float
        Smallest distance from zero that must be told.
    degrees : sequence of int
        Degree of each polynomial: 3, 7 or 15. A degree d takes log2(d + 1) levels.

    Returns
    -------
    polynomials : list of ndarray
        Coefficients of x, x^3, x^5, ...
    error : float
        Largest difference from the sign over the interval.

    Raises
    ------
    ValueError
        A degree that is not 3, 7 or 15, or a margin outside (0, 1).

    Notes
    -----
    Each is the best polynomial for the interval into which the one before it maps, found as a linear programme on a fine grid:
    a minimax composite (Lee, Lee, No and Kim, eprint 2020/834) in place of the fixed polynomials of Cheon, Kim and Kim
    (eprint 2019/1234).
    """
    from scipy.optimize import linprog  # slow to import, and the server's processes do not need it

    if not 0 < margin < 1 or not set(degrees) <= {3, 7, 15} or not degrees:
        raise ValueError("a margin between 0 and 1 and degrees 3, 7 or 15 are needed")
    polynomials, low, high, error = [], margin, 1.0, 1.0
    for degree in degrees:
        x = np.unique(np.r_[np.geomspace(low, high, 500), np.linspace(low, high, 500)]) / high
        powers = x[:, None] ** np.arange(1, degree + 1, 2)
        one, count = np.ones((len(x), 1)), powers.shape[1]
        # Minimise the error e subject to -e <= p(x) - 1 <= e.
        bounds = np.r_[np.c_[powers, -one], np.c_[-powers, -one]], np.r_[one, -one].ravel()
        found = linprog(np.eye(count + 1)[-1], *bounds, bounds=[(None, None)] * (count + 1), method="highs").x
        polynomials.append(found[:-1] / high ** np.arange(1, degree + 1, 2))
        error = float(found[-1]) * 1.01 + 1e-9  # room for what lies between the grid's points
        low, high = 1 - error, 1 + error
    return polynomials, error


def evaluate_odd(ring: Any, x: Any, coefficients: np.ndarray) -> Any:
    """Evaluate c[0] x + c[1] x^3 + c[2] x^5 + ..., 2, 4 or 8 coefficients, in log2(degree + 1) levels."""
    powers = [ring.multiply(x, x)]
    while 2 ** len(powers) < len(coefficients):
        powers.append(ring.multiply(powers[-1], powers[-1]))

    def part(c):
        if len(c) == 1:
            return ring.weighted_sum([x], c)
        half = len(c) // 2
        return ring.add(part(c[:half]), ring.multiply(part(c[half:]), powers[half.bit_length() - 1]))

    return part(coefficients)


@dataclass(frozen=True)
class Forest:
    """Decision trees whose comparisons are polynomials. The answer is the mean of the trees' scores.

    A tree is a number (a leaf) or (feature, threshold, tree where the feature is below, tree where it is above).
    """

    trees: tuple
    features: int
    polynomials: list[np.ndarray]
    cells: int = 0

    @classmethod
    def convert(cls, model: Any, score: int, degrees: Sequence[int] = (7, 7, 7), cells: int = 16) -> "Forest":
        """Take over a fitted scikit-learn tree or forest of values in [0, 1]; `score` is the class whose probability is told.

        With `cells`, thresholds go to the borders of the grid that its training values lay on, where they decide the same.
        """
        found = [estimator.tree_ for estimator in getattr(model, "estimators_", [model])]
        if min(tree.max_depth for tree in found) == 0:
            raise ValueError("a tree without a comparison needs no encryption: fit a deeper one")

        def convert(tree, node):
            if tree.children_left[node] == -1:
                return float(tree.value[node, 0, score] / tree.value[node, 0].sum())
            branches = (convert(tree, child[node]) for child in (tree.children_left, tree.children_right))
            threshold = float(tree.threshold[node])
            # scikit-learn goes left at the threshold itself, so a middle that equals it belongs below the border.
            border = (np.floor(threshold * cells - 0.5) + 1) / cells if cells else threshold
            return int(tree.feature[node]), float(border), *branches

        polynomials = fit_sign(0.5 / (cells or 16), degrees)[0]
        return cls(tuple(convert(tree, 0) for tree in found), model.n_features_in_, polynomials, cells)

    @property
    def card(self) -> Card:
        """What a client is told."""
        levels = sum(len(c).bit_length() for c in self.polynomials) + max(map(_depth, self.trees))
        return Card(self.features, 1, levels, self.cells)

    def split(self) -> list["Forest"]:
        """Return two forests whose answers add up: the branches to the left of each root, and those to the right."""
        left = tuple((*tree[:3], 0.0) for tree in self.trees)
        return [
            replace(self, trees=left),
            replace(self, trees=tuple((*t[:2], 0.0, t[3]) for t in self.trees)),
        ]

    def evaluate(self, ring: Any, inputs: Sequence) -> list:
        """Return the one answer, from a ciphertext (or a column) for each feature."""
        bits: dict = {}
        first, *rest = (self._walk(ring, inputs, tree, bits) for tree in self.trees)
        for answer in rest:
            first = ring.add(first, answer)
        return [first]

    def _walk(self, ring, inputs, tree, bits):
        if not isinstance(tree, tuple):
            return tree / len(self.trees)
        feature, threshold, *branches = tree
        below, above = (self._walk(ring, inputs, branch, bits) for branch in branches)
        if (feature, threshold) not in bits:
            bits[feature, threshold] = self._compare(ring, inputs[feature], threshold)
        # The bit is one where the feature is above: below + bit * (above - below).
        bit = bits[feature, threshold]
        if isinstance(below, float) and isinstance(above, float):
            return (
                below if below == above else ring.add_number(ring.weighted_sum([bit], [above - below]), below)
            )
        if isinstance(below, float):
            return ring.add_number(ring.multiply(bit, ring.add_number(above, -below)), below)
        down = ring.negate(below)
        gap = ring.add_number(down, above) if isinstance(above, float) else ring.add(above, down)
        return ring.add(ring.multiply(bit, gap), below)

    def _compare(self, ring, x, threshold):
        x = ring.add_number(x, -threshold)
        *first, last = self.polynomials
        for coefficients in first:
            x = evaluate_odd(ring, x, coefficients)
        return ring.add_number(evaluate_odd(ring, x, last / 2), 0.5)


def _depth(tree):
    return 1 + max(_depth(tree[2]), _depth(tree[3])) if isinstance(tree, tuple) else 0
