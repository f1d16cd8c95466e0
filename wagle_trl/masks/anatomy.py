"""Layers and modules of a model, from the names of its parameters."""

import re


def layer_of(name: str) -> str:
    """Find the layer number in a parameter's name; `"-"` outside the layers."""
    match = re.search(r"\.(\d+)\.", name)
    return match.group(1) if match else "-"


def layer_label(layer: str) -> str:
    """Name of a layer of [`layer_of`] to show: weights outside the layers are the other ones."""
    return "other" if layer == "-" else layer


def module_of(name: str) -> str:
    """Find the module type of a parameter: its name after the layer number (`mlp.up_proj.weight`), or its whole name."""
    return re.sub(r"^.*?\.\d+\.", "", name)
