"""Parties as processes that talk in bytes, each recording what it received (chapter 10).

Every two parties share a key, drawn for the run, and each message carries a keyed hash (HMAC with SHA-256) for every party that could
receive it. So whoever carries messages can lose them, which the time limit shows, but not alter, exchange or repeat them unseen. Here the
process that starts the parties also draws the keys; between real parties a TLS connection would do all of this.
"""

import hashlib
import hmac
import multiprocessing
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np


class Message(NamedTuple):
    """One message as its receiver recorded it."""

    sender: str
    kind: str
    sha256: str
    payload: bytes


class Letter(NamedTuple):
    """One message under way: the sender's running number and, for each other party, a keyed hash of all of it."""

    sender: str
    number: int
    kind: str
    payload: bytes
    tags: dict[str, bytes]


class Rows:
    """A table on its way to its party's process: a DataFrame would make the process import pandas first."""

    def __init__(self, table: Any):
        self.columns, self._values = list(table.columns), table.to_numpy(float)

    def __len__(self) -> int:
        return len(self._values)

    def to_numpy(self, dtype: type) -> np.ndarray:
        """Return the numbers, as a DataFrame would."""
        return self._values.astype(dtype)


class Desk:
    """What one party signs and checks messages with: a key for every other party."""

    def __init__(self, name: str, keys: dict[str, bytes]):
        self.name, self.keys = name, keys
        self._number, self._seen = 0, dict.fromkeys(keys, 0)

    def sign(self, answer: Any) -> Any:
        """Turn each pair of a kind and bytes, alone or in a list or tuple, into a letter."""
        if not isinstance(answer, list | tuple):
            return answer
        if len(answer) == 2 and isinstance(answer[0], str) and isinstance(answer[1], bytes):
            self._number += 1
            content = self._number, *answer
            tags = {other: self._hash(other, self.name, other, *content) for other in self.keys}
            return Letter(self.name, *content, tags)
        return type(answer)(self.sign(part) for part in answer)

    def check(self, letter: Letter) -> Message:
        """Open a letter, or refuse one that was altered, meant for somebody else, or seen before."""
        sender, number, kind, payload, tags = letter
        sound = sender in self.keys and hmac.compare_digest(
            tags.get(self.name, b""), self._hash(sender, sender, self.name, number, kind, payload)
        )
        if not sound:
            raise ValueError(f"refused: {kind} from {sender} was altered on the way")
        if number <= self._seen[sender]:
            raise ValueError(f"refused: {kind} from {sender} came twice or out of order")
        self._seen[sender] = number
        return Message(sender, kind, hashlib.sha256(payload).hexdigest(), payload)

    def _hash(self, other, sender, receiver, number, kind, payload):
        # repr keeps the parts apart, whatever characters they hold.
        head = repr((sender, receiver, number, kind)).encode()
        return hmac.digest(self.keys[other], head + payload, "sha256")


def _run_party(pipe, desk, role, *arguments):
    """Be one party, in its own process: record what arrives, answer, and end when the other side of the pipe is gone."""
    received, start = [], time.process_time()
    try:
        script = role(*arguments)
        answer = next(script)
        while True:
            if answer is not None:
                pipe.send((desk.sign(answer), received, time.process_time() - start))
            signed, content = pipe.recv()
            if signed:
                content = [desk.check(letter) for letter in content]
                received += content
                content = [message.payload for message in content]
            answer = script.send(content)
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
        For each name a script and its arguments. A script is a generator: it takes the payloads that arrive and yields what it answers;
        each pair of a kind and bytes in an answer is a message, and becomes a `Letter`.
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
        pairs = {frozenset(pair): secrets.token_bytes(32) for pair in combinations(self.roles, 2)}
        try:
            for name, role in self.roles.items():
                ours, theirs = spawn.Pipe()
                desk = Desk(name, {o: pairs[frozenset((name, o))] for o in self.roles if o != name})
                arguments = theirs, desk, *role
                process = spawn.Process(target=_run_party, args=arguments, name=name, daemon=True)
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

    def send(self, name: str, *letters: Letter) -> None:
        """Carry letters to a party."""
        self._hand(name, True, list(letters))

    def show(self, name: str, payloads: list[bytes]) -> None:
        """Let a party look at bytes that nobody sent to it: for an audit, after the protocol."""
        self._hand(name, False, payloads)

    def _hand(self, name, signed, content):
        with suppress(OSError):  # that a party ended is told by `answer`
            self._parties[name][1].send((signed, content))

    def answer(self, name: str) -> Any:
        """Return what a party answers, or raise what it refused, with its name."""
        try:
            reply = self._parties[name][1].recv()
        except (EOFError, OSError):
            if time.monotonic() >= self._deadline:
                raise TimeoutError(
                    f"{name} did not answer: the run took over {self.timeout:g} s; PPRML_PATIENCE sets how long is waited"
                ) from None
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
            raise TimeoutError(
                f"the server did not answer within {timeout:g} s; PPRML_PATIENCE sets how long is waited"
            )
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
