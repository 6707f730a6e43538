"""Features of small pictures for private training: scattering coefficients, normalised within each picture, whitened with noise.

A private training pays for whatever it learns from the records. What is computed from one picture alone, by a rule that was fixed
before any picture was seen, costs nothing. A mean over the data set does cost: it is taken here as one more noisy step.
"""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.fft
from scipy.sparse.linalg import eigsh

from pprml._fetch import keras_cache
from pprml._files import write_whole
from pprml.dp_sgd import PoissonBatches

#: Octaves of blur and directions of the wavelets: 1 blurred picture, 16 of first and 64 of second order.
SCALES, DIRECTIONS, CHANNELS = 2, 8, 81
_PART = 128  # pictures at a time: they stay within the processor's cache


def scatter(pictures: np.ndarray, folder: Path | str | None = None) -> np.ndarray:
    """Return the scattering coefficients of pictures, from the cache where it holds them whole.

    70,000 pictures of 28 x 28 take about 20 seconds on two cores the first time, and 556 MB on disk.

    Parameters
    ----------
    pictures : ndarray of uint8, shape (pictures, height, width)
        Grey pictures; height and width are multiples of 4, and at least 8.
    folder : path, optional
        Where results are kept; by default beside the data sets in Keras's cache.

    Returns
    -------
    ndarray of float16, shape (pictures, 81, height / 4, width / 4)
        The blurred picture, 16 coefficients of first order and 64 of second, at each place.

    Raises
    ------
    ValueError
        The pictures have another type or shape.

    Warns
    -----
    UserWarning
        The cache cannot be written; the result is returned all the same.

    References
    ----------
    Bruna and Mallat 2013, arXiv 1203.1513; Andreux et al. 2020 (Kymatio), arXiv 1812.11214.
    """
    _check_pictures(pictures)
    path = Path(folder or keras_cache().parent / "scattering") / f"{_name_result(pictures)}.bin"
    shape = (len(pictures), CHANNELS, pictures.shape[1] // 4, pictures.shape[2] // 4)
    stored = _read_checked(path)
    if stored is not None:
        return stored.reshape(shape)
    coefficients = _compute(pictures, shape)
    try:
        body = coefficients.tobytes()
        write_whole(path, hashlib.sha256(body).digest() + body)
    except OSError as error:
        warnings.warn(f"the scattering coefficients are not cached: {error.strerror}", stacklevel=2)
    return coefficients


def normalize_groups(
    coefficients: np.ndarray, groups: int = 27, local_floor: float | None = None
) -> np.ndarray:
    """Return features of mean 0 and variance 1 within each group of channels of each picture.

    Parameters
    ----------
    coefficients : ndarray, shape (pictures, channels, height, width)
        From `scatter`.
    groups : int
        Number of groups of neighbouring channels; divides the number of channels.
    local_floor : float, optional
        Where given, the coefficients of a place are first divided by this much more than the length of its coefficients of first
        and second order: the features then tell which way edges run and not how strong they are. The floor keeps empty places
        from being blown up.

    Returns
    -------
    ndarray of float32, shape (pictures, channels * height * width)
        Each row has length sqrt(channels * height * width), less where a group is nearly constant. A row depends on its own
        picture alone, so the features cost no privacy.

    Raises
    ------
    ValueError
        The groups do not divide the channels, or the floor is no positive number.

    References
    ----------
    Tramèr and Boneh 2021, arXiv 2011.11660 (group normalisation of scattering features); Dalal and Triggs 2005,
    DOI 10.1109/CVPR.2005.177 (local normalisation of gradient histograms).
    """
    if coefficients.shape[1] % groups:
        raise ValueError(f"{groups} groups do not divide {coefficients.shape[1]} channels; take a divisor")
    if local_floor is not None and not 0 < local_floor < np.inf:
        raise ValueError(f"local_floor must be a positive number or None, got {local_floor}")
    features = np.empty((len(coefficients), np.prod(coefficients.shape[1:])), np.float32)

    def fill(some: slice) -> None:
        part = coefficients[some].astype(np.float32)
        if local_floor is not None:
            part /= np.linalg.norm(part[:, 1:], axis=1, keepdims=True) + local_floor
        by_group = part.reshape(len(part), groups, -1)
        by_group -= by_group.mean(axis=2, keepdims=True)
        by_group /= np.sqrt(np.square(by_group).mean(axis=2, keepdims=True) + 1e-5)
        features[some] = by_group.reshape(len(part), -1)

    _fill_parts(fill, len(coefficients))
    return features


class Whitening(NamedTuple):
    """What was learned with noise about all rows: their mean, and the directions in which they spread most, with factors below 1."""

    center: np.ndarray
    directions: np.ndarray
    factors: np.ndarray

    def apply(self, features: np.ndarray, length: float = 10.0) -> np.ndarray:
        """Return rows that are centred, shortened along the directions, and all of one length; float32, shape as `features`."""
        whitened = np.empty(features.shape, np.float32)
        for start in range(0, len(features), _PART):
            part = _scale_rows(features[start : start + _PART], out=whitened[start : start + _PART])
            part -= self.center
            _scale_rows(part, out=part)
            part -= ((part @ self.directions.T) * (1 - self.factors)) @ self.directions
            _scale_rows(part, out=part)
            part *= length
        return whitened


def whiten_privately(features: np.ndarray, batches: PoissonBatches, noise_multiplier: float) -> Whitening:
    """Estimate the mean of the rows from one noisy batch, and the directions of their greatest spread from another.

    Training converges faster where no direction is far longer than the rest, and rows without their common part leave a clipped
    gradient more room for what tells them apart. Both batches are drawn and noised like a step of DP-SGD with a clipping norm
    of 1, so that the guarantee is that of two more steps.

    Parameters
    ----------
    features : ndarray, shape (records, width)
        One row a record.
    batches : PoissonBatches
        Two batches of the records, with a seed of their own: no noise may be used twice.
    noise_multiplier : float
        Standard deviation of the noise on either sum, whose sensitivity is 1.

    Returns
    -------
    Whitening
        Directions are those, 50 at most, whose spread is above all that the noise alone reaches. They are shortened to it.

    Raises
    ------
    ValueError
        The batches are not two of these records, or `noise_multiplier` is no positive number.

    References
    ----------
    Dwork, Talwar, Thakurta and Zhang 2014, DOI 10.1145/2591796.2591883 (noisy covariance).
    """
    records, width = features.shape
    if (batches.records, batches.steps) != (records, 2):
        raise ValueError(f"two batches of the {records} records are needed, got {batches}")
    if not 0 < noise_multiplier < np.inf:
        raise ValueError(f"noise_multiplier must be a positive number, got {noise_multiplier}")
    # Sensitivity 1: every row has length 1.
    total = _scale_rows(features[batches.draw(0)]).sum(axis=0)
    center = (total + batches.draw_noise(0, width, noise_multiplier)) / batches.batch_size
    rows = _scale_rows(_scale_rows(features[batches.draw(1)]) - center)
    # Sensitivity 1: a row of length 1 adds a matrix of Frobenius norm 1. Averaging with the transpose comes after the noise.
    square = rows.T @ rows + batches.draw_noise(1, width**2, noise_multiplier).reshape(width, width)
    spread = (square + square.T) / (2 * batches.batch_size)
    # The largest eigenvalue of the noise alone, by Wigner's law: it depends on no record.
    floor = np.sqrt(2 * width) * noise_multiplier / batches.batch_size
    # Mostly a few stand out. Finding fifty would take the longest over those that do not.
    most = min(50, width - 1)
    for count in (10, 20, most):
        values, vectors = eigsh(spread, k=min(count, most), which="LA", v0=np.ones(width, np.float32))
        kept = values > floor
        if not kept.all():
            break
    return Whitening(center, vectors[:, kept].T, np.sqrt(floor / values[kept]))


def _scale_rows(rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return rows of length 1; a row of zeros stays one."""
    return np.divide(rows, np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), out=out)


def _check_pictures(pictures: np.ndarray) -> None:
    if pictures.dtype != np.uint8 or pictures.ndim != 3 or not len(pictures):
        raise ValueError(
            f"pictures must be uint8 of shape (pictures, height, width), got {pictures.dtype} {pictures.shape}"
        )
    if any(side % 4 or side < 8 for side in pictures.shape[1:]):
        raise ValueError(
            f"height and width must be multiples of 4 from 8 on, got {pictures.shape[1:]}; pad them"
        )


def _name_result(pictures: np.ndarray) -> str:
    """Return a name that changes with everything the result depends on."""
    how = f"2: kymatio {version('kymatio')} J={SCALES} L={DIRECTIONS} {pictures.shape}"
    digest = hashlib.sha256(how.encode())
    digest.update(np.ascontiguousarray(pictures))
    return digest.hexdigest()[:32]


def _read_checked(path: Path) -> np.ndarray | None:
    """Return the numbers of a cached file, or None where there is none or its checksum does not fit."""
    if not path.is_file():
        return None
    content = memoryview(path.read_bytes())
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        print(f"{path.name} in the scattering cache is damaged: it is computed again", file=sys.stderr)
        return None
    return np.frombuffer(content, np.float16, offset=32)


def _fill_parts(fill: Callable[[slice], None], rows: int) -> None:
    """Call `fill` with each part of the rows, on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # A list, so that an error is raised.
        list(pool.map(fill, (slice(start, start + _PART) for start in range(0, rows, _PART))))


def _compute(pictures: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    transform, coefficients = _Transform(pictures.shape[1:]), np.empty(shape, np.float16)

    def fill(some: slice) -> None:
        transform.write(pictures[some].astype(np.float32) / 255, coefficients[some])

    _fill_parts(fill, len(pictures))
    return coefficients


class _Transform:
    """Kymatio's scattering in two scales, with its filters and its padding, but in steps that need a third of the time.

    A Gaussian blur is one along the columns and one along the rows, so two small matrices do it, and make only the places that are
    kept. Halving the resolution of a spectrum adds its four quarters; to divide by four is left to the filter.
    """

    def __init__(self, sides: tuple[int, int]) -> None:
        from kymatio.numpy import Scattering2D  # loads half of SciPy

        kymatio = Scattering2D(SCALES, sides, L=DIRECTIONS)
        filters = [psi["levels"][0] for psi in kymatio.psi]
        self.pad, self.fine = kymatio.pad, filters[:DIRECTIONS]
        self.coarse = [each / 4 for each in filters[DIRECTIONS:]]
        self.blurs = [_split_blur(phi, 4 >> level) for level, phi in enumerate(kymatio.phi["levels"])]

    def write(self, pictures: np.ndarray, out: np.ndarray) -> None:
        """Write the coefficients of float32 pictures to `out`, shape (pictures, 81, height / 4, width / 4)."""
        padded = self.pad(pictures)
        count, height, width = padded.shape
        product = np.empty(padded.shape, np.complex64)
        rows = np.empty((count, height // 2, width), np.complex64)
        quarter = np.empty((count, height // 2, width // 2), np.complex64)
        fine, coarse = np.empty(padded.shape, np.float32), np.empty(quarter.shape, np.float32)

        def blur(pictures: np.ndarray, level: int = 0) -> np.ndarray:
            down, across = self.blurs[level]
            return down @ pictures @ across

        def filter_coarsely(spectrum: np.ndarray, by: np.ndarray) -> np.ndarray:
            np.multiply(spectrum, by, out=product)
            np.add(product[:, : height // 2], product[:, height // 2 :], out=rows)
            np.add(rows[:, :, : width // 2], rows[:, :, width // 2 :], out=quarter)
            return blur(np.abs(scipy.fft.ifft2(quarter, overwrite_x=True), out=coarse), level=1)

        out[:, 0] = blur(padded)
        spectrum, second = scipy.fft.fft2(padded), 1 + 2 * DIRECTIONS
        for place, by in enumerate(self.coarse, start=1 + DIRECTIONS):
            out[:, place] = filter_coarsely(spectrum, by)
        for place, by in enumerate(self.fine, start=1):
            np.multiply(spectrum, by, out=product)
            out[:, place] = blur(np.abs(scipy.fft.ifft2(product, overwrite_x=True), out=fine))
            strength = scipy.fft.fft2(fine)
            for also in self.coarse:
                out[:, second] = filter_coarsely(strength, also)
                second += 1


def _split_blur(spectrum: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two matrices, to be applied from the left and from the right, that blur and keep every `step`-th place less the rim."""
    matrices = []
    for along in (spectrum[:, 0], spectrum[0]):
        pixels = scipy.fft.fft(np.eye(len(along)), axis=0)
        blurred = scipy.fft.ifft(pixels * (along / np.sqrt(spectrum[0, 0]))[:, None], axis=0).real
        matrices.append(blurred[::step][1:-1].astype(np.float32))
    return matrices[0], np.ascontiguousarray(matrices[1].T)
