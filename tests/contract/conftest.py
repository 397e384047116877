import pytest
from tests.contract.grounds import GROUNDS


@pytest.fixture(params=GROUNDS)
async def ground(request, tmp_path):
    made = GROUNDS[request.param](tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def store(ground):
    return await ground.open()
