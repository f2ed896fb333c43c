"""How a model does on some images."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """Top-1 and mean cross-entropy."""

    accuracy: float
    loss: float

    def is_better_than(self, other: "Score | None") -> bool:
        """Accuracy decides, then the loss; a loss that is no number is never better."""
        if self.loss != self.loss:
            return other is None
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)
