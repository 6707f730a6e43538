"""A run signs what it made: the key says what a run depends on, the digests what came of it.

Both are checksums and no secret: they catch what was changed by hand or forgotten, not a forger. A forger is caught by the run itself.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import tomllib
from packaging.markers import Marker

from pprml import ROOT
from pprml.claims import Claim

PYTHONS = {"core": "3.11", "pytorch": "3.11", "mpc": "3.10"}
#: What the outputs depend on and a measured value does not.
_LOOKS = ("pprml.figures", "pprml.claims", "pprml._files", "pprml")


def digest(value: Any) -> str:
    """Return the checksum of anything that can be written as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def read_track(book: nbformat.NotebookNode) -> str:
    """Return the track that a notebook's kernel belongs to."""
    return book.metadata.get("kernelspec", {}).get("name", "").removeprefix("pprml-")


def find_key(book: nbformat.NotebookNode, claims: Iterable[Claim], root: Path = ROOT) -> str:
    """Return the key of a notebook's run: its code, what it imports, its track's lock, and what its ledger wants measured.

    Comments, docstrings, layout and prose leave it as it is; so do the ledger's numbers and sentences, which no output shows.
    """
    return _make_key(book, claims, root, drop_tags=(), drop_modules=())


def find_spread_key(book: nbformat.NotebookNode, claims: Iterable[Claim], root: Path = ROOT) -> str:
    """Return the key of a record of seeds: as `find_key`, without what only draws or prints."""
    return _make_key(book, claims, root, drop_tags=("hide-input",), drop_modules=_LOOKS)


def _make_key(
    book, claims: Iterable[Claim], root: Path, drop_tags: Iterable[str], drop_modules: Iterable[str]
) -> str:
    sources = [
        cell.source
        for cell in book.cells
        if cell.cell_type == "code" and not set(drop_tags) & set(cell.metadata.get("tags", ()))
    ]
    modules = {
        name: _read_module(_list_modules(root)[name])
        for name in list_closure(sources, root)
        if name not in drop_modules
    }
    wanted = sorted(claim.id for claim in claims if claim.kind in ("measured", "time"))
    return digest(
        [[_normalize(source) for source in sources], modules, _read_lock(read_track(book), root), wanted]
    )


@cache
def _normalize(source: str) -> str:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _list_imports(source: str, module: str, is_package: bool, known: Mapping[str, Path]) -> set[str]:
    """Return the course's modules that a source imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") if is_package else module.split(".")[:-1]
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in known:
            names = [node.value]  # a module that is imported by its name, such as a lazy hub's
        for name in names:
            parts = name.split(".")
            found |= {part for i in range(1, len(parts) + 1) if (part := ".".join(parts[:i])) in known}
    return found


@cache
def _list_modules(root: Path) -> dict[str, Path]:
    modules = {}
    for path in sorted((root / "pprml").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def find_module(name: str, root: Path = ROOT) -> Path:
    """Return the file of one of the course's modules."""
    return _list_modules(root)[name]


@cache
def _read_module(path: Path) -> str:
    return hashlib.sha256(_normalize(path.read_text("utf-8")).encode()).hexdigest()


def list_closure(cells: Iterable[str], root: Path = ROOT) -> list[str]:
    """Return the course's modules that a notebook's cells need, directly or not. Of a package that is imported, all its modules count."""
    known = _list_modules(root)
    waiting, closure = set(), set()
    for cell in cells:
        try:
            waiting |= _list_imports(cell, "", False, known)
        except SyntaxError:
            continue
    while waiting:
        name = waiting.pop()
        closure.add(name)
        package = known[name].name == "__init__.py"
        needed = _list_imports(known[name].read_text("utf-8"), name, package, known)
        if package and name != "pprml":
            needed |= {other for other in known if other.startswith(f"{name}.")}
        waiting |= needed - closure
    return sorted(closure)


@cache
def _read_lock(track: str, root: Path) -> list[str]:
    """Return name and version of every package that a track installs on x86-64 Linux."""
    if track not in PYTHONS:
        return []
    packages: dict[str, list[dict]] = {}
    for package in tomllib.loads((root / "uv.lock").read_text("utf-8"))["package"]:
        packages.setdefault(package["name"], []).append(package)
    place = {
        "extra": f"extra-5-pprml-{track}", "python_version": PYTHONS[track], "python_full_version": f"{PYTHONS[track]}.9",
        "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip
    (course,) = packages["pprml"]
    waiting, found = [*course["dependencies"], *course["optional-dependencies"][track]], set()
    while waiting:
        need = waiting.pop()
        if "marker" in need and not Marker(need["marker"]).evaluate(place):
            continue
        for package in packages[need["name"]]:
            mark = f"{package['name']}=={package.get('version', '')}"
            if need.get("version", package.get("version")) != package.get("version") or mark in found:
                continue
            found.add(mark)
            waiting += package.get("dependencies", [])
            for extra in need.get("extra", []):
                waiting += package.get("optional-dependencies", {}).get(extra, [])
    return sorted(found)


def digest_outputs(book: nbformat.NotebookNode) -> str:
    """Return the checksum of what the cells printed and drew, beside the code that did."""
    return digest(
        [[_normalize(cell.source), cell.outputs] for cell in book.cells if cell.cell_type == "code"]
    )


def digest_figure(folder: Path, name: str) -> str:
    """Return the checksum of a figure: picture, numbers and alternative text together."""
    return digest([(folder / f"{name}.{kind}").read_text("utf-8") for kind in ("svg", "json")])
