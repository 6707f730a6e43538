"""The runner resumes, stops where it should, writes whole files or none, and leaves no process."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from pprml import ROOT, report, reproduce, runner

PPRML = [sys.executable, "-m", "pprml.reproduce"]


def write_book(path, *sources):
    cells = [
        new_markdown_cell("# 01 A title\n\n*What is left?*"),
        *(new_code_cell(source) for source in sources),
    ]
    book = new_notebook(cells=cells)
    book.metadata.kernelspec = {"name": "pprml-core", "display_name": "pprml core", "language": "python"}
    nbformat.write(book, path)
    return path


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of its own: notebooks, state and README; the ledger is the real one, and not what these tests look at."""
    books = tmp_path / "notebooks"
    books.mkdir()
    monkeypatch.setattr(reproduce, "NOTEBOOKS", books)
    monkeypatch.setattr(reproduce, "STATE", tmp_path / "state.json")
    monkeypatch.setattr(report, "update", lambda: None)
    monkeypatch.setattr(reproduce, "report_claims", lambda: 0)
    return books


def outputs(path):
    return [
        cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    ]


def test_runs_writes_outputs_and_does_not_run_again(course, capsys):
    path = write_book(course / "01_a.ipynb", "print(6 * 7)")
    assert reproduce.main(["reproduce"]) == 0
    assert outputs(path)[0][0].text == "42\n"
    first = path.stat().st_mtime_ns
    assert reproduce.main(["reproduce"]) == 0
    assert path.stat().st_mtime_ns == first and "unchanged" in capsys.readouterr().out
    assert reproduce.main(["reproduce", "--force"]) == 0
    assert path.stat().st_mtime_ns > first


def test_a_failing_cell_stops_the_run_and_the_rest_resumes(course, capsys):
    write_book(course / "01_a.ipynb", "print(1)")
    second = write_book(course / "02_b.ipynb", "x = 0", "1 / x")
    third = write_book(course / "03_c.ipynb", "print(3)")
    before = second.read_bytes()
    assert reproduce.main(["reproduce"]) == 3
    captured = capsys.readouterr()
    for part in ("02_b.ipynb, cell 2", "1 / x", "ZeroDivisionError: division by zero"):
        assert part in captured.err
    assert second.read_bytes() == before and outputs(third) == [[]]

    write_book(course / "02_b.ipynb", "x = 1", "1 / x")
    assert reproduce.main(["reproduce"]) == 0
    assert "01_a: unchanged" in capsys.readouterr().out
    assert outputs(third)[0][0].text == "3\n"


def test_code_counts_as_changed_and_prose_does_not(course):
    path = write_book(course / "01_a.ipynb", "print(1)")
    old = reproduce.fingerprint(path)
    book = nbformat.read(path, as_version=4)
    book.cells[0].source += "\n\nMore prose."
    nbformat.write(book, path)
    assert reproduce.fingerprint(path) == old
    book.cells[1].source = "print(2)"
    nbformat.write(book, path)
    assert reproduce.fingerprint(path) != old


def test_unknown_notebook_names_the_nearest(course, capsys):
    write_book(course / "01_a.ipynb", "print(1)")
    assert reproduce.main(["reproduce", "01_b"]) == 2
    assert "did you mean '01_a'" in capsys.readouterr().err


def test_a_kernel_that_is_not_set_up_is_reported_and_skipped(course, capsys):
    path = write_book(course / "01_a.ipynb", "print(1)")
    text = path.read_text().replace("pprml-core", "pprml-nowhere")
    path.write_text(text)
    assert reproduce.main(["reproduce"]) == 0
    assert "01_a: skipped, pprml-nowhere is not set up" in capsys.readouterr().out
    assert path.read_text() == text


