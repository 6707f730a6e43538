"""Runs write to their own folder, resume, say what moved, and leave no process; the checkout stays as it was."""

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

from pprml import ROOT
from pprml.course import cli, runner
from tests.course_of_one import CODE, change_code, chapter, course, git, write_book  # noqa: F401 fixtures

PPRML = [sys.executable, "-m", "pprml.course"]


def write(root, name, *sources, kernel="pprml-core"):
    return write_book(root / "notebooks" / f"{name}.ipynb", *sources, kernel=kernel)


def outputs(root, name="01_a"):
    book = nbformat.read(root / "build" / "notebooks" / f"{name}.ipynb", as_version=4)
    return [cell.outputs for cell in book.cells if cell.cell_type == "code"]


def test_a_run_writes_to_its_folder_and_not_again(course, capsys):  # noqa: F811
    path = write(course, "01_a", "print(6 * 7)")
    before = path.read_bytes()
    assert cli.main(["reproduce"]) == 0
    assert outputs(course)[0][0].text == "42\n" and path.read_bytes() == before
    built = course / "build" / "notebooks" / "01_a.ipynb"
    first = built.stat().st_mtime_ns
    assert cli.main(["reproduce"]) == 0
    assert built.stat().st_mtime_ns == first and "unchanged since: 01_a" in capsys.readouterr().out
    assert cli.main(["reproduce", "--force"]) == 0 and built.stat().st_mtime_ns > first


def test_the_checkout_stays_clean_and_the_last_screen_is_short(chapter, capsys):  # noqa: F811
    assert cli.main(["reproduce"]) == 1  # one number is not stated yet
    assert git(chapter, "status", "--porcelain") == ""
    said = capsys.readouterr().out.splitlines()
    assert len(said) <= 24 and "numbers that moved beyond the digits shown: 1 of 2" in said
    assert any("spread: 0.5" in line for line in said)


def test_every_number_that_moved_is_named_and_the_run_goes_on(chapter, capsys):  # noqa: F811
    change_code(chapter, "share = 0.6423", "share = 0.7")
    assert cli.main(["reproduce"]) == 1
    said = capsys.readouterr().out
    assert "share: 70.0 % (0.7), stated 64.2 %" in said and "spread: 0.5" in said
    assert outputs(chapter)[1][0].text == "70.0% match\n"


def test_a_measurement_that_the_ledger_does_not_hold_is_named(chapter, capsys):  # noqa: F811
    (chapter / "claims" / "02_b.yml").write_text(
        (chapter / "claims" / "01_a.yml").read_text().replace("share", "shore")
    )
    (chapter / "claims" / "01_a.yml").write_text("")
    text = (chapter / "claims" / "02_b.yml").read_text().replace("shore:", "share:")
    (chapter / "claims" / "02_b.yml").write_text(text)
    assert cli.main(["reproduce", "--strict"]) == 1
    assert "measures share, which its ledger does not hold" in capsys.readouterr().out


def test_a_failing_cell_does_not_stop_the_others(course, capsys):  # noqa: F811
    for name, source in (("01_a", "print(1)"), ("02_b", "1 / 0"), ("03_c", "print(3)")):
        write(course, name, "x = 0", source)
    assert cli.main(["reproduce"]) == 3
    captured = capsys.readouterr()
    for part in ("02_b.ipynb, cell 3", "1 / 0", "ZeroDivisionError: division by zero"):
        assert part in captured.err
    assert "FAILED: 02_b" in captured.out
    assert outputs(course, "01_a")[1][0].text == "1\n" and outputs(course, "03_c")[1][0].text == "3\n"
    assert not (course / "build" / "notebooks" / "02_b.ipynb").exists()

    write(course, "02_b", "x = 1", "1 / x")
    assert cli.main(["reproduce"]) == 0
    assert "unchanged since: 01_a, 03_c" in capsys.readouterr().out


def test_two_notebooks_run_at_a_time(course):  # noqa: F811
    """Each waits for the other: one after the other, neither would end."""
    meet = "import time; from pathlib import Path\nPath({mine!r}).touch()\n"
    meet += "deadline = time.time() + 120\nwhile not Path({other!r}).exists() and time.time() < deadline: time.sleep(0.1)\n"
    meet += "assert Path({other!r}).exists()"
    for mine, other in (("01_a", "02_b"), ("02_b", "01_a")):
        write(course, mine, meet.format(mine=str(course / mine), other=str(course / other)))
    assert cli.main(["reproduce"]) == 0


