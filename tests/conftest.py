"""What several files of tests need."""

import importlib.util

import pytest

#: These take TensorFlow, keys or processes: `make check` leaves them to `make test`.
SLOW = {
    "accountants", "auditing", "deidentification", "disclosure", "dp_sgd", "encrypted_inference", "encrypted_regression", "federated",
    "federated_privacy", "federated_text_and_ratings", "genomes", "reconstruction", "reidentification", "scattering",
}  # fmt: skip
#: There is no TensorFlow Federated but for x86-64 Linux.
collect_ignore = (
    []
    if importlib.util.find_spec("tensorflow_federated")
    else [f"test_{name}.py" for name in ("federated", "federated_privacy", "federated_text_and_ratings")]
)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: left to `make test`")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def context():
    """TFF's workers, for one file of tests."""
    from pprml import federated

    with federated.federated_context():
        yield
