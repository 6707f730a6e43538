"""The sums are right, only the key-holder can read them, and a broken variant of each part is noticed.

Inputs are seeded; the randomness of encryption cannot be. The statistical tests state their error rates.
"""

import multiprocessing
import os
import signal
import time
from fractions import Fraction

import numpy as np
import pandas as pd
import psutil
import pytest
import tenseal as ts
import tenseal.sealapi as seal
from scipy import stats
from scipy.stats import norm
from sklearn.linear_model import LinearRegression, Ridge

from pprml import encrypted_regression as er
from pprml.ckks import KeyHolder, fingerprint
from pprml.encrypted_regression import (
    crew,
    descent,
    masking,
    outsourcing,
    prediction,
    private_sums,
    products,
    protocol,
    vertical,
)
from pprml.encrypted_regression.products import lay_out, list_pairs, open_ring
from pprml.least_squares import restore_units, scale_columns, scale_rows

COLUMNS = ["age", "bmi", "bp"]
COUNT = 14  # numbers for three columns


def make_rows(n: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Made-up patients whose score is a line plus noise."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({name: rng.normal(*er.REFERENCE[name], n) for name in COLUMNS})
    return X, 3.0 * X["bmi"].to_numpy() - 0.5 * X["age"].to_numpy() + 100 + rng.normal(0, 20, n)


@pytest.fixture(scope="module")
def tables():
    return er.split_rows(*make_rows(60), parties=2, sort_by="age")


@pytest.fixture(scope="module")
def expected():
    X, y = make_rows(60)
    model = LinearRegression().fit(X, y)
    return np.r_[model.intercept_, model.coef_]


@pytest.fixture(scope="module", params=["ckks", "paillier"])
def pair(request):
    return er.SCHEMES[request.param](2, COUNT)


@pytest.fixture(scope="module")
def paillier_pair():
    return er.Paillier(3, COUNT)


# Broken twins: each leaves out one precaution, and a test shows that it is noticed.


class LeakyCkks(er.Ckks):
    """A key-holder that forgets to strip its secret key."""

    def export(self, to_encrypt):
        return self.context.serialize(True, True, False, False)


class BlindLeakyCkks(LeakyCkks):
    """The same, among parties that do not look at what they get."""

    def __init__(self, parties, count, key=None):
        super().__init__(parties, count)
        if key is not None:
            self.context = ts.context_from(key)

    def secrets(self):
        public = self.context.serialize(True, False, False, False)
        return [self.context.serialize(True, True, False, False)[len(public) + 64 :]]


class DyingCkks(er.Ckks):
    """A server that is killed while it adds."""

    def add(self, messages):
        os.kill(os.getpid(), signal.SIGKILL)


class SleepingCkks(er.Ckks):
    """A server that never answers."""

    def add(self, messages):
        time.sleep(3600)


class StalledCkks(er.Ckks):
    """A hospital that is frozen while it encrypts, so that it cannot even handle a signal."""

    def encrypt(self, numbers):
        os.kill(os.getpid(), signal.SIGSTOP)


class WeakCkks(er.Ckks):
    modulus_bits = (60, 60)


class WeakPaillier(er.Paillier):
    key_bits = 2048


class CrampedPaillier(er.Paillier):
    """Slots without room for a carry."""

    headroom = 0


class RepeatingCkks(er.Ckks):
    """Encryption without fresh randomness."""

    def encrypt(self, numbers):
        if not hasattr(self, "kept"):
            self.kept = super().encrypt(numbers)
        return self.kept


def party_processes() -> set[int]:
    """Child processes, but for the tracker that multiprocessing keeps for as long as Python runs."""
    children = psutil.Process().children(recursive=True)
    return {c.pid for c in children if "resource_tracker" not in " ".join(c.cmdline())}


# The arithmetic.


def test_sums_and_solution_match_scikit_learn(tables, expected):
    sums = sum(map(er.compute_sums, tables))
    assert len(sums) == COUNT
    assert sums[0] == 60
    np.testing.assert_allclose(er.solve_sums(sums, COLUMNS), expected, rtol=1e-9)


@pytest.mark.parametrize("sort_by", [None, "age"])
def test_split_keeps_every_row_once(sort_by):
    X, y = make_rows(61)
    parts = er.split_rows(X, y, parties=3, seed=1, sort_by=sort_by)
    joined = pd.concat(parts).sort_index()
    pd.testing.assert_frame_equal(joined[COLUMNS], X)
    np.testing.assert_array_equal(joined[er.TARGET], y)
    assert sorted(map(len, parts)) == [20, 20, 21]
    assert parts[0].equals(er.split_rows(X, y, parties=3, seed=1, sort_by=sort_by)[0])


def test_encrypted_sums_are_right(pair):
    rng = np.random.default_rng(0)
    numbers = rng.uniform(-(2.0**er.VALUE_BITS), 2.0**er.VALUE_BITS, (2, COUNT))
    numbers[:, :2] = 2.0**er.VALUE_BITS, -(2.0**er.VALUE_BITS)  # the corners: where a slot would spill
    hospital = type(pair)(2, COUNT, pair.export(True))
    server = type(pair)(2, COUNT, pair.export(False))
    total = pair.decrypt(server.add([hospital.encrypt(row) for row in numbers]))
    # CKKS: noise of about 2^-28 a number at this scale. Paillier: half of 2^-44 a party, and float64's own 2^-36.
    np.testing.assert_allclose(total, numbers.sum(axis=0), rtol=0, atol=1e-6)


def test_paillier_error_is_below_its_last_bit(paillier_pair):
    numbers = np.random.default_rng(0).uniform(-100, 100, COUNT)
    total = paillier_pair.decrypt(paillier_pair.add([paillier_pair.encrypt(numbers)] * 3))
    assert np.abs(total - 3 * numbers).max() <= 3 * 0.5 / 2**paillier_pair.fraction + 1e-13


def test_seven_parties_fill_the_headroom_exactly(paillier_pair):
    top = er.Paillier(er.MAX_PARTIES, COUNT, paillier_pair.export(True))
    top.private = paillier_pair.private
    worst = np.full(COUNT, 2.0**er.VALUE_BITS)
    worst[1::2] *= -1
    total = top.decrypt(top.add([top.encrypt(worst)] * er.MAX_PARTIES))
    np.testing.assert_array_equal(total, er.MAX_PARTIES * worst)
    half_modulus = 2.0 ** (er.Ckks.modulus_bits[0] - 1)
    assert half_modulus > er.MAX_PARTIES * 2.0**er.VALUE_BITS * er.CKKS_SCALE


def test_slots_without_headroom_spill_and_are_refused(paillier_pair):
    with pytest.raises(ValueError, match="0 headroom bits, but adding 3 parties needs 2"):
        CrampedPaillier(3, COUNT, paillier_pair.export(True))
    twin = CrampedPaillier(1, COUNT, paillier_pair.export(True))
    twin.private = paillier_pair.private
    message = twin.encrypt(np.full(COUNT, 2.0 ** (er.VALUE_BITS - 1)))
    total = twin.add([message] * 3)
    twin.parties = 3
    assert np.abs(twin.decrypt(total) - 3 * 2.0 ** (er.VALUE_BITS - 1)).max() > 1


# The protocol, in real processes.


@pytest.mark.parametrize(("scheme", "error"), [("ckks", 1e-5), ("paillier", 1e-8)])
def test_protocol_equals_scikit_learn_and_keeps_its_secret(tables, expected, scheme, error):
    result = er.run_protocol(tables, scheme, timeout=900)
    assert np.abs(result.coefficients - expected).max() < error
    assert result.published == np.round(result.coefficients, er.PUBLISHED_DECIMALS).tolist()
    assert result.secret_seen_by == []
    kinds = {name: [m.kind for m in messages] for name, messages in result.transcript.items()}
    assert kinds["server"] == ["parameters", "encrypted sums", "encrypted sums"]
    assert kinds["key_holder"] == ["encrypted total"]
    assert kinds["hospital_1"] == kinds["hospital_2"] == ["public key", "coefficients"]
    clear = [er.compute_sums(table)[1:2].tobytes() for table in tables]
    sent = b"".join(m.payload for m in result.transcript["server"])
    assert not any(number in sent for number in clear)
    assert party_processes() == set()


def test_the_process_of_a_party_imports_only_what_it_needs(tables, halves, monkeypatch, capfd):
    monkeypatch.setenv(
        "PYTHONPROFILEIMPORTTIME", "1"
    )  # processes that start from now on write what they import
    er.run_protocol(tables, timeout=900)
    er.fit_vertical(*halves, timeout=900)
    er.fit_outsourced(tables[0])
    er.predict_outsourced(np.ones(4), tables[0][COLUMNS])
    er.train_outsourced([(GRAM, RIGHT)], er.chebyshev_weights(1, 5.0), degree=8192)
    written = capfd.readouterr().err.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in written if line.startswith("import time:")}
    used = ("protocol", "vertical", "products", "prediction", "descent")
    assert imported > {"numpy", "tenseal", *(f"pprml.encrypted_regression.{name}" for name in used)}
    assert (
        imported
        & {"pandas", "sklearn", "opendp", "scipy", "scipy.stats", "pprml.encrypted_regression.private_sums"}
        == set()
    )


