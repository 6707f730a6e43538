"""A pytest plugin for the notebook run: results go to build/, and no process that a notebook started survives it."""

import os

from pprml import ROOT
from pprml.runner import marked_processes

_marked = marked_processes()


def pytest_sessionstart(session):
    os.environ["PPRML_OUTPUT"] = str(ROOT / "build")
    _marked.__enter__()


def pytest_sessionfinish(session, exitstatus):
    _marked.__exit__(None, None, None)
