"""The process that executes one compile job."""

from atelier.compiler.worker import execute
from atelier.jobs.worker import main

if __name__ == "__main__":
    main(execute)
