"""The ledger: what the prose states, the window it must fall in, and what was measured.

A claim is an entry of ``claims/*.yml``. A notebook measures with `check`; a test recomputes closed forms; `pprml.contract`
compares every number a reader sees with the ledger. Nothing here knows what a claim is about.
"""

import importlib
import json
import math
import os
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pprml import ROOT
from pprml._files import dump_json, name_nearest, write_whole

KINDS = ("article", "published", "measured")
VERDICTS = ("right", "wrong", "imprecise", "untestable")
NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"


class LedgerError(ValueError):
    """An entry of the ledger is malformed, or its window would accept the null baseline."""


class ClaimError(AssertionError):
    """A measured value fell outside its window."""


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger.

    ``states`` is the number as prose shows it, unit included; a percentage is measured as a fraction. ``window`` is
    ``"exact"``, ``"below"``, ``"above"``, ``{"runs": [...]}``, ``{"greater_than": id}`` or ``{"less_than": id}``.
    """

    id: str
    chapter: str
    sentence: str
    kind: str
    states: str | None = None
    window: Any = None
    recompute: Any = None
    baseline: Any = None
    source: str | None = None
    verdict: str | None = None
    varies: bool = False
    headline: str | None = None
    number: int | None = None
    truth: str | None = None
    tested_by: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The stated number in the measured unit (a fraction where the prose shows a percentage)."""
        return parse_number(self.states)[0]

    @property
    def runs(self) -> list[float] | None:
        """Per-seed values behind a window earned from a spread."""
        return self.window.get("runs") if isinstance(self.window, dict) else None

    def bounds(self, measured: dict[str, float] | None = None) -> tuple[float, float]:
        """Return the closed interval that a measured value must fall in."""
        if self.runs:
            spread = 3 * statistics.stdev(self.runs)
            return statistics.fmean(self.runs) - spread, statistics.fmean(self.runs) + spread
        if isinstance(self.window, dict):
            (relation, other), measured = next(iter(self.window.items())), measured or {}
            if other not in measured:
                raise ClaimError(f"{self.id} is compared with {other}, which has not been measured yet")
            return (measured[other], math.inf) if relation == "greater_than" else (-math.inf, measured[other])
        if self.window in ("above", "below"):
            return (self.value, math.inf) if self.window == "above" else (-math.inf, self.value)
        half = _half_unit(self.states)
        return self.value - half, self.value + half

    def accepts(self, value: float, measured: dict[str, float] | None = None) -> bool:
        """Tell whether `value` is inside the window; NaN never is."""
        low, high = self.bounds(measured)
        # An ordering is strict: a tie does not show that one is greater.
        strict = isinstance(self.window, dict) and not self.runs
        return low < value < high if strict else low <= value <= high

    def show(self, value: float) -> str:
        """Write a value with the digits and unit of the stated number."""
        if self.states is None:
            return f"{value:.4g}"
        number, unit = re.match(rf"\s*({NUMBER})(.*)", self.states, re.S).groups()
        scaled = value * 100 if unit.strip().startswith("%") else value
        if "e" in number:
            return f"{scaled:.0e}{unit}"
        comma = "," if "," in number else ""
        return f"{scaled:{comma}.{len(number.partition('.')[2])}f}{unit}"

    def show_window(self) -> str:
        """Write the window in words."""
        if self.window is None:
            return ""
        if self.runs:
            low, high = self.bounds()
            return f"{self.show(low)} to {self.show(high)} ({len(self.runs)} seeds, 3 sd)"
        if isinstance(self.window, dict):
            ((relation, other),) = self.window.items()
            return f"{relation.replace('_', ' ')} {other}"
        return "exact at the digits shown" if self.window == "exact" else f"{self.window} {self.states}"


def parse_number(text: str) -> tuple[float, float]:
    """Return a number as written and half a unit of its last digit, both as fractions where a percent sign follows."""
    match = re.search(rf"({NUMBER})(\s*%)?", text or "")
    if not match:
        raise LedgerError(f"no number in {text!r}")
    number = match[1].replace(",", "").replace("−", "-")
    scale = 0.01 if match[2] else 1.0
    mantissa, _, exponent = number.partition("e")
    half = 0.5 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return float(number) * scale, half * scale


