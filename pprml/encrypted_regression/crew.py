"""Parties as processes that talk in bytes, each recording what it received (chapter 10)."""

import hashlib
import multiprocessing
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple


class Message(NamedTuple):
    """One message as its receiver recorded it."""

    sender: str
    kind: str
    sha256: str
    payload: bytes


def _run_party(pipe, role, *arguments):
    """Be one party, in its own process: record what arrives, answer, and end when the other side of the pipe is gone."""
    received, start = [], time.process_time()
    try:
        script = role(*arguments)
        answer = next(script)
        while True:
            if answer is not None:
                pipe.send((answer, received, time.process_time() - start))
            messages = pipe.recv()
            received += [Message(s, kind, hashlib.sha256(p).hexdigest(), p) for s, kind, p in messages]
            answer = script.send([payload for *_, payload in messages])
    except (EOFError, OSError):
        pass
    except Exception as error:
        known = isinstance(error, ValueError)
        pipe.send(ValueError(str(error)) if known else RuntimeError(f"{type(error).__name__}: {error}"))


class Crew:
    """Start a process a party, carry messages between them, and leave no process behind.

    Parameters
    ----------
    roles : dict
        For each name a script and its arguments. A script is a generator: it takes the payloads that arrive and yields what it answers.
    timeout : float
        Seconds for the whole run.

    Attributes
    ----------
    transcript, seconds : dict
        What each party received, and its CPU time, as of its last answer.
    """

    def __init__(self, roles: dict[str, tuple], timeout: float):
        self.roles, self.timeout, self.transcript, self.seconds = roles, timeout, {}, {}
        self._parties = {}
        # Killing is what unblocks a pipe, whichever way it was waiting.
        self._watchdog = threading.Timer(timeout, self._kill)

    def __enter__(self):
        spawn = multiprocessing.get_context("spawn")
        self._deadline = time.monotonic() + self.timeout
        try:
            for name, role in self.roles.items():
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=_run_party, args=(theirs, *role), name=name, daemon=True)
                process.start()
                theirs.close()
                self._parties[name] = process, ours
        except BaseException:
            self.__exit__()
            raise
        self._watchdog.start()
        return self

    def __exit__(self, *_):
        self._watchdog.cancel()
        for process, pipe in self._parties.values():
            process.kill()
            process.join()
            pipe.close()

    def _kill(self):
        for process, _ in self._parties.values():
            process.kill()

    def send(self, name: str, *messages: tuple[str, str, bytes]) -> None:
        """Hand a party messages: sender, kind and payload of each."""
        with suppress(OSError):  # that a party ended is told by `answer`
            self._parties[name][1].send(messages)

    def answer(self, name: str) -> Any:
        """Return what a party answers, or raise what it refused, with its name."""
        try:
            reply = self._parties[name][1].recv()
        except (EOFError, OSError):
            if time.monotonic() >= self._deadline:
                raise TimeoutError(f"{name} did not answer: the run took over {self.timeout:g} s") from None
            raise RuntimeError(f"{name} ended before it answered") from None
        if isinstance(reply, Exception):
            raise type(reply)(f"{name}: {reply}")
        value, self.transcript[name], self.seconds[name] = reply
        return value


def ask_process(role: Callable, timeout: float, *arguments: Any) -> Any:
    """Run a role in a process of its own and return its one answer."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=role, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout):
            raise TimeoutError(f"the server did not answer within {timeout:g} s")
        answer = ours.recv()
    except EOFError:
        raise RuntimeError("the server ended before it answered") from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, Exception):
        raise answer
    return answer
