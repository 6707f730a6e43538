"""The encrypted answers are the clear model's, only the client can read them, and a broken variant of each part is noticed.

Models and inputs are seeded; the randomness of encryption cannot be. Error bounds leave a factor of ten or more.
"""

import math
import os
import time

import numpy as np
import psutil
import pytest
import tenseal.sealapi as seal
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split
from sklearn.tree import DecisionTreeClassifier

from pprml import encrypted_inference as ei
from pprml import encrypted_regression as er
from pprml.encrypted_inference.training import SLOPE


def make_network(units=8, features=16, outputs=3, seed=0, kind=ei.Network):
    """A network of random weights."""
    rng = np.random.default_rng(seed)
    sizes = (units, features), units, (outputs, units), outputs
    return kind(*(rng.normal(size=size) / 2 for size in sizes))


@pytest.fixture(scope="module")
def keys():
    return ei.KeyHolder(8192, 4, steps=(1, 2, 4, 8))


@pytest.fixture(scope="module")
def cancer():
    """Rounded training and test records, with the classes."""
    X, y = load_breast_cancer(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, random_state=1, stratify=y)
    grid = ei.Grid(*np.percentile(X_train, [1, 99], axis=0))
    return grid.round(X_train), grid.round(X_test), y_train, y_test


@pytest.fixture(scope="module")
def tree(cancer):
    return DecisionTreeClassifier(max_depth=2, random_state=0).fit(cancer[0], cancer[2])


@pytest.fixture(scope="module")
def session():
    with ei.Session(make_network(), 8192, timeout=900) as running:
        yield running


def server_processes() -> set[int]:
    """Child processes, but for the tracker that multiprocessing keeps for as long as Python runs."""
    children = psutil.Process().children(recursive=True)
    return {c.pid for c in children if "resource_tracker" not in " ".join(c.cmdline())}


# Broken twins: each leaves out one precaution, and a test shows that it is noticed.


class LazyRing(ei.KeyHolder):
    """Products that are never relinearised."""

    def relinearize(self, ct):
        pass