def _half_unit(text: str) -> float:
    # A little more than half: 0.125 may be shown as 0.12 or 0.13, whatever the binary fraction.
    return parse_number(text)[1] * (1 + 1e-9)


def load_ledger(folder: Path | None = None) -> dict[str, Claim]:
    """Read and validate every file of the ledger.

    Parameters
    ----------
    folder : Path, optional
        Folder of ``*.yml`` files; by default the checkout's ``claims``.

    Returns
    -------
    dict of str to Claim
        By id, in the order of the files.

    Raises
    ------
    LedgerError
        A missing or unknown field, an id used twice, a measured claim without a null baseline, or a window that would
        also accept the null baseline.
    """
    folder = Path(folder or ROOT / "claims")
    ledger: dict[str, Claim] = {}
    for path in sorted(folder.glob("*.yml")):
        for key, entry in (yaml.load(path.read_text("utf-8"), _NoTwins) or {}).items():
            if key in ledger:
                raise LedgerError(f"{path.name}: the id {key!r} is used twice")
            ledger[key] = _parse_entry(key, path.stem, entry)
    for claim in ledger.values():
        _validate(claim, ledger)
    return ledger


class _NoTwins(yaml.SafeLoader):
    """YAML keeps the last of two equal keys without a word; the ledger must not."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise LedgerError(f"the id or field {key!r} is used twice")
        return super().construct_mapping(node, deep)


def _parse_entry(key: str, chapter: str, entry: dict) -> Claim:
    unknown = set(entry) - {*Claim.__dataclass_fields__} | ({"id", "chapter"} & set(entry))
    if unknown:
        raise LedgerError(f"{key}: unknown field {sorted(unknown)[0]!r}")
    fields = {**entry, "tested_by": tuple(entry.get("tested_by", ()))}
    if isinstance(fields.get("states"), (int, float)):
        raise LedgerError(f"{key}: put `states` in quotes, so that its digits are kept")
    return Claim(id=key, chapter=chapter, **{"sentence": "", "kind": "", **fields})


def _validate(claim: Claim, ledger: dict[str, Claim]) -> None:
    def demand(condition: Any, fault: str) -> None:
        if not condition:
            raise LedgerError(f"{claim.id}: {fault}")

    demand(claim.kind in KINDS, f"kind must be one of {', '.join(KINDS)}")
    demand(claim.sentence, "a claim needs its sentence")
    if claim.kind == "article":
        demand(claim.verdict in VERDICTS, f"verdict must be one of {', '.join(VERDICTS)}")
        demand(
            set(claim.tested_by) <= set(ledger), f"tested_by names an unknown claim among {claim.tested_by}"
        )
        return
    demand(claim.source, "a claim needs its source")
    if claim.kind == "published":
        parse_number(claim.states)
        return
    ordering = isinstance(claim.window, dict) and not claim.runs
    demand(claim.states or ordering, "a measured claim needs `states`, the number as the prose shows it")
    demand(
        claim.recompute == "notebook" or "closed_form" in (claim.recompute or {}),
        "recompute: notebook or closed_form",
    )
    demand(
        claim.window in ("exact", "above", "below") or isinstance(claim.window, dict),
        "window is missing or unknown",
    )
    if claim.runs:
        demand(len(claim.runs) >= 3, "a window from runs needs three seeds or more")
        mean = statistics.fmean(claim.runs)
        demand(
            abs(claim.value - mean) <= _half_unit(claim.states),
            f"states {claim.states}, but its runs average {mean:.6g}",
        )
    if ordering:
        ((relation, other),) = claim.window.items()
        demand(relation in ("greater_than", "less_than"), f"unknown ordering {relation!r}")
        demand(other in ledger, f"is compared with {other!r}, which is not in the ledger")
    demand(claim.baseline is not None, "name the null baseline (a number, a claim's id, or 'none: why')")
    null = claim.baseline
    if isinstance(null, str) and not null.startswith("none:"):
        demand(null in ledger, f"baseline: {null!r} is not in the ledger")
        null = ledger[null].value
    if isinstance(null, (int, float)) and not ordering:
        demand(not claim.accepts(float(null)), f"the window would also accept the null baseline {null:.6g}")


def measured_folder() -> Path:
    """Where measurements are written: the ledger's own folder, or a scratch one while tests run."""
    scratch = os.environ.get("PPRML_OUTPUT")
    return (Path(scratch) if scratch else ROOT) / "claims" / "measured"


