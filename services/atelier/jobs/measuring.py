"""What a change of a job means for meters."""

from __future__ import annotations

from atelier.jobs.job import ENDED, Job
from atelier.meters import Meters


def measure(meters: Meters, before: Job, after: Job) -> None:
    """Tells the meters of an attempt that began or was lost, and of a job that ended."""
    if after.attempt > before.attempt:
        meters.attempt_began(after.service)
    if after.failures > before.failures:
        meters.attempt_lost(after.service)
    if after.state in ENDED and before.state not in ENDED:
        began, end = after.start_time, after.end_time
        meters.job_ended(after.service, state=after.state, seconds=(end - began).total_seconds() if began and end else 0.0)
