"""The index: which names, ids and addresses are taken.  A cache; storage is the truth.

A name or an address is claimed by inserting it: the unique key decides between two claimants, in
one transaction.  SQLite keeps a rollback journal, and keeps its file: so reading makes no file,
which a full disk would forbid, and removing finds its blocks there.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vmm.model.errors import Conflict, CorruptStore, NotFound, VmmError
from vmm.model.ids import HEX_PREFIX, short
from vmm.ports.space import no_space

#: Bytes of the rollback journal that are always there: what a removal writes is a fraction.
JOURNAL = 64 << 10

SCHEMA = """
CREATE TABLE IF NOT EXISTS workloads (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS addresses (
    network TEXT NOT NULL, address TEXT NOT NULL, workload TEXT NOT NULL,
    PRIMARY KEY (network, address)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS addresses_workload ON addresses (workload);
"""


class Row(NamedTuple):
    """One workload of the index."""

    id: str
    name: str
    created: int


class Stored(NamedTuple):
    """What storage says: rows, claims (network, address, workload), and ids being created."""

    rows: list[Row]
    claims: list[tuple[str, str, str]]
    creating: Collection[str]


class Index:
    """Claims of one instance.  Every method is one transaction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._faults():
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
            #: Never filled (``user_version`` is set with the first filling): the caller does it.
            self.fresh = self._rows("PRAGMA user_version")[0][0] == 0
            if not self.fresh:
                self._settle()

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """SQLite's errors as the user's: a damaged file, or one that cannot be used now."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such" in str(error):
                raise self._damaged(error) from None
            if code == sqlite3.SQLITE_FULL:
                raise no_space(self.path) from None
            raise VmmError(
                f"the index {self.path} cannot be used: {error}",
                "see that its directory can be written and its disk has space",
            ) from None

    def _damaged(self, why: object) -> CorruptStore:
        return CorruptStore(
            f"the index {self.path} is damaged: {why}", "rebuild it: vmm system rebuild"
        )

    def create(self) -> None:
        """Make the tables; one process at a time."""
        with self._faults():
            self._settle()
            self._db.executescript(SCHEMA)
        with self._write():  # nobody else writes the journal meanwhile
            self._allocate()

    def _settle(self) -> None:
        """These hold for the connection (sqlite.org/pragma.html)."""
        with contextlib.suppress(sqlite3.OperationalError):  # in another mode and in use: later
            self._db.execute("PRAGMA journal_mode=PERSIST")
        self._db.execute("PRAGMA synchronous=NORMAL")

    def _allocate(self) -> None:
        with contextlib.suppress(OSError), open(f"{self.path}-journal", "ab") as file:
            os.posix_fallocate(file.fileno(), 0, JOURNAL)

    def verify(self) -> None:
        """CorruptStore when the file is damaged or lacks a table."""
        with self._faults():
            found = self._rows("PRAGMA quick_check(1)")[0][0]
            if found != "ok":
                raise self._damaged(found)
            self._rows("SELECT 1 FROM workloads, addresses LIMIT 1")

    def close(self) -> None:
        self._db.close()

    def _rows(self, query: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        with self._faults():
            return self._db.execute(query, parameters).fetchall()

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._faults():
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
        except BaseException:
            self._rollback()
            raise

    def _rollback(self) -> None:
        if self._db.in_transaction:
            with contextlib.suppress(sqlite3.DatabaseError):
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
        rows = self._rows("SELECT id FROM workloads WHERE name = ?", (name,))
        holder = short(rows[0][0]) if rows else "another workload"
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
        return [Row(*row) for row in self._rows(query)]

    def lookup(self, reference: str, kind: str = "container") -> Row:
        """By full id, else name, else unique id prefix."""
        for column in ("id", "name"):
            query = f"SELECT id, name, created FROM workloads WHERE {column} = ?"
            for row in self._rows(query, (reference,)):
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
        return [Row(*row) for row in self._rows(query, (prefix, prefix + "g"))]

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
        return dict(self._rows(query, (network,)))

    def claimants(self) -> set[str]:
        """Whoever has an address claimed."""
        return {row[0] for row in self._rows("SELECT DISTINCT workload FROM addresses")}

    def release(self, workload: str) -> None:
        """Give back the addresses of a workload."""
        with self._write() as db:
            db.execute("DELETE FROM addresses WHERE workload = ?", (workload,))

    def replace(self, read: Callable[[], Stored]) -> list[str]:
        """Fill the index anew with what ``read`` finds in storage.

        It is called within the transaction, so that no claim is made meanwhile; claims of
        workloads that are being created are kept.  The ids are returned of those whose
        name another has: they are known by their id alone.
        """
        clashes = []
        with self._write() as db:
            stored = read()
            for table, column in (("workloads", "id"), ("addresses", "workload")):
                known = {row[0] for row in self._rows(f"SELECT {column} FROM {table}")}
                doomed = [(identity,) for identity in known - set(stored.creating)]
                db.executemany(f"DELETE FROM {table} WHERE {column} = ?", doomed)
            for row in sorted(stored.rows, key=lambda row: row.created):
                if not self._insert(db, row):
                    clashes.append(row.id)
            db.executemany("INSERT OR IGNORE INTO addresses VALUES (?, ?, ?)", stored.claims)
            db.execute("PRAGMA user_version = 1")
        return clashes

    @staticmethod
    def _insert(db: sqlite3.Connection, row: Row) -> bool:
        """Whether the row could have its name."""
        insert = "INSERT INTO workloads VALUES (?, ?, ?)"
        try:
            db.execute(insert, row)
        except sqlite3.IntegrityError:
            query = "SELECT id FROM workloads WHERE id = ?"
            if db.execute(query, (row.id,)).fetchone() is None:
                db.execute(insert, (row.id, row.id, row.created))
                return False
        return True


def discard(path: Path) -> None:
    """Remove a damaged index with its companions."""
    for suffix in ("", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
