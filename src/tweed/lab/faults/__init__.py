"""What `tweed lab break` can break. A fault is a function from the tables as they are (`scene`) to commands (`plan`)."""

from __future__ import annotations

from tweed.errors import UsageError
from tweed.lab.faults import devices, filters, rows
from tweed.lab.faults.plan import Fault

CATALOGUE: dict[str, Fault] = {fault.name: fault for fault in (*rows.FAULTS, *devices.FAULTS, *filters.FAULTS)}


def find(name: str) -> Fault:
    """Raises UsageError for a name that is none."""
    if name not in CATALOGUE:
        raise UsageError(f"no fault {name!r}: `tweed lab faults` lists those that there are")
    return CATALOGUE[name]
