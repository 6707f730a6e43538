"""Shares hide and add up, the library's run equals the plain one, faults end in an error, and each broken twin is noticed.

Randomness that protects cannot be seeded: a statistical test states its error rate. Every run of parties has a time limit.
"""

import multiprocessing
import os
import re
import signal
import socket
import ssl
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from pprml import least_squares as ls
from pprml import multiparty as mp
from pprml.multiparty import parties, regression, sharing, wire

LIMIT = 600.0  # seconds for a start or a run, on a busy machine
ERROR_RATE = 1e-6  # of one chi-square test


def make_patients(n: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Made-up patients whose score is a line plus noise."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({name: rng.normal(*ls.REFERENCE[name], n) for name in ("age", "bmi", "bp")})
    return X, 3.0 * X["bmi"].to_numpy() - 0.5 * X["age"].to_numpy() + 100 + rng.normal(0, 20, n)


@pytest.fixture(scope="module")
def hospitals():
    return dict(
        zip(("north", "south"), ls.split_rows(*make_patients(60), parties=2, sort_by="age"), strict=True)
    )


@pytest.fixture(scope="module")
def columns():
    """Two owners of different columns of the same 64 people, and the owner of the labels."""
    X, y = make_patients(64)
    return {"clinic": X[["age"]], "lab": X[["bmi", "bp"]], "registry": pd.DataFrame({"ill": (y > 160) * 1.0})}


def party_processes() -> set[int]:
    """Child processes, but for the two helpers that multiprocessing keeps for as long as Python runs."""
    helpers = [c for c in psutil.Process().children() if "multiprocessing" in " ".join(c.cmdline())]
    return {c.pid for c in psutil.Process().children(recursive=True)} - {c.pid for c in helpers}


def logistic_arguments(study, inputs, steps):
    shapes = {owner: values.shape for owner, values in inputs.items()}
    paths = {owner: study.path(owner) for owner in inputs}
    return regression.fit_logistic, paths, shapes, "registry", 2**-6, steps


# Broken twins.


def draw_small(shape):
    """Masks from too small a range."""
    return sharing.draw_ring(shape) % np.uint64(10_000)


def draw_guessable(shape):
    """A generator that is not cryptographic, seeded with something that can be guessed."""
    return np.random.default_rng(20240131).integers(0, 2**64, shape, dtype=np.uint64)


def draw_half(shape):
    """Masks that leave the highest bit alone."""
    return sharing.draw_ring(shape) >> np.uint64(1)


def draw_repeating(shape):
    """The same mask for all servers: a share is sent twice."""
    return np.broadcast_to(sharing.draw_ring(shape[1:]), shape).copy()


def fit_leaky(paths, shapes, labels, rate, steps):
    """A compiled function that returns private tensors, as TF Encrypted's own decorator lets one write it."""
    import tf_encrypted as tfe

    protocol = tfe.protocol.ABY3()
    tfe.set_protocol(protocol)

    @tfe.function
    def share():
        protocol.reset()
        return [regression._bring(owner, paths[owner], shapes[owner]) for owner in paths]

    share()


# Faults on the wire.

SERVER = rb"/job:tfe/replica:0/task:[012]/device:CPU:0;"
#: What one server says to fetch a tensor from another, and what the analyst says to fetch one from a server.
EXCHANGED, OPENED = (re.compile(SERVER + rb"[0-9a-f]+;/job:" + far) for far in (rb"tfe/", rb"(?!tfe/)"))


class Saboteur:
    """On a bare link: keep what passes; once armed, signal a party's process when the servers have exchanged 30 tensors more."""

    def __init__(self, folder: Path):
        self.log, self.order, self.done, self.seen = folder / "log", folder / "order", folder / "done", 0

    def arm(self, party: str, study: mp.Study, number: signal.Signals) -> None:
        self.order.write_text(f"{study.processes[party][0].pid} {number.value}")

    def __call__(self, party, inward, number, chunk):
        with self.log.open("ab") as file:
            file.write(chunk)
        if self.order.exists() and not self.done.exists():
            self.seen += len(EXCHANGED.findall(chunk))
            if self.seen >= 30:
                os.kill(*map(int, self.order.read_text().split()))
                self.done.touch()
        return chunk

    def count_opened(self) -> int:
        return len(OPENED.findall(self.log.read_bytes()))


class Repeater(Saboteur):
    """On any link: once armed, send server1 the hundredth message from then on twice."""

    def arm(self) -> None:
        self.order.touch()

    def __call__(self, party, inward, number, chunk):
        if party == "server1" and inward and self.order.exists():
            self.seen += 1
            if self.seen == 100:
                self.done.touch()
                return chunk * 2
        return chunk


def assert_nothing_left(study: mp.Study) -> None:
    """No process, no file of an owner, and no way to go on."""
    assert multiprocessing.active_children() == [] and party_processes() == set()
    assert not study.folder.exists()
    with pytest.raises(RuntimeError, match="the study has ended"):
        study.sent()


def square_often(path, times):
    """Program with a small graph: square an owner's four numbers again and again, then open the last squares."""
    import tf_encrypted as tfe

    protocol = tfe.protocol.ABY3()
    tfe.set_protocol(protocol)
    squares = regression._keep((4,))

    def square():
        values = regression._bring("north", path, (4,))
        tfe.assign(squares, values * values)

    repeat = regression._compile(protocol, square)
    for _ in range(times):
        repeat()
    return regression._compile(protocol, lambda: squares.read_value().reveal())().numpy()


FOUR = np.array([1.5, -2.0, 3.0, 0.5])


def delay(party, inward, number, chunk):
    time.sleep(0.001)
    return chunk


# Sharing, as a lesson.


@pytest.mark.parametrize("servers", [2, 3, 5])
def test_shares_add_up_and_need_every_server(servers):
    values = sharing.encode_fixed(np.linspace(-1000, 1000, 50))
    shares = sharing.share_secret(values, servers)
    assert shares.shape == (servers, 50)
    np.testing.assert_array_equal(shares.sum(axis=0, dtype=np.uint64), values)
    assert not np.any(shares[:-1].sum(axis=0, dtype=np.uint64) == values)
    assert not np.any(shares == sharing.share_secret(values, servers))


def smallest_pvalue(source) -> float:
    """Over each server's shares of 2,000 equal salaries, and over the differences of two servers' shares."""
    values = np.full(2000, 50_000, np.uint64)
    shares = sharing.share_secret(values, 3, source)
    views = [*shares, shares[0] - shares[1], shares[1] - shares[2], shares[0] - shares[2]]
    return min(min(sharing.uniformity_pvalues(view).values()) for view in views)


def test_shares_look_uniform_to_one_server_and_to_two():
    """18 chi-square tests at 1e-6 each: fails about once in 50,000 runs."""
    assert smallest_pvalue(sharing.draw_ring) > ERROR_RATE


@pytest.mark.parametrize("twin", [draw_small, draw_half, draw_repeating])
def test_the_uniformity_test_rejects_bad_masks(twin):
    assert smallest_pvalue(twin) < 1e-9


def test_a_guessable_seed_passes_the_test_and_still_gives_everything_away():
    salaries = np.arange(40_000, 60_000, 10, dtype=np.uint64)
    shares = sharing.share_secret(salaries, 3, draw_guessable)
    assert min(sharing.uniformity_pvalues(shares[0]).values()) > ERROR_RATE
    # Server 2 alone: its share, and the masks that it can draw itself.
    found = shares[2] + draw_guessable((2, len(salaries))).sum(axis=0, dtype=np.uint64)
    np.testing.assert_array_equal(found, salaries)


def test_a_repeated_missing_or_foreign_message_is_refused():
    one = np.ones(3, np.uint64)
    assert sharing.add_shares([("a", one), ("b", one)], ["a", "b"]).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match="repeated message from a: drop the copy"):
        sharing.add_shares([("a", one), ("b", one), ("a", one)], ["a", "b"])
    with pytest.raises(ValueError, match="missing or unknown are b"):
        sharing.add_shares([("a", one)], ["a", "b"])
    with pytest.raises(ValueError, match="missing or unknown are c"):
        sharing.add_shares([("a", one), ("b", one), ("c", one)], ["a", "b"])


