"""Which artifacts there are: the store's manifests, found by digest, tag or key through the ledger."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from atelier.artifacts.manifest import DIGEST, Kind, Manifest
from atelier.artifacts.signing import Signer
from atelier.artifacts.store import Store
from atelier.errors import failed_precondition, invalid_field, not_found
from atelier.ledger import ArtifactUse, Base, Database, Place, after, now

TAG = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?(:[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?)?")

MAX_KEY = 512


class ArtifactRow(Base):
    """A committed artifact."""

    __tablename__ = "artifacts"
    __table_args__ = (Index("ix_artifacts_kind_create_time", "kind", "create_time", "digest"),)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), index=True)
    key: Mapped[str] = mapped_column(String(512), index=True)
    job: Mapped[str] = mapped_column(String(128))
    signature: Mapped[bytes]
    create_time: Mapped[datetime] = mapped_column(index=True)
    manifest: Mapped[bytes | None]
    """Canonical JSON, as the store has it too; empty in rows of before revision 0002."""


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
        """Commits an artifact whose blobs are in the store; one that is there already only gets the tags.

        Raises FAILED_PRECONDITION where it has to `sign` without a signer.
        """
        if sign and self._signer is None:
            sentence = (
                "this process holds no signing key, so it commits no engine: ask the trainer or the compiler (ATELIER_SIGNING_KEY_FILE)"
            )
            raise failed_precondition("NO_SIGNING_KEY", sentence)
        full = [full_tag(tag) for tag in tags]
        digest, key = manifest.digest, str(manifest.metadata.get("key", ""))
        if len(key) > MAX_KEY:
            raise invalid_field("metadata.key", f"at most {MAX_KEY} characters, got {len(key)}")
        self.store.put_manifest(manifest)
        signature = self._signer.sign(digest) if sign and self._signer else b""

        def add(session: Session) -> None:
            row = session.get(ArtifactRow, digest, with_for_update=True)
            if row is None:
                values = {"kind": str(manifest.kind), "key": key, "job": job, "signature": signature, "create_time": now()}
                session.add(ArtifactRow(digest=digest, manifest=manifest.canonical_json(), **values))
                session.flush()
            elif signature:
                row.signature = signature
            for tag in full:
                session.merge(TagRow(tag=tag, digest=digest))

        self._database.write(add)
        return self.get(digest)

    def get(self, name: str) -> Record:
        """By `artifacts/{digest}`, digest, a unique beginning of 8 digits or more, or tag. Raises NOT_FOUND."""
        with self._database.reading() as session:
            row = self._row(session, name)
            tags = tuple(session.scalars(select(TagRow.tag).where(TagRow.digest == row.digest).order_by(TagRow.tag)))
        return self._record(row, tags)

    def resolve(self, name: str) -> str:
        """The digest behind a name."""
        with self._database.reading() as session:
            return self._row(session, name).digest

    def list(self, kind: Kind | None, *, page_size: int, page_token: str) -> tuple[list[Record], str]:
        """A page, newest first, and the token of the next."""
        query = select(ArtifactRow).order_by(ArtifactRow.create_time.desc(), ArtifactRow.digest).limit(page_size + 1)
        query = query.where(after(Place.read(page_token), ArtifactRow.create_time, ArtifactRow.digest))
        if kind is not None:
            query = query.where(ArtifactRow.kind == str(kind))
        with self._database.reading() as session:
            rows = list(session.scalars(query))
            tags: dict[str, list[str]] = {}
            for tag in session.scalars(select(TagRow).where(TagRow.digest.in_([r.digest for r in rows])).order_by(TagRow.tag)):
                tags.setdefault(tag.digest, []).append(tag.tag)
        page = rows[:page_size]
        more = len(rows) > page_size
        token = Place(time=page[-1].create_time, key=page[-1].digest).token if more else ""
        return [self._record(row, tuple(tags.get(row.digest, ()))) for row in page], token

    def tag(self, tag: str, name: str) -> Record:
        """Moves a tag; an empty `name` removes it and gives what it pointed at."""
        tag = full_tag(tag)

        def move(session: Session) -> str:
            digest = self._row(session, name or tag).digest
            if name:
                session.merge(TagRow(tag=tag, digest=digest))
            else:
                session.execute(delete(TagRow).where(TagRow.tag == tag))
            return digest

        return self.get(self._database.write(move))

    def delete(self, name: str, *, validate_only: bool = False) -> Record:
        """Forgets an artifact, and gives what it was. Raises FAILED_PRECONDITION naming what uses it."""
        record = self.get(name)

        def forget(session: Session) -> None:
            session.get(ArtifactRow, record.digest, with_for_update=True)  # whoever wants to use it waits, see `use`
            users = sorted(session.scalars(select(ArtifactUse.user).where(ArtifactUse.digest == record.digest)))
            if users:
                sentence = f"{record.name} is in use by {', '.join(users)}: delete or change those first"
                raise failed_precondition("ARTIFACT_IN_USE", sentence, users=",".join(users))
            if not validate_only:
                session.execute(delete(TagRow).where(TagRow.digest == record.digest))
                session.execute(delete(ArtifactRow).where(ArtifactRow.digest == record.digest))

        self._database.write(forget)
        if not validate_only:
            self.store.delete_manifest(record.digest)
        return record

    def find(self, kind: Kind, key: str) -> Record | None:
        """The newest artifact of a kind whose metadata has this `key`."""
        query = (
            select(ArtifactRow.digest).where(ArtifactRow.kind == str(kind), ArtifactRow.key == key).order_by(ArtifactRow.create_time.desc())
        )
        with self._database.reading() as session:
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
        manifest = Manifest.from_json(row.manifest) if row.manifest else self.store.manifest(row.digest)
        return Record(manifest=manifest, digest=row.digest, create_time=row.create_time, job=row.job, signature=row.signature, tags=tags)


def use(session: Session, user: str, digests: Iterable[str]) -> None:
    """Notes, in the user's own transaction, that it needs artifacts. Raises NOT_FOUND for one that was deleted meanwhile."""
    for digest in sorted(set(digests)):
        if session.get(ArtifactRow, digest, with_for_update={"read": True}) is None:
            raise not_found("artifact", f"artifacts/{digest}")
        session.add(ArtifactUse(user=user, digest=digest))


def full_tag(tag: str) -> str:
    """The tag with its version: `az-octopus` is `az-octopus:latest`. Raises INVALID_ARGUMENT for what cannot be a tag."""
    if not TAG.fullmatch(tag) or DIGEST.fullmatch(tag):
        raise invalid_field("tags", f"{tag!r} is not a tag: use lower case letters, digits, dots and dashes, `name` or `name:version`")
    return tag if ":" in tag else f"{tag}:latest"
