"""The folder that `flwr run` is given: which apps to run, and with which settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pprml.flower_app.training import check_settings

_HEAD = """[project]
name = "course"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "course"
[tool.flwr.app.components]
serverapp = "pprml.flower_app.apps:server_app"
clientapp = "pprml.flower_app.apps:client_app"
[tool.flwr.app.config]
"""


def write_project(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Write a project that `flwr run FOLDER` accepts: the course's two apps and every setting they read.

    Parameters
    ----------
    folder : Path
        Made if it is missing. A project that this function wrote there before is replaced.
    settings : mapping
        From `make_settings`, with a `result-file`: where on the server's machine the result will appear.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        A setting is missing or cannot be met, or the folder holds another project.
    """
    settings = check_settings(settings)
    if not settings["result-file"]:
        raise ValueError("result-file is empty: give a path on the server's machine for the result")
    path = folder / "pyproject.toml"
    if path.exists() and not path.read_text("utf-8").startswith(_HEAD):
        raise ValueError(f"{path} is of another project: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.py").touch()  # a project with no module at all is refused
    # JSON's numbers, words and texts are TOML's as well.
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items()]
    path.write_text(_HEAD + "".join(lines), "utf-8")
    return folder
