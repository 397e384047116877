"""A kernel of four lists, slow and obvious: what a sequence of changes makes of a state."""

from tweed.model import Change, FdbEntry, InterfaceAddress, KernelState, Neighbour, Route


def key(row):
    """What a replace replaces: the kernel's key of each table."""
    match row:
        case Route():
            return (row.dst, row.metric, row.table)
        case Neighbour():
            return (row.address, row.device)
        case FdbEntry():
            return (row.mac, row.device)
        case InterfaceAddress():
            return (row.address, row.device)


def apply(state: KernelState, changes: tuple[Change, ...]) -> list:
    """Rows after the changes. A replace overwrites the first row of its key; a delete takes one row that matches (a neighbour: by its key)."""
    rows = list(state.rows)
    for change in changes:
        row = change.row
        if isinstance(row, InterfaceAddress):
            row = InterfaceAddress(row.device, row.address, row.scope)
        same = [i for i, r in enumerate(rows) if type(r) is type(row) and key(r) == key(row)]
        exact = [i for i in same if rows[i] == row]
        if change.op == "delete":
            hit = same if isinstance(row, Neighbour) else exact
            if hit:
                del rows[hit[0]]
        elif exact:
            continue
        elif same:
            rows[same[0]] = row
        else:
            rows.append(row)
    return rows
