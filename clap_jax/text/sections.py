"""Captions with time-stamped sections."""


def clock(seconds: float) -> str:
    """A time as it is read on a player, to the second: "1:05", "1:02:07"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
