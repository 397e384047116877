"""`tweed lease` on a store that is asked for each lease, slowly, and on one that was not meant."""

import asyncio

import pytest
from click.testing import CliRunner

from tweed.commands import lease
from tweed.errors import UsageError
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
