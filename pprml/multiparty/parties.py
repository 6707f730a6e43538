"""Parties as processes: three servers, the owners of the data, an analyst who holds none, and the wire between them.

An owner's numbers enter its own process and leave it as shares only. A run ends with a result or an error within its time limit, and
leaves no process behind.
"""

import contextlib
import multiprocessing
import os
import shutil
import socket
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from pprml import PATIENCE
from pprml._processes import find_ports
from pprml.certificates import issue_certificate, make_authority
from pprml.multiparty.wire import Meddler, Tensor, name_taken_port, read_tensors, run_relay

SERVERS = ("server0", "server1", "server2")  # the names that TF Encrypted's protocols look for
# Every party is a fork of one clean process that has imported TensorFlow and done nothing with it: seconds saved for each.
_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(["tensorflow", "pprml.multiparty"])


def _enter(task: Callable, pipe: Any, *arguments: Any) -> None:
    """Run a process's task; send an error instead of a result; TensorFlow's chatter goes nowhere."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
    try:
        task(pipe, *arguments)
    except (EOFError, BrokenPipeError):
        pass
    except Exception as error:
        known = isinstance(error, ValueError)
        with contextlib.suppress(OSError):
            text = str(error).splitlines()[0] if str(error) else ""
            pipe.send(ValueError(str(error)) if known else RuntimeError(f"{type(error).__name__}: {text}"))


def _serve(pipe, name, port, cluster, path, values):
    """Be a server or an owner of data: keep the data in a private file, and compute what the analyst's graph says."""
    with socket.socket() as probe:  # gRPC itself would share a port that another process listens on
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise name_taken_port(port) from None
    if values is not None:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(np.ascontiguousarray(values, np.float64).tobytes())
    import tf_encrypted as tfe

    tfe.RemoteConfig(OrderedDict(cluster, **{name: f"127.0.0.1:{port}"})).start_server(name)
    pipe.send("ready")
    pipe.recv()  # until the study ends
    os._exit(0)  # TensorFlow's server has no way to stop


def _analyse(pipe, cluster):
    """Be the analyst: connect, then run one program after the other."""
    import tf_encrypted as tfe

    config = tfe.RemoteConfig(OrderedDict(cluster))
    config.connect_servers()
    tfe.set_config(config)
    pipe.send("ready")
    while True:
        program, arguments = pipe.recv()
        pipe.send((program(*arguments),))