def test_a_kernel_whose_environment_is_gone_is_reported_and_skipped(course, capsys, tmp_path, monkeypatch):
    gone = tmp_path / "kernels" / "pprml-gone"
    gone.mkdir(parents=True)
    argv = [str(tmp_path / "nowhere" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (gone / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "gone", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    first, second = (
        write_book(course / "01_a.ipynb", "print(1)"),
        write_book(course / "02_b.ipynb", "print(2)"),
    )
    first.write_text(first.read_text().replace("pprml-core", "pprml-gone"))
    assert reproduce.main(["reproduce"]) == 0
    said = capsys.readouterr().out
    assert "01_a: skipped, pprml-gone has lost its environment" in said and "make gone" in said
    assert outputs(first) == [[]] and outputs(second)[0][0].text == "2\n"


def test_a_notebook_runs_in_the_kernel_that_it_names(course):
    """On the kernel of another track where that is set up; on the core track's otherwise."""
    kernels = reproduce.KernelSpecManager().find_kernel_specs()
    kernel = next(
        (k for k in ("pprml-mpc", "pprml-pytorch") if not reproduce._why_not(k, kernels)), "pprml-core"
    )
    path = write_book(course / "01_a.ipynb", "import sys; print(sys.prefix)")
    path.write_text(path.read_text().replace("pprml-core", kernel))
    assert reproduce.main(["reproduce"]) == 0
    folder = {"pprml-core": ".venv"}.get(kernel, f".venv-{kernel.removeprefix('pprml-')}")
    assert outputs(path)[0][0].text.strip() == str(ROOT / folder)


def test_a_changed_module_of_a_package_counts_as_changed(course, tmp_path, monkeypatch):
    path = write_book(course / "01_a.ipynb", "print(1)")
    package = tmp_path / "root" / "pprml" / "topic"
    package.mkdir(parents=True)
    (package / "part.py").write_text("a = 1\n")
    (tmp_path / "root" / "uv.lock").write_text("")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path / "root")
    old = reproduce.fingerprint(path)
    (package / "part.py").write_text("a = 2\n")
    assert reproduce.fingerprint(path) != old


def test_a_disk_that_fills_leaves_the_old_notebook(course, capsys):
    path = write_book(course / "01_a.ipynb", "print('x' * 200_000)")
    before = path.read_bytes()
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        assert reproduce.main(["reproduce"]) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    assert path.read_bytes() == before and [p.name for p in course.iterdir()] == ["01_a.ipynb"]
    assert "what was there before is unchanged" in capsys.readouterr().err


ORPHAN = "import subprocess\nworker = subprocess.Popen(['sleep', '613'], start_new_session=True)\n"


def sleepers():
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "613"]]


@pytest.mark.parametrize(
    "end", ["print('done')", "1 / 0", "import os; os._exit(1)"], ids=["ends", "fails", "crashes"]
)
def test_no_process_survives_a_notebook(course, end):
    write_book(course / "01_a.ipynb", ORPHAN, end)
    reproduce.main(["reproduce"])
    assert sleepers() == []


def test_a_killed_runner_leaves_nothing_after_the_next_run(course, tmp_path):
    path = write_book(course / "01_a.ipynb", ORPHAN + "import time; time.sleep(60)")
    code = (
        f"from pprml.runner import run_notebook; from pathlib import Path; run_notebook(Path({str(path)!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while not sleepers() and time.time() < deadline:
        time.sleep(0.2)
    assert sleepers()
    child.kill()
    child.wait()
    runner.kill_marked()
    assert sleepers() == []


def test_the_interpreter_version_and_run_times_stay_out_of_the_file(course):
    path = write_book(course / "01_a.ipynb", "print(1)")
    reproduce.main(["reproduce"])
    book = json.loads(path.read_text())
    assert book["metadata"]["language_info"] == {"name": "python"}
    assert all("execution" not in cell["metadata"] for cell in book["cells"])


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["--help"], 0, "exit codes"),
        (["reproduce", "--help"], 0, "--force"),
        (["reproduce", "10_encrypted_linear_regresion"], 2, "did you mean '10_encrypted_linear_regression'"),
        (["nonsense"], 2, "invalid choice"),
        ([], 2, "required"),
    ],
)
def test_command_line(arguments, code, said):
    done = subprocess.run(
        [*PPRML, *arguments], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ)
    )
    assert done.returncode == code
    assert said in (done.stdout if code == 0 else done.stderr)
