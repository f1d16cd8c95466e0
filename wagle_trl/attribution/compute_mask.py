"""Which weights hold what must go, at what cost to what must stay: batches to statistics to a mask.

Knows models and batches, no trainer, so that it can be used alone:

```python
mask, report = compute_mask(model, forget_loader, retain_loader, MaskConfig(mask_score="wagle"))
```
"""

import json
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
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

import wagle_kernels
from wagle_kernels import ScoreSpec

from ..distributed import rank
from ..losses.per_sample import SampleLosses, fused_sample_losses, sample_losses
from ..losses.vocabulary import check_fused_head
from ..masks.fingerprint import model_fingerprint
from ..masks.info import UNKNOWN_REVISION, MaskInfo
from ..masks.mask import WeightMask
from ..masks.scope import scope_parameters
from ..memory.available import free_memory
from ..memory.simulation import Simulation, Step, without_data
from ..text import printable
from .config import MaskConfig, Tier
from .report import mask_report, rival_overlaps
from .scores import Score, get_score, parse_gamma, score_scale
from .selection import Scored, select
from .statistic_store import Batches, Stream, gather, statistic_bytes
from .statistics import accumulate_statistic
from .store_choice import choose_tier

logger = logging.get_logger(__name__)

SCRATCH_FOLDER = "wagle_attribution"  # of sweeps that are not done


