"""The federation in PyTorch: the same numbers as chapter 06's, over a network, and what happens when something breaks.

Every test of a deployment has a time limit of its own, and none leaves a process.
"""

import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from flwr.cli.config_utils import load_and_validate

from pprml import certificates, partition
from pprml.flower_app import apps, deployment, local_privacy, project, secure_sum, simulation, training, wire

logging.getLogger("flwr").setLevel(logging.ERROR)

SMALL = training.make_settings(records=40, rounds=1, sites=3)


@pytest.fixture(autouse=True)
def time_limit(request):
    """Stop a test that hangs. On a quiet machine a deployment takes 20 to 40 s, with a site killed two minutes."""
    seconds = 400

    def stop(*_):
        raise TimeoutError(f"{request.node.name} took more than {seconds} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.fixture(scope="module")
def authority():
    return certificates.make_authority()


@pytest.fixture
def files(authority, tmp_path):
    return certificates.issue_certificate(authority, tmp_path)


def make_records(size=30, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (size, 784), dtype=np.uint8), rng.integers(0, 10, size)


# --- the same work as chapter 06


def numpy_step(weights, x, y, rate):
    """One step of SGD on softmax cross-entropy, by hand."""
    (k1, b1, k2, b2), x = weights, x / 255
    hidden = np.maximum(x @ k1 + b1, 0)
    odds = np.exp(hidden @ k2 + b2)
    error = (odds / odds.sum(axis=1, keepdims=True) - np.eye(10)[y]) / len(x)
    back = (error @ k2.T) * (hidden > 0)
    steps = x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)
    return [array - rate * step for array, step in zip(weights, steps, strict=True)]


def test_a_pass_is_sgd_in_the_stored_order():
    weights, (x, y) = partition.init_mlp(training.SIZES, 1), make_records(50)
    expected = weights
    for start in range(0, 50, 20):
        expected = numpy_step(expected, x[start : start + 20], y[start : start + 20], 0.1)
    got = training.train_phone(weights, x, y, 0.1)
    assert simulation.find_largest_difference(got, expected) < 1e-5
    assert (
        simulation.find_largest_difference(
            training.train_phone(weights, x[::-1].copy(), y[::-1].copy(), 0.1), expected
        )
        > 1e-4
    )


def test_weights_survive_the_way_into_torch_and_back():
    weights = partition.init_mlp((7, 5, 3), 0)
    assert simulation.find_largest_difference(training.get_weights(training.build_mlp(weights)), weights) == 0


def test_a_round_is_the_mean_over_phones_whatever_the_sites():
    settings = {**SMALL, "rounds": 2}
    weights, phones = training.init_weights(settings), training.load_phones(settings)
    for numbers in partition.sample_clients(100, 10, 2, 0):
        trained = [training.train_phone(weights, *phones[number], 0.1) for number in numbers]
        weights = training.average_weights(trained, [40] * 10)
    for sites in (1, 3, 7):
        got = simulation.simulate({**settings, "sites": sites})
        assert got.faults == [] and simulation.find_largest_difference(got.weights, weights) < 1e-6


def test_sites_count_as_their_records_and_an_unweighted_mean_is_another():
    rng = np.random.default_rng(0)
    trained = [[rng.normal(size=(3, 2)).astype(np.float32)] for _ in range(2)]
    got = training.average_weights(trained, [10, 30])[0]
    np.testing.assert_allclose(got, (trained[0][0] + 3 * trained[1][0]) / 4, rtol=1e-6)
    assert np.abs(got - (trained[0][0] + trained[1][0]) / 2).max() > 0.1


def test_the_split_and_the_first_weights_are_chapter_06s():
    settings = training.make_settings(seed=2)
    phones, images = training.load_phones(settings), training.datasets.load("fashion_mnist")
    parts = partition.partition_records(images.y_train, 100, 0.1, 2)
    assert len(phones) == 100 and all(len(x) == 600 for x, _ in phones)
    np.testing.assert_array_equal(phones[7][1], images.y_train[parts[7]])
    np.testing.assert_array_equal(
        training.init_weights(settings)[2], partition.init_mlp((784, 128, 10), 2)[2]
    )


