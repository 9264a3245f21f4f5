"""Encryption of the ports that this installation opens, and of its own calls to them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from atelier.errors import failed_precondition

logger = logging.getLogger("atelier.rpc")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Files in PEM. A server shows `certificate` (with its chain), for which it has `key`, and asks for a client's certificate of
    `client_ca` where that is set; a client trusts `ca`, the system's authorities where there is none, and shows its own pair if it has one.
    """

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    client_ca: Path | None = None

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Tls | None:
        """What a worker was told by `as_environment`; None where nothing is encrypted."""
        files = {name: Path(environment[variable]) for name, variable in VARIABLES.items() if environment.get(variable)}
        return cls(**files) if files else None

    def as_environment(self) -> dict[str, str]:
        """For the environment of a worker."""
        return {variable: str(path) for name, variable in VARIABLES.items() if (path := getattr(self, name)) is not None}

    def server_credentials(self) -> grpc.ServerCredentials:
        """Reads the files anew for every connection, so that a renewed certificate is shown without a restart.

        Raises FAILED_PRECONDITION where they cannot be used now.
        """
        try:
            last = self._configuration()
        except OSError as error:
            raise failed_precondition("TLS_FILES", f"TLS cannot be used: {error}") from error

        def renewed() -> grpc.ServerCertificateConfiguration:
            nonlocal last
            try:
                last = self._configuration()
            except OSError as error:
                logger.warning("the certificate could not be read again, the one before stays: %s", error)
            return last

        return grpc.dynamic_ssl_server_credentials(last, renewed, require_client_authentication=self.client_ca is not None)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For channels to an encrypted port. Raises FAILED_PRECONDITION where a file cannot be read."""
        try:
            pair = (self.key.read_bytes(), self.certificate.read_bytes()) if self.key and self.certificate else (None, None)
            return grpc.ssl_channel_credentials(self.ca.read_bytes() if self.ca else None, *pair)
        except OSError as error:
            raise failed_precondition("TLS_FILES", f"TLS cannot be used: {error}") from error

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        assert self.certificate is not None and self.key is not None
        pairs = [(self.key.read_bytes(), self.certificate.read_bytes())]
        return grpc.ssl_server_certificate_configuration(pairs, self.client_ca.read_bytes() if self.client_ca else None)


VARIABLES = {"certificate": "ATELIER_TLS_CERT", "key": "ATELIER_TLS_KEY", "ca": "ATELIER_TLS_CA", "client_ca": "ATELIER_TLS_CLIENT_CA"}
"""The variables of the settings, which workers get as well."""
