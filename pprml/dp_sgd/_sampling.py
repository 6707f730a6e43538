"""Who joins a batch, and the noise: drawn step by step, so that an interrupted run goes on with the same draws."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np

from pprml._noise import draw_gaussian
from pprml.accounting import PrivacyGuarantee, dp_sgd_guarantee

#: Keeps the draws of batches and of noise apart under one seed.
_BATCH, _NOISE = 0, 1


@dataclass(frozen=True)
class PoissonBatches:
    """Batches that each record joins independently: what a Poisson accountant assumes.

    Attributes
    ----------
    records : int
        Size of the training set.
    batch_size : int
        Expected size of a batch; the realised one varies.
    steps : int
        Number of batches.
    seed : int, optional
        Seed of the draws and of the noise: for an experiment that must repeat. Whoever knows it can remove the noise. With None both
        come from the operating system's cryptographic source (the noise through OpenDP) and cannot be repeated: for a deployment.
    """

    records: int
    batch_size: int
    steps: int
    seed: int | None
    sampling = "poisson"

    def __post_init__(self) -> None:
        if not _is_whole(self.batch_size) or not 0 < self.batch_size <= self.records:
            raise ValueError(
                f"batch_size must be a whole number from 1 to the {self.records} records, got {self.batch_size}"
            )
        if not _is_whole(self.steps) or self.steps < 1:
            raise ValueError(f"steps must be a whole number, 1 or more, got {self.steps}")

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield index arrays of varying length."""
        return map(self.draw, range(self.steps))

    def draw(self, step: int) -> np.ndarray:
        """Return the indices of the records in one step's batch."""
        rate = self.batch_size / self.records
        if self.seed is None:
            uniform = np.frombuffer(os.urandom(8 * self.records), np.uint64) * 2.0**-64
        else:
            uniform = self._generator(_BATCH, step).random(self.records)
        return np.flatnonzero(uniform < rate)

    def draw_noise(self, step: int, size: int, scale: float) -> np.ndarray:
        """Return one step's Gaussian noise of standard deviation `scale`, shape (size,), float32."""
        if self.seed is None:
            return draw_gaussian(size, scale).astype(np.float32)
        return scale * self._generator(_NOISE, step).standard_normal(size, dtype=np.float32)

    def _generator(self, purpose: int, step: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, purpose, step])))

    def guarantee(self, noise_multiplier: float, delta: float) -> PrivacyGuarantee:
        """Return the guarantee of DP-SGD over these batches."""
        epochs = self.steps * self.batch_size / self.records
        guarantee = dp_sgd_guarantee(
            self.records, self.batch_size, epochs, noise_multiplier, delta, loader=self.sampling
        )
        if self.seed is None:
            return guarantee
        secret = "nobody knows or can guess the seed of the batches and the noise"
        return replace(guarantee, assumptions=(*guarantee.assumptions, secret))


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)