def test_every_name_of_the_package_is_found_when_it_is_used():
    assert {name for name in er.__all__ if not hasattr(er, name)} == set()
    assert dir(er) == er.__all__
    with pytest.raises(AttributeError, match="no attribute 'run_protocl'"):
        er.run_protocl  # noqa: B018


def test_a_leaked_key_is_refused_by_whoever_gets_it(tables):
    with pytest.raises(ValueError, match=r"(server|hospital_\d): refused: it holds the secret key"):
        er.run_protocol(tables, LeakyCkks, timeout=900)
    assert party_processes() == set()


def test_the_audit_finds_a_key_that_nobody_refused(tables):
    result = er.run_protocol(tables, BlindLeakyCkks, timeout=900)
    assert result.secret_seen_by == ["hospital_1", "hospital_2", "server"]


def test_the_audit_would_find_a_paillier_prime(paillier_pair):
    p = paillier_pair.private.p
    for leak in (p.to_bytes(192, "big"), p.to_bytes(192, "little"), str(p).encode()):
        assert any(secret in b"x" + leak + b"y" for secret in paillier_pair.secrets())


@pytest.mark.parametrize(
    ("scheme", "limit", "error", "named"),
    [
        (DyingCkks, 120, RuntimeError, "server ended before it answered"),
        (SleepingCkks, 7, TimeoutError, "over 7 s"),
        (StalledCkks, 7, TimeoutError, "over 7 s"),
    ],
)
def test_a_party_that_dies_or_hangs_ends_the_run_and_leaves_no_process(tables, scheme, limit, error, named):
    start = time.monotonic()
    with pytest.raises(error, match=named):
        er.run_protocol(tables, scheme, timeout=limit)
    assert time.monotonic() - start < limit + 60
    assert multiprocessing.active_children() == []
    assert party_processes() == set()


# What was altered on the way: the network is `Crew.send`, which carries letters but cannot sign them.


def flip_a_bit(letter):
    spot = len(letter.payload) // 2
    changed = letter.payload[:spot] + bytes([letter.payload[spot] ^ 1]) + letter.payload[spot + 1 :]
    return letter._replace(payload=changed)


def exchange(letter):
    """A ciphertext of the right shape, under a key that nobody here has."""
    return letter._replace(payload=er.Ckks(2, COUNT).encrypt(np.ones(COUNT)))


def alter(change, kind):
    """A network that changes the first message of one kind."""
    send = crew.Crew.send

    def altered(self, name, *letters):
        hits = [place for place, letter in enumerate(letters) if letter.kind == kind][:1]
        send(self, name, *(change(x) if place in hits else x for place, x in enumerate(letters)))

    return altered


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        (flip_a_bit, "public key", "hospital_1: refused: public key from key_holder was altered"),
        (exchange, "encrypted sums", "server: refused: encrypted sums from hospital_1 was altered"),
        (
            lambda x: x._replace(payload=x.payload[:-1]),
            "encrypted total",
            "key_holder: refused: encrypted total from server was altered",
        ),
    ],
)
def test_a_message_altered_on_the_way_is_refused(tables, change, kind, named, monkeypatch):
    monkeypatch.setattr(crew.Crew, "send", alter(change, kind))
    with pytest.raises(ValueError, match=named):
        er.run_protocol(tables, timeout=900)
    assert party_processes() == set()


def test_columns_altered_on_the_way_are_refused(halves, monkeypatch):
    monkeypatch.setattr(crew.Crew, "send", alter(flip_a_bit, "masked product with bp"))
    with pytest.raises(
        ValueError, match="key_holder: refused: masked product with bp from other was altered"
    ):
        er.fit_vertical(*halves, timeout=900)
    assert party_processes() == set()


def test_ckks_alone_would_not_see_it(tables):
    """Why the hash is needed: SEAL reads a flipped bit, and another key, without a word."""
    key, other = er.Ckks(2, COUNT), er.Ckks(2, COUNT)
    message, numbers = key.encrypt(np.ones(COUNT)), np.ones(COUNT)
    spot = len(message) // 2
    flipped = message[:spot] + bytes([message[spot] ^ 1]) + message[spot + 1 :]
    for twin in (flipped, other.encrypt(numbers)):
        assert np.abs(key.decrypt(key.add([message, twin])) - 2 * numbers).max() > 1


def test_a_repeated_or_misdirected_letter_is_refused():
    keys = {name: os.urandom(32) for name in ("ab", "ac", "bc")}
    a, b, c = (
        crew.Desk("a", {"b": keys["ab"], "c": keys["ac"]}),
        crew.Desk("b", {"a": keys["ab"], "c": keys["bc"]}),
        crew.Desk("c", {"a": keys["ac"], "b": keys["bc"]}),
    )
    first, (second, number) = a.sign(("x", b"1")), a.sign([("y", b"2"), 5])
    assert number == 5
    assert b.check(first).payload == b"1"
    with pytest.raises(ValueError, match="x from a came twice or out of order"):
        b.check(first)
    assert c.check(second).payload == b"2"
    with pytest.raises(ValueError, match="x from a came twice or out of order"):
        c.check(first)
    # Who has the keys of two pairs cannot speak for the third.
    forged = c.sign(("y", b"3"))._replace(sender="a", number=9)
    for letter in (forged, forged._replace(sender="nobody"), flip_a_bit(second), second._replace(tags={})):
        with pytest.raises(ValueError, match=f"y from {letter.sender} was altered"):
            b.check(letter)
    with pytest.raises(ValueError, match="z from a was altered"):
        b.check(second._replace(kind="z"))


def test_a_singular_table_is_named_by_the_key_holder(tables):
    doubled = [table.assign(bp=90 + (table["age"] - 50)) for table in tables]
    with pytest.raises(ValueError, match=r"key_holder: X'X is singular: .* age, bp"):
        er.run_protocol(doubled, "ckks", timeout=900)


@pytest.mark.parametrize("value", [40.0, er.REFERENCE["age"][0]])
def test_a_constant_column_is_named(tables, value):
    sums = sum(er.compute_sums(table.assign(age=value)) for table in tables)
    with pytest.raises(ValueError, match="collinear columns age;"):
        er.solve_sums(sums, COLUMNS)


