"""Atelier: from 5 to 10 pictures to an image endpoint."""

__version__ = "0.1.0"
