"""Fixtures of trainers."""

from ..support.trainers import (
    assert_only_selected_moved,
    batches_of,
    learned,
    log_probs_of,
    make_config,
    make_trainer,
    small_mask,
    snapshot,
)