def load_measured(folder: Path | None = None) -> dict[str, float]:
    """Read every recorded measurement: id to value (the mean, where there were seeds)."""
    records = {}
    for path in sorted((folder or measured_folder()).glob("*.json")):
        for key, value in json.loads(path.read_text("utf-8")).items():
            records[key] = statistics.fmean(value) if isinstance(value, list) else value
    return records


@cache
def _ledger() -> dict[str, Claim]:
    return load_ledger()


def find(claim_id: str, ledger: dict[str, Claim] | None = None) -> Claim:
    """Return a claim by its id; a ValueError names the nearest id."""
    ledger = _ledger() if ledger is None else ledger
    if claim_id not in ledger:
        raise ValueError(name_nearest("claim", claim_id, ledger))
    return ledger[claim_id]


def check(claim_id: str, value: float | Iterable[float]) -> None:
    """Compare a measurement with the ledger, record it, and print one line.

    Parameters
    ----------
    claim_id : str
        The claim's id.
    value : float or iterable of float
        The measured value, or one for each seed. A percentage is passed as a fraction.

    Raises
    ------
    ClaimError
        The value, or the mean over the seeds, is outside the window.
    ValueError
        The id is not in the ledger.
    """
    claim = find(claim_id)
    seeds = (
        None
        if isinstance(value, (int, float)) or not hasattr(value, "__iter__")
        else [float(v) for v in value]
    )
    value = statistics.fmean(seeds) if seeds else float(value)
    recorded = load_measured()
    if not claim.accepts(value, recorded):
        low, high = claim.bounds(recorded)
        raise ClaimError(
            f"{claim_id}: measured {value:.6g}, outside its window {low:.6g} to {high:.6g} ({claim.show_window()})"
        )
    _record(claim, seeds or value)
    stated = f", stated {claim.states}" if claim.states else ""
    if claim.varies:
        print(f"{claim_id}: holds{stated}, window {claim.show_window()}")
        return
    # An order has no number of its own: it is shown as the number that it is compared with.
    ordering = isinstance(claim.window, dict) and not (claim.runs or claim.states)
    show = find(next(iter(claim.window.values()))).show if ordering else claim.show
    several = seeds is not None and len(seeds) > 1
    spread = f" ± {show(statistics.stdev(seeds))} over {len(seeds)} seeds" if several else ""
    print(f"{claim_id}: measured {show(value)}{spread}{stated}, window {claim.show_window()}")


def _record(claim: Claim, value: float | list[float]) -> None:
    path = measured_folder() / f"{claim.chapter}.json"
    records = json.loads(path.read_text("utf-8")) if path.exists() else {}
    # A timing is not written anew while the recorded one still holds: a re-run leaves the file as it was.
    if claim.varies and claim.id in records:
        old = records[claim.id]
        if claim.accepts(statistics.fmean(old) if isinstance(old, list) else old, load_measured()):
            return
    rounded = [float(f"{v:.6g}") for v in value] if isinstance(value, list) else float(f"{value:.6g}")
    if records.get(claim.id) != rounded:
        write_whole(path, dump_json({**records, claim.id: rounded}))


def recompute(claim: Claim) -> float:
    """Compute a closed-form claim afresh from the callable that its entry names."""
    module, _, name = claim.recompute["closed_form"].partition(":")
    return float(getattr(importlib.import_module(module), name)(**claim.recompute.get("args", {})))
