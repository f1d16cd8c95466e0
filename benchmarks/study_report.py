"""Matched forgetting from trajectories; tables and figures of the study from its raw rows."""


def matched(trajectory: dict[str, list], level: float) -> dict[str, float] | None:
    """
    What is kept where the forget probability first reaches a level.

    Args:
        trajectory (`dict[str, list[float]]`): `step`, `forget`, `retain` and `unseen_retain`, one value a measurement.
        level (`float`): Forget probability.

    Returns:
        `dict[str, float]`: `step`, `retain` and `unseen_retain` there, by linear interpolation in the forget
        probability between the measurements before and after; `None` where it is not reached.
    """
    forget = trajectory["forget"]
    after = next((i for i, value in enumerate(forget) if value <= level), None)
    if not after:  # never, or before the first step
        return None
    share = (forget[after - 1] - level) / (forget[after - 1] - forget[after])
    names = ("step", "retain", "unseen_retain")
    return {n: trajectory[n][after - 1] + share * (trajectory[n][after] - trajectory[n][after - 1]) for n in names}


def write_report(rows, worlds):
    raise NotImplementedError
