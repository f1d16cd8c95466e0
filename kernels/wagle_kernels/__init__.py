"""Ops on flat tensors: scores, exact selection, packed masks, compact tensors, AdamW. They know torch, but no model.

Every op takes `backend=None`. `None` chooses by device, `"reference"` forces the specification in plain PyTorch, and
`"triton"` forces the Triton kernels (on a GPU, or interpreted if `TRITON_INTERPRET=1` was set before the first import).
"""

from .accumulation import accumulate
from .adamw import adamw
from .bits import pack, popcount, unpack
from .compaction import compress, scatter
from .layout import DENSE_GROUP, INDEX_DENSITY, RANK_GROUP, TILE, Layout
from .reference.chunking import CHUNK
from .scoring import add_ties, digit_bits, score, score_histogram, score_partition
from .spec import FORMULAS, NON_FINITE_KEY, Candidates, ScoreSpec, join_split, split

__all__ = [
    "CHUNK",
    "DENSE_GROUP",
    "FORMULAS",
    "INDEX_DENSITY",
    "NON_FINITE_KEY",
    "RANK_GROUP",
    "TILE",
    "Candidates",
    "Layout",
    "ScoreSpec",
    "accumulate",
    "adamw",
    "add_ties",
    "compress",
    "digit_bits",
    "join_split",
    "pack",
    "popcount",
    "scatter",
    "score",
    "score_histogram",
    "score_partition",
    "split",
    "unpack",
]