# Who can decrypt.


def test_only_the_key_holder_decrypts(pair):
    numbers = np.linspace(-50, 50, COUNT)
    server = type(pair)(2, COUNT, pair.export(False))
    message = server.add([type(pair)(2, COUNT, pair.export(True)).encrypt(numbers)] * 2)
    with pytest.raises(ValueError, match=r"secret_key|private key"):
        server.decrypt(message)
    stranger = type(pair)(2, COUNT)
    if isinstance(pair, er.Ckks):
        read = ts.ckks_vector_from(server.context, message).decrypt(stranger.context.secret_key())
    else:
        with pytest.raises(ValueError, match="under this key"):
            # Beyond the stranger's own modulus: whose key is the larger is a matter of chance.
            stranger.decrypt(
                stranger.public.nsquare.to_bytes(stranger.width, "big") + message[stranger.width :]
            )
        plain = [stranger.private.raw_decrypt(n.ciphertext(False)) for n in server._read(message)]
        # All slots: a single one of them is near its number by chance once in some thousand runs.
        slots = [(p >> (er.SLOT_BITS * i)) % 2**er.SLOT_BITS for p in plain for i in range(pair.slots)]
        read = [(slot - 2 * pair.offset) / 2**pair.fraction for slot in slots]
    assert np.median(np.abs(np.array(read) - np.resize(2 * numbers, len(read)))) > 100
    np.testing.assert_allclose(pair.decrypt(message), 2 * numbers, atol=1e-6)


def test_the_same_numbers_never_encrypt_to_the_same_bytes(pair):
    numbers = np.ones(COUNT)
    assert len({pair.encrypt(numbers) for _ in range(5)}) == 5


def test_ciphertexts_look_alike():
    """The bytes of zeros against those of large sums; without a leak this fails in fewer than 1 run of 10^6 (5 sd)."""
    scheme = er.Ckks(2, COUNT)

    def auc(make):
        zeros, large = ([make(np.full(COUNT, v)) for _ in range(60)] for v in (0.0, 60000.0))
        means = [[np.frombuffer(m, np.uint8).mean() for m in side] for side in (zeros, large)]
        above = np.subtract.outer(means[0], means[1])
        return (above > 0).mean() + 0.5 * (above == 0).mean()

    limit = 5 * np.sqrt(121 / (12 * 60 * 60))
    assert abs(auc(scheme.encrypt) - 0.5) < limit
    # The check itself can fail: the clear bytes, and an encryption that repeats itself, are told apart.
    assert abs(auc(lambda numbers: numbers.tobytes()) - 0.5) > limit
    twins = {value: RepeatingCkks(2, COUNT) for value in (0.0, 60000.0)}
    assert abs(auc(lambda numbers: twins[numbers[0]].encrypt(numbers)) - 0.5) > limit


# What is refused.


def test_weak_parameters_are_refused():
    with pytest.raises(ValueError, match="128-bit"):
        WeakCkks(2, COUNT)
    with pytest.raises(ValueError, match="3072 bits"):
        WeakPaillier(2, COUNT)


def test_a_weak_key_that_is_sent_is_refused(tmp_path):
    # TenSEAL will not make a weak context, so its bytes are put together by hand: protobuf field 1 holds the parameters.
    forged, real = {}, er.Ckks(2, COUNT).export(False)
    for bits in ([60, 40], [60, 60]):
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(4096)
        parameters.set_coeff_modulus(seal.CoeffModulus.Create(4096, bits))
        parameters.save(str(tmp_path / "parameters"))
        body = (tmp_path / "parameters").read_bytes()
        forged[sum(bits)] = bytes([0x0A, len(body)]) + body + real[2 + real[1] :]
    assert er.Ckks(2, COUNT, forged[100]).count == COUNT
    with pytest.raises(ValueError, match=r"refused.*128-bit"):
        er.Ckks(2, COUNT, forged[120])
    for modulus in (3 * 2**2046 + 1, 2**3072 - 2):
        with pytest.raises(ValueError, match="refused"):
            er.Paillier(2, COUNT, modulus.to_bytes(384, "big"))


def test_a_secret_key_that_is_sent_is_refused():
    private = er.Ckks(2, COUNT).context.serialize(True, True, False, False)
    with pytest.raises(ValueError, match="refused: it holds the secret key"):
        er.Ckks(2, COUNT, private)


def test_a_foreign_scale_or_scheme_is_refused():
    other = ts.context(ts.SCHEME_TYPE.CKKS, 4096, coeff_mod_bit_sizes=[60, 40])
    other.global_scale = 2.0**20
    with pytest.raises(ValueError, match="agreed scale"):
        er.Ckks(2, COUNT, other.serialize(True, False, False, False))
    whole = ts.context(ts.SCHEME_TYPE.BFV, 4096, plain_modulus=1032193)
    with pytest.raises(ValueError, match="refused"):
        er.Ckks(2, COUNT, whole.serialize(True, False, False, False))
    with pytest.raises(ValueError, match="refused"):
        er.Ckks(2, COUNT, b"")


@pytest.mark.parametrize("damage", [lambda m: m[:-1], lambda m: m[:100], lambda m: b"", lambda m: m + b"\0"])
def test_a_truncated_ciphertext_is_refused(pair, damage):
    message = pair.encrypt(np.ones(COUNT))
    server = type(pair)(2, COUNT, pair.export(False))
    with pytest.raises(ValueError, match="refused: not"):
        server.add([message, damage(message)])
    with pytest.raises(ValueError, match="refused: not"):
        type(pair)(2, COUNT * 8, pair.export(False)).add([message, message])


@pytest.mark.parametrize("bad", [2.0**er.VALUE_BITS + 1, np.nan, np.inf])
def test_a_sum_too_large_for_its_slot_is_refused(pair, bad):
    with pytest.raises(ValueError, match="could overflow"):
        pair.encrypt(np.full(COUNT, bad))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:1], "1 parties"),
        (lambda t: t * 4, "8 parties"),
        (lambda t: [t[0], t[1].rename(columns={"bmi": "s1"})], "hospital_2 have different columns: bmi, s1"),
        (lambda t: [t[0], t[1][["bmi", "age", "bp", "progression"]]], "another order"),
        (lambda t: [t[0], t[1].assign(bmi=np.nan)], "hospital_2: a missing or infinite value in column bmi"),
        (lambda t: [t[0].assign(progression=np.inf), t[1]], "hospital_1: a missing.*progression"),
        (lambda t: [t[0], t[1].assign(bmi=25 + 8.1 * 5)], "column bmi leaves the agreed range"),
        (lambda t: [u.rename(columns={"bmi": "shoe"}) for u in t], "no agreed reference for column shoe"),
        (lambda t: [t[0], t[1].iloc[:0]], "hospital_2: expected 1 to 1024 rows"),
        (lambda t: [t[0], pd.concat([t[1]] * 40)], "hospital_2: expected 1 to 1024 rows"),
        (lambda t: [t[0].iloc[:1], t[1].iloc[:2]], "3 rows in all cannot fix 4 coefficients"),
    ],
)
def test_bad_input_is_refused_before_a_process_starts(tables, change, message, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: pytest.fail("work started"))
    with pytest.raises(ValueError, match=message):
        er.run_protocol(change(tables), "ckks")


def test_an_unknown_scheme_is_refused_before_a_process_starts(tables, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: pytest.fail("work started"))
    with pytest.raises(ValueError, match="unknown scheme 'rot13': use ckks, paillier"):
        er.run_protocol(tables, "rot13")


# One owner: rows that a server multiplies.


