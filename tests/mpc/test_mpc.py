"""The mpc track is set up and its compiled randomness loads."""


def test_tf_encrypted_multiplies_shares():
    import numpy as np
    import tf_encrypted as tfe

    tfe.set_protocol(tfe.protocol.Pond())
    x = tfe.define_private_variable(np.array([[1.5, -2.0]]))
    assert np.allclose((x * x).reveal().to_native(), [[2.25, 4.0]], atol=1e-2)
    # The secure operations ship compiled for one TensorFlow version only: this is why the track has its own.
    from tf_encrypted.operations import secure_random

    assert secure_random.supports_seeded_randomness()
