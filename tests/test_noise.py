"""The noise that four chapters release with: fresh, of the scale asked for, on whole numbers only."""

import numpy as np
import pytest

from pprml._noise import add_laplace, check_epsilon


def check_scale(noise, scale, size=20_000):
    """Mean size of discrete Laplace noise, p = exp(-1 / scale): 2 p / (1 - p^2). Five standard errors: 1 honest run in 10^6 fails."""
    sizes = np.abs(noise(np.zeros(size, int), scale))
    p = np.exp(-1 / scale)
    assert abs(sizes.mean() - 2 * p / (1 - p**2)) < 5 * sizes.std() / np.sqrt(size)


@pytest.mark.parametrize("scale", [0.7, 3, 250])
def test_noise_has_the_scale_asked_for(scale):
    check_scale(add_laplace, scale)


@pytest.mark.parametrize("factor", [0.5, 2])
def test_another_scale_is_rejected(factor):
    with pytest.raises(AssertionError):
        check_scale(lambda values, scale: add_laplace(values, factor * scale), 3)


def test_noise_is_fresh_for_every_number_and_call():
    values = np.arange(200).reshape(2, 100)
    first, second = (add_laplace(values, 1000) - values for _ in range(2))
    assert first.shape == (2, 100)
    # At this scale two draws agree once in about 4,000: more than 5 of 200 has probability 1e-9.
    assert (first == second).sum() <= 5 and len(np.unique(first)) > 150


@pytest.mark.parametrize("epsilon", [0, -1, np.nan, np.inf])
def test_bad_epsilon_is_refused(epsilon):
    with pytest.raises(ValueError, match="finite and above 0"):
        check_epsilon(epsilon)


def test_fractions_are_refused():
    with pytest.raises(ValueError, match="round them first"):
        add_laplace(np.array([0.5]), 1)