# --- bad input


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"phones_per_round": 101}, "phones-per-round is 101: there are 100 phones"),
        ({"sites": 200}, "sites is 200"),
        ({"rounds": 0}, "rounds is 0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"records": -1}, "records is -1"),
        ({"patient": 3}, "patience"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        training.make_settings(**changes)


def test_a_setting_that_is_missing_is_named_where_it_is_looked_for(tmp_path):
    path = tmp_path / "result.npz"
    lacking = {name: value for name, value in SMALL.items() if name != "batch-size"}
    with pytest.raises(ValueError, match="lack batch-size: .*write_project"):
        apps.main(None, SimpleNamespace(run_config={**lacking, "result-file": str(path)}))
    with pytest.raises(apps.FederationError, match="lack batch-size"):
        apps.read_result(path)
    with pytest.raises(ValueError, match="lack result-file: .*write_project"):
        apps.main(None, SimpleNamespace(run_config={}))


def test_flower_reads_all_settings_from_a_project(tmp_path):
    for rounds in (3, 7):  # the second replaces the first
        settings = training.make_settings(result_file="/srv/result.npz", rounds=rounds, rate=1e-5)
        folder = project.write_project(tmp_path / "app", settings)
        app = load_and_validate(folder / "pyproject.toml")[0]["tool"]["flwr"]["app"]
        assert app["config"] == settings
    assert set(app["components"]) == {"serverapp", "clientapp"}
    with pytest.raises(ValueError, match="result-file is empty"):
        project.write_project(tmp_path / "app", SMALL)
    mine = tmp_path / "pyproject.toml"
    mine.write_text('[project]\nname = "mine"\n')
    with pytest.raises(ValueError, match="of another project"):
        project.write_project(tmp_path, settings)
    assert "mine" in mine.read_text()


GOOD = make_records()


@pytest.mark.parametrize(
    ("phone", "says"),
    [
        ((GOOD[0][:0], GOOD[1][:0]), "0 records"),
        ((GOOD[0], GOOD[1][:-1]), "30 records, 29 labels"),
        ((GOOD[0][:, :10], GOOD[1]), r"records of shape \(10,\)"),
        ((np.where(GOOD[0] > 250, np.nan, GOOD[0]), GOOD[1]), "not finite"),
        ((GOOD[0], GOOD[1] + 5), "labels must be"),
    ],
    ids=["empty", "lengths", "shape", "nan", "labels"],
)
def test_a_phone_that_does_not_fit_stops_its_site_and_no_other(phone, says):
    chosen = partition.sample_clients(100, 10, 1, 0)[0]
    bad = int(chosen[0])

    def load(settings):
        phones = training.load_phones(settings)
        return [*phones[:bad], phone, *phones[bad + 1 :]]

    result = simulation.simulate(SMALL, apps.build_client_app(load))
    assert len(result.faults) == 1 and re.search(says, result.faults[0]), result.faults
    assert np.isfinite(result.weights[0]).all() and len(result.scores) == 1
    with pytest.raises(apps.FederationError, match="nothing to average"):
        simulation.simulate({**SMALL, "sites": 1}, apps.build_client_app(load))


def test_a_phone_with_one_label_is_trained_like_any_other():
    one_label = GOOD[0], np.full_like(GOOD[1], 3)
    chosen = int(partition.sample_clients(100, 10, 1, 0)[0][0])

    def load(settings):
        phones = training.load_phones(settings)
        return [*phones[:chosen], one_label, *phones[chosen + 1 :]]

    result = simulation.simulate(SMALL, apps.build_client_app(load))
    assert result.faults == [] and all(np.isfinite(array).all() for array in result.weights)
    weights = training.init_weights(SMALL)
    private = local_privacy.build_private_trainer(local_privacy.Noise(1.0, 1.0), 0)
    assert all(np.isfinite(array).all() for array in private(weights, *one_label, 0.1))
    before, after = weights[3], training.train_phone(weights, *one_label, 0.1)[3]
    assert (after - before).argmax() == 3


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda weights: [array * np.nan for array in weights], "not finite"),
        (lambda weights: [weights[0][:5], *weights[1:]], "shapes"),
    ],
    ids=["nan", "shape"],
)
def test_weights_that_would_spoil_the_mean_are_left_out(spoil, says):
    chosen = {int(number) % 3 for number in partition.sample_clients(100, 10, 1, 0)[0]}
    assert chosen == {0, 1, 2}
    good, calls = simulation.simulate(SMALL), []

    class Spoiled(simulation.LocalGrid):
        def _ask(self, message):
            reply = super()._ask(message)
            calls.append(0)
            if len(calls) == 1:
                arrays = spoil(reply.content["arrays"].to_numpy_ndarrays())
                reply.content["arrays"] = apps.ArrayRecord(arrays)
            return reply

    result = apps.serve(Spoiled(apps.client_app, 3, SMALL), SMALL)
    assert says in result.faults[0] and len(result.faults) == 1
    assert 1e-6 < simulation.find_largest_difference(result.weights, good.weights) < 1