def test_fixed_point_rounds_to_half_its_last_bit_and_refuses_the_rest():
    values = np.random.default_rng(0).uniform(-1000, 1000, 500)
    assert np.abs(sharing.decode_fixed(sharing.encode_fixed(values)) - values).max() <= 2**-17
    for bad in (np.nan, np.inf, 2.0**20, -(2.0**21)):
        with pytest.raises(ValueError, match="scale the column first"):
            sharing.encode_fixed([1.0, bad])
    with pytest.raises(ValueError, match="uint64 ring elements"):
        sharing.share_secret(values)


def test_a_triple_multiplies_and_may_be_used_once():
    rng = np.random.default_rng(0)
    x, later, y = (sharing.encode_fixed(rng.uniform(-100, 100, 2000)) for _ in range(3))
    shared_x, shared_later, shared_y = (sharing.share_secret(v, 2) for v in (x, later, y))
    triple = sharing.deal_triple(x.shape)
    product, opened, _ = sharing.multiply_shares(shared_x, shared_y, triple)
    clear = sharing.decode_fixed(x) * sharing.decode_fixed(y)
    np.testing.assert_allclose(
        sharing.decode_fixed(product.sum(axis=0, dtype=np.uint64), 32), clear, atol=1e-9
    )
    assert min(sharing.uniformity_pvalues(opened).values()) > ERROR_RATE
    # Used again, the two openings differ by exactly the secrets' difference; a fresh triple's by nothing of the kind.
    again = sharing.multiply_shares(shared_later, shared_y, triple)[1]
    np.testing.assert_array_equal(again - opened, later - x)
    fresh = sharing.multiply_shares(shared_later, shared_y, sharing.deal_triple(x.shape))[1]
    assert not np.any(fresh - opened == later - x)


