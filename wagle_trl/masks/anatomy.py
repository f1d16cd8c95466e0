"""Parts of a model, by the names of its parameters."""

import re


def layer_of(name: str) -> str:
    """Layer number in a parameter's name, `"-"` outside the layers."""
    match = re.search(r"\.(\d+)\.", name)
    return match.group(1) if match else "-"


def module_of(name: str) -> str:
    """Module type of a parameter: its name after the layer number (`mlp.up_proj.weight`), or the whole name."""
    return re.sub(r"^.*?\.\d+\.", "", name)