def test_too_few_sites_are_said_and_not_waited_for_without_end():
    grid = simulation.LocalGrid(apps.client_app, 2, SMALL)
    with pytest.raises(apps.FederationError, match="2 of 3 sites are connected after 1 s"):
        apps.serve(grid, {**SMALL, "patience": 1.0})


def test_a_result_file_keeps_weights_and_errors(tmp_path):
    result = apps.Training(np.array([0.5]), [np.arange(k + 1.0) for k in range(12)], ["round 1: x"])
    apps.write_result(tmp_path / "a.npz", result)
    read = apps.read_result(tmp_path / "a.npz")
    assert (
        read.faults == result.faults
        and read.scores == [0.5]
        and [len(w) for w in read.weights] == list(range(1, 13))
    )
    apps.write_result(tmp_path / "b.npz", None, "why")
    with pytest.raises(apps.FederationError, match="why"):
        apps.read_result(tmp_path / "b.npz")


# --- differential privacy on the phone


def test_opacus_clips_each_record():
    # One step from the same weights, no noise: the update of a record is at most rate * clip_norm * records / batch.
    weights, (x, y) = partition.init_mlp(training.SIZES, 0), make_records(1)
    for clip_norm, most in ((0.01, 0.0101), (1e6, np.inf)):
        trained = local_privacy.build_private_trainer(local_privacy.Noise(0.0, clip_norm), 0)(
            weights, x, y, 1.0, 1
        )
        size = np.sqrt(sum(((new - old) ** 2).sum() for new, old in zip(trained, weights, strict=True)))
        assert 0.0099 < size < most
    assert size > 0.1  # the broken twin, which does not clip


@pytest.mark.parametrize(("multiplier", "twin"), [(2.0, 1.0), (0.5, 1.0)])
def test_opacus_adds_the_noise_that_was_asked_for(multiplier, twin):
    # 101,770 draws: their deviation is known to 1 %, far inside the 5 % asked for; half the noise is far outside.
    weights, (x, y) = partition.init_mlp(training.SIZES, 0), make_records(1)
    trainers = [local_privacy.Noise(m, 1e-3) for m in (multiplier, twin)]
    spread = [
        np.std(
            np.concatenate(
                [(new - old).ravel() for new, old in zip(build(weights, x, y, 1.0, 1), weights, strict=True)]
            )
        )
        for build in (local_privacy.build_private_trainer(noise, 3) for noise in trainers)
    ]
    assert spread[0] == pytest.approx(multiplier * 1e-3, rel=0.05) and spread[1] != pytest.approx(
        multiplier * 1e-3, rel=0.3
    )


