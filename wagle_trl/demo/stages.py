"""How far the demo is: a line per stage, with the time left, and a progress bar below it."""

import sys
import time
from collections.abc import Mapping

from transformers import ProgressCallback


class Stages:
    """
    Announces stages, such as `3 of 8  people: ... (about 1:20 left)`.

    Args:
        seconds (`dict[str, float]`): Seconds that each stage takes on an idle core, by its name, in their order.
    """

    def __init__(self, seconds: Mapping[str, float]):
        self.seconds = dict(seconds)
        self.start = time.monotonic()

    def begin(self, name: str, text: str) -> None:
        """
        Announce a stage on stderr. The time left is what its and the later stages take, at the speed of those before.

        Args:
            name (`str`): Name of the stage.
            text (`str`): What it does.
        """
        names = list(self.seconds)
        place = names.index(name)
        done, left = (sum(self.seconds[name] for name in part) for part in (names[:place], names[place:]))
        speed = (time.monotonic() - self.start) / done if done else 1.0
        minutes, seconds = divmod(round(left * speed), 60)
        print(f"{place + 1} of {len(names)}  {text} (about {minutes}:{seconds:02} left)", file=sys.stderr, flush=True)

    def end(self, text: str | None) -> None:
        """Say on stderr what came of the stage."""
        if text:
            print(f"        {text}", file=sys.stderr, flush=True)


class StageBar(ProgressCallback):
    """Progress bar without logs, which is gone when its stage ends."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:  # only the main process draws one
            self.training_bar.leave = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        # The parent class prints logs to stdout, which is for the results
        pass
