"""A network whose activation is a square, which needs one multiplication, in two layouts: many records at once, or one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pprml.encrypted_inference.cards import Card


@dataclass(frozen=True)
class Network:
    """A dense layer, a square, a dense layer: hidden (units, features), out (outputs, units). A record in each slot."""

    hidden: np.ndarray
    hidden_bias: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray

    @property
    def card(self) -> Card:
        """What a client is told."""
        return Card(self.hidden.shape[1], len(self.out), 3, head_bits=10)

    def predict_clear(self, X: np.ndarray) -> np.ndarray:
        """Return the logits (records, outputs) without any encryption."""
        return (X @ self.hidden.T + self.hidden_bias) ** 2 @ self.out.T + self.out_bias

    def split(self) -> list["Network"]:
        """Return two networks with half of the hidden units each; their answers add up."""
        halves = np.array_split(np.arange(len(self.hidden)), 2)
        parts = zip(halves, (self.out_bias, np.zeros_like(self.out_bias)), strict=True)
        return [type(self)(self.hidden[h], self.hidden_bias[h], self.out[:, h], bias) for h, bias in parts]

    def evaluate(self, ring: Any, inputs: Sequence) -> list:
        """Return an answer an output, from a ciphertext (or a column) for each feature."""
        units = []
        for weights, bias in zip(self.hidden, self.hidden_bias, strict=True):
            unit = ring.add_number(ring.weighted_sum(inputs, weights), bias)
            units.append(ring.multiply(unit, unit))
        last = zip(self.out, self.out_bias, strict=True)
        return [ring.add_number(ring.weighted_sum(units, weights), bias) for weights, bias in last]


@dataclass(frozen=True)
class RecordNetwork(Network):
    """The same network on one record in one ciphertext: a quick answer, for one record only."""

    @property
    def card(self) -> Card:
        """What a client is told."""
        shapes = _pad(self.hidden).shape, _pad(self.out).shape
        steps = {step for rows, columns in shapes for step in list_steps(rows, columns)}
        return Card(
            self.hidden.shape[1],
            len(self.out),
            3,
            period=shapes[0][1],
            steps=tuple(sorted(steps)),
            head_bits=10,
        )

    def split(self) -> list["Network"]:
        """Return the whole network: two halves would turn the record twice."""
        return [self]

    def evaluate(self, ring: Any, inputs: Sequence) -> list:
        """Return one answer, with output k in slot k, from a ciphertext that repeats the record."""
        unit = ring.add_vector(multiply_matrix(ring, inputs[0], _pad(self.hidden)), _pad(self.hidden_bias))
        answer = multiply_matrix(ring, ring.multiply(unit, unit), _pad(self.out))
        return [ring.add_vector(answer, _pad(self.out_bias))]


def multiply_matrix(ring: Any, x: Any, matrix: np.ndarray) -> Any:
    """Multiply a known matrix with an encrypted vector, in one level and about 2 sqrt(rows) + log2(columns / rows) rotations.

    Parameters
    ----------
    ring : Ring
        With the keys for `list_steps` of the matrix.
    x : Ciphertext
        The vector, repeated every `columns` slots.
    matrix : ndarray of shape (rows, columns)
        Powers of two, rows <= columns.

    Returns
    -------
    Ciphertext
        The product, repeated every `rows` slots.

    Notes
    -----
    Diagonals of the matrix times the vector turned by one place more each time (Halevi and Shoup 2014), folded for a wide matrix
    (Juvekar, Vaikuntanathan and Chandrakasan 2018), in small and large turns.
    """
    (rows, columns), small = matrix.shape, _small_turns(len(matrix))
    places = np.arange(columns)
    turned, total = [x], None
    for _ in range(1, small):
        turned.append(ring.rotate(turned[-1], 1))
    for large in reversed(range(0, rows, small)):
        if total is not None:
            total = ring.rotate(total, small)
        for turn in range(small):
            diagonal = matrix[places % rows, (places + large + turn) % columns]
            term = ring.weigh(turned[turn], np.roll(diagonal, large))
            total = term if total is None else ring.add(total, term)
    total = ring.rescale(total)
    for step in _fold_steps(rows, columns):
        total = ring.add(total, ring.rotate(total, step))
    return total


def list_steps(rows: int, columns: int) -> list[int]:
    """Return the rotations that `multiply_matrix` uses."""
    return [1, _small_turns(rows), *_fold_steps(rows, columns)]


def _small_turns(rows):
    return 1 << (rows.bit_length() // 2)


def _fold_steps(rows, columns):
    return [rows << place for place in range((columns // rows).bit_length() - 1)]


def _pad(array):
    """Fill up with zeros to powers of two."""
    return np.pad(array, [(0, (1 << (n - 1).bit_length()) - n) for n in array.shape])
