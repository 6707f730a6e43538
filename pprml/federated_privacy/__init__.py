"""What an update gives away, what stops a server from reading it, and what stops a client from lying in it.

`_inversion` reads pictures and labels out of gradients; `_masking` is secure aggregation, written out as a lesson; `_rounds` runs
federated averaging with TFF's aggregators (secure, private, robust) or with one of `_poisoning`, which also makes clients lie. What a
run promises to a whole user, `pprml.accounting` says.
"""

from pprml.accounting import dp_fedavg_guarantee, dp_ftrl_guarantee, local_dp_guarantee
from pprml.federated_privacy._inversion import (
    attack_gradient,
    attack_gradient_cosine,
    attack_label,
    attack_label_counts,
    compare_gradients,
    init_network,
    measure_psnr,
    measure_ssim,
    observe_gradient,
    pair_pictures,
    predict_logits,
    train_network,
)
from pprml.federated_privacy._masking import (
    Client,
    Transcript,
    aggregate_masked,
    decode_update,
    encode_update,
    expand_mask,
    join_secret,
    split_secret,
    unmask_sum,
)
from pprml.federated_privacy._poisoning import (
    build_trimmed_mean,
    combine_geometric_median,
    combine_median,
    flip_label,
    measure_backdoor,
    measure_flip,
    poison_backdoor,
    stamp_trigger,
)
from pprml.federated_privacy._rounds import (
    build_rounds,
    collect_updates,
    run_rounds,
    sample_passes,
    sample_poisson,
    store_clients,
)

__all__ = [
    "Client",
    "Transcript",
    "aggregate_masked",
    "attack_gradient",
    "attack_gradient_cosine",
    "attack_label",
    "attack_label_counts",
    "build_rounds",
    "build_trimmed_mean",
    "collect_updates",
    "combine_geometric_median",
    "combine_median",
    "compare_gradients",
    "decode_update",
    "dp_fedavg_guarantee",
    "dp_ftrl_guarantee",
    "encode_update",
    "expand_mask",
    "flip_label",
    "init_network",
    "join_secret",
    "local_dp_guarantee",
    "measure_backdoor",
    "measure_flip",
    "measure_psnr",
    "measure_ssim",
    "observe_gradient",
    "pair_pictures",
    "poison_backdoor",
    "predict_logits",
    "run_rounds",
    "sample_passes",
    "sample_poisson",
    "split_secret",
    "stamp_trigger",
    "store_clients",
    "train_network",
    "unmask_sum",
]
