import contextlib

import pytest
from tests import etcd_server
from tests.contract.grounds import GROUNDS


class Servers(contextlib.ExitStack):
    """Store servers by name, started when the first test asks for one."""

    def __init__(self, directory):
        super().__init__()
        self.directory, self.etcds = directory, {}

    def etcd(self, version):
        if version not in self.etcds:
            self.etcds[version] = self.enter_context(etcd_server.running(self.directory / version, version))
        return self.etcds[version]


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    with Servers(tmp_path_factory.mktemp("servers")) as servers:
        yield servers


@pytest.fixture(params=GROUNDS)
async def ground(request, tmp_path, servers):
    made = GROUNDS[request.param](tmp_path, servers)
    yield made
    await made.close()


@pytest.fixture
async def store(ground):
    return await ground.open()
