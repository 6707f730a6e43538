# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["numpy==1.26.4", "opacus==1.6.0", "prv-accountant==0.2.0", "scipy==1.11.4"]
#
# [tool.uv]
# # Opacus's accounting needs numpy and scipy only: the rest of its requirements is for training.
# override-dependencies = ["torch; sys_platform == 'never'", "torchvision; sys_platform == 'never'"]
# ///
"""Make `accountants.json`: what two accountants that the course does not use say about DP-SGD, for `test_accountants.py`.

    .venv/bin/python -m tests.reference.accountants

The peers, Microsoft's PRV accountant (Gopi, Lee and Wutschitz 2021, arXiv 2106.02848) and Opacus's RDP analysis, run in an
environment of their own that uv makes from the header above. A setting is left out where PRV's epsilon lies outside `RANGE`.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

PATH = Path(__file__).with_suffix(".json")
ROOT = PATH.parents[2]
#: Records and expected batch size: sampling rates of 0.001, 0.002, 0.003, 0.01, 0.03, 0.1, 0.2 and 0.3.
TABLES = [
    (50_000, 50), (60_000, 120), (20_000, 60), (50_000, 500), (10_000, 300), (20_000, 2_000), (5_000, 1_000), (2_000, 600),
]  # fmt: skip
NOISES = [0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]
STEPS = [100, 300, 1_000, 3_000, 10_000, 20_000]
DELTAS = [1e-5, 1e-6, 1e-7]
RANGE = (0.05, 30.0)
SETTINGS = 200
COLUMNS = ["records", "batch_size", "steps", "noise_multiplier", "delta"]
ANSWERS = ["prv_lower", "prv", "prv_upper", "rdp", "rdp_own_orders"]
#: RDPAccountant.DEFAULT_ALPHAS of Opacus.
OWN_ORDERS = [1 + x / 10.0 for x in range(1, 100)] + list(range(12, 64))


def list_candidates() -> list[tuple[int, int, int, float, float]]:
    """Return every table, noise and number of steps, with the deltas taken in turn along each of the three."""
    axes = itertools.product(*(enumerate(axis) for axis in (TABLES, NOISES, STEPS)))
    return [(*table, steps, noise, DELTAS[(i + j + k) % 3]) for (i, table), (j, noise), (k, steps) in axes]


@cache
def _load_opacus_rdp():
    # The one file: importing the package would import torch.
    from importlib import util

    folder = Path(util.find_spec("opacus").submodule_search_locations[0])
    spec = util.spec_from_file_location("opacus_rdp", folder / "accountants" / "analysis" / "rdp.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ask_one(setting: list, orders: list[float]) -> list[float] | None:
    """Return the peers' answers, in their environment, or nothing for an epsilon far outside the range."""
    from prv_accountant.dpsgd import DPSGDAccountant

    records, batch_size, steps, noise, delta = setting
    opacus = _load_opacus_rdp()
    rate = batch_size / records
    rdp = []
    for chosen in (orders, OWN_ORDERS):
        curve = opacus.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=chosen)
        rdp.append(float(opacus.get_privacy_spent(orders=chosen, rdp=curve, delta=delta)[0]))
    # RDP is an upper bound, and one that lies further above than this is refused by dp_sgd_guarantee.
    if not RANGE[0] <= rdp[0] <= 1.7 * RANGE[1]:
        return None
    # The error allowed is 1 % of epsilon, so that the two bounds enclose it closely at every size; where PRV cannot place
    # its mesh so finely, or so coarsely, that its own check of the mean passes, it gets another one.
    for share in (0.01, 0.02, 0.005, 0.05, 0.002):
        try:
            accountant = DPSGDAccountant(noise, rate, steps, share * rdp[0], delta / 1000)
            prv = [float(value) for value in accountant.compute_epsilon(delta, steps)]
            break
        except RuntimeError as fault:
            print(f"{setting}, eps_error {share:g} of {rdp[0]:.4g}: {fault}", file=sys.stderr)
    else:
        raise RuntimeError(f"PRV has no answer for {setting}")
    if not RANGE[0] <= prv[1] <= RANGE[1]:
        return None
    return [*prv, *rdp]


def ask_peers(settings: list) -> list[list[float] | None]:
    """Return the peers' answers to every setting, from an environment of their own."""
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

    uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    command = [
        uv,
        "run",
        "--quiet",
        "--isolated",
        "--no-project",
        "--python",
        sys.executable,
        "--script",
        __file__,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    question = json.dumps([settings, [float(order) for order in DEFAULT_RDP_ORDERS]])
    done = subprocess.run(
        [*command, "--peer"], input=question, stdout=subprocess.PIPE, text=True, env=environment, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def answer_as_peer() -> None:
    """Answer the question on standard input."""
    settings, orders = json.load(sys.stdin)
    with ProcessPoolExecutor(2) as pool:
        print(json.dumps(list(pool.map(ask_one, settings, itertools.repeat(orders), chunksize=4))))


def describe_refusal(setting: list) -> str:
    """Return what dp_sgd_guarantee says where it refuses a setting, and nothing where it accepts."""
    from pprml.accounting import AccountingError, dp_sgd_guarantee

    records, batch_size, steps, noise, delta = setting
    try:
        dp_sgd_guarantee(records, batch_size, steps * batch_size / records, noise, delta)
    except AccountingError as refusal:
        return str(refusal)
    return ""


def write_reference() -> None:
    """Ask, sort out, and write one setting a line."""
    candidates = list_candidates()
    rows = [
        [*setting, *answer]
        for setting, answer in zip(candidates, ask_peers(candidates), strict=True)
        if answer
    ]
    with ProcessPoolExecutor(2) as pool:
        refusals = list(pool.map(describe_refusal, [row[: len(COLUMNS)] for row in rows], chunksize=4))
    refused = [[*row, said] for row, said in zip(rows, refusals, strict=True) if said]
    accepted = [row for row, said in zip(rows, refusals, strict=True) if not said]
    if len(accepted) < SETTINGS:
        raise RuntimeError(f"only {len(accepted)} settings are left; widen the grid")
    # As many as asked for, evenly along the whole list.
    kept = [accepted[i * len(accepted) // SETTINGS] for i in range(SETTINGS)]
    about = {
        "made_by": "python -m tests.reference.accountants",
        "peers": "prv-accountant 0.2.0 (prv: estimate between two proven bounds) and opacus 1.6.0 (rdp: the orders of "
        "dp_accounting; rdp_own_orders: those of Opacus, which end at 63)",
        "candidates": len(candidates),
        "epsilon_outside_range": len(candidates) - len(rows),
        "accepted": len(accepted),
        "refused_by_dp_sgd_guarantee": f"{len(refused)}, where RDP lies above PLD by more than its stated gap; listed with "
        "what it says, and compared all the same",
        "columns": [*COLUMNS, *ANSWERS],
    }

    def lines(rows: list) -> str:
        return "[\n" + ",\n".join("  " + json.dumps(row) for row in rows) + "\n ]"

    head = json.dumps(about, indent=1)[:-2]
    PATH.write_text(f'{head},\n "settings": {lines(kept)},\n "refused": {lines(refused)}\n}}\n', "utf-8")


if __name__ == "__main__":
    answer_as_peer() if "--peer" in sys.argv else write_reference()
