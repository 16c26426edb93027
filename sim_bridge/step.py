"""What a control step of any environment answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepResult:
    """After one control step: whether the task succeeded, failed for good, or ran out of time; steps since the reset."""

    success: bool
    failure: bool
    truncated: bool
    steps: int

    @property
    def over(self) -> bool:
        """Whether the episode has ended in any of the three ways."""
        return self.success or self.failure or self.truncated
