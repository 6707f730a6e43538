"""One look, and a figure never without its numbers."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pprml._files import dump_json, write_whole

#: Okabe and Ito's palette: its colours differ for every common form of colour blindness.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
#: Baselines and anything a reader should see second.
GREY = "#707070"

STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 13,
    "axes.prop_cycle": matplotlib.cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 14,
    "axes.titlepad": 12,
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "grid.color": "#E3E3E3",
    "legend.frameon": False,
    "lines.linewidth": 2.2,
    "lines.markersize": 7,
    # Paths, not text: the picture is the same where the font is missing. The salt keeps the ids the same in every run.
    "svg.fonttype": "path",
    "svg.hashsalt": "pprml",
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
}


class FigureError(ValueError):
    """A figure's numbers are malformed or differ from the committed ones."""


def new(width: float = 7.5, height: float = 4.2, columns: int = 1, **kwargs: Any) -> tuple[Figure, Any]:
    """Start a figure in the house style.

    Parameters
    ----------
    width, height : float
        Inches.
    columns : int
        Axes side by side.
    **kwargs
        Passed to `Figure.subplots`.

    Returns
    -------
    figure : Figure
    axes : Axes, or array of Axes where there are several
    """
    matplotlib.rcParams.update(STYLE)
    # Not pyplot: nothing is shown twice in a notebook and no figure stays in memory.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, **kwargs)


@dataclass(frozen=True)
class Picture:
    """What a notebook shows of a saved figure: the SVG with its alternative text."""

    svg: str
    alt: str

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        label = self.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        body = re.sub(
            r"<svg ", f'<svg role="img" aria-label="{label}" ', self.svg[self.svg.index("<svg ") :], count=1
        )
        return {"image/svg+xml": body, "text/plain": self.alt}


def save(
    figure: Figure,
    figure_id: str,
    data: Mapping[str, Mapping[str, Sequence]],
    alt: str,
    tolerance: float | Mapping[str, float] = 1e-6,
    varies: bool = False,
) -> Picture:
    """Return a finished figure for display; under the course's runner, save it together with the numbers it plots.

    By hand nothing is written.

    Parameters
    ----------
    figure : Figure
        A finished figure.
    figure_id : str
        Lower-case words joined by underscores; names the files.
    data : mapping of series name to mapping of axis name to sequence
        Every plotted number.
    alt : str
        What a sighted reader would conclude.
    tolerance : float or mapping of series name to float
        Relative difference within which a series counts as the same.
    varies : bool
        The numbers are timings, or depend on fresh entropy: from run to run only names and lengths of the series are compared.

    Returns
    -------
    Picture
        Shown by a notebook as SVG with the alternative text.

    Raises
    ------
    FigureError
        An id that is not a file name, no data, a series that is not finite, or no alternative text.
    """
    if not re.fullmatch(r"[a-z0-9_]+", figure_id):
        raise FigureError(f"figure id {figure_id!r}: use lower-case letters, digits and underscores")
    if not alt.strip() or not data:
        raise FigureError(f"{figure_id}: give the plotted numbers and an alternative text")
    series = {
        name: {axis: _plain(values, figure_id, name) for axis, values in axes.items()}
        for name, axes in data.items()
    }
    limits = {
        name: tolerance if isinstance(tolerance, (int, float)) else tolerance.get(name, 1e-6)
        for name in series
    }
    record = {"alt": alt, "series": series, "tolerance": limits, "varies": varies}
    svg = _draw(figure)
    if folder := os.environ.get("PPRML_RECORD"):
        write_whole(Path(folder) / "figures" / f"{figure_id}.svg", svg)
        write_whole(Path(folder) / "figures" / f"{figure_id}.json", dump_json(record))
    return Picture(svg, alt)


def _plain(values: Sequence, figure_id: str, name: str) -> list:
    array = np.asarray(values)
    if array.dtype.kind in "US":
        return [str(value) for value in array.ravel()]
    if array.size == 0 or not np.isfinite(array.astype(float)).all():
        raise FigureError(f"{figure_id}: series {name!r} is empty or has a value that is not finite")
    return json.loads(json.dumps([float(f"{value:.6g}") for value in array.astype(float).ravel()]))


def _draw(figure: Figure) -> str:
    buffer = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # matplotlib writes trailing blanks; a committed file has none.
    return "\n".join(line.rstrip() for line in buffer.getvalue().decode().splitlines()) + "\n"


def compare(new_record: Mapping, old_record: Mapping) -> list[str]:
    """Compare two records of a figure; return what differs, series by series, within the old one's tolerance.

    Of a figure that varies only names and lengths of the series are compared.
    """
    # Numbers in a text are of this run; its words are not.
    alts = (re.sub(r"[\d.,]+", "", record.get("alt", "")) for record in (new_record, old_record))
    faults = ["its alternative text differs"] * (len(set(alts)) > 1)
    old_series, new_series = old_record["series"], new_record["series"]
    for name in sorted(set(old_series) | set(new_series)):
        if name not in old_series or name not in new_series:
            faults.append(
                f"series {name!r} is only in the {'new' if name in new_series else 'committed'} figure"
            )
            continue
        for axis in sorted(set(old_series[name]) | set(new_series[name])):
            old, new_values = old_series[name].get(axis), new_series[name].get(axis)
            if old is None or new_values is None or len(old) != len(new_values):
                faults.append(f"series {name!r}: axis {axis!r} has another length")
            elif old_record.get("varies"):
                continue
            elif any(isinstance(value, str) for value in [*old, *new_values]):
                faults += [f"series {name!r}: axis {axis!r} differs"] * (old != new_values)
            else:
                was, now, limit = np.array(old), np.array(new_values), old_record["tolerance"].get(name, 1e-6)
                # Relative to each point, with the series' own size as a floor so that a point at zero can be compared.
                scale = np.maximum(np.abs(was), 1e-3 * np.abs(was).max(initial=0.0)) + 1e-12
                worst = float(np.max(np.abs(now - was) / scale))
                if worst > limit:
                    faults.append(
                        f"series {name!r}: {axis} moved by {worst:.2g} of its value, tolerance {limit:g}"
                    )
    return faults
