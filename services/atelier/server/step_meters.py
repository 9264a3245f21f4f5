"""What the step loop does, for Prometheus, by Ray's own port for metrics; Serve adds which application and replica it is."""

from __future__ import annotations

from ray.serve.metrics import Counter

from atelier.server.batching import Tick
from atelier.server.messages import engine_word


class StepMeters:
    """For a replica: there is no other place where Serve knows whose meters these are."""

    def __init__(self) -> None:
        kind = ("engine",)
        self._steps = Counter("atelier_steps", "UNet calls.", tag_keys=kind)
        self._seconds = Counter("atelier_step_seconds", "Seconds of the step loop for them.", tag_keys=kind)
        self._rows = Counter("atelier_step_rows", "Rows that were asked for.", tag_keys=kind)
        self._batch_rows = Counter("atelier_step_batch_rows", "Rows that were computed.", tag_keys=kind)

    def measure(self, tick: Tick) -> None:
        """Counts a UNet call."""
        kind = {"engine": engine_word(tick.engine)}
        counted = ((self._steps, 1), (self._seconds, tick.seconds), (self._rows, tick.rows), (self._batch_rows, tick.batch_rows))
        for counter, value in counted:
            counter.inc(value, tags=kind)
