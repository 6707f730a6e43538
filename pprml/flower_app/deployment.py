"""A real federation on one machine: a SuperLink and its SuperNodes as processes, started, watched and ended."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from pprml._processes import find_ports, list_marked, start_bound
from pprml.certificates import ServerFiles, check_server_files, make_site_key
from pprml.flower_app.apps import FederationError, Training, read_result
from pprml.flower_app.project import write_project

HOST = "127.0.0.1"
#: In the environment of every process that a lab starts, and of all that those start.
MARK = "PPRML_LAB"
_PORT_TAKEN = "the port is in use: choose another, or end the process that holds it"
# What Flower writes, and what to do about it.
_FAULTS = {
    "certificate has expired": "the SuperLink's certificate has expired: issue a new one",
    "CERTIFICATE_VERIFY_FAILED": "the SuperLink's certificate is not of the authority that this site trusts: "
    "give the site that authority's certificate, or leave this server alone",
    "address already in use": _PORT_TAKEN,
    # A key that the server does not know, and no key at all. Other refusals are shown as they were written.
    **dict.fromkeys(
        ("Failed to activate SuperNode", "SuperNodes must be registered"),
        "the SuperLink refused this site: register its key with `register_site`",
    ),
}
#: Seconds within which all processes of a lab must be gone after they were killed.
END_PATIENCE = 60.0


def check_port(port: int) -> None:
    """Raise a ValueError if the port is in use."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise ValueError(_PORT_TAKEN.replace("the port", f"port {port}")) from error


def find_marked(mark: str) -> list[psutil.Process]:
    """Return the living processes with this mark."""
    return [process for process, found in list_marked(MARK) if found == mark]


