"""`compute_mask`: find the weights that hold what must be forgotten and are least needed for what must stay.

Knows models and rows, no trainer, so that it can be used alone:

```python
mask, report = compute_mask(model, forget_rows, retain_rows, MaskConfig(mask_score="wagle"), tokenizer=tokenizer)
```
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

import wagle_kernels
from wagle_kernels import ScoreSpec

from ..data.batches import row_batches
from ..data.compatibility import check_tokens
from ..data.formats import Processing
from ..distributed import rank
from ..losses.fused_head import check_fused_head
from ..losses.per_sample import SampleLosses, fused_sample_losses, sample_losses
from ..masks.cache_key import VERSIONS, cache_key
from ..masks.fingerprint import model_fingerprint
from ..masks.info import UNKNOWN_REVISION, MaskInfo
from ..masks.mask import WeightMask
from ..masks.scope import scope_parameters
from ..memory.available import free_memory
from ..memory.simulation import Simulation, Step, copy_without_data
from ..text import printable
from .config import MaskConfig, Tier
from .lazy_scores import LazyScores
from .report import baseline_overlaps, mask_report
from .scores import Score, get_score, parse_gamma, score_scale
from .selection import select
from .statistic_store import Batches, Stream, compute_statistics, statistic_bytes
from .statistics import accumulate_statistic
from .store_choice import choose_tier

logger = logging.get_logger(__name__)

SCRATCH_FOLDER = "wagle_attribution"  # holds the statistics of unfinished sweeps


def compute_mask(
    model: nn.Module,
    forget: Dataset | Batches | None,
    retain: Dataset | Batches | None = None,
    config: MaskConfig | None = None,
    *,
    tokenizer: Processing | None = None,
    batch_size: int = 8,
    losses: SampleLosses = sample_losses,
    planning_losses: SampleLosses | None = None,
    gradient_checkpointing: bool = True,
    folder: str | Path | None = None,
    progress: bool = True,
) -> tuple[WeightMask, dict[str, Any]]:
    """
    Compute the statistics of every weight in scope, and select the weights with the largest scores.

    Args:
        model (`torch.nn.Module`): Model at the weights to unlearn from; left as it was.
        forget, retain ([`~datasets.Dataset`], iterable of batches, or a callable that returns one):
            Rows of any format, see [`~data.tokenization.tokenize_row`]; or batches of `input_ids`, `attention_mask` and
            `labels` (`-100` outside the answers). Read only if the score needs them.
        config ([`MaskConfig`], *optional*): Score, density, scope, and where to keep the statistics.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The model's, where rows are given that are not tokenized; nothing in it is changed.
        batch_size (`int`, *optional*, defaults to `8`):
            Rows in a batch, where rows are given.
        losses (callable, *optional*, defaults to [`~losses.per_sample.sample_losses`]):
            Function of `(model, batch)` that returns the token-mean loss and the number of answer tokens of every
            sample, both of shape `(batch,)`.
        planning_losses (callable, *optional*):
            Function that takes as much memory as `losses` and runs on tensors without data. It is used to choose
            `attribution_memory` automatically. By default it is `losses`.
        gradient_checkpointing (`bool`, *optional*, defaults to `True`):
            Recompute every transformer layer in the backward pass instead of keeping its activations.
        folder (`str` or `pathlib.Path`, *optional*):
            Folder in which attribution in sweeps keeps finished statistics, in a folder of its own. An interrupted call
            continues from there. The inner folder is removed when the mask is complete. By default it is a temporary
            folder.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar with the time left.

    Returns:
        `tuple[WeightMask, dict]`: The mask, and its report from [`~attribution.report.mask_report`].
    """
    config = config or MaskConfig()
    score, gamma = get_score(config.mask_score), parse_gamma(config.mask_gamma)
    parameters = scope_parameters(model, config.mask_scope, config.mask_exclude)
    if losses is fused_sample_losses:
        check_fused_head(model)
    options = {
        "squared": score.statistic == "fisher",
        "sum_batches": score.formula == "wagle" and gamma == "official",
        "losses": losses,
        "gradient_checkpointing": gradient_checkpointing,
    }
    streams = _streams(
        config.mask_score,
        score,
        _batches(model, forget, tokenizer, batch_size, "forget"),
        _batches(model, retain, tokenizer, batch_size, "retain"),
    )
    planned = options | {"losses": planning_losses or losses}
    tier = _choose_tier(config, model, parameters, score, streams, planned)
    accumulate = partial(accumulate_statistic, model, **options)
    key = _statistics_key(model, options)
    with _scratch_folder(folder) as scratch:
        statistics = compute_statistics(
            tier, parameters, streams, accumulate, folder=scratch, key=key, progress=progress
        )
        forget_statistic, retain_statistic = statistics.get("forget"), statistics.get("retain")
        mean_retain = 0.0
        if retain_statistic:
            mean_retain = mean_abs(retain_statistic[name].to(p.device) for name, p in parameters.items())
        scale = score_scale(score, gamma, config.mask_eps, mean_abs(parameters.values()), mean_retain)
        spec = ScoreSpec(score.formula, scale, config.mask_seed)
        scores = LazyScores(parameters, spec, forget_statistic, retain_statistic)
        mask = select(scores, config.mask_density, _mask_info(model, config, scale))
        # The baseline scores read gradients. The square root of the Fisher information has the units of a gradient
        overlaps = baseline_overlaps(mask, replace(scores, root=score.statistic == "fisher"))
    mask.info = replace(mask.info, jaccard=overlaps)
    return mask, mask_report(mask)


def _batches(
    model: nn.Module, rows: Dataset | Batches | None, tokenizer: Processing | None, batch_size: int, name: str
) -> Batches | None:
    if not isinstance(rows, Dataset):
        return rows
    if tokenizer is None:
        raise ValueError(f"The {name} rows are a `Dataset`; pass the model's `tokenizer` beside them.")
    batches = row_batches(rows, tokenizer, batch_size, name)
    if isinstance(model, PreTrainedModel):
        check_tokens(model, tokenizer, {name: batches.dataset["input_ids"]})  # pyright: ignore[reportIndexIssue]
    return batches


def _streams(name: str, score: Score, forget: Batches | None, retain: Batches | None) -> dict[str, Stream]:
    """Batches of the sets that a score reads, by name of the set."""
    needed = {"forget": forget} if score.statistic else {}
    needed |= {"retain": retain} if score.uses_retain else {}
    streams = {}
    for stream, batches in needed.items():
        if batches is None:
            raise ValueError(f"mask_score '{name}' needs {stream} data; pass some or choose another score.")
        streams[stream] = Stream(batches)
    return streams


def _choose_tier(config: MaskConfig, model: nn.Module, parameters, score: Score, streams, options) -> Tier:
    """Tier that the config names, or the fastest tier that fits the free memory."""
    if config.tier is not None:
        return config.tier
    device = next(iter(parameters.values())).device
    free = free_memory(device)
    needed = score.num_statistics * statistic_bytes(parameters.values())
    if not streams or (config.attribution_memory == "auto" and needed <= free / 4):
        return Tier("resident")  # activations are not measured: if they did not fit here, no tier would help
    working = _working_memory(model, parameters, streams, options, free)
    return choose_tier(config, parameters, score, working, free, device.type != "cpu")


def _working_memory(model: nn.Module, parameters, streams: dict[str, Stream], options, free: int) -> int:
    """Bytes that a forward and backward pass takes on the largest batch."""
    shapes = [
        (len(batch["input_ids"]), batch["input_ids"].shape[-1]) for stream in streams.values() for batch in stream
    ]
    if not shapes:
        raise ValueError("No batches to attribute: the data set is empty.")
    rows, length = (max(sizes) for sizes in zip(*shapes))
    rows = 1 if options["squared"] else rows
    step = Step(rows, length, frozenset(parameters), options["gradient_checkpointing"])
    try:
        return Simulation(lambda: copy_without_data(model)).run(options["losses"], step).peak
    except Exception as error:  # whatever a model's own code raises when its tensors hold no data
        logger.warning(
            f"Cannot predict the memory of this model ({type(error).__name__}: {printable(error)}); reserving a quarter of the "
            "free memory for activations. If that is not enough, set attribution_memory and attribution_sweeps."
        )
        return free // 4


def _statistics_key(model: nn.Module, options: dict[str, Any]) -> str:
    """Hash everything that a statistic depends on besides the batches."""
    losses = options["losses"]
    name = f"{losses.__module__}.{getattr(losses, '__qualname__', type(losses).__qualname__)}"
    return cache_key(model, **options | {"losses": name})


@contextmanager
def _scratch_folder(folder: str | Path | None) -> Iterator[Path]:
    """Folder for this process alone, removed on success."""
    if folder is None:
        with TemporaryDirectory(prefix="wagle-attribution-") as temporary:
            yield Path(temporary)
    else:
        scratch = Path(folder, f"{SCRATCH_FOLDER}-{rank()}")
        yield scratch
        shutil.rmtree(scratch, ignore_errors=True)


def mean_abs(tensors: Iterable[Tensor]) -> float:
    """Mean absolute value over the elements of all tensors, added up in float64."""
    total = numel = 0
    for tensor in tensors:
        numel += tensor.numel()
        for piece in tensor.detach().reshape(-1).split(wagle_kernels.CHUNK):
            total += float(piece.float().abs().sum(dtype=torch.float64))
    return total / numel


def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS}


def _mask_info(model: nn.Module, config: MaskConfig, scale: float) -> MaskInfo:
    base, model_config = {}, getattr(model, "config", None)
    if model_config and model_config._name_or_path:  # a plain module or a new model has no name
        base["base_model"] = model_config._name_or_path
        base["base_revision"] = getattr(model_config, "_commit_hash", None) or UNKNOWN_REVISION
    return MaskInfo(
        score=config.mask_score,
        scale=scale,
        gamma=config.mask_gamma,
        eps=config.mask_eps,
        seed=config.mask_seed,
        scope=tuple(config.mask_scope or ()),
        exclude=tuple(config.mask_exclude or ()),
        fingerprint=model_fingerprint(model),
        versions=_versions(),
        **base,
    )
