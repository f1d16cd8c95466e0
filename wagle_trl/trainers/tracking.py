"""What the trackers of `report_to` learn of a mask: its options and its picture."""

import importlib
from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..attribution.report import draw_masks
from ..files.figure import house_style
from ..masks.mask import WeightMask
from .trainer_base import MaskedTrainerBase

_MODULES = {WandbCallback: "wandb", TrackioCallback: "trackio"}  # which have the same functions


def mask_settings(mask: WeightMask) -> dict[str, Any]:
    """
    Collect how a mask was made, by the names of the options of [`MaskConfig`].

    Args:
        mask ([`WeightMask`]): A mask that was computed or loaded. What it does not record is left out.
    """
    info = mask.info
    known = {
        "mask_score": info.score,
        "mask_density": float(f"{mask.density:.4g}"),  # as it was asked for: the share is a whole number of weights
        "mask_gamma": info.gamma,
        "mask_eps": info.eps,
        "mask_scope": None if info.scope is None else " ".join(info.scope) or "default",
        "mask_exclude": None if info.exclude is None else " ".join(info.exclude) or "nothing",
        "mask_seed": info.seed,
    }
    return {name: value for name, value in known.items() if value is not None}


class MaskTracking(TrainerCallback):
    """Sends the options and the picture of the mask to TensorBoard, W&B and trackio, once, after they have started."""

    def __init__(self, trainer: MaskedTrainerBase):
        self.trainer = trainer
        self.sent: WeightMask | None = None

    def on_epoch_begin(self, args, state, control, **kwargs):
        mask, kinds = self.trainer.mask, (TensorBoardCallback, *_MODULES)
        trackers = [tracker for tracker in self.trainer.callback_handler.callbacks if isinstance(tracker, kinds)]
        if mask is None or mask is self.sent or not trackers or not state.is_world_process_zero:
            return
        self.sent = mask
        picture = _picture(mask)
        for tracker in trackers:
            if isinstance(tracker, TensorBoardCallback):
                writer: Any = tracker.tb_writer
                writer.add_text("mask", "  \n".join(f"{name}: {value}" for name, value in mask_settings(mask).items()))
                writer.add_image("mask", picture, state.global_step, dataformats="HWC")
                continue
            module = importlib.import_module(
                next(name for kind, name in _MODULES.items() if isinstance(tracker, kind))
            )
            module.config.update(mask_settings(mask), allow_val_change=True)
            module.log({"mask": module.Image(picture)})


def _picture(mask: WeightMask) -> np.ndarray:
    """Draw the mask, as rows of pixels of three bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: few runs have a tracker

    with house_style():
        figure = draw_masks([(mask.info.score or "mask", mask)])
        figure.set_dpi(150)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