class Study:
    """Start the parties of one study; use it in a ``with`` statement.

    While it runs, TensorFlow's servers listen on *all* addresses of this machine (they have no setting for one) and give a file to
    whoever asks: use a machine whose ports nobody else reaches.

    Parameters
    ----------
    inputs : dict of owner to ndarray
        What each owner brings, float64. It is given to that owner's process only.
    tls : bool
        Encrypt and authenticate every link.
    record : bool
        Keep what passes on the wire, as an eavesdropper would.
    meddle : callable, optional
        Applied to each chunk on the wire; see `wire.Meddler`.
    timeout : float
        Seconds that starting, and then each run, may take.
    ports : dict of party to int, optional
        Where a party listens; free ports by default.

    Raises
    ------
    ValueError
        A port is in use.
    RuntimeError, TimeoutError
        A party ended, or did not answer in time. No process is left.
    """

    def __init__(
        self,
        inputs: dict[str, np.ndarray],
        tls: bool = True,
        record: bool = False,
        meddle: Meddler | None = None,
        timeout: float = PATIENCE,
        ports: dict[str, int] | None = None,
    ):
        self.inputs = {name: np.asarray(values, np.float64) for name, values in inputs.items()}
        self.tls, self.record, self.meddle, self.timeout = tls, record, meddle, timeout
        self.chosen_ports = ports or {}
        self.names = [*SERVERS, *self.inputs]
        self.processes: dict[str, tuple[Any, Any]] = {}

    def __enter__(self) -> "Study":
        try:
            self._open()
        except ValueError as error:
            # A port that was free a moment ago can be taken by anybody: look for others, once. A chosen one stays taken.
            if "is in use" not in str(error) or self.chosen_ports:
                raise
            self._open()
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pprml-"))  # readable by its owner only
        try:
            with self._limited():
                self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        names, hops = self.names, 4 if self.tls else 2
        free = iter(find_ports(hops * len(names)))
        self.links = {name: [next(free) for _ in range(hops)] for name in names}
        for name, port in self.chosen_ports.items():
            self.links[name][-1] = port
        certificates = None
        if self.tls:
            authority = make_authority("study", days=1)
            for name in (*names, "sender"):
                issue_certificate(authority, self.folder, (name,), days=1, name=name)
            certificates = self.folder
        cluster = {name: f"127.0.0.1:{ports[0]}" for name, ports in self.links.items()}
        self._spawn("wire", run_relay, self.links, certificates, self.record, self.meddle)
        for name in names:
            values = self.inputs.get(name)
            self._spawn(name, _serve, name, self.links[name][-1], cluster, self.path(name), values)
        for name in ("wire", *names):
            self._answer(name)
        self._spawn("analyst", _analyse, cluster)
        self._answer("analyst")

    def path(self, owner: str) -> str:
        """Where an owner's process keeps its numbers."""
        return str(self.folder / f"{owner}.f64")

    def address(self, party: str, certified: bool = False) -> str:
        """Where anybody on the network reaches a party: its bare port, or the far end of TLS.

        With `certified`, through the relay that shows a certificate of the study, as its servers and its analyst do.
        """
        return f"127.0.0.1:{self.links[party][1 if self.tls and not certified else 0]}"

    def run(self, program: Callable, *arguments: Any) -> Any:
        """Let the analyst run `program(*arguments)`, which must be importable, and return its result."""
        with self._limited():
            return self._ask("analyst", (program, arguments))[0]

    def sent(self) -> int:
        """Bytes that have passed on the wire so far, on all links and in both directions."""
        with self._limited():
            return sum(self._ask("wire", "sent").values())

    def overheard(self) -> list[Tensor]:
        """Every tensor that an eavesdropper on all links can read; none under TLS."""
        with self._limited():
            return read_tensors(self._ask("wire", "recorded"), self.names)

    def close(self) -> None:
        """End all processes and delete the owners' files."""
        for process, pipe in self.processes.values():
            process.kill()
            process.join()
            pipe.close()
        self.processes = {}
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self, name: str, task: Callable, *arguments: Any) -> None:
        ours, theirs = _FORK.Pipe()
        process = _FORK.Process(target=_enter, args=(task, theirs, *arguments), name=name, daemon=True)
        process.start()
        theirs.close()
        self.processes[name] = process, ours

    def _ask(self, name: str, request: Any) -> Any:
        if name not in self.processes:
            raise RuntimeError("the study has ended: start another one")
        try:
            with contextlib.suppress(OSError):  # that the party ended is told by `_answer`
                self.processes[name][1].send(request)
            return self._answer(name)
        except BaseException:
            self.close()  # after an error nobody can say what state the others are in
            raise

    def _answer(self, name: str) -> Any:
        sentinels = {process.sentinel: party for party, (process, _) in self.processes.items()}
        ready = wait([self.processes[name][1], *sentinels])
        reply = self._read(name) if self.processes[name][1] in ready else None
        if isinstance(reply, RuntimeError):
            # The analyst notices a lost party first: give the system a moment to say whose process it was.
            ready = wait(list(sentinels), timeout=1.0)
        if self._expired.is_set():
            raise TimeoutError(
                f"no answer within {self.timeout:g} s: a party hangs or is too slow (PPRML_PATIENCE sets how long is waited)"
            )
        ended = [sentinels[item] for item in ready if item in sentinels]
        last_words = [(party, reply if party == name else self._read(party)) for party in ended]
        for party, words in [*last_words, (name, reply)]:
            if isinstance(words, ValueError):
                raise ValueError(f"{party}: {words}")
        if ended:
            raise RuntimeError(f"{', '.join(ended)} ended before the run was over: start it again")
        if isinstance(reply, Exception):
            raise RuntimeError(f"{name}: {reply}")
        return reply

    def _read(self, name: str) -> Any:
        with contextlib.suppress(EOFError, OSError):
            return self.processes[name][1].recv() if self.processes[name][1].poll() else None

    @contextlib.contextmanager
    def _limited(self):
        """Kill everything when time is up: that unblocks whatever waits."""
        self._expired = threading.Event()

        def end():
            self._expired.set()
            for process, _ in list(self.processes.values()):
                process.kill()

        timer = threading.Timer(self.timeout, end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def attack_read_file(address: str, path: str, timeout: float = PATIENCE) -> bytes | None:
    """Ask a party's open port for a file of its machine, from a process that has no part in the study.

    TensorFlow's server does whatever a client asks.

    Returns
    -------
    bytes or None
        The file, or None where the port refused: show that the same thief succeeds when it is let in.

    Raises
    ------
    TimeoutError
        Neither a file nor a refusal within `timeout` seconds: this says nothing about the port.
    """
    ours, theirs = _FORK.Pipe()
    process = _FORK.Process(target=_enter, args=(_steal, theirs, address, path), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout):
            raise TimeoutError(f"no file and no refusal from {address} within {timeout:g} s")
        found = ours.recv()
    except EOFError:  # TensorFlow's client aborts where it is refused
        found = None
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(found, Exception) and "UnavailableError" not in str(found):
        raise found  # the thief failed before it came to the port
    return found if isinstance(found, bytes) else None


def _steal(pipe, address, path):
    import tensorflow as tf

    os.environ["GRPC_FAIL_FAST"] = "true"  # take a refusal for an answer, instead of trying for ever
    tf.config.experimental_connect_to_host(address)
    with tf.device("/job:worker/task:0"):
        content = tf.io.read_file(path)
    pipe.send(content.numpy())