@pytest.fixture(scope="module")
def owned():
    return er.split_rows(*make_rows(300), parties=1)[0]


@pytest.mark.parametrize("packing", ["replicated pairs", "columns"])
def test_outsourced_rows_give_the_line_and_no_key(owned, packing):
    result = er.fit_outsourced(owned, packing)
    assert np.abs(result.coefficients - er.solve_sums(er.compute_sums(owned), COLUMNS)).max() < 1e-6
    assert result.secret_seen == []
    assert not {"relin_keys", "galois_keys"} & set(result.received)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:3], "3 rows cannot fix 4 coefficients"),
        (lambda t: t.assign(bp=80.0), "constant column bp: drop it"),
        (lambda t: t.assign(bmi=25.0, bp=80.0), "constant column bmi, bp: drop it"),
        (lambda t: t.assign(age=np.nan), "missing or infinite value in column age"),
    ],
)
def test_rows_that_fix_no_line_are_refused_before_a_process_starts(owned, change, message, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: pytest.fail("work started"))
    with pytest.raises(ValueError, match=message):
        er.fit_outsourced(change(owned))


def multiply_rows(key, rows):
    """What the server does with one block, with the key at hand: means of products."""
    (_, left), (_, right) = lay_out(rows / np.sqrt(len(rows)), "replicated pairs", key.slots)
    opened = key.decrypt(er.multiply_pairs(key, [key.encrypt(left)], [key.encrypt(right)]))
    return opened[: key.slots // 10 * 10].reshape(-1, 10).sum(axis=0)


def test_a_scale_too_small_loses_the_products(owned):
    rows = scale_rows(owned)
    true = [rows[:, i] @ rows[:, j] / len(rows) for i, j in list_pairs(4)]
    sound, twin = (KeyHolder(8192, 1, scale_bits=bits, head_bits=8) for bits in (52, 22))
    assert np.abs(multiply_rows(sound, rows) - true).max() < 1e-10
    assert np.abs(multiply_rows(twin, rows) - true).max() > 1e-8


@pytest.mark.parametrize("packing", ["replicated pairs", "columns"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_two_rows_in_a_slot_give_the_sum_of_both(packing, count):
    rows = np.column_stack([np.ones(count), np.random.default_rng(0).normal(size=(count, 3))])
    plain, pairs = dict(lay_out(rows, packing, 4096)), list_pairs(3)
    expected = [rows[:, i] @ rows[:, j] for i, j in pairs]
    if packing == "columns":
        products = [(plain[f"L{i}"] * plain[f"R{j}"]).real.sum() for i, j in pairs]
        unconjugated = [(plain[f"L{i}"] * plain[f"L{j}"]).real.sum() for i, j in pairs]
    else:
        products = (plain["L0"] * plain["R0"]).real.reshape(-1, len(pairs)).sum(axis=0)
        unconjugated = (plain["L0"] * plain["R0"].conj()).real.reshape(-1, len(pairs)).sum(axis=0)
    np.testing.assert_allclose(products, expected, atol=1e-12)
    # Six pairs in four slots are two groups of three.
    if packing == "replicated pairs" and count < 3:
        grouped = dict(lay_out(rows, packing, 4))
        apart = [(grouped[f"L{g}"] * grouped[f"R{g}"]).real.reshape(-1, 3).sum(axis=0) for g in (0, 1)]
        np.testing.assert_allclose(np.concatenate(apart), expected, atol=1e-12)
    # The broken twin forgets to conjugate: right for one row, wrong for two.
    assert np.allclose(unconjugated, expected) == (count == 1)


def stream_rows(count, seed=0):
    X = np.random.default_rng(seed).normal(size=(count, 3)).clip(-8, 8)
    return np.column_stack([X, X @ [0.5, -0.25, 0.1] + 0.3])


@pytest.mark.parametrize("lengths", [[20_000], [1, 9_000, 0, 10_999]])
def test_a_stream_gives_the_same_line_however_it_is_cut(lengths, monkeypatch):
    monkeypatch.setattr(outsourcing, "BLOCKS", 2)  # so that 20,000 rows, three blocks, need two answers
    rows = stream_rows(sum(lengths))
    result = er.fit_stream(np.split(rows, np.cumsum(lengths)[:-1]))
    assert np.abs(result.coefficients - [0.3, 0.5, -0.25, 0.1]).max() < 1e-9
    A = np.column_stack([np.ones(20_000), rows])
    np.testing.assert_allclose(result.sums[-1], rows[:, -1] @ rows[:, -1], rtol=1e-9)
    np.testing.assert_allclose(result.sums[:10], (A.T @ A)[:4, :4][np.triu_indices(4)], atol=1e-6)
    assert result.secret_seen == []


def test_a_stream_holds_a_few_blocks_however_long_it_is(monkeypatch):
    """Counts the files under way. However slow the server is: two blocks summed and not yet deleted, three sent, and the answer."""
    monkeypatch.setattr(outsourcing, "BLOCKS", 2)
    most, of_a_block = {}, []
    send = products._Server.send

    def watch(self, task, sealed=None):
        if sealed:
            most[total] = max(most.get(total, 0), len(list(self.folder.iterdir())))
            of_a_block.append(len(sealed))
        return send(self, task, sealed)

    monkeypatch.setattr(products._Server, "send", watch)
    for total in (6, 16):
        er.fit_stream(stream_rows(8192) for _ in range(total))
    few = 6 * max(of_a_block) + 20
    assert most[16] <= few
    # The broken twin keeps every block until the end.
    monkeypatch.setattr(outsourcing, "BLOCKS", 100)
    total = 17
    er.fit_stream(stream_rows(8192) for _ in range(total))
    assert most[17] > few


def test_a_stream_refuses_bad_parts():
    good = stream_rows(50)
    for bad, message in (
        ([], "at least one column"),
        ([good, good[:, :2]], "4 columns in every part"),
        ([np.column_stack([good[:, 0], good])], "singular"),
    ):
        with pytest.raises(ValueError, match=message):
            er.fit_stream(bad)
    for bad in (good * 100, good * np.nan):
        with pytest.raises(ValueError, match="beyond 8"):
            list(outsourcing._check_parts(good, iter([bad])))
    assert party_processes() == set()


def wrong_fingerprint(folder, names):
    """As if every file had been altered after its fingerprint was taken."""
    return dict.fromkeys(names, "0" * 64)


def test_a_server_that_refuses_ends_the_run(owned, monkeypatch):
    monkeypatch.setattr(products, "fingerprint", wrong_fingerprint)
    with pytest.raises(ValueError, match="server: refused: parameters was altered on the way"):
        er.fit_outsourced(owned)
    monkeypatch.setattr(prediction, "fingerprint", wrong_fingerprint)
    with pytest.raises(ValueError, match="server: refused: parameters was altered on the way"):
        er.predict_outsourced(np.ones(4), owned[COLUMNS])
    monkeypatch.setattr(descent, "fingerprint", wrong_fingerprint)
    with pytest.raises(ValueError, match="hospital_1: refused: parameters was altered on the way"):
        er.train_outsourced([(GRAM, RIGHT)], er.chebyshev_weights(2, 5.0), degree=8192)
    assert party_processes() == set()


def test_an_answer_altered_on_the_way_is_refused(owned, monkeypatch):
    """The client reads its answers through the same check; here the folder changes before it does."""
    read = products.read_sealed

    def altered(ring, folder, sealed, *arguments, **keywords):
        for name in sealed:
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
        return read(ring, folder, sealed, *arguments, **keywords)

    for module in (products, prediction, descent):
        monkeypatch.setattr(module, "read_sealed", altered)
    with pytest.raises(ValueError, match="^refused: product_0 was altered on the way"):
        er.fit_outsourced(owned)
    with pytest.raises(ValueError, match="^refused: predictions was altered on the way"):
        er.predict_outsourced(np.ones(4), owned[COLUMNS])
    with pytest.raises(ValueError, match="^refused: model was altered on the way"):
        er.train_outsourced([(GRAM, RIGHT)], er.chebyshev_weights(2, 5.0), degree=8192)
    assert party_processes() == set()


# Servers that fail. Each stands in for `_serve` of a module, in its own process.


def _die(pipe, *_):
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(pipe, *_):
    time.sleep(3600)


def _die_at_work(pipe, *_):
    pipe.send("ready")
    pipe.recv()
    _die(pipe)


def _hang_at_work(pipe, *_):
    pipe.send("ready")
    time.sleep(3600)


def _bad_answer(pipe, folder, *_):
    """Answer with what is sealed, but is no ciphertext."""
    (folder / "predictions").write_bytes(b"x" * 1000)
    pipe.send(({}, [], 0.0, fingerprint(folder, ["predictions"])))


def _ask_for(work, owned, timeout):
    if work == "fit":
        return er.fit_outsourced(owned, timeout=timeout)
    if work == "predict":
        return er.predict_outsourced(np.ones(4), owned[COLUMNS], timeout=timeout)
    return er.train_outsourced([(GRAM, RIGHT)], er.chebyshev_weights(2, 5.0), degree=8192, timeout=timeout)


@pytest.mark.parametrize(
    ("work", "module", "name", "die", "hang"),
    [
        ("fit", products, "_serve", _die_at_work, _hang_at_work),
        ("predict", prediction, "_serve", _die, _hang),
        ("train", descent, "_seal", _die, _hang),
    ],
)
def test_a_server_that_is_killed_or_hangs_ends_the_run(owned, work, module, name, die, hang, monkeypatch):
    monkeypatch.setattr(module, name, die)
    with pytest.raises(RuntimeError, match="the server ended before it answered"):
        _ask_for(work, owned, 120)
    assert party_processes() == set()
    monkeypatch.setattr(module, name, hang)
    # A busy machine may take longer than this to start a process: that ends the same way.
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="did not answer within 6 s"):
        _ask_for(work, owned, 6)
    assert time.monotonic() - start < 60
    assert party_processes() == set()


@pytest.mark.parametrize(("stand_in", "error"), [(_die, RuntimeError), (_hang, TimeoutError)])
def test_a_server_that_fails_while_it_descends_ends_the_run(stand_in, error, monkeypatch):
    """The hospital's process is replaced too, by none: only the server's failure is under test."""
    ask = descent.ask_process

    def skip_hospital(role, timeout, *arguments):
        return ({}, []) if role is descent._seal else ask(role, timeout, *arguments)

    monkeypatch.setattr(descent, "ask_process", skip_hospital)
    monkeypatch.setattr(descent, "_serve", stand_in)
    with pytest.raises(error):
        er.train_outsourced(
            [(GRAM, RIGHT)],
            er.chebyshev_weights(2, 5.0),
            degree=8192,
            timeout=6 if stand_in is _hang else 900,
        )
    assert party_processes() == set()


def test_an_answer_that_is_no_ciphertext_is_refused(owned, monkeypatch):
    monkeypatch.setattr(prediction, "_serve", _bad_answer)
    with pytest.raises(ValueError, match="predictions is not a whole ciphertext of 3 parts at level 1"):
        er.predict_outsourced(np.ones(4), owned[COLUMNS])


def _dying_script(table):
    os.kill(os.getpid(), signal.SIGKILL)
    yield


def _hanging_script(table):
    yield
    time.sleep(3600)
    yield


@pytest.mark.parametrize(
    ("script", "limit", "error", "named"),
    [
        (_dying_script, 120, RuntimeError, "other ended before it answered"),
        (_hanging_script, 8, TimeoutError, "over 8 s"),
    ],
)
def test_an_owner_of_columns_who_dies_or_hangs_ends_the_run(halves, script, limit, error, named):
    start = time.monotonic()
    with pytest.raises(error, match=named):
        er.fit_vertical(*halves, timeout=limit, roles={"other": (script, halves[1])})
    assert time.monotonic() - start < 180
    assert party_processes() == set()


def test_parameters_below_128_bits_are_refused(tmp_path):
    weak = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    weak.set_poly_modulus_degree(4096)
    weak.set_coeff_modulus(seal.CoeffModulus.Create(4096, [60, 60, 60]))
    weak.save(str(tmp_path / "parameters"))
    with pytest.raises(ValueError, match="refused"):
        open_ring(tmp_path)
    KeyHolder(8192, 1, scale_bits=52, head_bits=8).parameters.save(str(tmp_path / "parameters"))
    ring = open_ring(tmp_path)
    assert not hasattr(ring, "decryptor")


def test_foreign_tampered_and_unrelinearised_ciphertexts_are_refused(tmp_path):
    key, other = (KeyHolder(8192, 1, scale_bits=52, head_bits=8) for _ in range(2))
    own, one = tmp_path / "own", key.encrypt([1.0])

    def read(sealed=None, **expected):
        return er.read_sealed(key, tmp_path, sealed or fingerprint(tmp_path, ["x"]), own, **expected)

    key.encrypt_to([1.0], tmp_path / "x")
    sealed = fingerprint(tmp_path, ["x"])
    assert set(read(sealed)) == {"x"}
    other.encrypt_to([1.0], tmp_path / "x")
    with pytest.raises(ValueError, match="x was altered on the way"):
        read(sealed)
    # Without the fingerprint a foreign ciphertext passes: only its owner can tell.
    assert set(read()) == {"x"}
    raw = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(raw[:-9])
    with pytest.raises(ValueError, match="not a whole ciphertext"):
        read()
    # A product has three parts, and the scale of a product.
    er.multiply_pairs(key, [one], [one]).save(str(tmp_path / "x"))
    assert set(read(parts=3)) == {"x"}
    with pytest.raises(ValueError, match="2 parts"):
        read()
    one.save(str(tmp_path / "x"))
    with pytest.raises(ValueError, match="3 parts"):
        read(parts=3)
    with pytest.raises(ValueError, match="at level 0"):
        read(level=0)
    key.lower(one, 0).save(str(tmp_path / "x"))
    assert set(read(level=0)) == {"x"}
    one.scale = 2.0 * one.scale
    one.save(str(tmp_path / "x"))
    with pytest.raises(ValueError, match="its scale"):
        read()
    (tmp_path / "x").unlink()
    with pytest.raises(ValueError, match="x is missing"):
        read(sealed)


def test_what_was_checked_is_what_is_read(tmp_path, monkeypatch):
    """The folder changes right after the check: what is read is the copy that was checked."""
    key = KeyHolder(8192, 1, None, 52)
    key.encrypt_to([1.0], tmp_path / "x")
    key.encrypt_to([2.0], tmp_path / "y")
    sealed, receive = fingerprint(tmp_path, ["x"]), products.receive

    def race(*arguments):
        receive(*arguments)
        (tmp_path / "x").write_bytes((tmp_path / "y").read_bytes())

    monkeypatch.setattr(products, "receive", race)
    read = er.read_sealed(key, tmp_path, sealed, tmp_path / "own")
    assert abs(key.decrypt(read["x"])[0] - 1) < 1e-6
    # The broken twin reads the folder a second time.
    assert abs(key.decrypt(products.read_ciphertext(key, tmp_path / "x", 1))[0] - 2) < 1e-6


def test_the_packing_follows_owner_and_size():
    assert [er.choose_packing(*case)[0] for case in ((442, 10), (10**6, 20), (442, 10, 3))] == [
        "replicated pairs",
        "columns",
        "local sums",
    ]
    with pytest.raises(ValueError, match="1 or more"):
        er.choose_packing(0, 10)


# Parties that own columns.


@pytest.fixture(scope="module")
def halves(owned):
    return owned[["age", er.TARGET]], owned[["bmi", "bp"]]


def _leaky_key_holder(table):
    """A key-holder that sends its secret key along with its columns."""
    script = vertical._key_holder(table)
    messages = next(script)
    ring = vertical.make_vertical_ring()
    received = yield [*messages, ("notes", masking.to_bytes(seal.KeyGenerator(ring.context).secret_key()))]
    yield script.send(received)


def test_columns_give_the_pooled_line_and_each_sees_what_it_should(owned, halves):
    result = er.fit_vertical(*halves, timeout=900)
    true = er.compute_sums(owned[["age", "bmi", "bp", er.TARGET]])
    assert np.abs(result.sums[:-1] - true).max() < 1e-9
    assert abs(result.sums[-1] - (scale_rows(owned)[:, -1] ** 2).sum()) < 1e-9
    assert np.abs(result.coefficients - er.solve_sums(true, ["age", "bmi", "bp"])).max() < 1e-8
    assert result.published == np.round(result.coefficients, er.PUBLISHED_DECIMALS).tolist()
    kinds = {name: [m.kind for m in messages] for name, messages in result.transcript.items()}
    encrypted = ["encrypted age", f"encrypted {er.TARGET}"]
    assert kinds["other"] == ["parameters", "public key", *encrypted, "coefficients"]
    masked = ["masked product with bmi", "masked product with bp"]
    assert kinds["key_holder"] == ["names", "own sums", *masked, *masked]
    assert party_processes() == set()


def test_a_secret_key_among_the_columns_is_refused(halves):
    script = vertical._other(halves[1])
    next(script)
    messages = [data for _, data in next(_leaky_key_holder(halves[0]))]
    with pytest.raises(ValueError, match="refused: it was sent a secret key"):
        script.send(messages)


@pytest.fixture(scope="module")
def crossing(halves):
    """A product as the other party forms it, and the keys that open it."""
    ring = vertical.make_vertical_ring()
    keys, public = seal.KeyGenerator(ring.context), seal.PublicKey()
    keys.create_public_key(public)
    mine, theirs = scale_columns(halves[0])[:, 0], scale_columns(halves[1])[:, 0]
    sent = seal.Ciphertext()
    plain = ring.encode(mine, ring.levels, vertical.KEY_HOLDER_SCALE)
    seal.Encryptor(ring.context, keys.secret_key()).encrypt_symmetric(plain, sent)
    opener = seal.Decryptor(ring.context, keys.secret_key())

    def multiply():
        return vertical.multiply_column(ring, sent, theirs)

    return ring, public, opener, sent, mine, theirs, multiply


def test_ciphertexts_between_owners_of_columns_are_checked(crossing):
    ring, _, _, sent, *_, multiply = crossing
    scale, product_scale = vertical.KEY_HOLDER_SCALE, vertical.KEY_HOLDER_SCALE * vertical.OTHER_SCALE
    sound, product = masking.to_bytes(sent), masking.to_bytes(multiply())
    assert vertical._read_ciphertext(ring, sound, scale).size() == 2
    for data in (sound[:-9], b"", masking.to_bytes(ring.parameters)):
        with pytest.raises(ValueError, match="refused: not a whole Ciphertext"):
            vertical._read_ciphertext(ring, data, scale)
    with pytest.raises(ValueError, match="not a whole Ciphertext"):  # of other parameters
        other = KeyHolder(8192, 1, None, 52)
        vertical._read_ciphertext(ring, masking.to_bytes(other.encrypt([1.0])), scale)
    low, square = seal.Ciphertext(), masking.from_bytes(ring, seal.Ciphertext, sound)
    ring.seal.mod_switch_to_next(sent, low)
    square.scale = 2.0**55  # squared, it has three parts and the scale of what is sent
    ring.seal.square_inplace(square)
    assert square.size() == 3 and square.scale == scale
    for data in (product, masking.to_bytes(low), masking.to_bytes(square)):
        with pytest.raises(ValueError, match="two parts at the agreed level and scale"):
            vertical._read_ciphertext(ring, data, scale)
    assert vertical._read_ciphertext(ring, product, product_scale).size() == 2


def read_slots(ring, opener, ct, count):
    plain = seal.Plaintext()
    opener.decrypt(ct, plain)
    return np.array(ring.encoder.decode_double(plain))[:count]


def resemblance(a, b):
    """Of 300 unrelated numbers it exceeds 0.35 less than once in 10^8 runs (six standard deviations)."""
    return abs(np.corrcoef(a, b)[0, 1])


def test_slots_of_a_masked_product_tell_nothing_but_their_sum(crossing):
    ring, public, opener, _, mine, theirs, multiply = crossing
    product = multiply()
    er.refresh(ring, public, product)
    masked = er.mask_all_but_sum(ring, product)
    assert abs(vertical.open_cross_product(ring, opener, masked) - mine @ theirs) < 1e-10
    assert resemblance(read_slots(ring, opener, masked, 300), mine * theirs) < 0.35
    # The broken twin returns the product with its slots unsummed: a product a person.
    assert resemblance(read_slots(ring, opener, product, 300), mine * theirs) > 0.99


def test_a_returned_product_cannot_be_divided_by_what_was_sent(crossing):
    ring, public, _, sent, _, theirs, multiply = crossing
    fresh = multiply()
    er.refresh(ring, public, fresh)

    def divide(product):
        masked = er.mask_all_but_sum(ring, product)
        return er.attack_divide(ring, sent, masked, vertical.OTHER_SCALE)[:300]

    assert resemblance(divide(fresh), theirs) < 0.35
    # The broken twin adds no fresh encryption of zero, and is read through its mask, row by row.
    np.testing.assert_allclose(divide(multiply()), theirs, atol=1e-6)


def test_the_noise_that_was_multiplied_is_smudged(crossing):
    ring, _, opener, *_, multiply = crossing

    def constants(bits):
        opened, product = [], multiply()
        for _ in range(2):
            plain = seal.Plaintext()
            opener.decrypt(er.mask_all_but_sum(ring, product, bits), plain)
            opened.append(masking.read_constant(ring, plain))
        return abs(opened[0] - opened[1])

    # Two uniform numbers of 113 bits are within 2^73, the largest noise, once in 2^39 runs; the twin's smudge is a bit.
    assert constants(masking.SMUDGE_BITS) > 2**73
    assert constants(1) <= 2


def test_masks_are_uniform_modulo_every_prime(crossing):
    ring, _, opener, *_, multiply = crossing
    product, opened = multiply(), []
    for ct in (product, er.mask_all_but_sum(ring, product, smudge_bits=1)):
        plain = seal.Plaintext()
        opener.decrypt(ct, plain)
        opened.append(masking.read_residues(ring, plain))
    for before, after, prime in zip(*opened, ring.primes, strict=True):
        mask = [(int(b) - int(a)) % prime / prime for a, b in zip(before, after, strict=True)]
        # A uniform mask fails once in 10^9 runs; the twin, drawn from half the range, always does.
        assert stats.kstest(mask, "uniform").pvalue > 1e-9
        assert stats.kstest(np.array(mask) / 2, "uniform").pvalue < 1e-9


def test_all_that_the_other_party_returns_is_refreshed_masked_and_smudged_afresh(crossing, halves):
    ring, public, opener, sent, mine, *_ = crossing
    script = vertical._other(halves[1])
    next(script)
    answer = script.send([masking.to_bytes(thing) for thing in (ring.parameters, public, sent, sent)])
    returned = [data for kind, data in answer if kind.startswith("masked product")]
    cts = [masking.from_bytes(ring, seal.Ciphertext, data) for data in returned]
    for ct, column in zip(cts, [*scale_columns(halves[1]).T] * 2, strict=True):
        assert abs(vertical.open_cross_product(ring, opener, ct) - mine @ column) < 1e-10
        assert resemblance(read_slots(ring, opener, ct, 300), mine * column) < 0.35
        divided = er.attack_divide(ring, sent, ct, vertical.OTHER_SCALE)[:300]
        assert resemblance(divided, column) < 0.35
    # One column was sent twice: under one mask the two answers would be alike, and so would any two products.
    first, again = (read_slots(ring, opener, ct, 300) for ct in (cts[0], cts[2]))
    assert np.abs(first - again).min() > 1e-3 and resemblance(first, again) < 0.35
    constants = []
    for ct in (cts[0], cts[2]):
        plain = seal.Plaintext()
        opener.decrypt(ct, plain)
        constants.append(masking.read_constant(ring, plain))
    assert abs(constants[0] - constants[1]) > 2**73


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a, b.iloc[::-1]), "not aligned"),
        (lambda a, b: (a[["age"]], b), "progression as the last column of the key-holder"),
        (lambda a, b: (a, b.assign(age=a["age"])[["age", "bp"]]), "both have column age"),
        (lambda a, b: (a, b.assign(bp=80.0)), "constant column bp"),
        (lambda a, b: (a.iloc[:5], b.iloc[:5]), "5 rows are too few"),
        (lambda a, b: (a, b.assign(bp=np.nan)), "missing or infinite value in column bp"),
    ],
)
def test_bad_columns_are_refused_before_a_process_starts(halves, change, message, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: pytest.fail("work started"))
    with pytest.raises(ValueError, match=message):
        er.fit_vertical(*change(*halves))


