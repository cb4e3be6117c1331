"""Verifies one chain: its entries, its head, and the record that they belong to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from clinic.history import macs
from clinic.history.chain import SIGN_INS, WITHOUT_RECORD, sign_in_chain
from clinic.history.keys import Keyring
from clinic.history.macs import Chain

# The columns of an entry in the order that this module reads: those that its mac covers, then the others.
ENTRY = (*macs.SPELLINGS[macs.SPELLING], "changes", "mac")
HEAD = ("seq", "entry_mac", "mac", "key_number")


@dataclass(slots=True)
class VerifiedChain:
    """Reads the head and all entries of a record's chain, and keeps the first fault.

    `seq`, `mac`, `action` and `version` are those of the entry read last. Macs are compared by `==`: nobody can measure
    how long that takes.
    """

    ring: Keyring
    name: Chain
    reached: Any = None  # the version of the record; None without a record
    head: Sequence[Any] | None = None
    seq: int = 0
    mac: str = macs.GENESIS
    action: str = ""
    version: int | None = None
    with_values: bool = False  # an entry has values
    without_values: bool = False  # the values of an entry are gone, although its user was not purged
    fault: str = ""  # of an entry

    def read(self, entry: Sequence[Any]) -> None:
        """Verify the next entry, unless an entry before it has a fault."""
        if self.fault:
            return
        fault = self._fault_of_entry(entry)
        if fault:
            self.fault = fault
            return
        _, _, _, self.seq, _, _, self.action, self.version, *_, changes, self.mac = entry
        if changes is None:
            self._miss_values(entry)
        else:
            self.with_values = True

    def _fault_of_entry(self, entry: Sequence[Any]) -> str:
        entry_id, _, _, seq, _, _, action, _, _, digest, spelling, key_number, changes, mac = entry
        if seq != self.seq + 1:
            return f"entry {self.seq + 1} was removed"
        key = self.ring.secret_of(entry_id, key_number)
        if key is None or spelling not in macs.SPELLINGS or mac != macs.of_row(key, self.mac, entry, spelling):
            return f"entry {seq} was changed, or put in"
        if changes is not None and digest != macs.of_changes(key, self.name, changes):
            return f"entry {seq} has other values than were written"
        if seq == 1 and action != "create" and self.name[0] not in WITHOUT_RECORD:
            return "its history was removed, and begun anew"
        return ""

    def _miss_values(self, _: Sequence[Any]) -> None:
        self.without_values = True

    def end(self) -> str:
        """Return the fault of an entry, or compare the end of the chain with its head and its record. "" if whole."""
        return self.fault or self._fault_of_head() or self._fault_of_values() or self._fault_of_record()

    def _fault_of_head(self) -> str:
        if self.seq == 0 and not self._may_be_empty():
            return "its history was removed"
        if self.head is None:
            return "its head was removed"
        seq, entry_mac, mac, key_number = self.head
        key = self.ring.secret(key_number)
        if key is None or mac != macs.of_head(key, self.name, seq, entry_mac):
            return "its head was changed"
        if (seq, entry_mac) != (self.seq, self.mac):
            return f"it ends at entry {self.seq} where {seq} were written"
        return ""

    def _may_be_empty(self) -> bool:
        return False

    def _fault_of_values(self) -> str:
        purged = self.action == "purge"
        if purged and self.reached is not None:
            return "it is there though its history says that it was purged"
        if purged and self.with_values:
            return "values are in its history though it was purged"
        if self.without_values and not purged:
            return "values were removed from its history, but by no purge"
        return ""

    def _fault_of_record(self) -> str:
        if self.reached is None and self.action != "purge" and self.name[0] not in WITHOUT_RECORD:
            return "the record was removed, but by no purge"
        if self.reached is not None and self.reached != self.version:
            return f"it is at version {self.reached!a}, its history at {self.version}"
        return ""


@dataclass(slots=True)
class SignInChain(VerifiedChain):
    """Verifies a chain of sign-ins. It has no record, but reaches the newest login session of its users."""

    purged_users: set[int] = field(default_factory=set)
    last_logins: dict[int, int] = field(default_factory=dict)  # number of a chain: the newest login of its users
    chains: int | None = None  # how many chains the chain of number 0 says that there are

    def read(self, entry: Sequence[Any]) -> None:
        """Verify the next entry, and keep the login that it tells of."""
        VerifiedChain.read(self, entry)
        _, _, _, _, _, actor_id, _, version, *_, changes, _ = entry
        if not self.fault:
            self.chains = version or self.chains
            if changes is not None and (login := _login_in(changes)):
                chain = sign_in_chain(actor_id)
                self.last_logins[chain] = max(login, self.last_logins.get(chain, 0))

    def _miss_values(self, entry: Sequence[Any]) -> None:
        self.without_values = self.without_values or entry[5] not in self.purged_users

    def _may_be_empty(self) -> bool:
        return self.name != SIGN_INS

    def _fault_of_record(self) -> str:
        if self.reached is not None and self.reached > self.last_logins.get(self.name[1], 0):
            return "its newest entries were removed"
        return ""


def _login_in(changes: str) -> int:
    _, login = json.loads(changes).get("login", (None, 0))
    return int(login)
