"""Where Fashion-MNIST is found: Keras's cache, Debian's package, or fetched through one of them. Used by `datasets` alone."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pprml._files import write_whole


class DataUnavailableError(RuntimeError):
    """The data is neither cached nor within reach; the message says what to do."""


def verified(path: Path, sha256: str) -> bool:
    """Tell whether `path` exists and holds exactly the registered bytes."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def keras_cache() -> Path:
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets" / "fashion-mnist"


DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def find_fashion_mnist(files: Mapping[str, str]) -> dict[str, Path]:
    """Return the four files from the first place that has them whole, fetching them into Keras's cache if none has."""
    cache = keras_cache()
    for name, sha256 in files.items():
        if (cache / name).exists() and not verified(cache / name, sha256):
            print(f"{name} in Keras's cache is damaged: it is removed and fetched again", file=sys.stderr)
            (cache / name).unlink()
    tried = []
    for folder, fetch in (
        (cache, None),
        (DEBIAN_FOLDER, None),
        (cache, _keras_download),
        (cache, _debian_download),
    ):
        if fetch is not None:
            try:
                fetch(cache, files)
            except (OSError, subprocess.SubprocessError, DataUnavailableError) as error:
                tried.append(f"{fetch.__name__.strip('_')}: {error}")
        if all(verified(folder / name, sha256) for name, sha256 in files.items()):
            return {name: folder / name for name in files}
    raise DataUnavailableError(
        "fashion_mnist is not cached and could not be fetched. On a connected machine run `pprml data`, or install "
        f"Debian's {DEBIAN_PACKAGE}, or copy its four .gz files into {cache}. Tried: " + "; ".join(tried)
    )


def _refuse_offline() -> None:
    if os.environ.get("PPRML_OFFLINE"):
        raise DataUnavailableError("PPRML_OFFLINE is set, so nothing is fetched")


def _keras_download(cache: Path, files: Mapping[str, str]) -> None:
    """Let Keras fetch its own copy, in a process of its own: its download has no time-out."""
    _refuse_offline()
    code = "import socket; socket.setdefaulttimeout(30)\nimport tensorflow as tf\ntf.keras.datasets.fashion_mnist.load_data()"
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=300)
    done = subprocess.run([sys.executable, "-c", code], **quiet)
    if done.returncode:
        raise DataUnavailableError((done.stderr.strip().splitlines() or ["failed"])[-1][:200])


def _debian_download(cache: Path, files: Mapping[str, str]) -> None:
    """Fetch and unpack Debian's package without root, with package lists in a private folder if there are none."""
    _refuse_offline()
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise DataUnavailableError("this machine has no apt-get")
    with tempfile.TemporaryDirectory() as scratch:
        lists = Path(scratch) / "lists"
        (lists / "partial").mkdir(parents=True)
        run = dict(cwd=scratch, check=True, timeout=300, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={scratch}", "-o", "APT::Sandbox::User="]
        try:
            subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], **run)
        except subprocess.CalledProcessError:
            subprocess.run(["apt-get", *own, "update"], **run)
            subprocess.run(["apt-get", *own, "download", DEBIAN_PACKAGE], **run)
        (archive,) = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, "unpacked"], **run)
        for name, sha256 in files.items():
            path = Path(scratch) / "unpacked" / DEBIAN_FOLDER.relative_to("/") / name
            if not verified(path, sha256):
                raise DataUnavailableError(f"Debian's {name} is not the registered file")
            write_whole(cache / name, path.read_bytes())
