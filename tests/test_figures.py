"""A figure keeps its numbers, its bytes are stable, and an altered series is caught."""

import json

import pytest

from pprml import figures


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("PPRML_OUTPUT", str(tmp_path))


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


def test_a_timing_within_tolerance_leaves_the_files_alone(tmp_path):
    draw(tolerance=3.0, varies=True)
    before = (tmp_path / "figures" / "example.svg").read_bytes()
    draw(values=(1.2, 2.1, 4.4), tolerance=3.0, varies=True)
    assert read(tmp_path)["series"]["ours"]["y"] == [1.0, 2.0, 4.0]
    assert (tmp_path / "figures" / "example.svg").read_bytes() == before


def test_a_timing_that_gets_another_title_is_drawn_again(tmp_path):
    draw(tolerance=3.0, varies=True)
    draw(values=(1.2, 2.1, 4.4), title="It grows fast", tolerance=3.0, varies=True)
    assert "<!-- It grows fast -->" in (tmp_path / "figures" / "example.svg").read_text()
    assert read(tmp_path)["series"]["ours"]["y"] == [1.2, 2.1, 4.4]


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


def test_a_missing_and_an_uncommitted_figure_are_caught(tmp_path):
    draw()
    folder = tmp_path / "figures"
    assert figures.check_folder(folder, {"example": read(tmp_path)}) == []
    assert "not committed" in figures.check_folder(folder, {})[0]
    assert "not drawn" in figures.check_folder(folder, {"example": read(tmp_path), "other": record([1.0])})[0]


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
