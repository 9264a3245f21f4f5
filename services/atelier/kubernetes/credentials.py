"""`python -m atelier.kubernetes.credentials`, the chart's hook: makes what is missing of a release's certificates, tokens and keys.

Nothing that is there is changed but the serving certificate, which is issued anew from half its life on and when its names change.
Hooks that run at once agree: who comes second keeps what the first has made.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from atelier.artifacts.signing import PRIVATE, PUBLIC, new_key, public_of
from atelier.certificates import CA, CERTIFICATE, KEY, LIFE, Authority, Pair, host_name
from atelier.errors import AtelierError, failed_precondition, unavailable
from atelier.kubernetes.objects import Changed, Kind, Objects, core

TOKEN = "token"
TLS_TYPE = "kubernetes.io/tls"
MANAGED_BY = "atelier-credentials"
LOOKS = 10
"""So often may others be quicker."""

logger = logging.getLogger("atelier.credentials")

Lack = tuple[Mapping[str, bytes | None], str]
"""What an object lacks (None: what it has and must not), and why that takes the place of something; no keys: nothing."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a release needs of the hook; what is False or a name comes from the operator."""

    name: str
    """Of all objects, the beginning."""
    hosts: tuple[str, ...]
    """Names and addresses of the serving certificate."""
    tls: bool = True
    token: bool = True
    """For clients."""
    ray_ca: bool = False
    public_ca_from: str = ""
    """Secret whose `ca.crt` is made public where there is no `tls`."""


def provide(objects: Objects, wanted: Wanted) -> None:
    """Makes what is missing. Raises PERMISSION_DENIED, FAILED_PRECONDITION and UNAVAILABLE, each in one sentence; run again, it goes on."""
    name = wanted.name
    for suffix in (*(["token"] if wanted.token else []), "internal", "ray"):
        _ensure(objects, "Secret", f"{name}-{suffix}", _token)
    if wanted.tls:
        authority = _authority(objects, f"{name}-ca", subject=f"{name} CA")
        _ensure(objects, "Secret", f"{name}-tls", lambda data: _serving(data, authority, name, wanted.hosts), of_type=TLS_TYPE)
        ca: bytes | None = authority.pair.certificate
    else:
        ca = _foreign_ca(objects, wanted.public_ca_from)
    if wanted.ray_ca:
        _authority(objects, f"{name}-ray-ca", subject=f"{name} Ray CA")
    signing = _ensure(objects, "Secret", f"{name}-signing", _signing)
    public = {CA: ca, PUBLIC: public_of(signing[PRIVATE], where=f"Secret {name}-signing")}
    _ensure(objects, "ConfigMap", f"{name}-public", lambda data: _differing(data, public))


def _ensure(
    objects: Objects, kind: Kind, name: str, lack: Callable[[Mapping[str, bytes]], Lack], *, of_type: str = ""
) -> Mapping[str, bytes]:
    """Completes an object, and gives what is in it then."""
    for _ in range(LOOKS):
        found = objects.read(kind, name)
        data = found.data if found else {}
        missing, why = lack(data)
        try:
            if found is None:
                objects.make(kind, name, missing, of_type=of_type)
                logger.info("made %s %s", kind, name)
            elif missing:
                objects.complete(kind, name, missing, version=found.version)
                logger.info("completed %s %s: %s%s", kind, name, ", ".join(sorted(missing)), f" ({why})" if why else "")
            else:
                logger.info("kept %s %s", kind, name)
        except Changed:
            continue
        return {key: value for key, value in {**data, **missing}.items() if value is not None}
    raise unavailable("BUSY", f"{kind} {name} is written by others all the time: run the hook again")


def _token(data: Mapping[str, bytes]) -> Lack:
    return ({}, "") if data.get(TOKEN) else ({TOKEN: secrets.token_urlsafe(32).encode()}, "")


def _signing(data: Mapping[str, bytes]) -> Lack:
    return ({}, "") if data.get(PRIVATE) else ({PRIVATE: new_key()}, "")