def compute_mask(
    model: nn.Module,
    forget: Batches | None,
    retain: Batches | None = None,
    config: MaskConfig | None = None,
    *,
    losses: SampleLosses = sample_losses,
    planning_losses: SampleLosses | None = None,
    gradient_checkpointing: bool = True,
    folder: str | Path | None = None,
    progress: bool = True,
) -> tuple[WeightMask, dict[str, Any]]:
    """
    Attribute, select and report.

    Args:
        model (`torch.nn.Module`): Model at the weights to unlearn from; left as it was.
        forget, retain (iterable of batches, or a callable that returns one):
            Batches of `input_ids`, `attention_mask` and `labels` (`-100` outside the answers). Read only if the score
            needs them.
        config ([`MaskConfig`], *optional*): Score, density, scope, and where to keep the statistics.
        losses (callable, *optional*, defaults to [`~losses.per_sample.sample_losses`]):
            `(model, batch)` to the token-mean loss and the number of answer tokens of every sample, both `(batch,)`.
        planning_losses (callable, *optional*):
            What takes the same memory as `losses` and runs without data, by which the automatic choice of
            `attribution_memory` is made; by default `losses`.
        gradient_checkpointing (`bool`, *optional*, defaults to `True`):
            Recompute every transformer layer in the backward pass instead of keeping its activations.
        folder (`str` or `pathlib.Path`, *optional*):
            Where attribution in sweeps keeps what it has found, in a folder of its own that is removed when the mask
            is made; a run that was cut off goes on from there. By default a temporary folder.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar with the time left.

    Returns:
        `tuple[WeightMask, dict]`: The mask, and its report as [`~attribution.report.mask_report`] makes it.
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
    streams = _streams(config.mask_score, score, forget, retain)
    planned = options | {"losses": planning_losses or losses}
    tier = _tier(config, model, parameters, score, streams, planned)
    accumulate = partial(accumulate_statistic, model, **options)
    key = _key(model, parameters, options)
    with _scratch(folder) as scratch:
        statistics = gather(tier, parameters, streams, accumulate, folder=scratch, key=key, progress=progress)
        retained = statistics.get("retain")
        scale = score_scale(
            score,
            gamma,
            config.mask_eps,
            mean_theta=mean_abs(parameters.values()),
            mean_retain=mean_abs(retained[n].to(p.device) for n, p in parameters.items()) if retained else 0.0,
        )
        spec = ScoreSpec(score.formula, scale, config.mask_seed)
        scored = Scored(parameters, spec, statistics.get("forget"), retained)
        mask = select(scored, config.mask_density, _info(model, config, scale))
        # The rivals are scores of gradients: of Fisher information they read the square root
        overlaps = rival_overlaps(mask, replace(scored, root=score.statistic == "fisher"))
    mask.info = replace(mask.info, jaccard=overlaps)
    return mask, mask_report(mask)


def _streams(name: str, score: Score, forget: Batches | None, retain: Batches | None) -> dict[str, Stream]:
    """The sets that a score reads."""
    read = {"forget": forget} if score.statistic else {}
    read |= {"retain": retain} if score.uses_retain else {}
    streams = {}
    for stream, batches in read.items():
        if batches is None:
            raise ValueError(f"mask_score '{name}' needs {stream} data; pass some or choose another score.")
        streams[stream] = Stream(batches)
    return streams


def _tier(config: MaskConfig, model: nn.Module, parameters, score: Score, streams, options) -> Tier:
    """What the config says, or the fastest that fits the memory that is free now."""
    if config.tier is not None:
        return config.tier
    device = next(iter(parameters.values())).device
    free = free_memory(device)
    needed = score.num_statistics * statistic_bytes(parameters.values())
    if not streams or (config.attribution_memory == "auto" and needed <= free / 4):
        return Tier("resident")  # without a look at the activations: were they so large, no tier would help
    working = _working_memory(model, parameters, streams, options, free)
    return choose_tier(config, parameters, score, working, free, device.type != "cpu")


def _working_memory(model: nn.Module, parameters, streams: dict[str, Stream], options, free: int) -> int:
    """Bytes that a pass takes on the largest batch."""
    shapes = [
        (len(batch["input_ids"]), batch["input_ids"].shape[-1]) for stream in streams.values() for batch in stream
    ]
    if not shapes:
        raise ValueError("No batches to attribute: the data set is empty.")
    rows, length = (max(sizes) for sizes in zip(*shapes))
    rows = 1 if options["squared"] else rows
    step = Step(rows, length, frozenset(parameters), options["gradient_checkpointing"])
    try:
        return Simulation(lambda: without_data(model)).run(options["losses"], step).peak
    except Exception as error:  # whatever a model's own code raises when its tensors hold no data
        logger.warning(
            f"Cannot predict the memory of this model ({type(error).__name__}: {printable(error)}); leaving a quarter of the free "
            "memory to the passes. If that is not enough, set attribution_memory and attribution_sweeps."
        )
        return free // 4


def _key(model: nn.Module, parameters, options: dict[str, Any]) -> str:
    """What a statistic depends on besides the batches."""
    losses = options["losses"]
    described = options | {
        "losses": f"{losses.__module__}.{getattr(losses, '__qualname__', type(losses).__qualname__)}",
        "fingerprint": model_fingerprint(model),
        "device": next(iter(parameters.values())).device.type,
        "attention": model.config._attn_implementation if isinstance(model, PreTrainedModel) else None,
        "dtypes": sorted({str(parameter.dtype) for parameter in parameters.values()}),
        "versions": _versions(),
    }
    return json.dumps(described)


@contextmanager
def _scratch(folder: str | Path | None) -> Iterator[Path]:
    """A folder for this process, removed on success."""
    if folder is None:
        with TemporaryDirectory(prefix="wagle-attribution-") as temporary:
            yield Path(temporary)
    else:
        scratch = Path(folder, f"{SCRATCH_FOLDER}-{rank()}")
        yield scratch
        shutil.rmtree(scratch, ignore_errors=True)


def mean_abs(tensors: Iterable[Tensor]) -> float:
    """Mean of the absolute values of all tensors, added up in float64."""
    total = numel = 0
    for tensor in tensors:
        numel += tensor.numel()
        for piece in tensor.detach().reshape(-1).split(wagle_kernels.CHUNK):
            total += float(piece.float().abs().sum(dtype=torch.float64))
    return total / numel


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("wagle-trl", "torch", "transformers")}


def _info(model: nn.Module, config: MaskConfig, scale: float) -> MaskInfo:
    base, model_config = {}, getattr(model, "config", None)
    if model_config and model_config._name_or_path:  # a plain or new model has no name
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
