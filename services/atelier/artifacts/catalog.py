"""Which artifacts there are: the store's manifests, found by digest, tag or key through the ledger."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ForeignKey, String, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from atelier.artifacts.manifest import DIGEST, Kind, Manifest
from atelier.artifacts.signing import Signer
from atelier.artifacts.store import Store
from atelier.errors import failed_precondition, invalid_field, not_found
from atelier.ledger import ArtifactUse, Base, Database, now

TAG = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?(:[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?)?")


class ArtifactRow(Base):
    """A committed artifact."""

    __tablename__ = "artifacts"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), index=True)
    key: Mapped[str] = mapped_column(String(512), index=True)
    job: Mapped[str] = mapped_column(String(128))
    signature: Mapped[bytes]
    create_time: Mapped[datetime] = mapped_column(index=True)


class TagRow(Base):
    """A movable name."""

    __tablename__ = "tags"
    tag: Mapped[str] = mapped_column(String(128), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"), index=True)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A manifest and what is known about it."""

    manifest: Manifest
    digest: str
    create_time: datetime
    job: str = ""
    signature: bytes = b""
    tags: tuple[str, ...] = field(default_factory=tuple)

    @property
    def name(self) -> str:
        """`artifacts/{digest}`."""
        return f"artifacts/{self.digest}"


class Catalog:
    """Thread-safe. `signer` is needed only where code is committed."""

    def __init__(self, *, store: Store, database: Database, signer: Signer | None = None) -> None:
        self.store = store
        self._database = database
        self._signer = signer

    def commit(self, manifest: Manifest, *, job: str = "", tags: Sequence[str] = (), sign: bool = False) -> Record:
        """Commits an artifact whose blobs are in the store; one that is there already only gets the tags."""
        assert not sign or self._signer, "this process holds no signing key"
        full = [full_tag(tag) for tag in tags]
        digest = manifest.digest
        self.store.put_manifest(manifest)
        signature = self._signer.sign(digest) if sign and self._signer else b""
        with self._database.transaction() as session:
            row = session.get(ArtifactRow, digest)
            if row is None:
                key = str(manifest.metadata.get("key", ""))
                values = {"kind": str(manifest.kind), "key": key, "job": job, "signature": signature, "create_time": now()}
                session.add(ArtifactRow(digest=digest, **values))
                session.flush()
            elif signature:
                row.signature = signature
            for tag in full:
                session.merge(TagRow(tag=tag, digest=digest))
        return self.get(digest)

    def get(self, name: str) -> Record:
        """By `artifacts/{digest}`, digest, a unique beginning of 8 digits or more, or tag. Raises NOT_FOUND."""
        with self._database.transaction() as session:
            row = self._row(session, name)
            tags = tuple(session.scalars(select(TagRow.tag).where(TagRow.digest == row.digest).order_by(TagRow.tag)))
        return self._record(row, tags)

    def resolve(self, name: str) -> str:
        """The digest behind a name."""
        with self._database.transaction() as session:
            return self._row(session, name).digest

    def list(self, kind: Kind | None, *, page_size: int, page_token: str) -> tuple[list[Record], str]:
        """A page, newest first, and the token of the next."""
        query = select(ArtifactRow).order_by(ArtifactRow.create_time.desc(), ArtifactRow.digest).limit(page_size + 1)
        if kind is not None:
            query = query.where(ArtifactRow.kind == str(kind))
        with self._database.transaction() as session:
            rows = list(session.scalars(query.offset(_offset(page_token))))
            tags: dict[str, list[str]] = {}
            for tag in session.scalars(select(TagRow).where(TagRow.digest.in_([r.digest for r in rows])).order_by(TagRow.tag)):
                tags.setdefault(tag.digest, []).append(tag.tag)
        records = [self._record(row, tuple(tags.get(row.digest, ()))) for row in rows[:page_size]]
        return records, str(_offset(page_token) + page_size) if len(rows) > page_size else ""

    def tag(self, tag: str, name: str) -> Record:
        """Moves a tag; an empty `name` removes it and gives what it pointed at."""
        tag = full_tag(tag)
        with self._database.transaction() as session:
            digest = self._row(session, name or tag).digest
            if name:
                session.merge(TagRow(tag=tag, digest=digest))
            else:
                session.execute(delete(TagRow).where(TagRow.tag == tag))
        return self.get(digest)

    def delete(self, name: str, *, validate_only: bool = False) -> None:
        """Forgets an artifact. Raises FAILED_PRECONDITION naming what uses it."""
        with self._database.transaction() as session:
            digest = self._row(session, name).digest
            users = sorted(session.scalars(select(ArtifactUse.user).where(ArtifactUse.digest == digest)))
            if users:
                sentence = f"artifacts/{digest} is in use by {', '.join(users)}: delete or change those first"
                raise failed_precondition("ARTIFACT_IN_USE", sentence, users=",".join(users))
            if not validate_only:
                session.execute(delete(TagRow).where(TagRow.digest == digest))
                session.execute(delete(ArtifactRow).where(ArtifactRow.digest == digest))
        if not validate_only:
            self.store.delete_manifest(digest)

    def find(self, kind: Kind, key: str) -> Record | None:
        """The newest artifact of a kind whose metadata has this `key`."""
        query = (
            select(ArtifactRow.digest).where(ArtifactRow.kind == str(kind), ArtifactRow.key == key).order_by(ArtifactRow.create_time.desc())
        )
        with self._database.transaction() as session:
            digest = session.scalars(query.limit(1)).first()
        return self.get(digest) if digest else None

    def _row(self, session: Session, name: str) -> ArtifactRow:
        bare = name.removeprefix("artifacts/")
        row: ArtifactRow | None = None
        if DIGEST.fullmatch(bare):
            row = session.get(ArtifactRow, bare)
        elif TAG.fullmatch(bare):
            tagged = session.get(TagRow, full_tag(bare))
            row = session.get(ArtifactRow, tagged.digest) if tagged else None
            if row is None and re.fullmatch(r"[0-9a-f]{8,63}", bare):
                rows = list(session.scalars(select(ArtifactRow).where(ArtifactRow.digest.startswith(bare)).limit(2)))
                if len(rows) > 1:
                    raise invalid_field("name", f"{bare!r} is the beginning of several digests: give more digits")
                row = rows[0] if rows else None
        if row is None:
            raise not_found("artifact", name, hint="`atelier artifacts list` shows what there is")
        return row

    def _record(self, row: ArtifactRow, tags: tuple[str, ...]) -> Record:
        manifest = self.store.manifest(row.digest)
        return Record(manifest=manifest, digest=row.digest, create_time=row.create_time, job=row.job, signature=row.signature, tags=tags)


def full_tag(tag: str) -> str:
    """The tag with its version: `az-octopus` is `az-octopus:latest`. Raises INVALID_ARGUMENT for what cannot be a tag."""
    if not TAG.fullmatch(tag) or DIGEST.fullmatch(tag):
        raise invalid_field("tags", f"{tag!r} is not a tag: use lower case letters, digits, dots and dashes, `name` or `name:version`")
    return tag if ":" in tag else f"{tag}:latest"


def _offset(page_token: str) -> int:
    if page_token and not page_token.isdecimal():
        raise invalid_field("page_token", "is not one that was given out")
    return int(page_token or 0)
