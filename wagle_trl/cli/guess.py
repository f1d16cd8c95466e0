"""Guesses what a misspelt option, objective or command should be."""

import difflib
from collections.abc import Iterable

# What people call an option or an objective whose own name is too different to be found as a misspelling
_OTHER_NAMES = {
    "batch_size": "per_device_train_batch_size",
    "dataset": "dataset_name",
    "dataset_name": "forget_dataset",
    "dpo": "idkdpo",
    "epochs": "num_train_epochs",
    "forget": "forget_dataset",
    "ga": "gradient_ascent",
    "idk": "po",
    "lr": "learning_rate",
    "model": "model_name_or_path",
    "output": "output_dir",
    "resume": "resume_from_checkpoint",
    "retain": "retain_dataset",
    "train_dataset": "forget_dataset",
}


def did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    """
    Guess what a misspelt name should be.

    Args:
        name (`str`): What was given.
        names (iterable of `str`): What there is.
        prefix (`str`, *optional*): Shown before the guess, such as `"--"`.

    Returns:
        `str`: `"; did you mean ...?"`, or nothing where no name is close.
    """
    names = list(names)
    other = _OTHER_NAMES.get(name)
    close = [other] if other in names else difflib.get_close_matches(name[:100], names, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""
