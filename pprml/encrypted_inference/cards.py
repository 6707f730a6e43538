"""What a client is told of a model, and how its records become vectors to encrypt."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Card:
    """What a client needs to know of a model: shape, depth and allowed inputs, but no weight or threshold.

    `period` is 0 where each slot holds a record and each ciphertext a feature; else a ciphertext holds one record,
    repeated every `period` slots. Values lie in [low, 1], and in the middle of one of `cells` equal cells if `cells` is set.
    Answers stay below 2^(head_bits - 1) in size.
    """

    features: int
    outputs: int
    levels: int
    cells: int = 0
    period: int = 0
    steps: tuple[int, ...] = ()
    low: float = 0.0
    head_bits: int = 8

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts that one batch of records makes."""
        return 1 if self.period else self.features

    def check(self, X: np.ndarray) -> np.ndarray:
        """Return records (n, features) as floats, or say what is wrong with them. Names features, never a value."""
        X = np.asarray(X, float)
        if X.ndim != 2 or X.shape[1] != self.features or len(X) == 0:
            raise ValueError(f"expected records of {self.features} features, got an array of shape {X.shape}")
        outside = np.maximum(self.low - X, X - 1) > 0
        problems = {
            "missing or infinite: impute it": ~np.isfinite(X),
            f"outside [{self.low:g}, 1], where polynomials explode: scale it, as with Grid": outside,
        }
        if self.cells:
            off = np.abs((X * self.cells) % 1 - 0.5) > 1e-9
            problems["between the cells of the grid, too near a threshold: use Grid.round"] = off
        for problem, where in problems.items():
            if where.any():
                raise ValueError(
                    f"feature {', '.join(map(str, np.flatnonzero(where.any(axis=0))[:5]))} is {problem}"
                )
        return X

    def lay_out(self, X: np.ndarray, slots: int) -> list[np.ndarray]:
        """Return the batches of checked records, each as the vectors to encrypt, (ciphertexts, slots used)."""
        X = self.check(X)
        if self.period:
            padded = np.pad(X, ((0, 0), (0, self.period - self.features)))
            return [np.tile(row, slots // self.period)[None] for row in padded]
        return [X[start : start + slots].T for start in range(0, len(X), slots)]

    def read(self, opened: np.ndarray, records: int) -> np.ndarray:
        """Return answers (records, outputs) from the slots of a batch's decrypted answers."""
        return opened[:, : self.outputs] if self.period else opened[:, :records].T


@dataclass(frozen=True)
class Grid:
    """Public ranges of the features, each cut into equal cells; a value is sent as the middle of its cell."""

    low: np.ndarray
    high: np.ndarray
    cells: int = 16

    def __post_init__(self):
        wide = np.asarray(self.high, float) - np.asarray(self.low, float)
        if flat := ", ".join(map(str, np.flatnonzero(~((wide > 0) & np.isfinite(wide))))):
            raise ValueError(f"feature {flat} has no range: it is constant or missing; leave it out")
        if self.cells < 1:
            raise ValueError(f"cells must be 1 or more, got {self.cells}")

    def scale(self, X: np.ndarray) -> np.ndarray:
        """Map each feature to [0, 1]; what lies beyond its range goes to the edge. A missing value stays one."""
        return np.clip((np.asarray(X, float) - self.low) / (self.high - self.low), 0, 1)

    def round(self, X: np.ndarray) -> np.ndarray:
        """Return the middle of each value's cell, in [0, 1]."""
        return (np.minimum(np.floor(self.scale(X) * self.cells), self.cells - 1) + 0.5) / self.cells

    @property
    def margin(self) -> float:
        """Distance from the middle of a cell to its border; thresholds are put on borders."""
        return 0.5 / self.cells