# A model that stays encrypted.


def test_an_encrypted_model_predicts_and_the_server_gets_no_key(owned, monkeypatch):
    line = er.solve_sums(er.compute_sums(owned), COLUMNS)
    X = owned[COLUMNS]
    result = er.predict_outsourced(line, X)
    true = line[0] + X.to_numpy() @ line[1:]
    # Nothing raw leaves: the predictions are those in the clear to four decimals (the nearest border is 1e-7 away, the noise 1e-10).
    np.testing.assert_array_equal(result.predictions, np.round(true, protocol.PUBLISHED_DECIMALS))
    assert result.secret_seen == []
    np.testing.assert_allclose(er.attack_predictions(X, result.predictions), line, atol=1e-3)

    class Leaky(KeyHolder):
        def encrypt_to(self, numbers, path):
            self._secret.save(str(path.parent / "notes"))
            super().encrypt_to(numbers, path)

    monkeypatch.setattr(prediction, "KeyHolder", Leaky)
    assert er.predict_outsourced(line, X).secret_seen == ["notes"]
    monkeypatch.setattr(products, "KeyHolder", Leaky)
    assert er.fit_outsourced(owned).secret_seen == ["notes"]
    monkeypatch.setattr(prediction, "KeyHolder", KeyHolder)
    monkeypatch.setattr(prediction, "SCALE_BITS", 25)
    assert np.abs(er.predict_outsourced(line, X).predictions - true).max() > 1e-4
    with pytest.raises(ValueError, match="too large coefficient"):
        er.predict_outsourced(line * 1e6, X)