class OneScale(ei.KeyHolder):
    """Scales taken to be the same at every level, as if each prime were the power of two that it is near to."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.scales = [self.scales[0]] * len(self.scales)


class LeakyKeys(ei.KeyHolder):
    """A client that sends its secret key along, under another name."""

    def export(self, folder):
        super().export(folder)
        self._secret.save(f"{folder}/extra")


class RepeatingKeys(ei.KeyHolder):
    """Encryption without fresh randomness."""

    def encrypt_to(self, numbers, path):
        if not hasattr(self, "kept"):
            super().encrypt_to(numbers, path)
            self.kept = path.read_bytes()
        path.write_bytes(self.kept)


class SleepingNetwork(ei.Network):
    """A server that never answers."""

    def evaluate(self, ring, inputs):
        time.sleep(3600)


class DyingNetwork(ei.Network):
    """A server that ends while it works."""

    def evaluate(self, ring, inputs):
        os._exit(1)


# Parameters.


def test_security_table_is_the_standards():
    for degree, bits in er.MAX_MODULUS_BITS.items():
        assert ei.max_modulus_bits(degree) == bits
    assert ei.max_modulus_bits(32768) == 881


@pytest.mark.parametrize(
    ("degree", "levels", "remedy"),
    [
        (8192, 12, "use degree 16384"),
        (16384, 20, "use degree 32768"),
        (32768, 40, "make the circuit shallower"),
    ],
)
def test_a_circuit_too_deep_is_refused_with_the_ring_that_would_do(degree, levels, remedy):
    with pytest.raises(ValueError, match=f"{levels} levels need .* too deep for degree {degree}.*{remedy}"):
        ei.make_parameters(degree, levels)


def test_weak_parameters_are_refused():
    weak = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    weak.set_poly_modulus_degree(8192)
    weak.set_coeff_modulus(seal.CoeffModulus.Create(8192, [50, 40, 40, 40, 50]))  # 220 bits, of at most 218
    with pytest.raises(ValueError, match="refused.*security standard"):
        ei.Ring(weak)


def test_a_model_too_deep_is_refused_before_a_process_starts(tree, monkeypatch):
    monkeypatch.setattr("multiprocessing.get_context", lambda *_: pytest.fail("work started"))
    with pytest.raises(ValueError, match="use degree 16384"):
        ei.Session(ei.Forest.convert(tree, score=0), 8192)
    with pytest.raises(ValueError, match="needs 3 levels, but 2 are planned"):
        ei.Session(make_network(), 8192, levels=2)


# Arithmetic.


def test_every_level_keeps_its_scale(keys):
    numbers = np.linspace(-1, 1, keys.slots)
    x = keys.encrypt(numbers)
    expected, power = numbers, x
    for level in (3, 2, 1, 0):
        power, expected = keys.multiply(power, x), expected * numbers
        assert keys.level(power) == level
        assert power.scale == keys.scales[level]
        np.testing.assert_allclose(keys.decrypt(power), expected, atol=1e-4)
        np.testing.assert_allclose(keys.decrypt(keys.add(power, x)), expected + numbers, atol=1e-4)
    assert all(abs(math.log2(scale) - 30) < 0.01 for scale in keys.scales)
    with pytest.raises(ValueError, match="no level is left"):
        keys.multiply(power, power)


def test_a_scale_that_is_not_followed_gives_wrong_numbers():
    error = {}
    for kind in (ei.KeyHolder, OneScale):
        keys = kind(16384, 12)
        one = power = keys.encrypt(np.ones(keys.slots))
        for _ in range(12):
            power = keys.multiply(power, one)
        error[kind] = np.abs(keys.decrypt(power) - 1).max()
    assert error[ei.KeyHolder] < 1e-3 < 1e-2 < error[OneScale]


def test_products_that_are_not_relinearised_grow_and_are_refused(tmp_path):
    twin, honest = LazyRing(8192, 4), ei.KeyHolder(8192, 4)
    sizes = {}
    for ring in (twin, honest):
        x = ring.encrypt([0.5])
        x = ring.lower(ring.multiply(ring.multiply(x, x), x), 0)
        x.save(str(tmp_path / "answer"))
        sizes[ring] = x.size()
        if ring is twin:
            with pytest.raises(ValueError, match="refused: answer is not a whole ciphertext of 2 parts"):
                ei.read_ciphertext(ring, tmp_path / "answer", 0)
        else:
            assert abs(ring.decrypt(ei.read_ciphertext(ring, tmp_path / "answer", 0))[0] - 0.125) < 1e-4
    assert sizes == {twin: 4, honest: 2}


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 16), (8, 8), (8, 16), (4, 16)])
def test_matrix_product_by_rotations(rows, columns):
    rng = np.random.default_rng(0)
    matrix, vector = rng.normal(size=(rows, columns)), rng.normal(size=columns)
    ring = ei.KeyHolder(8192, 1, ei.list_steps(rows, columns), scale_bits=38)
    product = ei.multiply_matrix(ring, ring.encrypt(np.resize(vector, ring.slots)), matrix)
    np.testing.assert_allclose(ring.decrypt(product), np.resize(matrix @ vector, ring.slots), atol=1e-3)


def test_a_sum_of_nothing_is_refused(keys):
    with pytest.raises(ValueError, match="all weights are zero"):
        keys.weighted_sum([keys.encrypt([1.0])], [1e-12])
    some = keys.weighted_sum([keys.encrypt([1.0]), keys.encrypt([2.0])], [0.0, 1.0])
    assert abs(keys.decrypt(some)[0] - 2) < 1e-4


# The sign.


def test_sign_polynomials_reach_their_stated_error():
    polynomials, error = ei.fit_sign(1 / 32, (7, 7, 7))
    x = np.linspace(1 / 32, 1, 20011)
    for coefficients in polynomials:
        x = ei.evaluate_odd(ei.Clear, x, coefficients)
    assert np.abs(x - 1).max() <= error < 1e-3


@pytest.mark.parametrize(("degrees", "least"), [((7,), 0.5), ((3, 3), 0.5), ((7, 7), 0.1)])
def test_a_sign_of_too_low_degree_cannot_tell(degrees, least):
    assert ei.fit_sign(1 / 32, degrees)[1] > least


def test_a_low_degree_changes_labels(cancer):
    X_train, X_test, y_train, _ = cancer
    model = RandomForestClassifier(5, max_depth=3, random_state=0).fit(X_train, y_train)
    expected = model.predict_proba(X_test)[:, 0]
    worst = {}
    for degrees in ((7,), (7, 7, 7)):
        (score,) = ei.Forest.convert(model, 0, degrees).evaluate(ei.Clear, list(X_test.T))
        worst[degrees] = np.abs(score - expected).max()
    assert worst[(7,)] > 0.25
    assert worst[(7, 7, 7)] < 2e-3


@pytest.mark.parametrize("arguments", [(0.0,), (1.0,), (0.1, (5,)), (0.1, ())])
def test_bad_requests_for_a_sign_are_refused(arguments):
    with pytest.raises(ValueError, match="margin between 0 and 1 and degrees"):
        ei.fit_sign(*arguments)


def test_polynomials_explode_outside_their_interval():
    x = np.array([1.5])
    for coefficients in ei.fit_sign(1 / 32)[0]:
        x = ei.evaluate_odd(ei.Clear, x, coefficients)
    assert abs(x[0]) > 1e6


# Trees.


def test_converted_forest_is_scikit_learns(cancer):
    X_train, X_test, y_train, _ = cancer
    for model in (
        DecisionTreeClassifier(max_depth=4, random_state=0),
        RandomForestClassifier(7, max_depth=3, random_state=0),
    ):
        model.fit(X_train, y_train)
        forest = ei.Forest.convert(model, score=0)
        assert forest.card.levels == 9 + max(t.get_depth() for t in getattr(model, "estimators_", [model]))
        (score,) = forest.evaluate(ei.Clear, list(X_test.T))
        np.testing.assert_allclose(score, model.predict_proba(X_test)[:, 0], atol=2e-3)
        parts = [part.evaluate(ei.Clear, list(X_test.T))[0] for part in forest.split()]
        np.testing.assert_allclose(np.sum(parts, axis=0), score, atol=1e-12)


def test_thresholds_stand_on_borders_where_training_left_a_gap():
    # Middles 3.5 and 5.5 of 16: scikit-learn's threshold is 4.5, itself a middle, which its <= sends below.
    X = np.array([[3.5], [5.5]]) / 16
    model = DecisionTreeClassifier(random_state=0).fit(X, [0, 1])
    assert model.tree_.threshold[0] * 16 == 4.5
    forest = ei.Forest.convert(model, score=1)
    assert forest.trees[0][1] == 5 / 16
    cells = (np.arange(16) + 0.5) / 16
    (score,) = forest.evaluate(ei.Clear, [cells])
    np.testing.assert_array_equal(score > 0.5, model.predict(cells[:, None]) == 1)


def test_encrypted_tree_equals_scikit_learn(cancer, tree):
    forest, X_test = ei.Forest.convert(tree, score=0), cancer[1]
    keys = ei.KeyHolder(16384, forest.card.levels)
    (batch,) = forest.card.lay_out(X_test, keys.slots)
    (answer,) = forest.evaluate(keys, [keys.encrypt(vector) for vector in batch])
    scores = forest.card.read(keys.decrypt(answer)[None], len(X_test))[:, 0]
    np.testing.assert_allclose(scores, tree.predict_proba(X_test)[:, 0], atol=5e-3)
    assert (keys.decrypt(answer)[len(X_test) :].std()) < 5e-3  # an empty slot holds the answer for zeros


def test_a_stump_without_a_comparison_is_refused():
    model = DecisionTreeClassifier().fit(np.zeros((4, 2)), [1, 1, 1, 1])
    with pytest.raises(ValueError, match="without a comparison"):
        ei.Forest.convert(model, score=0)


def test_grid_rounds_to_middles_and_never_near_a_border():
    grid = ei.Grid(np.zeros(1), np.ones(1))
    X = np.random.default_rng(0).uniform(-0.5, 1.5, (1000, 1))
    rounded = grid.round(X)
    borders = np.arange(17) / 16
    assert np.abs(rounded - borders).min() >= grid.margin - 1e-12
    inside = (X >= 0) & (X <= 1)
    assert np.abs(rounded - X)[inside].max() <= grid.margin
    assert np.isnan(grid.scale(np.array([[np.nan]]))).all()


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([0.0, 2.0, 1.0], [1.0, 2.0, 0.5], "feature 1, 2 has no range"),
        ([0.0, np.nan], [1.0, 1.0], "feature 1 has no range"),
        ([0.0], [np.inf], "feature 0 has no range"),
    ],
)
def test_a_grid_without_a_range_is_refused(low, high, message):
    with pytest.raises(ValueError, match=message):
        ei.Grid(np.array(low), np.array(high))
    with pytest.raises(ValueError, match="cells must be 1 or more"):
        ei.Grid(np.zeros(1), np.ones(1), cells=0)


# The protocol, in real processes.


def test_session_equals_the_clear_model_in_several_batches(session):
    model = make_network()
    X = np.random.default_rng(1).random((session.keys.slots + 5, 16))
    np.testing.assert_allclose(session.predict(X), model.predict_clear(X), atol=1e-3)
    assert session.seconds["server"] > 0
    names = [message.name for message in session.received()]
    assert sorted(names[:3]) == ["galois_keys", "parameters", "relin_keys"]
    assert set(names[3:]) == {f"input_{number}" for number in range(16)}


def test_the_server_cannot_decrypt(session):
    X = np.random.default_rng(2).random((session.keys.slots, 16))
    session.predict(X)
    found, guess = session.pry()
    assert found == []
    # The last input under a key of the server's own making; 4,096 unrelated numbers correlate below 0.1 but once in 10^9 runs.
    rank = np.argsort(np.argsort(guess))
    assert abs(np.corrcoef(rank, np.argsort(np.argsort(X[:, -1])))[0, 1]) < 0.1
    opened = session.keys.decrypt(ei.read_ciphertext(session.keys, session.folder / "input_15", 3))
    assert np.corrcoef(opened, X[:, -1])[0, 1] > 0.999
    assert not hasattr(ei.Ring(session.keys.parameters), "decryptor")


def test_a_secret_key_that_is_sent_is_refused_whatever_its_name():
    before = server_processes()
    with pytest.raises(ValueError, match="refused: extra holds the secret key"):
        ei.Session(make_network(), 8192, make_keys=LeakyKeys)
    assert server_processes() == before


def test_ciphertexts_of_one_value_differ(session, tmp_path):
    def count(keys):
        for number in range(5):
            keys.encrypt_to(np.ones(10), tmp_path / str(number))
        return len({(tmp_path / str(number)).read_bytes() for number in range(5)})

    assert count(session.keys) == 5
    assert count(RepeatingKeys(8192, 3)) == 1


def test_a_scale_too_small_spoils_the_logits():
    model, X = make_network(kind=ei.RecordNetwork), np.random.default_rng(3).random((1, 16))
    error = {}
    for bits in (20, 30):
        keys = ei.KeyHolder(8192, 3, model.card.steps, bits, model.card.head_bits)
        (batch,) = model.card.lay_out(X, keys.slots)
        (answer,) = model.evaluate(keys, [keys.encrypt(batch[0])])
        error[bits] = np.abs(model.card.read(keys.decrypt(answer)[None], 1) - model.predict_clear(X)).max()
    assert error[30] < 1e-2 < error[20]


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c[:5000] + b"\1" + c[5001:], lambda c: b""])
def test_an_altered_input_is_refused(session, damage):
    session.predict(np.zeros((1, 16)) + 0.5)
    sealed = {f"input_{n}": "" for n in range(16)}
    for name in sealed:
        session.keys.encrypt_to([0.5], session.folder / name)
    sealed = ei.fingerprint(session.folder, list(sealed))
    file = session.folder / "input_3"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match="refused: input_3 was altered on the way"):
        session.evaluate(sealed)
    if len(file.read_bytes()) < 5000 or damage(b"x" * 9000) == b"x" * 8999:
        with pytest.raises(ValueError, match="refused: input_3 is not a whole ciphertext"):
            session.evaluate(ei.fingerprint(session.folder, list(sealed)))
    with pytest.raises(ValueError, match="refused: 1 ciphertexts, expected 16"):
        session.evaluate(ei.fingerprint(session.folder, ["input_0"]))


def test_an_altered_answer_is_refused(session, monkeypatch):
    session.predict(np.zeros((1, 16)) + 0.5)
    sealed = ei.fingerprint(session.folder, [f"input_{n}" for n in range(16)])
    ask = session._ask

    def altered(command, *arguments):
        reply = ask(command, *arguments)
        if command == "combine":
            answer = session.folder / "answer_1"
            content = answer.read_bytes()
            answer.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
        return reply

    monkeypatch.setattr(session, "_ask", altered)
    with pytest.raises(ValueError, match="refused: answer_1 was altered on the way"):
        session.evaluate(sealed)
    # Nobody else writes between the server's own processes; damage there is seen if it is no ciphertext any more.
    (session.folder.parent / "server" / "0_0").write_bytes(b"")
    with pytest.raises(ValueError, match="refused: 0_0 is not a whole ciphertext"):
        ask("combine", [["0_0"]], session._workers[:1])


def test_the_server_uses_the_copy_that_it_checked(session):
    session.predict(np.zeros((1, 16)) + 0.5)
    copy = session.folder.parent / "server" / "received_0" / "input_0"
    assert copy.read_bytes() == (session.folder / "input_0").read_bytes()
    session.keys.encrypt_to([0.1], session.folder / "input_0")
    assert copy.read_bytes() != (session.folder / "input_0").read_bytes()


def test_a_ciphertext_of_another_depth_is_refused(session, tmp_path):
    keys = session.keys
    low = keys.lower(keys.encrypt([1.0]), 1)
    low.save(str(tmp_path / "low"))
    with pytest.raises(ValueError, match="refused: low is not"):
        ei.read_ciphertext(keys, tmp_path / "low", 3)
    ei.KeyHolder(8192, 4).encrypt_to([1.0], tmp_path / "foreign")
    with pytest.raises(ValueError, match="refused: foreign is not"):
        ei.read_ciphertext(keys, tmp_path / "foreign", 3)


@pytest.mark.parametrize(
    ("kind", "error", "named"),
    [
        (SleepingNetwork, TimeoutError, "did not answer within 3 s"),
        (DyingNetwork, RuntimeError, "ended before"),
    ],
)
def test_a_server_that_hangs_or_ends_leaves_no_process(kind, error, named):
    before = server_processes()
    # Starting processes takes long on a busy machine: the short limit, of the one that hangs, holds only for the work.
    with ei.Session(make_network(kind=kind), 8192, timeout=900) as running:
        running.timeout = 3 if kind is SleepingNetwork else 120
        start = time.monotonic()
        with pytest.raises(error, match=named):
            running.predict(np.zeros((1, 16)) + 0.5)
        assert server_processes() == before
        folder = running.folder
    assert not folder.exists()
    assert time.monotonic() - start < 180


def test_record_network_equals_the_clear_model():
    model = make_network(units=10, features=20, outputs=5, kind=ei.RecordNetwork)
    X = np.random.default_rng(4).random((2, 20))
    with ei.Session(model, 8192, timeout=900) as running:
        np.testing.assert_allclose(running.predict(X), model.predict_clear(X), atol=1e-2)


# Training.


def test_encrypted_descent_is_the_clear_descent():
    rng = np.random.default_rng(5)
    rows = rng.uniform(-1, 1, (60, 3))
    rows *= np.where(rows @ [1.0, -1.0, 0.5] > 0, 1, -1)[:, None]
    model = ei.Descent(3, 64, updates=2, rate=4 / 60)
    assert model.card.levels == 5
    with ei.Session(model, 16384, timeout=900) as running:
        weights = running.predict(rows)[0]
    clear = [column[0] for column in model.evaluate(ei.Clear, list(model.card.lay_out(rows, 64)[0]))]
    np.testing.assert_allclose(weights, clear, atol=5e-2)
    # By hand: half the mean pull, then one more step along the polynomial slope.
    first = 4 / 60 * 0.5 * rows.sum(axis=0)
    margin = rows @ first
    second = first + 4 / 60 * ((0.5 - 0.15012 * margin + 0.001593 * margin**3) @ rows)
    np.testing.assert_allclose(clear, second, rtol=1e-9)
    with pytest.raises(ValueError, match="65 records, but the layout holds 64"):
        model.card.lay_out(np.zeros((65, 3)), 64)


def test_slope_is_the_best_cubic_on_its_interval():
    z = np.linspace(-8, 8, 20001)
    powers = np.column_stack([z, z**3])
    best = np.linalg.lstsq(powers, 1 / (1 + np.exp(z)) - 0.5, rcond=None)[0]
    np.testing.assert_allclose(SLOPE, best, rtol=0.01)


# Bad input.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X[:, :15], "expected records of 16 features"),
        (lambda X: X[0], "expected records of 16 features"),
        (lambda X: X[:0], "expected records of 16 features"),
        (lambda X: np.where(np.arange(16) == 3, np.nan, X), "feature 3 is missing or infinite"),
        (lambda X: np.where(np.arange(16) == 5, np.inf, X), "feature 5 is missing or infinite"),
        (lambda X: X * 255, r"feature 0.* is outside \[0, 1\], where polynomials explode"),
        (lambda X: X - 2, r"is outside \[0, 1\]"),
    ],
)
def test_bad_records_are_refused_before_anything_is_encrypted(session, change, message, monkeypatch):
    monkeypatch.setattr(session.keys, "encrypt_to", lambda *_: pytest.fail("work started"))
    with pytest.raises(ValueError, match=message):
        session.predict(change(np.full((2, 16), 0.5)))


def test_records_off_the_grid_are_refused(tree, cancer):
    card = ei.Forest.convert(tree, score=0).card
    with pytest.raises(ValueError, match="feature 4 is between the cells of the grid"):
        card.check(cancer[1] + 0.01 * (np.arange(30) == 4))


def test_what_is_published_is_rounded():
    assert ei.publish(np.array([0.123456, -0.001])).tolist() == [0.12, 0.0]
