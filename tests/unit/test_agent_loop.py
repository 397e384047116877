"""The agent's loop: what comes while it rests is not forgotten."""

import asyncio
from types import SimpleNamespace

import pytest

from tweed.agent.agent import Agent


@pytest.mark.parametrize("when", ["before", "during"])
async def test_the_end_of_a_conversation_during_a_rest_is_seen_after_it(when):
    """It wakes the loop and gives no reason: a StartOver was found at the next slow look, half a minute later."""
    loop = SimpleNamespace(wake=asyncio.Event(), reasons=set(), paused=False)
    if when == "before":
        loop.wake.set()
    resting = asyncio.create_task(Agent._rest(loop, 0.02))
    await asyncio.sleep(0)
    loop.wake.set()
    await resting
    assert loop.wake.is_set()