def _authority(objects: Objects, name: str, *, subject: str) -> Authority:
    """The authority in a Secret, made once. Raises FAILED_PRECONDITION for one that cannot issue: it is not replaced, clients trust it."""

    def lack(data: Mapping[str, bytes]) -> Lack:
        if data.get(CERTIFICATE) or data.get(KEY):
            return {}, ""
        pair = Authority.new(subject).pair
        return {CERTIFICATE: pair.certificate, KEY: pair.key}, ""

    data = _ensure(objects, "Secret", name, lack, of_type=TLS_TYPE)
    advice = f"put the right {CERTIFICATE} and {KEY} there, or delete it for a new authority, which clients then have to be told of"
    try:
        authority = Authority.load(Pair(certificate=data.get(CERTIFICATE, b""), key=data.get(KEY, b"")))
    except (ValueError, TypeError) as error:
        raise failed_precondition(
            "AUTHORITY", f"Secret {name} holds no authority that can issue certificates ({error}): {advice}"
        ) from None
    ends = authority.certificate.not_valid_after_utc
    if ends <= datetime.now(UTC):
        raise failed_precondition("AUTHORITY", f"the authority in Secret {name} ended on {ends:%Y-%m-%d}: {advice}")
    if ends <= datetime.now(UTC) + LIFE:
        logger.warning("the authority in Secret %s ends on %s, and with it all that it issued", name, f"{ends:%Y-%m-%d}")
    return authority


def _serving(data: Mapping[str, bytes], authority: Authority, name: str, hosts: Sequence[str]) -> Lack:
    ca = authority.pair.certificate
    pair = Pair(certificate=data.get(CERTIFICATE, b""), key=data.get(KEY, b""))
    if pair.certificate and pair.key:
        fault = authority.fault(pair, hosts, now=datetime.now(UTC))
        if not fault:
            return _differing(data, {CA: ca})
    else:
        fault = ""
    issued = authority.issue(name, hosts)
    return {CERTIFICATE: issued.certificate, KEY: issued.key, CA: ca}, fault


def _foreign_ca(objects: Objects, secret: str) -> bytes | None:
    """Whom clients have to trust for an operator's Secret: None where it comes later (cert-manager's), or the system's authorities do."""
    found = objects.read("Secret", secret) if secret else None
    ca = found.data.get(CA) if found else None
    if secret and not ca:
        logger.warning("Secret %s has no %s: there is none to make public now, an upgrade looks again", secret, CA)
    return ca or None


def _differing(data: Mapping[str, bytes], wanted: Mapping[str, bytes | None]) -> Lack:
    return {key: value for key, value in wanted.items() if data.get(key) != value}, ""


def _arguments(words: Sequence[str] | None) -> tuple[Wanted, str, str]:
    """What is asked for, the release, and the namespace where that is said."""
    parser = argparse.ArgumentParser(prog="python -m atelier.kubernetes.credentials", description=__doc__)
    parser.add_argument("--name", required=True, help="beginning of the objects' names")
    parser.add_argument("--instance", default="", help="the release, for the label app.kubernetes.io/instance; else the name")
    parser.add_argument("--namespace", default="", help="else that of this pod")
    parser.add_argument("--host", action="append", default=[], type=host_name, help="name or IP address of the serving certificate")
    parser.add_argument("--ray-ca", action="store_true", help="an authority for Ray's own connections as well")
    parser.add_argument("--no-tls", dest="tls", action="store_false", help="no authority and no serving certificate")
    parser.add_argument("--no-token", dest="token", action="store_false", help="no token for clients")
    parser.add_argument("--public-ca-from-secret", dest="public_ca_from", default="", metavar="NAME", help="with --no-tls: its ca.crt")
    given = vars(parser.parse_args(words))
    instance, namespace, hosts = given.pop("instance"), given.pop("namespace"), tuple(given.pop("host"))
    if given["tls"] and not hosts:
        parser.error("--host is needed for a serving certificate")
    return Wanted(hosts=hosts, **given), instance or given["name"], namespace


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # of its tries the last is told, by the error
    wanted, instance, namespace = _arguments(words)
    labels = {"app.kubernetes.io/name": "atelier", "app.kubernetes.io/instance": instance, "app.kubernetes.io/managed-by": MANAGED_BY}
    try:
        api, own = core()
        provide(Objects(api, namespace=namespace or own, labels=labels), wanted)
    except AtelierError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
