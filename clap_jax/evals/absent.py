"""Evaluations that stand in a config but cannot be done: listed, not left out."""

from typing import TYPE_CHECKING

from clap_jax.evals.base import Encoder, Result

if TYPE_CHECKING:
    from clap_jax.pipeline.sources import Source


class Absent:
    """Has no metrics; its result's protocol says why, and what would help.

    reason: why it is not done, as "esc50 is not in runs/data". prepare: the command that
    would get what is missing, if one would.
    """

    source = None

    def __init__(
        self,
        source: "Source | None" = None,
        reason: str = "",
        prepare: str = "",
    ):
        """Takes a source as all evaluators do, and needs none."""
        if not reason:
            raise ValueError("absent: reason is missing")
        self.reason, self.prepare = reason, prepare

    def sentence(self) -> str:
        """The reason and the command."""
        return f"{self.reason} ({self.prepare})" if self.prepare else self.reason

    def run(self, encoder: Encoder) -> Result:
        """No metrics. Protocol: `kind` absent, `reason`, `prepare`."""
        said = {"kind": "absent", "reason": self.reason}
        if self.prepare:
            said["prepare"] = self.prepare
        return Result({}, protocol=said)
