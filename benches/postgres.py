"""A Postgres server for the measurements, with the keys of a SQLite file."""

import contextlib
import os
import pathlib
import pwd
import shutil
import sqlite3
import subprocess

import running


class Postgres(running.Process):
    """An empty server on a free port."""

    def __init__(self, scratch):
        folder = scratch / "postgres"
        folder.mkdir()
        port = running.free_port()
        self.url = f"postgres://keystile@127.0.0.1:{port}/postgres?sslmode=disable"
        # Postgres refuses to run as root, where its package made a user for it.
        as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        if as_owner:
            shutil.chown(folder, *pwd_of("postgres"))
            scratch.chmod(0o755)
        initdb = [program("initdb"), "-D", folder / "data", "-U", "keystile", "--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run([*as_owner, *initdb], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"]
        command = [program("postgres"), "-D", folder / "data", *(word for setting in settings for word in ("-c", setting))]
        super().__init__("postgres", [*as_owner, *command], scratch)
        running.until(self.answers, "Postgres answers")

    def answers(self):
        self.check()
        ask = ["psql", "--no-psqlrc", "--quiet", self.url, "-c", "SELECT 1"]
        return subprocess.run(ask, capture_output=True).returncode == 0

    def fill(self, programs, database):
        """Creates the tables, and copies users and keys from a SQLite file."""
        migrate = [programs.keystile, "migrate", "--database-url", self.url]
        subprocess.run(migrate, check=True, stdout=subprocess.DEVNULL)
        with contextlib.closing(sqlite3.connect(database)) as connection:
            script = "\n".join(copy(connection, table) for table in ("users", "api_keys")) + "\n"
        load = ["psql", "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", self.url]
        subprocess.run(load, input=script, text=True, check=True, stdout=subprocess.DEVNULL)


def copy(connection, table):
    """A table as psql reads it."""
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    booleans = {row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[2] == "boolean"}

    def cell(column, value):
        if value is None:
            return r"\N"
        return str(bool(value)) if column in booleans else str(value).replace("\\", "\\\\").replace("\t", "\\t")

    rows = connection.execute(f"SELECT {', '.join(columns)} FROM {table}")
    lines = ("\t".join(map(cell, columns, row)) for row in rows)
    return "\n".join([f"COPY {table} ({', '.join(columns)}) FROM stdin;", *lines, "\\."])


def pwd_of(user):
    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def program(name):
    """In PATH, or in Debian's folder."""
    found = [*pathlib.Path("/usr/lib/postgresql").glob(f"*/bin/{name}")]
    return shutil.which(name) or max(found, default=name)
