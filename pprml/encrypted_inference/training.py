"""Logistic regression by gradient descent on encrypted records, for as many steps as the depth allows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pprml.encrypted_inference.cards import Card
from pprml.encrypted_inference.trees import evaluate_odd

#: 1 / (1 + e^z) is near 0.5 + SLOPE[0] z + SLOPE[1] z^3 on [-8, 8] (Kim, Song, Kim, Lee and Cheon 2018, eprint 2018/254).
SLOPE = np.array([-0.15012, 0.001593])


@dataclass(frozen=True)
class RowsCard(Card):
    """Records for training: a ciphertext a feature, with all records in it, repeated every `period` slots."""

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts that the records make."""
        return self.features

    def lay_out(self, X: np.ndarray, slots: int) -> list[np.ndarray]:
        """Return the one batch, (features, slots); records are filled up with zeros, which pull nowhere."""
        X = self.check(X)
        if len(X) > self.period:
            raise ValueError(f"{len(X)} records, but the layout holds {self.period}: raise `records`")
        return [np.tile(np.pad(X.T, ((0, 0), (0, self.period - len(X)))), slots // self.period)]

    def read(self, opened: np.ndarray, records: int) -> np.ndarray:
        """Return the weights, (1, features), which stand in every slot."""
        return opened[:, :1].T


@dataclass(frozen=True)
class Descent:
    """Gradient descent from zero on records that carry their class as sign: feature times +1 or -1, in [-1, 1].

    Each step after the first takes four levels: one for the margin, two for the slope of the loss, one for the product with the record.
    """

    features: int
    records: int  # a power of two
    updates: int
    rate: float

    @property
    def card(self) -> RowsCard:
        """What a client is told."""
        steps = tuple(1 << place for place in range(self.records.bit_length() - 1))
        levels = 1 + 4 * (self.updates - 1)
        return RowsCard(self.features, self.features, levels, period=self.records, steps=steps, low=-1.0)

    def split(self) -> list["Descent"]:
        """Return the whole descent: a step needs all of the step before."""
        return [self]

    def evaluate(self, ring: Any, inputs: Sequence) -> list:
        """Return a weight a feature."""
        weights = [self._fold(ring, ring.weighted_sum([x], [0.5 * self.rate])) for x in inputs]
        for _ in range(self.updates - 1):
            first, *rest = map(ring.multiply, inputs, weights)
            for term in rest:
                first = ring.add(first, term)
            slope = ring.add_number(evaluate_odd(ring, first, self.rate * SLOPE), 0.5 * self.rate)
            pulls = [self._fold(ring, ring.multiply(x, slope)) for x in inputs]
            weights = list(map(ring.add, weights, pulls))
        return weights

    def _fold(self, ring, x):
        """Sum over the records; the sum stands in every slot, since the records repeat."""
        for step in self.card.steps:
            x = ring.add(x, ring.rotate(x, step))
        return x
