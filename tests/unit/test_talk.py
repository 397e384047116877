"""Conversations with the store beside the agent's loop."""

import asyncio
from types import SimpleNamespace

import pytest

from tweed.agent.talk import StartOver, Talk


async def test_what_a_conversation_ended_with_while_nobody_looked_is_not_lost() -> None:
    async def ends() -> bool:
        raise StartOver("the network configuration changed")

    talk = Talk(SimpleNamespace())
    talk.task = asyncio.create_task(ends())
    await asyncio.wait({talk.task})
    with pytest.raises(StartOver, match="the network configuration changed"):
        talk.begin(look=False)
