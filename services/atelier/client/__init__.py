"""The Python client."""

from atelier.client.address import Address
from atelier.client.client import Client

__all__ = ["Address", "Client"]
