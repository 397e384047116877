"""`tweed lease` on a store that takes its time, and on one that was not meant."""

import asyncio

import pytest
from click.testing import CliRunner

from tweed.commands import common, lease
from tweed.errors import UsageError
from tweed.stores import Snapshot


class Slow:
    """Answers only once something was said."""

    def __init__(self, said):
        self.said = said

    async def snapshot(self):
        async with asyncio.timeout(10):
            while not self.said():
                await asyncio.sleep(0.001)
        return Snapshot(1, ())

    async def timed(self, records):
        return records

    async def close(self):
        pass


def test_whoever_waits_is_told_for_what(capsys, monkeypatch):
    told = []
    monkeypatch.setattr(common, "SLOW_S", 0.0)
    monkeypatch.setattr(common, "open_store", lambda settings: Slow(lambda: told.append(capsys.readouterr().err) or told[-1]))
    assert common.with_store(common.store_settings(["--store=kube"]), lease.everything) == (Snapshot(1, ()), ())
    assert told[-1] == "still asking kube\n"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--store=sqlite:///nowhere/x.db", "--kubeconfig-file=/k"],
            "--kubeconfig-file is for --store kube, and here the leases are in sqlite:///nowhere/x.db",
        ),
        (["--store=sqlite:///nowhere/x.db", "--etcd-endpoints=http://a"], "--etcd-endpoints is for --store etcd, and here"),
        (["--etcd-endpoints=http://a", "--kube-api-url=http://b"], "--kube-api-url is for --store kube, and here the leases are in etcd"),
    ],
)
def test_a_flag_of_another_store_is_refused_and_not_passed_over(flags, says):
    error = CliRunner().invoke(lease.lease, ["list", *flags]).exception
    assert isinstance(error, UsageError) and str(error).startswith(says)
