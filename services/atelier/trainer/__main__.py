"""A trainer's worker: `python -m atelier.trainer`, started by a launcher."""

from atelier.jobs.worker import main
from atelier.trainer.worker import execute

if __name__ == "__main__":
    main(execute)