# The library's masks.


def products(reset: bool) -> tuple[np.ndarray, np.ndarray]:
    """Server 0's received share of the same product, computed twice by one compiled function."""
    import tf_encrypted as tfe

    protocol = tfe.protocol.ABY3()
    tfe.set_protocol(protocol)
    x = tfe.define_private_variable(np.arange(6.0), apply_scaling=False)

    @tfe.function
    def square(x):
        if reset:
            protocol.reset()
        return x * x

    first, second = (square(x).unwrapped[0][1].value.numpy() for _ in range(2))
    return first, second


def test_a_compiled_function_repeats_its_masks_unless_keys_are_drawn_inside():
    first, second = products(reset=False)
    assert (first == second).all()
    first, second = products(reset=True)
    assert not (first == second).any()


# Real parties.


@pytest.fixture(scope="module")
def bare_run(columns):
    """One logistic run over the bare link, recorded; then the leaky twin."""
    inputs = regression.prepare_columns(columns, "registry")
    with mp.Study(inputs, tls=False, record=True, timeout=LIMIT) as study:
        fit = study.run(*logistic_arguments(study, inputs, 10))
        heard, sent = study.overheard(), study.sent()
        stolen = mp.attack_read_file(study.address("lab"), study.path("lab"))
        study.run(fit_leaky, *logistic_arguments(study, inputs, 1)[1:])
        leaky = study.overheard()
    assert party_processes() == set()
    return inputs, fit, heard, sent, stolen, leaky


def test_logistic_on_shares_equals_the_same_descent_in_the_clear(bare_run):
    inputs, fit, _, sent, *_ = bare_run
    X = np.column_stack([inputs["clinic"], inputs["lab"]])
    clear = regression.fit_logistic_clear(X, inputs["registry"].ravel(), 2**-6, 10, pieces=True)
    # Truncation errs by up to 2^-16 in each of a step's few products.
    assert np.abs(fit.coefficients - clear).max() < 5e-3
    assert np.abs(clear).max() > 0.3
    assert len(fit.seconds) == 10 and sent > 100_000


def test_every_server_gets_two_pieces_and_the_analyst_the_result_only(bare_run):
    inputs, fit, heard, *_ = bare_run
    for owner, values in inputs.items():
        for server in mp.SERVERS:
            alone, whole = wire.rebuild_input(heard, owner, [server])
            assert not whole and np.abs(alone - values).min() > 1
        for pair in (mp.SERVERS[:2], mp.SERVERS[1:]):
            together, whole = wire.rebuild_input(heard, owner, pair)
            assert whole and np.abs(together - values).max() < 2**-15
    (opened,) = [tensor for tensor in heard if tensor.receiver == "analyst"]
    np.testing.assert_array_equal(opened.value.ravel() / 2.0**16, fit.coefficients)
    assert not [tensor for tensor in heard if tensor.receiver in inputs]
    assert not [tensor for tensor in heard if tensor.sender in inputs and "/share/" not in tensor.edge]


def test_the_audit_finds_a_program_that_returns_shares(bare_run):
    *_, leaky = bare_run
    assert len([tensor for tensor in leaky if tensor.receiver == "analyst"]) > 6


def test_a_stranger_reads_an_owners_file_through_the_bare_port(bare_run):
    inputs, _, _, _, stolen, _ = bare_run
    assert stolen == inputs["lab"].astype(np.float64).tobytes()


