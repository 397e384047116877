"""Conversations with the store beside the agent's loop."""

import asyncio
from types import SimpleNamespace

import pytest

from tweed.agent.talk import StartOver, Talk
from tweed.errors import StoreUnavailable


async def test_what_a_conversation_ended_with_while_nobody_looked_is_not_lost() -> None:
    async def ends() -> bool:
        raise StartOver("the network configuration changed")

    talk = Talk(SimpleNamespace())
    talk.task = asyncio.create_task(ends())
    await asyncio.wait({talk.task})
    with pytest.raises(StartOver, match="the network configuration changed"):
        talk.begin(look=False)


async def test_what_was_kept_is_let_go_though_the_store_gives_nothing() -> None:
    """Else the loop would turn without a pause: when its time is over, there is always something to do."""
    told = []

    async def given(_: str) -> None:
        raise StoreUnavailable("Node a does not exist")

    membership = SimpleNamespace(let_go=lambda: told.append("let go"))
    agent = SimpleNamespace(membership=membership, store=SimpleNamespace(given=given), owner=SimpleNamespace(node="a"), problems={})
    assert await Talk(agent)._talk(SimpleNamespace(), look=False)
    assert told == ["let go"] and "given" in agent.problems