def test_the_batches_are_poisson_and_the_noise_is_seeded(monkeypatch):
    """Batches of a shuffled loader all have 20 of 400 records; five passes of Poisson draws do with probability 1e-100."""
    loaders, make_private = [], local_privacy.PrivacyEngine.make_private

    def remember(*arguments, **how):
        made = make_private(*arguments, **how)
        loaders.append(made[-1])
        return made

    monkeypatch.setattr(local_privacy.PrivacyEngine, "make_private", remember)
    weights, (x, y) = partition.init_mlp(training.SIZES, 0), make_records(400)
    local_privacy.build_private_trainer(local_privacy.Noise(1.0, 1.0), 0)(weights, x, y, 0.1)
    sizes = [len(labels) for _ in range(5) for _, labels in loaders[0]]
    assert len(sizes) == 100 and len(set(sizes)) > 5 and abs(np.mean(sizes) - 20) < 2
    weights, (x, y) = partition.init_mlp(training.SIZES, 0), make_records(40)
    noise = local_privacy.Noise(1.0, 1.0)
    one, same, other = (
        local_privacy.build_private_trainer(noise, seed)(weights, x, y, 0.1) for seed in (0, 0, 1)
    )
    assert simulation.find_largest_difference(one, same) == 0 < simulation.find_largest_difference(one, other)
    assert torch.get_num_threads() == 1


def test_two_accountants_agree_and_half_the_noise_is_seen():
    guarantee = local_privacy.phone_guarantee(600, 20, 3, 1.0, 1e-5)
    assert (guarantee.unit, guarantee.adjacency, guarantee.sampling) == ("record", "add/remove", "poisson")
    # Opacus's PRV value is an upper end, a little above.
    assert local_privacy.opacus_epsilon(600, 20, 3, 1.0, 1e-5) == pytest.approx(guarantee.epsilon, abs=0.1)
    assert local_privacy.opacus_epsilon(600, 20, 3, 0.5, 1e-5) > 2 * guarantee.epsilon
    with pytest.raises(ValueError, match="without noise"):
        local_privacy.phone_guarantee(600, 20, 3, 0.0, 1e-5)
    with pytest.raises(ValueError, match="do not divide"):
        local_privacy.phone_guarantee(610, 20, 3, 1.0, 1e-5)


@pytest.mark.parametrize("noise", [(-1.0, 1.0), (1.0, 0.0)])
def test_noise_that_is_none_is_refused(noise):
    with pytest.raises(ValueError, match="give a multiplier"):
        local_privacy.build_private_trainer(local_privacy.Noise(*noise), 0)


# --- secure aggregation


@pytest.fixture(scope="module")
def secure():
    ledger = secure_sum.Ledger()
    return secure_sum.simulate_secure_sum(SMALL, tap=ledger), ledger


def test_the_masked_sum_is_the_mean(secure):
    # A step of the whole numbers is 16 / 2**22 = 4e-6; weighting loses a few more.
    plain, (masked, _) = simulation.simulate(SMALL), secure
    assert simulation.find_largest_difference(plain.weights, masked.weights) < 1e-4


def test_a_masked_vector_looks_even_and_an_unmasked_one_does_not(secure):
    masked, ledger = secure
    assert len(ledger.vectors) == 3
    # 63 degrees of freedom: above 2 with probability under 1e-5.
    assert all(0.3 < secure_sum.measure_unevenness(vector) < 2 for vector in ledger.vectors)
    assert secure_sum.measure_unevenness(secure_sum.quantize_weights(masked.weights)) > 100
    twin = secure_sum.Ledger()
    secure_sum.simulate_secure_sum(SMALL, masked=False, tap=twin)
    assert twin.vectors == [] and twin.bytes < ledger.bytes


def test_two_sites_have_no_secret_from_each_other():
    with pytest.raises(ValueError, match="fewer than 3"):
        secure_sum.simulate_secure_sum({**SMALL, "sites": 2})