def test_scaled_coefficients_are_restored():
    line = np.array([10.0, 0.5, -1.0, 2.0])
    scaled = prediction.scale_coefficients(line, COLUMNS)
    np.testing.assert_allclose(restore_units(scaled, COLUMNS), line, rtol=1e-12)


# Standard errors and ridge.


def square_sum(table):
    return (scale_rows(table)[:, -1] ** 2).sum()


def test_standard_errors_are_those_of_the_textbook(owned):
    sums = np.r_[er.compute_sums(owned), square_sum(owned)]
    found = er.summarize_sums(sums, COLUMNS)
    A, y = np.column_stack([np.ones(300), owned[COLUMNS]]), owned[er.TARGET].to_numpy()
    line, rss, *_ = np.linalg.lstsq(A, y, rcond=None)
    errors = np.sqrt(np.diag(np.linalg.inv(A.T @ A)) * rss[0] / (300 - 4))
    np.testing.assert_allclose(found.coefficients, line, rtol=1e-8)
    np.testing.assert_allclose(found.standard_errors, errors, rtol=1e-8)
    np.testing.assert_allclose(found.t_values, line / errors, rtol=1e-8)
    np.testing.assert_allclose(found.r2, 1 - rss[0] / ((y - y.mean()) ** 2).sum(), rtol=1e-8)
    # The broken twin divides by n.
    assert not np.allclose(errors * np.sqrt((300 - 4) / 300), found.standard_errors, rtol=1e-3)
    with pytest.raises(ValueError, match="squared target missing"):
        er.summarize_sums(sums[:-1], COLUMNS)
    few = owned.iloc[:4]
    with pytest.raises(ValueError, match="no residual"):
        er.summarize_sums(np.r_[er.compute_sums(few), square_sum(few)], COLUMNS)


