"""A run's key changes with all that its outputs depend on, and with nothing else; a digest changes with what was made."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from pprml import ROOT
from pprml.claims import Claim
from pprml.course import keys

LOCK = """
[[package]]
name = "pprml"
version = "0.1.0"
dependencies = [{ name = "numpy" }]
[package.optional-dependencies]
core = [{ name = "tenseal" }, { name = "winonly", marker = "sys_platform == 'win32'" }]
pytorch = [{ name = "torch" }]
[[package]]
name = "numpy"
version = "1.0"
[[package]]
name = "tenseal"
version = "0.3"
[[package]]
name = "winonly"
version = "1.0"
[[package]]
name = "torch"
version = "2.0"
"""


@pytest.fixture
def root(tmp_path):
    """A checkout of its own: topic imports engine lazily; other is nobody's."""
    package = tmp_path / "pprml"
    (package / "engine").mkdir(parents=True)
    files = {
        "__init__.py": "ROOT = 1\n",
        "claims.py": "x = 1\n",
        "figures.py": "x = 1\n",
        "_files.py": "x = 1\n",
        "topic.py": "def f():\n    from pprml.engine import g\n    return g\n",
        "engine/__init__.py": "def __getattr__(name):\n    raise AttributeError(name)\n",
        "engine/part.py": "def g():\n    '''Do it.'''\n    return 1\n",
        "other.py": "x = 1\n",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    (tmp_path / "uv.lock").write_text(LOCK)
    return tmp_path


def make_book(source="from pprml import claims, figures, topic\ntopic.f()", prose="Text."):
    book = new_notebook(cells=[new_markdown_cell(prose), new_code_cell(source)])
    book.metadata.kernelspec = {"name": "pprml-core", "display_name": "core", "language": "python"}
    return book


CLAIMS = [Claim("share", "01", "s", states="1")]


def find(root, book=None, claims=CLAIMS, kind=keys.find_key):
    # Files of a checkout do not change under a running program; those of a test do.
    for cached in (keys._read_module, keys._list_modules, keys._read_lock):
        cached.cache_clear()
    return kind(book or make_book(), claims, root)


@pytest.mark.parametrize(
    "file, text",
    [
        ("pprml/topic.py", "def f():\n    from pprml.engine import g\n    return g()\n"),
        ("pprml/engine/part.py", "def g():\n    return 2\n"),
        ("pprml/figures.py", "x = 2\n"),
        ("uv.lock", LOCK.replace('"0.3"', '"0.4"')),
        ("uv.lock", LOCK.replace('"1.0"', '"1.1"', 1)),
    ],
    ids=["module", "module of an imported package", "shared room", "the track's package", "a base package"],
)
def test_what_the_outputs_depend_on_changes_the_key(root, file, text):
    before = find(root)
    (root / file).write_text(text)
    assert find(root) != before


@pytest.mark.parametrize(
    "file, text",
    [
        ("pprml/other.py", "x = 2\n"),
        ("pprml/engine/part.py", "def g():\n    '''Do it better.'''\n    # why\n    return  1\n"),
        ("uv.lock", LOCK.replace('"2.0"', '"2.1"')),
    ],
    ids=["a module that is not imported", "docstring, comment, layout", "another track's package"],
)
def test_what_they_do_not_depend_on_leaves_it(root, file, text):
    before = find(root)
    (root / file).write_text(text)
    assert find(root) == before


def test_cells_and_claims_count_and_prose_does_not(root):
    before = find(root)
    assert find(root, make_book(prose="Other text.")) == before
    assert find(root, make_book("from pprml import claims, figures, topic\ntopic.f()  # why")) == before
    assert find(root, make_book("from pprml import claims, figures, topic\ntopic.f(1)")) != before
    assert find(root, claims=[*CLAIMS, Claim("other", "01", "s", states="1")]) != before
    assert find(root, claims=[Claim("share", "01", "other words", states="2")]) == before


def test_the_key_of_seeds_leaves_out_what_only_draws(root):
    drawn = make_book()
    drawn.cells.append(new_code_cell("figures.save()", metadata={"tags": ["hide-input"]}))
    before = find(root, kind=keys.find_spread_key)
    assert find(root, drawn, kind=keys.find_spread_key) == before != find(root, make_book("topic.f(1)"))
    (root / "pprml" / "figures.py").write_text("x = 2\n")
    assert find(root, kind=keys.find_spread_key) == before
    (root / "pprml" / "engine" / "part.py").write_text("def g():\n    return 2\n")
    assert find(root, kind=keys.find_spread_key) != before


def test_outputs_and_figures_have_digests(tmp_path):
    book = make_book()
    book.cells[1].outputs = [new_output("stream", text="64.2 %\n")]
    before = keys.digest_outputs(book)
    again = nbformat.reads(nbformat.writes(book), as_version=4)
    assert keys.digest_outputs(again) == before
    again.cells[1].outputs[0].text = "65.2 %\n"
    assert keys.digest_outputs(again) != before
    (tmp_path / "a.svg").write_text("<svg/>")
    (tmp_path / "a.json").write_text('{"alt": "It grows."}')
    drawn = keys.digest_figure(tmp_path, "a")
    (tmp_path / "a.json").write_text('{"alt": "It falls."}')
    assert keys.digest_figure(tmp_path, "a") != drawn


def test_the_real_lock_names_each_tracks_packages():
    core, pytorch, mpc = (" ".join(keys._read_lock(track, ROOT)) for track in keys.PYTHONS)
    assert "tensorflow-federated==0.87.0" in core and "torch==" not in core and "pyspark" not in core
    assert "torch==" in pytorch and "tenseal" not in pytorch
    assert "tf-encrypted==" in mpc and "numpy==1.23.5" in mpc and "numpy==1.25.2" not in mpc
    for track in (core, pytorch, mpc):
        assert sum(part.startswith("numpy==") for part in track.split()) == 1