def test_a_sum_that_cannot_be_unmasked_is_an_error(monkeypatch):
    def drop(self, message):
        if len(self._dropped) < 2 and "fitins" in " ".join(message.content):
            self._dropped.append(message)
            return apps.Message(apps_error(), reply_to=message)
        return ask(self, message)

    ask = simulation.LocalGrid._ask
    monkeypatch.setattr(simulation.LocalGrid, "_dropped", [], raising=False)
    monkeypatch.setattr(simulation.LocalGrid, "_ask", drop)
    with pytest.raises(apps.FederationError, match="round 1: too few sites"):
        secure_sum.simulate_secure_sum(SMALL)


def apps_error():
    return simulation.Error(code=0, reason="gone")


def test_a_site_that_drops_out_leaves_the_sum_of_the_others(monkeypatch):
    """It is gone after the keys were shared: its masks are still in the others' vectors and must be taken out."""
    gone, ask = [], simulation.LocalGrid._ask

    def drop(self, message):
        if not gone and "fitins" in " ".join(message.content):
            gone.append(self.contexts[message.metadata.dst_node_id].node_config["partition-id"])
            return apps.Message(apps_error(), reply_to=message)
        return ask(self, message)

    monkeypatch.setattr(simulation.LocalGrid, "_ask", drop)
    masked = secure_sum.simulate_secure_sum(SMALL)
    numbers = partition.sample_clients(100, 10, 1, 0)[0]
    (site,) = gone
    assert find_gap(masked.weights, numbers[numbers % 3 != site]) < 1e-4 < find_gap(masked.weights, numbers)


def find_gap(weights, *rounds):
    """Compare weights with those of rounds in which these phones of `SMALL` take part and count alike."""
    expected, phones = training.init_weights(SMALL), training.load_phones(SMALL)
    for numbers in rounds:
        trained = [training.train_phone(expected, *phones[number], 0.1) for number in numbers]
        expected = training.average_weights(trained, [40] * len(trained))
    return simulation.find_largest_difference(weights, expected)


# --- certificates


def test_certificates_are_checked_before_anything_starts(authority, tmp_path):
    expired = certificates.issue_certificate(authority, tmp_path, days=-1)
    with pytest.raises(ValueError, match="server's certificate expired on"):
        deployment.Lab(expired)
    files = certificates.issue_certificate(authority, tmp_path)
    certificates.write_certificate(certificates.make_authority(), files.ca)
    with pytest.raises(ValueError, match="not this authority's"):
        deployment.Lab(files)
    assert files.key.stat().st_mode & 0o077 == 0


def test_a_port_in_use_is_said_before_anything_starts():
    with (
        socket.create_server((deployment.HOST, 0)) as held,
        pytest.raises(ValueError, match="is in use: choose another"),
    ):
        deployment.Lab(None, held.getsockname()[1])


def test_a_port_that_is_taken_at_the_last_moment_is_said(monkeypatch):
    with socket.create_server((deployment.HOST, 0)) as held:
        monkeypatch.setattr(deployment, "check_port", lambda port: None)
        lab = deployment.Lab(None, held.getsockname()[1])
        with pytest.raises(apps.FederationError, match="the port is in use"), lab:
            pass
        assert deployment.find_marked(lab.mark) == []


def test_a_free_port_that_is_lost_is_replaced_once(monkeypatch):
    find = deployment.find_ports
    with socket.create_server((deployment.HOST, 0)) as held:
        taken = [held.getsockname()[1]]
        answers = iter([taken, find(1), taken, find(1)])  # for the server, then for the site
        monkeypatch.setattr(deployment, "find_ports", lambda count: next(answers))
        with deployment.Lab(None) as lab:
            assert lab.port != taken[0] and lab.start_site(0, 1) == "site-0"
    assert list(answers) == [] and deployment.find_marked(lab.mark) == []


def test_only_a_refused_key_is_called_one(tmp_path):
    lab = deployment.Lab(None)
    lab.folder = tmp_path
    lab.start("odd", "python", "-c", "print('[code: 2003] Invalid heartbeat interval.')")
    with pytest.raises(apps.FederationError, match="Invalid heartbeat interval") as caught:
        lab.wait_for("odd", "SuperNode ID:")
    assert "register" not in str(caught.value)