def test_memory_holds_the_second_back(course, monkeypatch):  # noqa: F811
    lock = "import os, time; from pathlib import Path\np = Path({path!r})\nassert not p.exists()\np.touch(); time.sleep(1); p.unlink()"
    for name in ("01_a", "02_b"):
        write(course, name, lock.format(path=str(course / "running")))
    big = psutil.virtual_memory().total / 2e9
    monkeypatch.setattr(
        cli.report,
        "load_timings",
        lambda root: {n: {"seconds": 1, "gigabytes": big} for n in ("01_a", "02_b")},
    )
    assert cli.main(["reproduce"]) == 0


def test_only_what_is_stale_is_run(chapter, capsys):  # noqa: F811
    assert cli.main(["seeds", "01_a", "--seeds", "5"]) == 0
    cli.main(["reproduce"])
    assert cli.main(["accept", "01_a"]) == 0
    write(chapter, "02_b", "print(2)")
    capsys.readouterr()
    assert cli.main(["reproduce", "--stale"]) == 0
    assert "ran: 02_b" in capsys.readouterr().out


def test_strict_compares_outputs_with_what_is_committed(chapter, capsys):  # noqa: F811
    cli.main(["seeds", "01_a", "--seeds", "5"])
    cli.main(["reproduce"])
    cli.main(["accept", "01_a"])
    assert cli.main(["reproduce", "--strict"]) == 0
    path = chapter / "notebooks" / "01_a.ipynb"
    path.write_text(path.read_text().replace("64.2% match\\n", "65.2% match\\n"))
    capsys.readouterr()
    assert cli.main(["reproduce", "--strict"]) == 1
    assert "01_a: code cell 1: 64.2 was 65.2" in capsys.readouterr().out


def test_unknown_notebook_names_the_nearest(course, capsys):  # noqa: F811
    write(course, "01_a", "print(1)")
    assert cli.main(["reproduce", "01_b"]) == 2
    assert "did you mean '01_a'" in capsys.readouterr().err


def test_a_track_that_is_not_set_up_is_left_out_with_its_reason(course, capsys, monkeypatch, tmp_path):  # noqa: F811
    write(course, "01_a", "print(1)")
    write(course, "02_b", "print(1)", kernel="pprml-nowhere")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert cli.main(["reproduce"]) == 0
    assert (
        "left out: 02_b, because the nowhere track is not set up (`make nowhere`)" in capsys.readouterr().out
    )
    (tmp_path / "no-nowhere.txt").write_text("it needs Python 2.7\n")
    assert cli.main(["reproduce"]) == 0
    assert "left out: 02_b, because it needs Python 2.7" in capsys.readouterr().out
    assert cli.main(["reproduce", "02"]) == 4


