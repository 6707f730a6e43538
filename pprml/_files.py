"""Whole files or none: the one way the shared rooms write to disk."""

import contextlib
import difflib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a half.

    Parameters
    ----------
    path : Path
        Target; missing parent folders are made.
    data : str or bytes
        The whole content. Text is encoded as UTF-8.

    Raises
    ------
    OSError
        The disk is full or not writable. The old file, if any, is untouched and no partial file is left.
    """
    data = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same folder, so that the final rename stays on one file system and is atomic.
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise


def dump_json(value: Any) -> str:
    """Return `value` as the indented JSON text that all committed records use."""
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def name_nearest(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, and which known one it is nearest to."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown {kind} {name!r}; {hint}"