def test_a_process_that_does_not_end_is_an_error_and_no_endless_wait(monkeypatch):
    class Stubborn(psutil.Process):
        def kill(self):
            pass

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        monkeypatch.setattr(deployment, "END_PATIENCE", 0.5)
        monkeypatch.setattr(deployment, "find_marked", lambda mark: [Stubborn(child.pid)])
        lab = deployment.Lab(None)
        lab._folder = tempfile.TemporaryDirectory()
        with pytest.raises(apps.FederationError, match=f"do not end: {child.pid}"):
            lab.__exit__()
    finally:
        child.kill()
        child.wait()


# --- deployments


def test_over_tls_the_result_is_the_simulations_and_the_wire_says_nothing(files):
    settings = {**SMALL, "rounds": 2}
    with deployment.Lab(files) as lab, wire.Relay(lab.port) as relay:
        for number in range(3):
            lab.start_site(number, 3, port=relay.port if number == 0 else None)
        result = lab.run(settings, seconds=300)
        recorded = relay.record("up"), relay.record("down")
    assert result.faults == []
    assert simulation.find_largest_difference(result.weights, simulation.simulate(settings).weights) < 1e-6
    assert all(len(stream) > 800_000 and wire.attack_read_arrays(stream) == [] for stream in recorded)
    assert deployment.find_marked(lab.mark) == []


def test_without_tls_the_wire_holds_the_update():
    settings = training.make_settings(records=1, rounds=1, sites=1, phones_per_round=1)
    with deployment.Lab(None) as lab, wire.Relay(lab.port) as relay:
        lab.start_site(0, 1, port=relay.port)
        result = lab.run(settings, seconds=300)
        found = {array.shape: array for array in wire.attack_read_arrays(relay.record("up"))}
    assert all(np.array_equal(found[array.shape], array) for array in result.weights)


def test_who_may_not_come_in_is_refused(files, authority, tmp_path):
    with deployment.Lab(files) as lab:
        stranger = certificates.write_certificate(certificates.make_authority(), tmp_path / "other.crt")
        with pytest.raises(apps.FederationError, match="not of the authority that this site trusts"):
            lab.start_site(0, 3, ca=stranger)
        with pytest.raises(apps.FederationError, match="refused this site: register its key"):
            lab.start_site(0, 3, register=False)
        # One that brings no key at all: a server without node authentication would let it in.
        server, port = f"127.0.0.1:{lab.port}", str(deployment.find_ports(1)[0])
        lab.start(
            "keyless",
            "flower-supernode",
            "--superlink",
            server,
            "--port",
            port,
            "--root-certificates",
            str(files.ca),
        )
        with pytest.raises(apps.FederationError, match="refused this site: register its key"):
            lab.wait_for("keyless", "SuperNode ID:")
        assert lab.start_site(2, 3) == "site-2"
    assert deployment.find_marked(lab.mark) == []


def test_a_site_refuses_an_expired_server(authority, tmp_path, monkeypatch):
    files = certificates.issue_certificate(authority, tmp_path, days=-1)
    monkeypatch.setattr(deployment, "check_server_files", lambda files: None)
    with (
        deployment.Lab(files) as lab,
        pytest.raises(apps.FederationError, match="has expired: issue a new one"),
    ):
        monkeypatch.setattr(lab, "register_site", lambda public: None)
        lab.start_site(0, 1)


def test_a_site_killed_in_mid_round_is_left_out_of_this_round_and_the_next(files):
    settings = {**SMALL, "sites": 2, "rounds": 2, "patience": 120.0}
    with deployment.Lab(files) as lab:
        for number in range(2):
            lab.start_site(number, 2)
        path = lab.begin(settings)
        lab.wait_for("site-1", "Receiving")
        lab.processes["site-1"].kill()
        result = lab.finish(path, seconds=300)
    # The server waits for the site, or has already noticed that it is gone: that depends on the time since its last sign of life.
    assert len(result.scores) == len(result.faults) == 2
    for number, fault in enumerate(result.faults, start=1):
        assert re.match(f"round {number}: (1 of 2 sites did not reply|a site failed)", fault), fault
    rounds = partition.sample_clients(100, 10, 2, 0)
    others = [numbers[numbers % 2 == 0] for numbers in rounds]
    assert find_gap(result.weights, *others) < 1e-6 < 1e-4 < find_gap(result.weights, *rounds)
    assert deployment.find_marked(lab.mark) == []


