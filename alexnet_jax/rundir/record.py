"""What a checkpoint says of its run, beside the state."""

import dataclasses
from typing import Any, Self


@dataclasses.dataclass
class RunRecord:
    """The JSON beside a state; updated while the run trains.

    Attributes:
      config: the run's, as nested dicts.
      class_names: label i is class_names[i].
      data: Dataset.identity of the images that it was trained on.
      seconds: that the run has taken, with those before it was interrupted.
      rewinds: how often it has been rewound.
      validation: the metrics of the checkpoint's step; None where it was not evaluated.
      code: versions of the code that saved it.
      metrics: the last line of 'train' and all lines of 'val' in metrics.jsonl so far.
    """

    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    class_names: list[str] = dataclasses.field(default_factory=list)
    data: str = ""
    seconds: float = 0.0
    rewinds: int = 0
    validation: dict[str, float] | None = None
    code: dict[str, str] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Any] = dataclasses.field(default_factory=lambda: {"train": None, "val": []})

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Return the record in what a checkpoint has saved; raise KeyError where a field lacks."""
        return cls(**{field.name: saved[field.name] for field in dataclasses.fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """Return the fields by their names."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