def test_a_track_whose_environment_is_gone_is_left_out(course, capsys, tmp_path, monkeypatch):  # noqa: F811
    gone = tmp_path / "kernels" / "pprml-gone"
    gone.mkdir(parents=True)
    argv = [str(tmp_path / "nowhere" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (gone / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "gone", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    write(course, "01_a", "print(1)", kernel="pprml-gone")
    write(course, "02_b", "print(2)")
    assert cli.main(["reproduce"]) == 0
    assert (
        "left out: 01_a, because the gone track has lost its environment (`make gone`)"
        in capsys.readouterr().out
    )
    assert outputs(course, "02_b")[0][0].text == "2\n"


def test_a_notebook_runs_in_the_kernel_that_it_names(course):  # noqa: F811
    """On the kernel of another track where that is set up; on the core track's otherwise."""
    kernels = cli.KernelSpecManager().find_kernel_specs()
    kernel = next((k for k in ("pprml-mpc", "pprml-pytorch") if not cli.why_not(k, kernels)), "pprml-core")
    write(course, "01_a", "import sys; print(sys.prefix)", kernel=kernel)
    assert cli.main(["reproduce"]) == 0
    folder = {"pprml-core": ".venv"}.get(kernel, f".venv-{kernel.removeprefix('pprml-')}")
    assert outputs(course)[0][0].text.strip() == str(ROOT / folder)


@pytest.mark.parametrize("value", ["", "out put é", None], ids=["empty", "relative", "absolute"])
def test_the_folder_of_results_may_be_set(course, monkeypatch, tmp_path, value):  # noqa: F811
    write(course, "01_a", "import os; print(os.environ['PPRML_RECORD'])")
    monkeypatch.chdir(tmp_path)
    wanted = {"": course / "build", "out put é": tmp_path / "out put é", None: tmp_path / "there"}[value]
    monkeypatch.setenv("PPRML_OUTPUT", str(wanted) if value is None else value)
    assert cli.main(["reproduce"]) == 0
    assert (wanted / "notebooks" / "01_a.ipynb").exists()


def test_a_folder_that_cannot_be_written_is_named_before_work_starts(course, monkeypatch, tmp_path, capsys):  # noqa: F811
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PPRML_OUTPUT", str(tmp_path / "file" / "out"))
    write(course, "01_a", "print(1)")
    assert cli.main(["reproduce"]) == 4
    assert "cannot be written" in (said := capsys.readouterr().err) and "set PPRML_OUTPUT" in said


def test_a_second_run_says_who_holds_the_folder(course, capsys):  # noqa: F811
    write(course, "01_a", "print(1)")
    with cli.only_run(cli.find_build()):
        assert cli.main(["reproduce"]) == 4
    assert f"another run (process {os.getpid()})" in capsys.readouterr().err


def test_a_disk_that_fills_leaves_the_old_results(course, capsys):  # noqa: F811
    write(course, "01_a", "print('x')")
    assert cli.main(["reproduce"]) == 0
    built = course / "build" / "notebooks" / "01_a.ipynb"
    before = built.read_bytes()
    write(course, "01_a", "print('x' * 200_000)")
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        assert cli.main(["reproduce"]) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    assert built.read_bytes() == before and [p.name for p in built.parent.iterdir()] == ["01_a.ipynb"]
    assert "File too large" in capsys.readouterr().err


SLEEP = "613.25"
ORPHAN = f"import subprocess\nworker = subprocess.Popen(['sleep', '{SLEEP}'], start_new_session=True)\n"


def sleepers():
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", SLEEP]]


@pytest.mark.parametrize(
    "end", ["print('done')", "1 / 0", "import os; os._exit(1)"], ids=["ends", "fails", "crashes"]
)
def test_no_process_survives_a_notebook(course, end):  # noqa: F811
    write(course, "01_a", ORPHAN, end)
    cli.main(["reproduce"])
    assert sleepers() == []


def start_run(root):
    code = f"from pathlib import Path; from pprml.course.runner import run_notebook as r; r(Path({str(root / 'notebooks' / '01_a.ipynb')!r}), Path({str(root / 'build')!r}))"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    # A bound on a hang of the test, not on the machine's speed.
    deadline = time.time() + 600
    while not sleepers() and time.time() < deadline:
        time.sleep(0.2)
    assert sleepers()
    return child


def test_a_killed_runner_leaves_nothing_after_the_next_run(course):  # noqa: F811
    write(course, "01_a", ORPHAN + "import time; time.sleep(600)")
    child = start_run(course)
    child.kill()
    child.wait()
    runner.kill_marked()
    assert sleepers() == []


def test_the_interpreter_version_and_run_times_stay_out_of_the_file(course):  # noqa: F811
    write(course, "01_a", "print(1)")
    cli.main(["reproduce"])
    book = json.loads((course / "build" / "notebooks" / "01_a.ipynb").read_text())
    assert book["metadata"]["language_info"] == {"name": "python"}
    assert all("execution" not in cell["metadata"] for cell in book["cells"])


def test_another_time_zone_and_locale_give_the_same_outputs(course, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "C")
    write(course, "01_a", "import time, locale; print(time.tzname[0], locale.getpreferredencoding(False))")
    assert cli.main(["reproduce"]) == 0
    assert outputs(course)[0][0].text == "UTC UTF-8\n"


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["--help"], 0, "exit codes"),
        (["reproduce", "--help"], 0, "--force"),
        (["reproduce", "10_encrypted_linear_regresion"], 2, "did you mean '10_encrypted_linear_regression'"),
        (["seeds"], 2, "required"),
        (["accept"], 2, "required"),
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