def test_a_training_is_lost_with_its_server_and_a_restarted_one_knows_the_site(files):
    settings = {**SMALL, "sites": 1, "patience": 900.0}
    with deployment.Lab(files) as lab:
        lab.start_site(0, 1)
        path = lab.begin({**settings, "rounds": 200})  # at 3 s a round and more it cannot end by itself
        lab.wait_for("site-0", "Receiving")
        orphans = psutil.Process(lab.processes["server"].pid).children(recursive=True)
        lab.start_server()  # kills the one that runs
        with pytest.raises(apps.FederationError, match="no result within 20 s"):
            lab.finish(path, seconds=20)
        assert orphans and psutil.wait_procs(orphans, timeout=90)[1] == []
        result = lab.run(settings)
    assert result.faults == [] and len(result.scores) == 1 and not path.exists()
    assert deployment.find_marked(lab.mark) == []


PARENT = """
import sys, time
from pathlib import Path
from pprml.flower_app import deployment, training
with deployment.Lab(None) as lab:
    lab.start_site(0, 1)
    lab.begin(training.make_settings(sites=1))
    lab.wait_for("site-0", "Receiving")
    print(lab.mark, flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def start_parent(folder, *script):
    """Start a parent that will be killed, and give it and its mark; nothing of it is left, whatever the test finds.

    What the parent cannot tidy away lies in a folder of the test.
    """
    environment, mark = {**os.environ, "TMPDIR": str(folder)}, ""
    parent = subprocess.Popen(
        [sys.executable, "-c", *script], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        mark = parent.stdout.readline().strip()
        yield parent, mark
    finally:
        # Before it has said its mark, what it started is found as its children.
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [] if mark else psutil.Process(parent.pid).children(recursive=True):
                process.kill()
        parent.kill()
        parent.wait()
        parent.stdout.close()
        for process in deployment.find_marked(mark):
            process.kill()


def wait_for_survivors(mark, count, seconds):
    """Return the processes with this mark as soon as there are so few, or after so many seconds."""
    end = time.monotonic() + seconds
    while len(left := deployment.find_marked(mark)) > count and time.monotonic() < end:
        time.sleep(0.2)
    return [process.cmdline() for process in left if psutil.pid_exists(process.pid)]


def test_nothing_outlives_a_parent_that_is_killed(tmp_path):
    with start_parent(tmp_path, PARENT) as (parent, mark):
        assert len(deployment.find_marked(mark)) >= 5  # server and site, each with a helper, and an app
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        # Flower's programs look after their parent from time to time: 9 to 19 seconds were measured.
        assert wait_for_survivors(mark, 0, 120) == []


NAPPING = """
import sys, tempfile, time
from pathlib import Path
from pprml import _processes
from pprml.flower_app import deployment
_processes._LAUNCH = _processes._LAUNCH.replace("prctl", sys.argv[1])
lab = deployment.Lab(None)
lab.folder = Path(tempfile.mkdtemp())
lab.start("nap", "python", "-c", "import time; time.sleep(600)")
while not any("sleep" in " ".join(process.cmdline()[:3]) for process in deployment.find_marked(lab.mark)):
    time.sleep(0.1)
print(lab.mark, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(("call", "survivors"), [("prctl", 0), ("abs", 1)], ids=["as it is", "broken twin"])
def test_it_is_the_kernel_that_ends_orphans(call, survivors, tmp_path):
    with start_parent(tmp_path, NAPPING, call) as (parent, mark):
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        if survivors:
            time.sleep(2)  # time enough for a kernel that was asked
        assert len(wait_for_survivors(mark, survivors, 20)) == survivors
