import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from wagle_trl.attribution.config import MaskConfig
from wagle_trl.trainers.tracking import mask_settings

RANDOM = MaskConfig(mask_score="random", mask_density=0.1, mask_seed=7, mask_scope=["*mlp*"])
SETTINGS = {
    "mask_score": "random",
    "mask_density": 0.1,
    "mask_gamma": "balanced",
    "mask_eps": 1.0,
    "mask_scope": "*mlp*",
}
SETTINGS |= {"mask_exclude": "nothing", "mask_seed": 7}


class Tracker(TrainerCallback):
    """Reads the options as trackers do when they start."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.options, self.sanitized = json.loads(args.to_json_string()), args.to_sanitized_dict()


class Board(TensorBoardCallback):
    """TensorBoard with a writer that keeps what it is given."""

    def __init__(self):
        self.texts, self.images = {}, []
        self.tb_writer, self.logging_dir = self, "somewhere"
        self.add_text = self.texts.__setitem__
        self.add_image = lambda *args, **kwargs: self.images.append((*args, kwargs))
        self.add_scalar = lambda *args: None
        self.flush = self.close = lambda: None


def quiet(base):
    """A tracker that never calls its service."""
    nothing = {name: lambda *args, **kwargs: None for name in ("__init__", "on_train_begin", "on_log", "on_train_end")}
    return type("Quiet", (base,), nothing)()


@pytest.mark.parametrize("given", ["config", "mask"])
def test_trackers_and_the_report_see_how_the_mask_was_made(given, make_trainer, tmp_path):
    computed = make_trainer(mask_config=RANDOM)
    mask = {"mask_config": RANDOM} if given == "config" else {"mask": computed.compute_mask()}
    trainer, tracker = make_trainer(**mask), Tracker()
    trainer.add_callback(tracker)
    trainer.train()
    for seen in (tracker.options, tracker.sanitized):
        assert {name: seen[name] for name in SETTINGS} == SETTINGS
    assert mask_settings(trainer.mask) == SETTINGS
    trainer.save_model()
    report = json.loads((tmp_path / "out" / "wagle_report.json").read_text())
    assert SETTINGS.items() <= report["options"].items()


def test_without_a_mask_there_are_no_options_of_one(make_trainer):
    trainer, tracker = make_trainer(), Tracker()
    trainer.add_callback(tracker)
    trainer.train()
    assert not SETTINGS.keys() & tracker.options.keys()


def test_trackers_get_the_picture_of_the_mask_once(make_trainer, monkeypatch):
    board, sent, config = Board(), [], []
    module = SimpleNamespace(
        log=sent.append,
        Image=lambda picture: ("image", picture.shape),
        config=SimpleNamespace(update=lambda values, **_: config.append(values)),
    )
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, module)
    trainer = make_trainer(mask_config=RANDOM, max_steps=6)  # two epochs
    for tracker in (board, quiet(WandbCallback), quiet(TrackioCallback)):
        trainer.add_callback(tracker)
    trainer.train()
    ((name, picture, step, kwargs),) = board.images
    assert (name, step, kwargs) == ("mask", 0, {"dataformats": "HWC"})
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and picture.std() > 0
    assert "mask_score: random" in board.texts["mask"]
    assert sent == [{"mask": ("image", picture.shape)}] * 2
    assert config == [SETTINGS] * 2


def test_tensorboard_shows_options_and_picture(make_trainer, tmp_path):
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    trainer = make_trainer(mask_config=RANDOM, report_to="tensorboard")
    trainer.train()
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    events = module.EventAccumulator(str(folder)).Reload()
    (picture,) = events.Images("mask")
    assert picture.step == 0 and picture.encoded_image_string.startswith(b"\x89PNG")
    (text,) = events.Tensors("args/text_summary")
    assert json.loads(text.tensor_proto.string_val[0])["mask_scope"] == "*mlp*"
