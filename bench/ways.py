"""The table of docs/performance.md from a run: `tweed bench dataplane --json >run.json`, then `python -m bench.ways <run.json`."""

from __future__ import annotations

import json
import sys
from typing import Any

from tweed.bench.report import MEASURES


def main(document: dict[str, Any]) -> None:
    head = ["", *(cell for m in MEASURES for cell in (f"{m.title}, {m.unit}", *(["of bare"] if m.more_is_better else [])))]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for way, measured in document["ways"].items():
        cells = [way]
        for m in MEASURES:
            values = [value * m.scale for value in measured[m.id]["values"]]
            cells.append(f"{measured[m.id]['median'] * m.scale:.{m.digits}f} ({min(values):.{m.digits}f} … {max(values):.{m.digits}f})")
            if m.more_is_better:
                share = measured[m.id]["to_limit"]
                cells.append("-" if share is None else f"{100 * share:.0f} %")
        print(f"| {' | '.join(cells)} |")
    print(
        f"\n{document['when']}, {document['rounds']} rounds of {document['seconds']} s, load {document['load'][0]:.2f} before, {document['load'][1]:.2f} after"
    )


if __name__ == "__main__":
    main(json.load(sys.stdin))