def test_ridge_is_scikit_learns_and_its_score_the_definition(owned):
    sums = np.r_[er.compute_sums(owned), square_sum(owned)]
    rows = scale_rows(owned)
    X, y = rows[:, 1:-1], rows[:, -1]
    model = Ridge(alpha=7.0).fit(X, y)
    found = prediction.scale_coefficients(er.solve_ridge(sums, COLUMNS, 7.0), COLUMNS)
    np.testing.assert_allclose(found, np.r_[model.intercept_, model.coef_], rtol=1e-9)
    centred = X - X.mean(axis=0)
    hat = 1 / 300 + centred @ np.linalg.solve(centred.T @ centred + 7 * np.eye(3), centred.T)
    score = np.mean((y - model.predict(X)) ** 2) / (1 - np.trace(hat) / 300) ** 2
    np.testing.assert_allclose(er.cross_validate(sums, 7.0), score, rtol=1e-9)
    # The broken twin also shrinks the intercept.
    A = rows[:, :-1]
    shrunk = np.linalg.solve(A.T @ A + 7 * np.eye(4), A.T @ y)
    assert not np.allclose(shrunk, found, rtol=1e-4)
    assert er.choose_penalty(sums, [1e6, 1e-3]) == 1e-3
    with pytest.raises(ValueError, match="penalty"):
        er.solve_ridge(sums, COLUMNS, -1.0)


# Descent.

GRAM, RIGHT = np.diag([4.0, 1.0, 0.5]) + 0.1, np.array([1.0, -0.5, 0.25])


class Unrelinearised(KeyHolder):
    def relinearize(self, ct):
        pass


def test_encrypted_descent_takes_the_clear_steps_and_stops_with_the_levels():
    weights = er.chebyshev_weights(3, 5.0)
    # Two hospitals with a part each: neither is the system that is solved.
    parts = [(0.25 * GRAM + 0.1, 0.5 * RIGHT), (0.75 * GRAM - 0.1, 0.5 * RIGHT)]
    model, _, secret = er.train_outsourced(parts, weights, degree=8192)
    true = er.descend(GRAM, RIGHT, weights)
    assert np.abs(model - true).max() < 1e-2
    assert np.array_equal(model, np.round(model, descent.MODEL_DECIMALS))
    assert secret == []
    # The broken twin adds one part twice and leaves the other out.
    assert np.abs(er.descend(2 * parts[0][0], RIGHT, weights) - true).max() > 0.05
    key = KeyHolder(8192, 2, steps=[1])
    with pytest.raises(ValueError, match="bootstrapping"):
        er.descend_encrypted(key, er.seal_system(key, GRAM, RIGHT), weights)


