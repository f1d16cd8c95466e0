"""What nearly every test would pay for, and one pays: fixtures for all, which change no result and no byte of a file."""

import gc
import io
import os
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from wagle_trl.attribution import report

fsync = os.fsync


@pytest.fixture(autouse=True, scope="module")
def old_objects_are_no_garbage():
    """
    A training ends with a collection of garbage, a prediction of memory starts with one. Each took 0.3 s to look at a
    million objects of the libraries, which stay.
    """
    gc.collect()  # what is garbage now must not stay
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def nothing_waits_for_the_disk():
    """What a test writes need not outlast a loss of power. Only tests/files/test_atomic.py waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def pictures_are_drawn_once():
    """Many trainings save one of a few masks. Its picture, a quarter of their time, is drawn for the first."""
    draw, drawn = report.draw_masks, {}

    class Picture:
        def __init__(self, masks):
            self._masks = list(masks)

        def savefig(self, path, **options):
            key = repr([[(title, mask.numel, mask.density_by("parameter")) for title, mask in self._masks], options])
            if key not in drawn:
                draw(self._masks).savefig(file := io.BytesIO(), **options)
                drawn[key] = file.getvalue()
            Path(path).write_bytes(drawn[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_masks", Picture)
        yield


@pytest.fixture(autouse=True, scope="session")
def templates_are_compiled_once():
    """Every card is made of one template, which jinja, by way of huggingface_hub, would compile for each."""
    environment = import_module("jinja2").Environment
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "compile", cache(environment.compile))
        yield
