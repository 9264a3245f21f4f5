"""A converter's worker: `python -m atelier.converter`, started by a launcher."""

from atelier.converter.worker import execute
from atelier.jobs.worker import main

if __name__ == "__main__":
    main(execute)
