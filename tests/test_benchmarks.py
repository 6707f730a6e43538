"""The harness measures in turns, states ratio and spread, and names what it does not know."""

import json
import subprocess
import sys

import pytest

from benchmarks import run
from benchmarks.run import Case


def make_sides(ours, peer):
    order = []

    def side(name, values):
        remaining = list(values)

        def measure():
            order.append(name)
            return {"seconds": remaining.pop(0)}

        return measure

    return side("ours", ours), side("peer", peer), order


def test_sides_alternate_and_the_ratio_is_the_median_over_pairs():
    ours, peer, order = make_sides([9, 1, 2, 6], [9, 2, 2, 2])  # the first of each warms up
    (record,) = run.compare(Case("a case", ours, peer, rounds=3))
    assert order == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert (record["ours"], record["peer"]) == (2, 2)
    assert (record["ratio"], record["low"], record["high"]) == (1.0, 0.5, 3.0)
    assert set(record) == {"case", "metric", "ours", "peer", "ratio", "low", "high", "machine"}


def test_a_machine_that_slows_down_does_not_move_the_ratio():
    slowing = [1, 2, 4, 8, 16]
    ours, peer, _ = make_sides(slowing, [2 * t for t in slowing])
    (record,) = run.compare(Case("a case", ours, peer, rounds=5, warm_up=False))
    assert (record["ratio"], record["low"], record["high"]) == (0.5, 0.5, 0.5)


def test_a_case_without_a_peer_has_no_ratio():
    ours, _, _ = make_sides([3, 1, 2], [])
    (record,) = run.compare(Case("alone", ours, rounds=3, warm_up=False))
    assert (record["ours"], record["peer"], record["ratio"]) == (2, None, None)
    assert (record["low"], record["high"]) == (1, 3)


def test_results_are_printed_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    ours, peer, _ = make_sides([1, 1, 1], [4, 4, 4])
    records = run.run("made_up", [Case("a case", ours, peer, rounds=2)])
    assert json.loads((tmp_path / "made_up.json").read_text()) == records
    assert "0.25" in capsys.readouterr().out


def test_a_case_that_fails_loses_nothing_measured_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    ours, peer, _ = make_sides([1, 1, 1], [4, 4, 4])

    def fail():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run.run("made_up", [Case("a case", ours, peer, rounds=2), Case("another", fail)])
    (record,) = json.loads((tmp_path / "made_up.partial.json").read_text())
    assert record["case"] == "a case" and not (tmp_path / "made_up.json").exists()


def test_peak_memory_counts_what_a_child_held_before_it_ended():
    with run.PeakMemory() as alone:
        pass
    with run.PeakMemory() as peak:
        hold = "import time; held = bytearray(300_000_000); time.sleep(1)"
        subprocess.run([sys.executable, "-c", hold], check=True)
    assert alone.gigabytes + 0.28 < peak.gigabytes < alone.gigabytes + 0.4


def test_machine_is_described_without_its_name_or_paths():
    words = run.describe_machine()
    assert "cores" in words and "GiB" in words and "/" not in words


def test_an_unknown_benchmark_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(["notebook"])
    assert "did you mean 'notebooks'" in capsys.readouterr().err