def knock(study, certificate) -> bytes | str:
    """What a party's TLS port answers to HTTP/2's greeting, or, to whom shows no certificate, the error of its refusal."""
    context = ssl.create_default_context(cafile=study.folder / "ca.crt")
    if certificate:
        context.load_cert_chain(study.folder / "sender.pem", study.folder / "sender.key")
    port = int(study.address("north").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as raw:
        try:
            link = context.wrap_socket(raw, server_hostname="north")
            if (
                certificate
            ):  # without one, listen only: sending to a link that is being closed could hide why it was
                link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            return link.recv(9)  # TLS 1.3 tells a client without a certificate only now
        except ssl.SSLError as error:
            return str(error)


@pytest.fixture(scope="module")
def tls_run(hospitals):
    inputs = regression.prepare_rows(hospitals)
    with mp.Study(inputs, record=True, timeout=LIMIT) as study:
        fit = study.run(regression.fit_linear, {owner: study.path(owner) for owner in inputs}, 4)
        heard = study.overheard()
        address, path = study.address("north"), study.path("north")
        stranger = mp.attack_read_file(address, path)
        insider = mp.attack_read_file(study.address("north", certified=True), path)
        answers = [knock(study, certificate) for certificate in (False, True)]
    assert_nothing_left(study)
    return inputs, fit, heard, (stranger, insider), answers


def test_linear_over_tls_equals_least_squares_and_the_wire_shows_nothing(tls_run, hospitals):
    _, fit, heard, *_ = tls_run
    names = list(make_patients(1)[0].columns)
    expected = ls.solve_sums(sum(map(ls.compute_sums, hospitals.values())), names)
    assert np.abs(ls.restore_units(fit.coefficients, names) - expected).max() < 1e-5
    assert heard == []


def test_tls_refuses_a_stranger_and_not_a_corrupt_server(tls_run):
    inputs, _, _, (stranger, insider), answers = tls_run
    # The link is closed unanswered, or with an alert, as the two ends' timing has it.
    assert answers[0] == b"" or "certificate required" in str(answers[0]).lower().replace("_", " ")
    assert answers[1][3:4] == b"\x04"  # a SETTINGS frame
    # The same thief, twice: what it lacks the first time is a certificate, which every server has.
    assert stranger is None
    assert insider == inputs["north"].tobytes()


def test_a_thief_that_hears_nothing_has_learnt_nothing():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TimeoutError, match="no file and no refusal"):
            mp.attack_read_file(f"127.0.0.1:{silent.getsockname()[1]}", "x", timeout=8)
    assert party_processes() == set()


def test_a_killed_party_ends_the_run(columns, tmp_path):
    """`bare_run` is the control: the same program, and nobody killed."""
    inputs, saboteur = regression.prepare_columns(columns, "registry"), Saboteur(tmp_path)
    with mp.Study(inputs, tls=False, meddle=saboteur, timeout=LIMIT) as study:
        saboteur.arm("server1", study, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="server1.* ended before the run was over"):
            study.run(*logistic_arguments(study, inputs, 10))
        assert time.time() - saboteur.done.stat().st_mtime < 30
        assert saboteur.count_opened() == 0
        assert_nothing_left(study)


def test_a_hanging_party_ends_in_a_timeout(tmp_path):
    saboteur = Saboteur(tmp_path)
    with mp.Study({"north": FOUR}, tls=False, meddle=saboteur, timeout=LIMIT) as study:
        study.timeout = 25.0
        # The control: the same run in the same time, and nobody stopped. Long enough for the signal to come before the end.
        np.testing.assert_allclose(study.run(square_often, study.path("north"), 50), FOUR**2, atol=1e-3)
        assert (opened := saboteur.count_opened()) > 0
        saboteur.arm("server1", study, signal.SIGSTOP)
        with pytest.raises(TimeoutError, match="no answer within 25 s"):
            study.run(square_often, study.path("north"), 50)
        assert saboteur.done.exists() and saboteur.count_opened() == opened
        assert_nothing_left(study)


def test_a_slow_link_changes_nothing(hospitals):
    inputs = regression.prepare_rows(hospitals)
    total = sum(inputs.values())
    with mp.Study(inputs, tls=False, meddle=delay, timeout=LIMIT) as study:
        fit = study.run(regression.fit_linear, {owner: study.path(owner) for owner in inputs}, 4, "low", 8)
    # 64-bit shares: errors of 2^-16 magnified by the inverse.
    assert np.abs(fit.coefficients - np.linalg.solve(total[:, :-1], total[:, -1])).max() < 5e-3