class Lab:
    """A SuperLink, SuperNodes, and nothing left of them after the `with` block.

    Parameters
    ----------
    files : ServerFiles or None
        The server's certificate from `issue_certificate`, which is checked first; None for a federation without TLS,
        where anybody on the way reads all.
    port : int, optional
        The SuperLink's; a free one by default, and a ValueError if it is in use.
    """

    def __init__(self, files: ServerFiles | None, port: int | None = None):
        if files is not None:
            check_server_files(files)
        check_port(port or 0)
        self.files, self.port, self.mark = files, port or find_ports(1)[0], secrets.token_hex(8)
        self._may_move = port is None
        self.processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Lab":
        self._folder = tempfile.TemporaryDirectory(prefix="pprml-lab-")
        self.folder = Path(self._folder.name)
        try:
            try:
                self.start_server()
            except FederationError as error:
                # A port that was free when it was found may be taken before it is used; twice is no accident.
                if not self._may_move or _PORT_TAKEN not in str(error):
                    raise
                self.port = find_ports(1)[0]
                self.start_server()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            for process in self.processes.values():
                process.terminate()
            psutil.wait_procs(find_marked(self.mark), timeout=2)
        finally:
            end = time.monotonic() + END_PATIENCE
            while (left := find_marked(self.mark)) and time.monotonic() < end:
                for process in left:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(left, timeout=2)
            for process in self.processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(2)
            self._folder.cleanup()
        if left:
            numbers = ", ".join(str(process.pid) for process in left)
            raise FederationError(f"these processes do not end: {numbers}: end them, or restart the machine")

    def _environment(self) -> dict[str, str]:
        own = {
            MARK: self.mark,
            "FLWR_HOME": str(self.folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            # Without this every Flower program asks its maker's server for news, telemetry or not.
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",
            # Flower starts its own programs by their names.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }
        return {**os.environ, **own}

    def start(self, name: str, program: str, *arguments: str) -> subprocess.Popen:
        """Start a program of this environment, whose output goes to a new log of this name; end an earlier one."""
        if name in self.processes:
            self.processes[name].kill()
            self.processes[name].wait()
        command = [str(Path(sys.executable).parent / program), *arguments]
        with (self.folder / f"{name}.log").open("wb") as log:
            # What Flower's own programs start watches them, and ends with them.
            self.processes[name] = start_bound(
                command, log, env=self._environment(), cwd=self.folder, start_new_session=True
            )
        return self.processes[name]

    def read_log(self, name: str) -> str:
        """Return what a process has written so far."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def wait_for(self, name: str, text: str, seconds: float = 120) -> None:
        """Wait until a process has written `text`; a FederationError says what it wrote instead."""
        end = time.monotonic() + seconds
        while text not in (log := self.read_log(name)):
            ended = self.processes[name].poll() is not None
            fault = next((advice for found, advice in _FAULTS.items() if found in log), None)
            if fault or ended or time.monotonic() > end:
                why = (
                    fault or f"{'ended' if ended else 'nothing'} after {seconds:g} s at most:\n{log[-1500:]}"
                )
                raise FederationError(f"{name}: {why}")
            time.sleep(0.1)

    def start_server(self) -> None:
        """Start the SuperLink, which knows the sites' keys from its database even after a restart."""
        secure = f'root-certificates = "{self.files.ca}"' if self.files else "insecure = true"
        # Where `flwr` looks for it.
        (self.folder / "config.toml").write_text(
            f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "{HOST}:{self.port}"\n{secure}\n'
        )
        arguments = ["--host", HOST, "--port", str(self.port), "--database", str(self.folder / "state.db")]
        if self.files:
            names = ("--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile")
            arguments += [part for pair in zip(names, map(str, self.files), strict=True) for part in pair]
            arguments += ["--enable-supernode-auth"]
        else:
            arguments += ["--insecure"]
        self.start("server", "flower-superlink", *arguments, "--disable-runtime-dependency-installation")
        self.wait_for("server", "Uvicorn running on")

    def register_site(self, public_key: Path) -> None:
        """Tell the SuperLink a site's public key; a FederationError if it does not take it."""
        self._call("register", "supernode", "register", str(public_key), "lab")

    def _call(self, name: str, *arguments: str, seconds: float = 120) -> None:
        process = self.start(name, "flwr", *arguments)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            code = f"none after {seconds:g} s"
        if code:
            raise FederationError(
                f"flwr {' '.join(arguments[:2])}: exit code {code}:\n{self.read_log(name)[-1500:]}"
            )

    def start_site(
        self,
        number: int,
        sites: int,
        register: bool = True,
        ca: Path | None = None,
        port: int | None = None,
    ) -> str:
        """Start a SuperNode that hosts every so-manieth phone, wait until it is connected, and return its name.

        Parameters
        ----------
        number, sites : int
            Site `number`, from 0, of so many.
        register : bool
            Register its key first. Without TLS there are no keys.
        ca : Path, optional
            The authority that the site trusts; by default the server's own.
        port : int, optional
            Where the site looks for the SuperLink, for example a relay's port.
        """
        name = f"site-{number}"
        arguments = ["--superlink", f"{HOST}:{port or self.port}"]
        arguments += [
            "--node-config",
            f"partition-id={number} num-partitions={sites}",
            "--max-wait-time",
            "60",
        ]
        if self.files:
            key = self.folder / f"{name}.key"
            public = make_site_key(key)
            if register:
                self.register_site(public)
            arguments += [
                "--root-certificates",
                str(ca or self.files.ca),
                "--auth-supernode-private-key",
                str(key),
            ]
        else:
            arguments += ["--insecure"]
        try:
            self._start_node(name, *arguments)
        except FederationError as error:
            if _PORT_TAKEN not in str(error):
                raise
            self._start_node(name, *arguments)
        return name

    def _start_node(self, name: str, *arguments: str) -> None:
        self.start(name, "flower-supernode", *arguments, "--port", str(find_ports(1)[0]))
        self.wait_for(name, "SuperNode ID:")

    def begin(self, settings: Mapping[str, Any]) -> Path:
        """Hand the apps to the SuperLink; return the path at which the result will appear."""
        path = self.folder / f"result-{secrets.token_hex(4)}.npz"
        project = write_project(self.folder / "app", {**settings, "result-file": str(path)})
        self._call("run", "run", str(project), "lab")
        return path

    def finish(self, path: Path, seconds: float) -> Training:
        """Wait for a result; a FederationError says why there is none."""
        end = time.monotonic() + seconds
        while not path.exists():
            if time.monotonic() > end or self.processes["server"].poll() is not None:
                raise FederationError(
                    f"no result within {seconds:g} s; the server:\n{self.read_log('server')[-1500:]}"
                )
            time.sleep(0.2)
        return read_result(path)

    def run(self, settings: Mapping[str, Any], seconds: float = 300) -> Training:
        """Train over the network: `begin`, then `finish`."""
        return self.finish(self.begin(settings), seconds)
