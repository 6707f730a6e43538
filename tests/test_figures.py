"""A figure keeps its numbers, its bytes are stable, and an altered series is caught."""

import json

import pytest

from pprml import figures


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("PPRML_RECORD", str(tmp_path))


def draw(values=(1.0, 2.0, 4.0), title="It grows", **options):
    figure, axes = figures.new()
    axes.plot([0, 1, 2], values)
    axes.set_title(title)
    data = {"ours": {"x": [0, 1, 2], "y": list(values)}}
    return figures.save(figure, "example", data, alt="It grows.", **options)


def read(tmp_path):
    return json.loads((tmp_path / "figures" / "example.json").read_text())


def test_saved_with_its_numbers_and_shown_with_its_alt_text(tmp_path):
    picture = draw()
    assert read(tmp_path)["series"]["ours"]["y"] == [1.0, 2.0, 4.0]
    bundle = picture._repr_mimebundle_()
    assert bundle["text/plain"] == "It grows." and 'aria-label="It grows."' in bundle["image/svg+xml"]


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    draw()
    first = (tmp_path / "figures" / "example.svg").read_bytes()
    (tmp_path / "figures" / "example.json").unlink()
    draw()
    assert (tmp_path / "figures" / "example.svg").read_bytes() == first
    assert b"<dc:date>" not in first


def test_by_hand_a_figure_is_shown_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("PPRML_RECORD")
    assert "<svg" in draw()._repr_mimebundle_()["image/svg+xml"]
    assert list(tmp_path.iterdir()) == []


def test_of_a_figure_that_varies_only_names_and_lengths_are_compared(tmp_path):
    draw(varies=True)
    known = read(tmp_path)
    draw(values=(1.2, 9.1, 4.4), varies=True)
    assert figures.compare(read(tmp_path), known) == []
    shorter = read(tmp_path)
    shorter["series"]["ours"]["y"].pop()
    assert "another length" in figures.compare(shorter, known)[0]


def test_another_alternative_text_is_caught_and_another_number_in_it_is_not():
    old = record([1.0, 2.0]) | {"alt": "It grows to 2.0."}
    assert figures.compare(old | {"alt": "It grows to 2.1."}, old) == []
    assert "alternative text" in figures.compare(old | {"alt": "It falls to 2.0."}, old)[0]


def record(y, tolerance=0.01):
    return {"series": {"ours": {"x": [0.0, 1.0], "y": y}}, "tolerance": {"ours": tolerance}}


def test_one_altered_series_is_caught_and_a_tolerated_one_is_not():
    assert figures.compare(record([1.0, 2.005]), record([1.0, 2.0])) == []
    (fault,) = figures.compare(record([1.0, 2.05]), record([1.0, 2.0]))
    assert "'ours': y moved" in fault


def test_missing_series_other_length_and_changed_label_are_caught():
    assert figures.compare({"series": {}, "tolerance": {}}, record([1.0, 2.0]))
    assert "another length" in figures.compare(record([1.0]), record([1.0, 2.0]))[0]
    assert "differs" in figures.compare(record(["a", "c"]), record(["a", "b"]))[0]


@pytest.mark.parametrize(
    "change, fault",
    [
        (dict(figure_id="no spaces"), "lower-case"),
        (dict(alt=" "), "alternative text"),
        (dict(data={}), "alternative text"),
        (dict(data={"a": {"y": [float("nan")]}}), "not finite"),
        (dict(data={"a": {"y": []}}), "empty"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, change, fault):
    figure, _ = figures.new()
    good = dict(figure_id="example", data={"a": {"y": [1.0]}}, alt="It grows.")
    with pytest.raises(figures.FigureError, match=fault):
        figures.save(figure, **{**good, **change})
    assert not (tmp_path / "figures").exists()
