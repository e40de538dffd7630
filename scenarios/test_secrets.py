"""What lets somebody in stays with the run: nobody else gets in, and nothing that is kept says how."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from harness.live_run import LiveRun
    from scenarios.shop.shop import Shop


async def test_only_who_knows_the_runs_own_token_changes_the_provider_and_no_file_tells_it(
    shop: Shop, live_run: LiveRun
) -> None:
    """The provider's habits are a lever on everybody's money; evidence, logs and reports are passed around."""
    environment = live_run.environment
    token, password = environment.wiring.secret("provider-admin"), environment.broker.password
    habits = f"http://{environment.address('provider')}/admin/habits"

    await shop.place_orders(count=10)
    async with aiohttp.ClientSession() as anybody:
        without = await anybody.get(habits)
        guessed = await anybody.put(habits, json={"silent": True}, headers={"authorization": "Bearer guessed"})
        with_it = await anybody.get(habits, headers={"authorization": f"Bearer {token}"})
    judgement = await shop.judge()

    assert judgement.holds, judgement.explain()
    assert [answer.status for answer in (without, guessed, with_it)] == [
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.OK,
    ]
    assert password
    kept = [path for path in live_run.stage.directory.rglob("*") if path.is_file()]
    told = [path for path in kept for secret in (token, password) if secret.encode() in path.read_bytes()]
    assert len(kept) > 5  # evidence, plan, history, spools, and the log of each process
    assert told == []
