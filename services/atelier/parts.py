"""What the services of one control process stand on: ledger, store, keys, tokens, pools, meters; opened together, closed by the process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from atelier import base_model
from atelier.artifacts.catalog import Catalog, Record
from atelier.artifacts.importing import examine
from atelier.artifacts.manifest import File, Kind, Manifest, hash_file
from atelier.artifacts.signing import signing_keys
from atelier.artifacts.spool import Spool
from atelier.artifacts.store import Store
from atelier.errors import AtelierError, failed_precondition
from atelier.jobs.ledger import JobLedger
from atelier.ledger import Database
from atelier.meters import UNMEASURED, Meters
from atelier.migrations import migrate
from atelier.pools import Pool
from atelier.rpc.auth import Tokens
from atelier.rpc.tls import Tls
from atelier.secret import read_or_make
from atelier.settings import SERVICES, Settings

TOKEN, INTERNAL_TOKEN = "token", "internal-token"
"""Files below `keys/`: what clients send, and what the installation's own parts send each other."""
ABANDONED = timedelta(days=1)
"""An upload that was cut off can go on for so long."""

logger = logging.getLogger("atelier.control")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """See `opened`."""

    settings: Settings
    services: Sequence[str]
    pools: Sequence[Pool]
    tls: Tls | None
    meters: Meters
    database: Database
    catalog: Catalog
    ledger: JobLedger
    spool: Spool
    public_key: Path
    """File for workers and replicas."""
    tokens: Tokens
    """Of clients."""
    internal_token_file: Path

    @property
    def data(self) -> Path:
        """The folder of the installation, absolute."""
        return self.settings.data.absolute()

    @property
    def internal_token(self) -> str:
        """Of the installation's own parts."""
        return Tokens(self.internal_token_file).all[0]

    @property
    def labels(self) -> dict[str, str]:
        """Each pool's name -> the product in its label."""
        return {pool.name: pool.label for pool in self.pools}

    @property
    def job_services(self) -> list[str]:
        """Those of this process that have jobs."""
        return [service for service in ("trainer", "converter", "compiler") if service in self.services]

    def forget_run(self, record: Record) -> None:
        """With the record of a run go its checkpoints: nothing names them any more."""
        if record.manifest.kind is Kind.RUN and record.job:
            self.ledger.forget_checkpoints(record.job)
            self.catalog.store.delete_below(f"checkpoints/{record.job.removeprefix('jobs/')}/")


def opened(settings: Settings, services: Sequence[str], *, gpu: str) -> Parts:
    """Opens everything, brings the ledger to this version's tables and the model on board into the catalog. `gpu`: see `Settings.pools`."""
    keys, pools = settings.data.absolute() / "keys", settings.pools(gpu=gpu)
    tokens = Tokens(_file(settings.token_file, keys / TOKEN))
    internal_token_file = _file(settings.internal_token_file, keys / INTERNAL_TOKEN)
    signer, public_key = signing_keys(keys, private=settings.signing_key_file, public=settings.public_key_file)
    database = Database(settings.ledger_url)
    catalog = Catalog(store=Store.open(settings.store_url), database=database, signer=signer)
    migrate(database)
    _bring_base_model(catalog)
    spool = Spool(settings.data / "spool")
    _sweep(catalog.store, spool, alone=set(services) == set(SERVICES))
    meters = meters_for(settings.metrics_listen, services=services, pools=[pool.name for pool in pools])
    return Parts(
        settings=settings, services=services, pools=pools, tls=settings.tls, meters=meters, database=database, catalog=catalog,
        ledger=JobLedger(database, meters=meters), spool=spool, public_key=public_key, tokens=tokens,
        internal_token_file=internal_token_file,
    )  # fmt: skip


def _file(given: Path | None, own: Path) -> Path:
    """A file of tokens: the operator's, or the installation's own, made once. Raises FAILED_PRECONDITION where it holds none."""
    if given is None:
        read_or_make(own)
    file = given or own
    assert Tokens(file).all
    return file


def _bring_base_model(catalog: Catalog) -> None:
    """Commits the model on board under its tag, once."""
    try:
        catalog.get(base_model.TAG)
        return
    except AtelierError:
        found = examine(base_model.folder())
    files = []
    for name, path in found.files.items():
        files.append(File(path=name, size=path.stat().st_size, sha256=hash_file(path)))
        catalog.store.put_blob(path, files[-1])
    catalog.commit(Manifest(kind=found.kind, files=tuple(files)), tags=[base_model.TAG])


def _sweep(store: Store, spool: Spool, *, alone: bool) -> None:
    """Forgets uploads that nobody goes on with. Blobs that no artifact has go only before an `alone` process, which runs all services and
    so holds the folder's locks, begins to answer: nobody can commit meanwhile."""
    spool.sweep(older_than=ABANDONED)
    if not alone:
        return
    try:
        store.sweep_blobs(older_than=ABANDONED)
    except AtelierError as error:
        logger.warning("unused files are kept: %s", error)


def meters_for(listen: str | None, *, services: Sequence[str], pools: Sequence[str]) -> Meters:
    """The meters of a process that runs `services`: such as Prometheus reads at `listen`, where that is set.

    Raises FAILED_PRECONDITION where the extra `control` is not installed.
    """
    if not listen:
        return UNMEASURED
    try:
        from atelier.metrics import Metrics
    except ModuleNotFoundError as error:
        sentence = "ATELIER_METRICS_LISTEN needs prometheus-client: pip install 'atelier[control]'"
        raise failed_precondition("METRICS_NOT_INSTALLED", sentence) from error
    return Metrics(listen, services=services, pools=pools)
