"""The index: which names, ids and addresses are taken.  A cache; storage is the truth.

SQLite in WAL mode.  A name or an address is claimed by inserting it: the unique key decides
between two claimants, in one transaction.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from vmm.model.errors import Conflict, CorruptStore, NotFound, VmmError
from vmm.model.ids import HEX_PREFIX, short

SCHEMA = """
CREATE TABLE IF NOT EXISTS workloads (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS addresses (
    network TEXT NOT NULL, address TEXT NOT NULL, workload TEXT NOT NULL,
    PRIMARY KEY (network, address)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS addresses_workload ON addresses (workload);
PRAGMA user_version = 1;
"""


class Row(NamedTuple):
    """One workload of the index."""

    id: str
    name: str
    created: int


class Index:
    """Claims of one instance.  Every method is one transaction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: The file did not exist: the caller fills it from storage.
        self.fresh = not path.exists()
        try:
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
            if self.fresh or self._version() != 1:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.executescript(SCHEMA)
            self._db.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.DatabaseError as error:
            raise CorruptStore(
                f"the index {path} is damaged: {error}", "rebuild it: vmm system rebuild"
            ) from None

    def _version(self) -> int:
        row = self._db.execute("PRAGMA user_version").fetchone()
        return int(row[0])

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._rollback()
            raise VmmError(f"the index {self.path} cannot be written: {error}") from None
        except BaseException:
            self._rollback()
            raise

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def add(self, workload: str, name: str, created: int) -> None:
        """Claim ``name``; Conflict when it is taken."""
        with self._write() as db:
            try:
                db.execute("INSERT INTO workloads VALUES (?, ?, ?)", (workload, name, created))
            except sqlite3.IntegrityError:
                self._taken(name)

    def rename(self, workload: str, name: str) -> None:
        """Change the alias; Conflict when it is taken."""
        with self._write() as db:
            try:
                db.execute("UPDATE workloads SET name = ? WHERE id = ?", (name, workload))
            except sqlite3.IntegrityError:
                self._taken(name)

    def _taken(self, name: str) -> None:
        query = "SELECT id FROM workloads WHERE name = ?"
        row = self._db.execute(query, (name,)).fetchone()
        holder = short(row[0]) if row else "another workload"
        raise Conflict(
            f'Conflict. The name "{name}" is already in use by workload {holder}.',
            f"remove or rename it first: vmm rm {name}",
        )

    def remove(self, workload: str) -> None:
        """Give back the name and the addresses; unknown ids are fine."""
        with self._write() as db:
            db.execute("DELETE FROM workloads WHERE id = ?", (workload,))
            db.execute("DELETE FROM addresses WHERE workload = ?", (workload,))

    def rows(self) -> list[Row]:
        """All workloads, newest first."""
        query = "SELECT id, name, created FROM workloads ORDER BY created DESC, id"
        return [Row(*row) for row in self._db.execute(query)]

    def lookup(self, reference: str, kind: str = "container") -> Row:
        """By full id, else name, else unique id prefix."""
        for query in ("id = ?", "name = ?"):
            row = self._db.execute(
                f"SELECT id, name, created FROM workloads WHERE {query}", (reference,)
            ).fetchone()
            if row:
                return Row(*row)
        rows = self._by_prefix(reference)
        if len(rows) > 1:
            raise Conflict(
                f"Multiple IDs found with provided prefix: {reference}", "give more digits"
            )
        if not rows:
            raise NotFound(kind, reference, "vmm ps -a lists what there is")
        return rows[0]

    def _by_prefix(self, prefix: str) -> list[Row]:
        if not HEX_PREFIX.match(prefix):
            return []
        query = "SELECT id, name, created FROM workloads WHERE id >= ? AND id < ? LIMIT 2"
        return [Row(*row) for row in self._db.execute(query, (prefix, prefix + "g"))]

    def claim_address(self, network: str, workload: str, candidates: Iterable[str]) -> str:
        """Claim the first candidate that is free or the workload's; Conflict when none is."""
        with self._write() as db:
            query = "SELECT address, workload FROM addresses WHERE network = ?"
            taken = dict(db.execute(query, (network,)))
            for address in candidates:
                if taken.get(address) == workload:
                    return address
                if address not in taken:
                    row = (network, address, workload)
                    db.execute("INSERT INTO addresses VALUES (?, ?, ?)", row)
                    return address
        raise Conflict("no free address is left in the network", "remove workloads: vmm rm")

    def addresses(self, network: str) -> dict[str, str]:
        """Claimed addresses of a network, by address."""
        query = "SELECT address, workload FROM addresses WHERE network = ?"
        return dict(self._db.execute(query, (network,)))

    def release(self, workload: str) -> None:
        """Give back the addresses of a workload."""
        with self._write() as db:
            db.execute("DELETE FROM addresses WHERE workload = ?", (workload,))

    def replace(self, rows: Iterable[Row], claims: Iterable[tuple[str, str, str]]) -> None:
        """Fill the index anew from what storage says (rebuild)."""
        with self._write() as db:
            db.execute("DELETE FROM workloads")
            db.execute("DELETE FROM addresses")
            db.executemany("INSERT INTO workloads VALUES (?, ?, ?)", rows)
            db.executemany("INSERT OR IGNORE INTO addresses VALUES (?, ?, ?)", claims)