class LeakyTrainer(KeyHolder):
    """A key-holder that leaves its secret key where the server looks."""

    def export(self, folder):
        super().export(folder)
        self._secret.save(f"{folder}/notes")


def test_a_secret_key_beside_the_system_is_found(monkeypatch):
    monkeypatch.setattr(descent, "KeyHolder", LeakyTrainer)
    assert er.train_outsourced([(GRAM, RIGHT)], er.chebyshev_weights(1, 5.0), degree=8192)[2] == ["notes"]


@pytest.mark.parametrize(
    ("gram", "right", "message"),
    [
        (np.eye(17), np.ones(17), "17 numbers in a model: the layout holds 1 to 16"),
        (np.eye(0), np.ones(0), "0 numbers in a model"),
        (np.eye(3), np.ones(2), "expected a matrix of 2 x 2"),
        (np.full((2, 2), np.nan), np.ones(2), "missing or infinite number"),
        (np.eye(2), np.array([1.0, np.inf]), "missing or infinite number"),
        (64 * np.eye(2), np.ones(2), "below 64: divide by the number of rows"),
    ],
)
def test_a_system_that_cannot_be_sealed_is_refused_before_work_starts(gram, right, message, monkeypatch):
    key = KeyHolder(8192, 1, None)
    with pytest.raises(ValueError, match=message):
        er.seal_system(key, gram, right)
    monkeypatch.setattr(descent, "KeyHolder", lambda *_, **__: pytest.fail("work started"))
    with pytest.raises(ValueError, match=message):
        er.train_outsourced([(gram, right)], er.chebyshev_weights(2, 5.0))
    assert len(er.seal_system(key, 63.9 * np.eye(16), np.ones(16)).diagonals) == 16


def test_parts_of_different_sizes_are_refused():
    for parts in ([], [(np.eye(2), np.ones(2)), (np.eye(3), np.ones(3))]):
        with pytest.raises(ValueError, match="one or more parts, all of one size"):
            er.train_outsourced(parts, er.chebyshev_weights(2, 5.0))


def test_skipping_relinearisation_breaks_the_descent():
    twin = Unrelinearised(8192, 3, steps=[1])
    with pytest.raises((ValueError, RuntimeError)):
        er.descend_encrypted(twin, er.seal_system(twin, GRAM, RIGHT), er.chebyshev_weights(3, 5.0))


def test_chebyshev_beats_plain_steps_and_a_bound_too_low_diverges():
    exact = np.linalg.solve(GRAM, RIGHT)

    def gap(weights):
        return np.abs(er.descend(GRAM, RIGHT, weights) - exact).max()

    assert gap(er.chebyshev_weights(12, 5.0)) < gap([(1 / 5, 0.0)] * 12)
    assert gap(er.chebyshev_weights(12, 1.0)) > 10
    with pytest.raises(ValueError, match="high"):
        er.chebyshev_weights(3, 0.0)


# Noise on the sums.


def test_one_patient_moves_the_sums_by_at_most_the_sensitivity():
    rows = make_rows(200, seed=1)
    table = er.split_rows(*rows, parties=1)[0]
    limit, quiet = er.sums_sensitivity(1.5), 1e-9
    moved = [np.linalg.norm(er.noise_sums(table.iloc[[i]], 1.5, quiet)) for i in range(200)]
    assert 0.5 * limit < max(moved) <= limit * (1 + 1e-6)
    # The broken twin does not clip.
    assert max(np.linalg.norm(er.compute_sums(table.iloc[[i]])) for i in range(200)) > limit


def test_sums_of_clipped_rows_are_exact(owned):
    rows = er.clip_rows(owned, 2.5)
    assert (np.linalg.norm(rows, axis=1) <= 2.5).all()
    exact = [
        [sum(Fraction(a) * Fraction(b) for a, b in zip(x, y, strict=True)) for y in rows.T] for x in rows.T
    ]
    found = er.clip_sums(owned, 2.5)
    upper = [exact[i][j] for i in range(4) for j in range(i, 4)] + [exact[i][4] for i in range(4)]
    assert [Fraction(value) for value in found] == upper
    # The broken twin does not cut to the grid: its sums depend on the rounding of floats.
    raw = scale_rows(owned)
    assert Fraction(float(raw[:, 1] @ raw[:, 2])) != sum(
        Fraction(a) * Fraction(b) for a, b in raw[:, 1:3].tolist()
    )


def test_the_sums_go_through_the_mechanism(owned, monkeypatch):
    """What is released is what OpenDP returned for the sums; nothing is added to it."""
    seen = []

    def make(*_, scale):
        return lambda values: seen.append((values, scale)) or [7.0] * len(values)

    monkeypatch.setattr(private_sums.dp.m, "make_gaussian", make)
    assert er.noise_sums(owned, 3.0, 50.0).tolist() == [7.0] * COUNT
    assert seen == [(er.clip_sums(owned, 3.0).tolist(), 50.0)]


def has_promised_noise(release, clean, sigma):
    """The spread of 200 releases, over all their numbers, is within a tenth of sigma.

    2,800 draws: the estimate's standard deviation is 1.3 %, so a sound release fails less than once in 10^12 runs.
    """
    draws = np.array([release() for _ in range(200)]) - clean
    return abs(draws.std() / sigma - 1) < 0.1


def is_fresh(release):
    """Two releases of the same rows share no number."""
    return not (release() == release()).any()


def test_the_noise_is_as_large_as_promised_and_fresh(owned):
    clean = er.clip_sums(owned, 3.0)
    assert has_promised_noise(lambda: er.noise_sums(owned, 3.0, 50.0), clean, 50.0)
    # The broken twins: half the noise, and one draw for all releases.
    assert not has_promised_noise(lambda: er.noise_sums(owned, 3.0, 25.0), clean, 50.0)
    stale = er.noise_sums(owned, 3.0, 50.0)
    assert is_fresh(lambda: er.noise_sums(owned, 3.0, 50.0))
    assert not is_fresh(lambda: stale)
    with pytest.raises(ValueError, match="bound"):
        er.clip_rows(owned, 0)


def find_member(others, patient, sigma, games=200):
    """AUC of the best attack on one party's noisy sums."""
    own, expected = er.clip_sums(patient, 3.5), er.clip_sums(others, 3.5)
    scores = [
        [er.attack_membership(er.noise_sums(table, 3.5, sigma), expected, own, sigma) for _ in range(games)]
        for table in (pd.concat([others, patient]), others)
    ]
    return np.greater.outer(*scores).mean()


def test_noise_hides_a_patient_and_a_hundredth_of_it_does_not(owned):
    """The honest noise allows 0.58, and 200 games a side have a standard deviation of 0.029.

    0.75 is six above: a sound release fails once in 10^9 runs. The twin's expected AUC differs from one by less than 10^-10.
    """
    patient = pd.DataFrame([[60, 33.0, 100, 260]], columns=owned.columns)
    sigma = 3.73 * er.sums_sensitivity(3.5)
    assert find_member(owned, patient, sigma) < 0.75
    assert find_member(owned, patient, sigma / 100) > 0.90


def test_the_membership_score_is_the_likelihood_ratio(owned):
    rng = np.random.default_rng(0)
    own, expected, opened = rng.normal(size=(3, COUNT))
    inside, outside = (norm.logpdf(opened, mean, 2.0).sum() for mean in (expected + own, expected))
    assert abs(er.attack_membership(opened, expected, own, 2.0) - (inside - outside)) < 1e-9
    with pytest.raises(ValueError, match="sigma"):
        er.attack_membership(opened, expected, own, 0.0)
