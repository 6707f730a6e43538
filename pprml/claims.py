"""The ledger: what the prose states, and what a run measured.

A claim is an entry of ``claims/*.yml``. A notebook measures it with `check`. Who holds the notebook decides what happens then: a person
reads one sentence, and nothing is raised or written; the course's runner (`pprml.course`) collects the values, and they are compared with
the ledger when the run is over. Nothing here knows what a claim is about.
"""

import importlib
import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pprml import ROOT
from pprml._files import dump_json, name_nearest, write_whole

KINDS = ("article", "published", "measured", "time")
VERDICTS = ("right", "wrong", "imprecise", "untestable")
NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
#: How often a run that is right falls outside the window of one spread, if a claim's values are normal over the seeds.
FALSE_ALARM = 1e-4
#: The same for the question whether the mean of a spread beats its null baseline.
FALSE_FINDING = 1e-2
#: Of fewer seeds no spread is known.
LEAST_SEEDS = 5
#: The seeds of this run: one, unless the spread is being recorded (`pprml seeds NN`).
SEEDS = tuple(int(seed) for seed in os.environ.get("PPRML_SEEDS", "0").split(","))


class LedgerError(ValueError):
    """An entry of the ledger is malformed, or its number does not beat its null baseline."""


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger.

    ``states`` is the number as prose shows it, unit included, written by ``pprml accept``; a percentage is measured as a fraction.
    ``window`` is ``"exact"`` (to the digits shown), ``"spread"`` (over recorded seeds), ``"below"``, ``"above"``,
    ``{"greater_than": id}`` or ``{"less_than": id}``. A claim of the kind ``time`` is never compared with what a run took.
    ``spread`` are the recorded values, one a seed.
    """

    id: str
    chapter: str
    sentence: str = ""
    kind: str = "measured"
    states: str | None = None
    window: Any = "exact"
    recompute: Any = "notebook"
    baseline: Any = None
    source: str | None = None
    verdict: str | None = None
    headline: str | None = None
    number: int | None = None
    truth: str | None = None
    tested_by: tuple[str, ...] = ()
    spread: tuple[float, ...] = ()

    @property
    def value(self) -> float:
        """The stated number in the measured unit (a fraction where the prose shows a percentage); NaN before it was measured."""
        return math.nan if "?" in (self.states or "?") else parse_number(self.states)[0]

    @property
    def other(self) -> str | None:
        """The id that an order compares with."""
        return next(iter(self.window.values())) if isinstance(self.window, dict) else None

    def bounds(self, measured: Mapping[str, float] | None = None) -> tuple[float, float]:
        """Return the closed interval that a measured value must fall in.

        For a spread it is the prediction interval of one more run (Student's t), which a run that is right leaves once in
        1 / `FALSE_ALARM`. Needs `measured` for an order; a KeyError names what is missing.
        """
        if self.window == "spread":
            return (
                _interval(self.spread, FALSE_ALARM, 1 + 1 / len(self.spread))
                if self.spread
                else (math.nan, math.nan)
            )
        if self.other:
            value = (measured or {})[self.other]
            return (value, math.inf) if "greater_than" in self.window else (-math.inf, value)
        if self.window in ("above", "below"):
            return (self.value, math.inf) if self.window == "above" else (-math.inf, self.value)
        half = _half_unit(self.states)
        return self.value - half, self.value + half

    def accepts(self, value: float, measured: Mapping[str, float] | None = None) -> bool:
        """Tell whether `value` is inside the window; NaN never is."""
        low, high = self.bounds(measured)
        # An order is strict: a tie does not show that one is greater.
        return low < value < high if self.other else low <= value <= high

    def show(self, value: float) -> str:
        """Write a value with the digits and unit of the stated number."""
        if self.states is None:
            return f"{value:.4g}"
        number, unit = re.match(r"\s*([-+−\d.,?e]+)(.*)", self.states, re.S).groups()
        scaled = value * 100 if unit.strip().startswith("%") else value
        if "e" in number:
            return f"{scaled:.0e}".replace("e-0", "e-").replace("e+0", "e+") + unit
        comma = "," if "," in number else ""
        return f"{scaled:{comma}.{len(number.partition('.')[2])}f}{unit}"

    def show_window(self) -> str:
        """Write the window in words."""
        if self.kind != "measured":
            return ""
        if self.window == "spread":
            low, high = self.bounds()
            return f"{self.show(low)} to {self.show(high)} ({len(self.spread)} seeds)"
        if self.other:
            return f"{next(iter(self.window)).replace('_', ' ')} {self.other}"
        return "to the digits shown" if self.window == "exact" else f"{self.window} {self.states}"

    def say(self, states: str) -> str:
        """Return the sentence with a number in it."""
        return self.sentence.replace("{states}", states)


def _interval(values: tuple[float, ...], alpha: float, factor: float) -> tuple[float, float]:
    from scipy.stats import t  # every track has it; a reader's notebook need not wait for it

    mean, reach = statistics.fmean(values), 0.0
    if len(values) > 1:
        reach = float(t.ppf(1 - alpha / 2, len(values) - 1)) * statistics.stdev(values) * math.sqrt(factor)
    # What is recorded has six digits: where all seeds agree, that is the width.
    reach = max(reach, 1e-5 * abs(mean))
    return mean - reach, mean + reach


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
    return parse_number(text)[1] * (1 + 1e-9) if "?" not in text else math.nan


def load_ledger(folder: Path | None = None) -> dict[str, Claim]:
    """Read and validate every file of the ledger.

    Parameters
    ----------
    folder : Path, optional
        Folder of ``*.yml`` files, with recorded spreads in ``spreads/*.json``; by default the checkout's ``claims``. An entry
        ``defaults`` of a file holds the fields that its other entries share.

    Returns
    -------
    dict of str to Claim
        By id, in the order of the files.

    Raises
    ------
    LedgerError
        A missing or unknown field, an id used twice, a measured claim without a null baseline, or a number that does not beat it.
    """
    folder = Path(folder or ROOT / "claims")
    spreads = load_spreads(folder / "spreads")
    ledger: dict[str, Claim] = {}
    for path in sorted(folder.glob("*.yml")):
        entries = yaml.load(path.read_text("utf-8"), _NoTwins) or {}
        defaults = entries.pop("defaults", {})
        for key, entry in entries.items():
            if key in ledger:
                raise LedgerError(f"{path.name}: the id {key!r} is used twice")
            ledger[key] = _parse_entry(key, path.stem, defaults | entry, spreads)
    for claim in ledger.values():
        _validate(claim, ledger)
    return ledger


def load_spreads(folder: Path | None = None) -> dict[str, tuple[float, ...]]:
    """Read the recorded spreads: id to one value a seed."""
    values: dict[str, tuple[float, ...]] = {}
    for path in sorted((folder or ROOT / "claims" / "spreads").glob("*.json")):
        try:
            values |= {
                key: tuple(runs) for key, runs in json.loads(path.read_text("utf-8"))["values"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LedgerError(f"{path.name} is no record of seeds: run `pprml seeds {path.stem}`") from error
    return values


class _NoTwins(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML keeps the last of two equal keys without a word; the ledger must not."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise LedgerError(f"the id or field {key!r} is used twice")
        return super().construct_mapping(node, deep)


def _parse_entry(key: str, chapter: str, entry: dict, spreads: Mapping[str, tuple[float, ...]]) -> Claim:
    unknown = set(entry) - {*Claim.__dataclass_fields__} | ({"id", "chapter", "spread"} & set(entry))
    if unknown:
        raise LedgerError(f"{key}: unknown field {sorted(unknown)[0]!r}")
    if isinstance(entry.get("states"), (int, float)):
        raise LedgerError(f"{key}: put `states` in quotes, so that its digits are kept")
    fields = {**entry, "tested_by": tuple(entry.get("tested_by", ()))}
    return Claim(id=key, chapter=chapter, spread=spreads.get(key, ()), **fields)


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
    demand(
        claim.states or claim.other,
        'needs `states`, the number as the prose shows it; "?.? %" until it is measured',
    )
    demand(
        "{states}" not in claim.sentence or claim.states, "its sentence shows a number, and none is stated"
    )
    if claim.kind == "time":
        demand(claim.window in ("exact", "above", "below"), "the window of a time is above or below, or none")
        return
    demand(
        claim.recompute == "notebook" or "closed_form" in (claim.recompute or {}),
        "recompute: notebook or closed_form",
    )
    if claim.other:
        demand(list(claim.window) in (["greater_than"], ["less_than"]), f"unknown order {list(claim.window)}")
        demand(claim.other in ledger, f"is compared with {claim.other!r}, which is not in the ledger")
    else:
        demand(claim.window in ("exact", "spread", "above", "below"), "window is missing or unknown")
    demand(claim.baseline is not None, "name the null baseline (a number, a claim's id, or 'none: why')")
    if isinstance(claim.baseline, str) and not claim.baseline.startswith("none:"):
        demand(claim.baseline in ledger, f"baseline: {claim.baseline!r} is not in the ledger")
    demand(not beaten_by_null(claim, ledger), f"its number does not beat the null baseline {claim.baseline}")


def beaten_by_null(claim: Claim, ledger: Mapping[str, Claim]) -> bool:
    """Tell whether the null baseline explains a claim's number as well.

    It does where the window would accept it, and for a spread where the mean of the seeds does not differ from it (Student's t,
    wrong once in 1 / `FALSE_FINDING`).
    """
    null = claim.baseline
    if claim.other or math.isnan(claim.value) or (isinstance(null, str) and null.startswith("none:")):
        return False
    null = ledger[null].value if isinstance(null, str) else float(null)
    if claim.window != "spread":
        return claim.accepts(null)
    if len(claim.spread) < LEAST_SEEDS:
        return False
    low, high = _interval(claim.spread, FALSE_FINDING, 1 / len(claim.spread))
    return low <= null <= high


def load_measured(folder: Path | None = None) -> dict[str, float]:
    """Read what was measured: id to value (the mean, where there were seeds)."""
    records = {}
    for path in sorted((folder or ROOT / "claims" / "measured").glob("*.json")):
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


#: What this notebook measured so far, for the claims that compare two measurements.
_seen: dict[str, float] = {}


def check(claim_id: str, value: float | Iterable[float]) -> None:
    """Hold a measurement against the sentence that the text says.

    By hand it prints one sentence: what came out here, and what the text says where that is another number. Nothing is raised and
    nothing is written. Under the course's runner the value is collected and nothing is printed.

    Parameters
    ----------
    claim_id : str
        The claim's id.
    value : float or iterable of float
        The measured value, or one for each seed. A percentage is passed as a fraction.

    Raises
    ------
    ValueError
        The id is not in the ledger.

    Examples
    --------
    >>> check("eps_share", 0.25)
    In the whole table 25.0 % earn over 50,000 dollars. (The text says 23.9 %.)
    """
    claim = find(claim_id)
    several = not isinstance(value, (int, float)) and hasattr(value, "__iter__")
    seeds = [float(f"{float(v):.6g}") for v in value] if several else None
    value = statistics.fmean(seeds) if seeds else float(f"{float(value):.6g}")
    _seen[claim_id] = value
    if record := os.environ.get("PPRML_RECORD"):
        _collect(Path(record), claim, seeds if seeds and len(seeds) > 1 else value)
    else:
        print(compare(claim, value))


def compare(claim: Claim, value: float) -> str:
    """Say in a sentence what came out, and what the text says."""
    here = claim.show(value)
    if claim.other:
        than = _seen.get(claim.other, find(claim.other).value)
        holds = "" if claim.accepts(value, {claim.other: than}) else "NOT here: "
        show = claim.show if claim.states else find(claim.other).show
        return f"{holds}{claim.say(here)} ({show(value)} against {show(than)}.)"
    if claim.kind == "time":
        return f"{claim.say(here)} (The text says {claim.states}, on the machine of the record.)"
    if claim.window in ("above", "below"):
        holds = claim.say(claim.states) if claim.accepts(value) else "NOT here: " + claim.say(claim.states)
        return f"{holds} (Here: {value:.3g}.)"
    said = "As the text says." if here == claim.states else f"The text says {claim.states}."
    if claim.window == "spread" and here != claim.states and claim.spread:
        low, high = (claim.show(end) for end in (min(claim.spread), max(claim.spread)))
        said = f"The text says {claim.states}, the mean of {len(claim.spread)} seeds from {low} to {high}."
    return f"{claim.say(here)} ({said})"


def _collect(folder: Path, claim: Claim, value: float | list[float]) -> None:
    kind = "times" if claim.kind == "time" else "measured"
    path = folder / "claims" / kind / f"{os.environ['PPRML_CHAPTER']}.json"
    records = json.loads(path.read_text("utf-8")) if path.exists() else {}
    write_whole(path, dump_json({**records, claim.id: value}))


def took(**seconds_or_sizes: float) -> None:
    """Print what something took here beside what it took on the machine of the record: a keyword a claim's id.

    A time is no claim: it is never compared.

    Examples
    --------
    >>> took(hash_seconds=21.3)  # doctest: +SKIP
    Enumerating 8 million numbers takes less than 60 s. Here: 21.3 s; on the machine of the record: 19 s.
    """
    record = load_times()
    for claim_id, value in seconds_or_sizes.items():
        claim = find(claim_id)
        if folder := os.environ.get("PPRML_RECORD"):
            _collect(Path(folder), claim, float(f"{value:.6g}"))
        unit = re.sub(rf"^\s*{NUMBER}", "", claim.states)
        then = f"{_round(record[claim_id])}{unit}" if claim_id in record else "not recorded"
        print(f"{claim.say(claim.states)} Here: {_round(value)}{unit}; on the machine of the record: {then}.")


def _round(value: float) -> str:
    return f"{float(f'{value:.3g}'):,g}"


def load_times() -> dict[str, float]:
    """Read what the chapters' own timings were on the machine of the record (``make bench NAME=notebooks``)."""
    path = ROOT / "benchmarks" / "results" / "chapter_times.json"
    return (
        {entry["case"]: entry["ours"] for entry in json.loads(path.read_text("utf-8"))}
        if path.exists()
        else {}
    )


def recompute(claim: Claim) -> float:
    """Compute a closed-form claim afresh from the callable that its entry names."""
    module, _, name = claim.recompute["closed_form"].partition(":")
    return float(getattr(importlib.import_module(module), name)(**claim.recompute.get("args", {})))
