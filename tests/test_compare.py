"""What came out is held against what is committed, to the digits shown."""

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from pprml.claims import Claim
from pprml.course import compare


def book(text, tags=()):
    cell = new_code_cell("x", outputs=[new_output("stream", text=text)])
    cell.metadata["tags"] = list(tags)
    return new_notebook(cells=[cell])


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("64.2 % match", "64.2 % match", True),
        ("64.2 % match", "64.3 % match", True),  # the last digit may round either way
        ("64.2 % match", "64.5 % match", False),
        ("sent 5 MB", "sent 10 MB", False),
        ("sent 5 MB", "sent 6 MB", False),
        ("off by 1.2e-07", "off by 1.3e-07", True),
        ("off by 1.2e-07", "off by 1.2e-06", False),
        ("a  1.0\nb 10.0", "a   1.0\nb  10.0", True),
        ("it holds", "it fails", False),
        ("1,261 people", "1,262 people", False),
    ],
)
def test_numbers_are_compared_to_the_digits_shown_and_words_exactly(old, new, same):
    assert (compare.compare_outputs(book(new), book(old)) == []) is same


def test_of_a_cell_that_varies_only_the_words_are_compared():
    assert compare.compare_outputs(book("took 9 s"), book("took 3 s", ["varies"])) == []
    assert compare.compare_outputs(book("needed 9 s"), book("took 3 s", ["varies"])) != []


def test_moves_name_what_came_out_and_a_time_never_moves():
    claims = [
        Claim("share", "01", "s", states="64.2 %"),
        Claim("lost", "01", "s", states="1"),
        Claim("slow", "01", "s", kind="time", states="3 s", window="below"),
        Claim("more", "01", "s", window={"greater_than": "share"}),
    ]
    moves = compare.list_moves(claims, {"share": 0.7, "slow": 99.0, "more": 0.6})
    assert [move.claim.id for move in moves] == ["share", "lost", "more"]
    said = [str(move) for move in moves]
    assert "70.0 % (0.7), stated 64.2 %" in said[0] and "not measured" in said[1]
    assert "0.6 is not greater than share, which is 0.7" in said[2]
