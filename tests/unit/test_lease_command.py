"""`tweed lease list` on a store that is asked for each lease, slowly."""

import asyncio

from tweed.commands import lease
from tweed.stores import Snapshot


class Slow:
    """Answers only once something was said."""

    def __init__(self, said):
        self.said = said

    async def snapshot(self):
        return Snapshot(1, ())

    async def timed(self, records):
        async with asyncio.timeout(10):
            while not self.said():
                await asyncio.sleep(0.001)
        return records


def test_whoever_waits_is_told_for_what(capsys, monkeypatch):
    monkeypatch.setattr(lease, "SLOW_S", 0.0)
    told = []
    assert asyncio.run(lease.everything(Slow(lambda: told.append(capsys.readouterr().err) or told[-1]))) == (Snapshot(1, ()), ())
    assert told[-1] == "asking when each of 0 leases ends\n"
