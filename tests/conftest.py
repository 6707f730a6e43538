"""What several files of tests need."""

import pytest


@pytest.fixture(scope="module")
def context():
    """TFF's workers, for one file of tests."""
    from pprml import federated

    with federated.federated_context():
        yield