def test_a_message_repeated_on_the_wire_ends_the_run(tmp_path):
    repeater = Repeater(tmp_path)
    with mp.Study({"north": FOUR}, meddle=repeater, timeout=LIMIT) as study:  # over TLS
        # The control: the same run, and nothing repeated.
        np.testing.assert_allclose(study.run(square_often, study.path("north"), 50), FOUR**2, atol=1e-3)
        repeater.arm()
        # TensorFlow's client raises where a link is lost, or aborts: a TimeoutError would be no sign of the repetition.
        with pytest.raises(RuntimeError, match="UnavailableError|ended before the run was over"):
            study.run(square_often, study.path("north"), 50)
        assert repeater.done.exists()
        assert_nothing_left(study)


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port, began = taken.getsockname()[1], time.monotonic()
        with pytest.raises(ValueError, match=f"server1: port {port} is in use"):
            mp.Study({"north": np.ones(2)}, tls=False, timeout=LIMIT, ports={"server1": port}).__enter__()
        assert time.monotonic() - began < LIMIT
    assert party_processes() == set()


def test_a_port_that_is_taken_meanwhile_is_given_up_once(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        calls = []

        def find_taken_once(count):
            calls.append(count)
            ports = mp.find_ports(count)
            return ports if len(calls) > 1 else [taken.getsockname()[1], *ports[1:]]

        monkeypatch.setattr(parties, "find_ports", find_taken_once)
        with mp.Study({"north": np.ones(2)}, tls=False, timeout=LIMIT) as study:
            assert study.sent() >= 0
    assert len(calls) == 2
    assert_nothing_left(study)


def test_an_error_of_the_program_is_passed_on_and_ends_the_study(hospitals):
    twin = {name: table.assign(bp=90 + (table["age"] - 50)) for name, table in hospitals.items()}
    inputs = regression.prepare_rows(twin)
    with (
        pytest.raises(ValueError, match=r"singular or nearly so \(3.00 of 4 directions"),
        mp.Study(inputs, tls=False, timeout=LIMIT) as study,
    ):
        study.run(regression.fit_linear, {owner: study.path(owner) for owner in inputs}, 4)
    assert party_processes() == set()


# What is refused before a process starts.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.rename(columns={"bmi": "s1"}), "north and south have different columns: bmi, s1"),
        (lambda t: t[["bmi", "age", "bp", "progression"]], "the same in another order"),
        (lambda t: t.assign(bmi=np.nan), "south: a missing or infinite value in column bmi"),
        (lambda t: t.assign(bmi=t["bmi"] * 1000), "south: column bmi leaves the agreed range"),
        (lambda t: t.assign(bmi=25 + 5 * 5, bp=90), "south: scaled squares add up to 16 or more"),
    ],
)
def test_bad_rows_are_refused(hospitals, change, message):
    with pytest.raises(ValueError, match=message):
        regression.prepare_rows({"north": hospitals["north"], "south": change(hospitals["south"])})


def test_constant_columns_and_too_few_rows_are_refused(hospitals):
    flat = {name: table.assign(bp=95.0) for name, table in hospitals.items()}
    with pytest.raises(ValueError, match="column bp is constant at every owner"):
        regression.prepare_rows(flat)
    with pytest.raises(ValueError, match="3 rows in all cannot fix 4 coefficients"):
        regression.prepare_rows({"north": hospitals["north"][:2], "south": hospitals["south"][:1]})


@pytest.mark.parametrize(
    ("owner", "change", "message"),
    [
        ("lab", lambda t: t[:-1], "disagree on the number of rows"),
        ("lab", lambda t: t.rename(columns={"bmi": "age"}), "more than one owner has column age"),
        ("lab", lambda t: t.assign(bmi=np.inf), "lab: a missing or infinite value in column bmi"),
        ("lab", lambda t: t.assign(bmi=3.0), "lab: column bmi is constant"),
        ("registry", lambda t: t * 2, "registry: labels must be one column of 0 and 1"),
        ("registry", lambda t: t * 0, "registry: column ill is constant"),
    ],
)
def test_bad_columns_are_refused(columns, owner, change, message):
    with pytest.raises(ValueError, match=message):
        regression.prepare_columns({**columns, owner: change(columns[owner])}, "registry")


def test_outliers_and_too_few_people_are_refused():
    X, y = make_patients(400)
    labels = pd.DataFrame({"ill": (y > 160) * 1.0})
    X.iloc[0, 0] = 1e6
    with pytest.raises(ValueError, match="clinic: column age has a value 16 spreads out"):
        regression.prepare_columns({"clinic": X, "registry": labels}, "registry")
    few = {"clinic": X.iloc[1:4], "registry": pd.DataFrame({"ill": [0.0, 1.0, 1.0]})}
    with pytest.raises(ValueError, match="3 rows cannot fix 4 coefficients"):
        regression.prepare_columns(few, "registry")
