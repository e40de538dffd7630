"""The provider over HTTP: what it answers, its unpleasant habits, and what its spans say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from system.metrics import Metrics
from system.provider import habits
from system.provider.api import CHARGES_PATH, REFUNDS_PATH, ProviderApi
from system.provider.cashier import Cashier
from system.provider.habits import HELD_MAX, Behaviour, Habits, Latency
from system.provider.ledger import Ledger, LedgerError, LedgerUnknownError
from system.settings import Address, TelemetrySettings
from system.telemetry import Telemetry
from system.tests.parts import free_port, wait_until
from system.web import Request, Response, Server

CHARGE = {"order_id": "o1", "amount_minor": 1250, "currency": "EUR"}
TOKEN = "s3cret-word"  # noqa: S105 - nobody is let in by it but this test
REFUND = {**CHARGE, "charge_key": "o1"}


class Provider:
    """A provider that is asked without a network."""

    def __init__(self, api: ProviderApi, behaviour: Behaviour, path: Path, metrics: Metrics) -> None:
        self.behaviour = behaviour
        self.metrics = metrics
        self._api = api
        self._path = path

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = "o1",
        traceparent: str = "",
        authorization: str = "",
    ) -> Response:
        """The answer to one request."""
        headers = {} if key is None else {"idempotency-key": key}
        if authorization:
            headers["authorization"] = authorization
        if traceparent:
            headers["traceparent"] = traceparent
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = self._api(Request(method=method, path=path, headers=headers, body=content))
        return answer if isinstance(answer, Response) else await answer

    async def charge(self, order: str = "o1", *, amount_minor: int = 1250) -> Response:
        """The answer to a well-formed charge."""
        body = {**CHARGE, "order_id": order, "amount_minor": amount_minor}
        return await self.ask("POST", CHARGES_PATH, body, key=order)

    async def refund(self, order: str = "o1", *, amount_minor: int = 1250) -> Response:
        """The answer to a well-formed refund."""
        body = {**REFUND, "order_id": order, "charge_key": order, "amount_minor": amount_minor}
        return await self.ask("POST", REFUNDS_PATH, body, key=f"refund:{order}")

    async def put_habits(self, **members: object) -> Response:
        """The answer to a change of habits."""
        return await self.ask("PUT", "/admin/habits", members)

    def lines(self) -> list[str]:
        """The kinds of the ledger's lines."""
        return [json.loads(line)["kind"] for line in self._path.read_bytes().splitlines()]

    def count(self, name: str, outcome: str) -> int:
        """How many requests ended so."""
        return int(self.metrics.counter(name, "", label="outcome", value=outcome).value)


@contextlib.asynccontextmanager
async def running(
    directory: Path, metrics: Metrics, *, endpoint: str | None = None, admin_token: str | None = None
) -> AsyncIterator[Provider]:
    """A provider without habits. endpoint: where its spans go."""
    settings = TelemetrySettings(service_name="provider", endpoint=endpoint, spool_directory=None)
    behaviour = Behaviour(Habits())
    async with Telemetry(settings, metrics) as telemetry, Ledger(directory / "ledger") as ledger:
        cashier = Cashier(ledger, declines=behaviour.declines)
        api = ProviderApi(cashier, behaviour, tracer=telemetry.tracer, metrics=metrics, admin_token=admin_token)
        yield Provider(api, behaviour, directory / "ledger", metrics)


@pytest_asyncio.fixture
async def provider(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Provider]:
    """A provider whose spans nobody looks at."""
    async with running(tmp_path, metrics) as provider:
        yield provider


def members(response: Response) -> Mapping[str, object]:
    """The JSON body."""
    found: dict[str, object] = json.loads(response.body)
    return found


async def test_a_charge_its_replay_its_refund_and_the_replay_of_that(provider: Provider) -> None:
    """201 and 200, each with the same ids; two lines in the ledger."""
    charged, charged_again = await provider.charge(), await provider.charge()
    refunded, refunded_again = await provider.refund(), await provider.refund()

    assert [each.status for each in (charged, charged_again, refunded, refunded_again)] == [201, 200, 201, 200]
    assert (charged.body, refunded.body) == (charged_again.body, refunded_again.body)
    assert members(charged)["status"] == "captured"
    assert members(refunded)["status"] == "refunded"
    assert members(refunded)["charge_id"] == members(charged)["charge_id"]
    assert str(members(refunded)["refund_id"]).startswith("re_")
    assert provider.lines() == ["charge", "refund"]
    assert [provider.count("charges", word) for word in ("captured", "replayed")] == [1, 1]
    assert [provider.count("refunds", word) for word in ("refunded", "replayed")] == [1, 1]


async def test_a_charge_undone_first_is_voided_and_its_charge_is_a_conflict(provider: Provider) -> None:
    """409, a problem of the type `voided`, which a client can tell from every other refusal."""
    voided, again, late = await provider.refund(), await provider.refund(), await provider.charge()

    assert [each.status for each in (voided, again, late)] == [201, 200, 409]
    assert members(voided) == members(again) == {"status": "voided"}
    assert late.content_type == "application/problem+json"
    assert {name: members(late)[name] for name in ("type", "status", "order_id")} == {
        "type": "voided",
        "status": 409,
        "order_id": "o1",
    }
    assert provider.lines() == ["void"]


async def test_a_decline_is_402_and_leaves_nothing_to_refund(provider: Provider) -> None:
    """Every time."""
    answers = [await provider.charge(amount_minor=113), await provider.charge(amount_minor=113)]
    undone = [await provider.refund(amount_minor=113), await provider.refund(amount_minor=113)]

    assert [each.status for each in (*answers, *undone)] == [402, 402, 200, 200]
    assert members(undone[0]) == {"status": "declined"}
    assert provider.lines() == ["decline"]


@pytest.mark.parametrize(
    ("path", "key", "body", "status"),
    [
        (CHARGES_PATH, None, CHARGE, 400),
        (CHARGES_PATH, "k" * 256, CHARGE, 400),
        (CHARGES_PATH, "two words", CHARGE, 400),
        (CHARGES_PATH, "o1", b"not json", 400),
        (CHARGES_PATH, "o1", b"\xff", 400),
        (CHARGES_PATH, "o1", b"[" * 20_000, 400),
        (CHARGES_PATH, "o1", {**CHARGE, "amount_minor": "12"}, 400),
        (CHARGES_PATH, "o1", {**CHARGE, "amount_minor": 12.5}, 400),
        (CHARGES_PATH, "o1", {**CHARGE, "amount_minor": 0}, 422),
        (CHARGES_PATH, "o1", {**CHARGE, "amount_minor": -5}, 422),
        (CHARGES_PATH, "o1", {**CHARGE, "amount_minor": 2**53 + 1}, 422),
        (CHARGES_PATH, "o1", {**CHARGE, "amount_minor": 10**30}, 422),
        (CHARGES_PATH, "o1", {**CHARGE, "order_id": ""}, 422),
        (CHARGES_PATH, "o1", {**CHARGE, "order_id": "o" * 256}, 422),
        (CHARGES_PATH, "o1", {**CHARGE, "currency": "euro"}, 422),
        (REFUNDS_PATH, None, REFUND, 400),
        (REFUNDS_PATH, "r1", CHARGE, 400),
        (REFUNDS_PATH, "r1", {**REFUND, "charge_key": ""}, 422),
        (REFUNDS_PATH, "r1", {**REFUND, "charge_key": "two words"}, 422),
        (REFUNDS_PATH, "r1", {**REFUND, "amount_minor": 0}, 422),
    ],
)
async def test_what_is_no_request_is_refused_and_moves_nothing(
    provider: Provider, path: str, key: str | None, body: object, status: int
) -> None:
    """With a sentence that says why."""
    answer = await provider.ask("POST", path, body, key=key)

    assert answer.status == status
    assert members(answer)["detail"]
    assert provider.lines() == []


async def test_a_refund_of_another_amount_is_refused(provider: Provider) -> None:
    """All of it or nothing."""
    await provider.charge()

    answer = await provider.refund(amount_minor=1249)

    assert (answer.status, members(answer)["order_id"]) == (422, "o1")
    assert provider.lines() == ["charge"]


@pytest.mark.parametrize("path", [CHARGES_PATH, REFUNDS_PATH])
async def test_only_post_asks_for_money(provider: Provider, path: str) -> None:
    """405 says what would do."""
    answer = await provider.ask("GET", path)

    assert (answer.status, dict(answer.headers)["allow"]) == (405, "POST")
    assert (await provider.ask("POST", "/elsewhere")).status == 404


@pytest.mark.parametrize(
    ("failure", "status", "says"),
    [
        (LedgerError("the disk is full"), 503, "nothing moved: the disk is full"),
        (LedgerUnknownError("gone"), 500, "whether the money moved is unknown: gone"),
    ],
)
async def test_a_ledger_that_fails_is_said_to(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, failure: LedgerError, status: int, says: str
) -> None:
    """503 when it is certain that nothing happened, 500 when it is not."""

    async def fail(*_arguments: object) -> None:
        raise failure

    monkeypatch.setattr(Cashier, "charge", fail)
    monkeypatch.setattr(Cashier, "refund", fail)

    for answer in (await provider.charge(), await provider.refund()):
        assert (answer.status, members(answer)["detail"]) == (status, says)
    assert (provider.count("charges", "failed"), provider.count("refunds", "failed")) == (1, 1)


# Spans.


class Collector:
    """Takes spans as a collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    async def __call__(self, request: Request) -> Response:
        """Take some."""
        for resource in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return Response(status=200)

    def told(self) -> list[tuple[object, ...]]:
        """Name, order, outcome, HTTP status and whether it is an error, of each."""
        return [
            (
                span.name,
                attributes.get("order.id", "-"),
                attributes.get("charge.outcome") or attributes.get("refund.outcome", "-"),
                attributes.get("http.response.status_code"),
                span.status.code == span.status.STATUS_CODE_ERROR,
            )
            for span in self.spans
            for attributes in [{each.key: each.value.int_value or each.value.string_value for each in span.attributes}]
        ]


async def test_spans_say_what_became_of_each_request(tmp_path: Path, metrics: Metrics) -> None:
    """In the caller's trace; an answer that never came has no status, and its charge counts all the same."""
    collector, port = Collector(), free_port()
    address = Address(host="127.0.0.1", port=port)
    async with Server(address, collector), running(tmp_path, metrics, endpoint=f"http://{address}") as provider:
        await provider.ask("POST", CHARGES_PATH, CHARGE, traceparent=f"00-{7:032x}-{8:016x}-01")
        await provider.charge()
        await provider.charge("o2", amount_minor=113)
        await provider.refund()
        await provider.refund("o3")
        await provider.charge("o3")
        await provider.ask("POST", CHARGES_PATH, b"nonsense")
        await provider.put_habits(error_rate=1.0)
        await provider.charge("o4")
        await provider.put_habits(error_rate=0.0, charge_then_timeout_rate=1.0)
        waiting = asyncio.create_task(provider.charge("o5"))
        await wait_until(lambda: len(provider.lines()) == 5, what="the last charge")
        provider.behaviour.release()
        await waiting

    assert collector.told() == [
        ("POST /charges", "o1", "captured", 201, False),
        ("POST /charges", "o1", "replayed", 200, False),
        ("POST /charges", "o2", "declined", 402, False),
        ("POST /refunds", "o1", "refunded", 201, False),
        ("POST /refunds", "o3", "voided", 201, False),
        ("POST /charges", "o3", "voided", 409, False),
        ("POST /charges", "-", "refused", 400, False),
        ("POST /charges", "o4", "error", 500, True),
        ("POST /charges", "o5", "captured", None, False),
    ]
    first, *others = collector.spans
    assert (int.from_bytes(first.trace_id, "big"), int.from_bytes(first.parent_span_id, "big")) == (7, 8)
    assert {span.parent_span_id for span in others} == {b""}
    assert {span.kind for span in collector.spans} == {Span.SPAN_KIND_SERVER}
    assert len({span.trace_id for span in collector.spans}) == len(collector.spans)


# Habits.


async def test_habits_are_read_changed_in_part_and_reset(provider: Provider) -> None:
    """What is not named stays as it is, also within `latency`; each answer shows what is in force."""
    initial = members(await provider.ask("GET", "/admin/habits"))
    await provider.put_habits(latency={"mean_ms": 30}, error_rate=0.5)
    changed = members(await provider.put_habits(latency={"jitter_ms": 5}, decline_ending=None))
    read = members(await provider.ask("GET", "/admin/habits"))
    reset = members(await provider.ask("DELETE", "/admin/habits"))

    assert initial == reset == json.loads(msgspec.json.encode(Habits()))
    assert changed == read
    assert changed == {
        **initial,
        "latency": {"mean_ms": 30.0, "jitter_ms": 5.0, "slow_ms": 0.0, "slow_share": 0.0},
        "error_rate": 0.5,
        "decline_ending": None,
    }


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"nonsense", "these are no habits: JSON is malformed"),
        (b"[1]", "a JSON object"),
        (b"\xff", "these are no habits"),
        (b"[" * 20_000, "these are no habits"),
        (b'{"error_rate": 1.5}', "$.error_rate"),
        (b'{"error_rate": -0.1}', "$.error_rate"),
        (b'{"error_rate": "often"}', "$.error_rate"),
        (b'{"latency": {"mean_ms": 5, "jitter_ms": 6}}', "jitter_ms=6 is above mean_ms=5"),
        (b'{"latency": {"mean_ms": -1}}', "$.latency.mean_ms"),
        (b'{"latency": {"median_ms": 1}}', "median_ms"),
        (b'{"latency": null}', "$.latency"),
        (b'{"decline_ending": 100}', "$.decline_ending"),
        (b'{"silent": 1}', "$.silent"),
        (b'{"seed": -1}', "$.seed"),
        (b'{"eror_rate": 0.5}', "eror_rate"),
    ],
)
async def test_habits_that_make_no_sense_are_refused_and_change_nothing(
    provider: Provider, body: bytes, says: str
) -> None:
    """422 says which, and what was expected."""
    await provider.put_habits(too_many_rate=0.25)
    before = provider.behaviour.habits

    answer = await provider.ask("PUT", "/admin/habits", body)

    assert answer.status == 422
    assert says in str(members(answer)["detail"])
    assert provider.behaviour.habits == before


async def test_habits_can_be_read_put_and_deleted_only(provider: Provider) -> None:
    """405 says so."""
    answer = await provider.ask("POST", "/admin/habits", {})

    assert (answer.status, dict(answer.headers)["allow"]) == (405, "GET, HEAD, PUT, DELETE")


async def test_with_a_token_only_those_who_know_it_see_or_change_habits(tmp_path: Path, metrics: Metrics) -> None:
    """401 for all others, and nothing changes; charges are none of its business."""
    async with running(tmp_path, metrics, admin_token=TOKEN) as provider:
        refused = [
            await provider.ask(method, "/admin/habits", {"silent": True}, authorization=given)
            for method in ("GET", "PUT", "DELETE")
            for given in ("", "Bearer", "Bearer s3cret", f"Basic {TOKEN}", TOKEN, "Bearer \udcff")
        ]
        taken = await provider.ask("PUT", "/admin/habits", {"silent": True}, authorization=f"bearer  {TOKEN}")
        plain = await provider.ask("POST", CHARGES_PATH, {**CHARGE, "amount_minor": -1})

    assert {answer.status for answer in refused} == {401}
    assert {dict(answer.headers)["www-authenticate"] for answer in refused} == {"Bearer"}
    assert (taken.status, members(taken)["silent"], plain.status) == (200, True, 422)
    assert b"s3cret" not in b"".join(answer.body for answer in refused)


async def test_errors_and_too_many_move_nothing(provider: Provider) -> None:
    """500 and 429; the order can be charged once the habit is gone."""
    await provider.put_habits(error_rate=1.0)
    failed = [await provider.charge(), await provider.refund()]
    await provider.put_habits(error_rate=0.0, too_many_rate=1.0)
    limited = [await provider.charge(), await provider.refund()]
    await provider.put_habits(too_many_rate=0.0)

    assert [each.status for each in failed] == [500, 500]
    assert [(each.status, dict(each.headers)["retry-after"]) for each in limited] == [(429, "1"), (429, "1")]
    assert provider.lines() == []
    assert (await provider.charge()).status == 201


async def test_another_ending_is_declined(provider: Provider) -> None:
    """For what comes from now on; what was decided stays."""
    captured = await provider.charge("o1", amount_minor=177)
    await provider.put_habits(decline_ending=77)

    assert (await provider.charge("o1", amount_minor=177)).body == captured.body
    assert (await provider.charge("o2", amount_minor=177)).status == 402
    assert (await provider.charge("o3", amount_minor=113)).status == 201


async def test_money_moves_and_the_answer_never_comes(provider: Provider) -> None:
    """The line is in the ledger while the client waits in vain; asking again finds the charge, which moves no money."""
    await provider.put_habits(charge_then_timeout_rate=1.0)
    waiting = [asyncio.create_task(provider.charge()), asyncio.create_task(provider.refund("o2"))]
    await wait_until(
        lambda: provider.count("charges", "captured") == provider.count("refunds", "voided") == 1,
        what="the charge and the void",
    )
    await provider.put_habits(charge_then_timeout_rate=0.0)
    again = await provider.charge()

    assert not any(task.done() for task in waiting)
    assert again.status == 200
    assert provider.lines() == ["charge", "void"]
    provider.behaviour.release()
    assert [answer.status for answer in await asyncio.gather(*waiting)] == [504, 504]


async def test_a_silent_provider_moves_nothing_and_answers_nobody_until_it_stops(provider: Provider) -> None:
    """Who asks after the silence is served; who asked during it hears only that the provider stops."""
    await provider.put_habits(silent=True)
    waiting = [asyncio.create_task(provider.charge()), asyncio.create_task(provider.refund())]
    await asyncio.sleep(0)
    await provider.ask("DELETE", "/admin/habits")
    served = await provider.charge("o2")

    assert served.status == 201
    assert not any(task.done() for task in waiting)
    provider.behaviour.release()
    assert [answer.status for answer in await asyncio.gather(*waiting)] == [504, 504]
    assert provider.lines() == ["charge"]


async def test_the_number_of_those_who_wait_in_vain_is_bounded() -> None:
    """The one too many makes room: the oldest is let go."""
    behaviour = Behaviour(Habits())
    waiting = [asyncio.create_task(behaviour.never_answer()) for _ in range(HELD_MAX + 1)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

    assert [task.done() for task in waiting].index(True) == 0
    assert sum(task.done() for task in waiting) == 1
    behaviour.release()
    await asyncio.gather(*waiting, behaviour.never_answer())


def test_thinking_takes_as_long_as_the_habits_say() -> None:
    """Around the mean within the jitter; and a share of them is slow."""
    latency = Latency(mean_ms=20.0, jitter_ms=5.0, slow_ms=900.0, slow_share=0.1)
    behaviour = Behaviour(Habits(latency=latency, seed=1))
    pauses_ms = [behaviour.pause_ms() for _ in range(1000)]

    usual_ms = [pause_ms for pause_ms in pauses_ms if pause_ms < 500]
    assert 850 <= len(usual_ms) <= 950
    assert {pause_ms for pause_ms in pauses_ms if pause_ms >= 500} == {900.0}
    assert 15.0 <= min(usual_ms) < 15.5
    assert 24.5 < max(usual_ms) <= 25.0


async def test_a_charge_waits_for_the_card_network(provider: Provider) -> None:
    """Nothing is in the ledger before it has thought, and the charge after."""
    await provider.put_habits(latency={"mean_ms": 30})
    began_s = time.monotonic()
    answer = await provider.charge()

    assert (answer.status, provider.lines()) == (201, ["charge"])
    assert time.monotonic() - began_s >= 0.03


async def test_a_stop_waits_for_short_thoughts_and_cuts_long_ones_short(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503, nothing moved: whoever asked can ask again."""
    monkeypatch.setattr(habits, "FINISH_WITHIN_S", 0.1)
    await provider.put_habits(latency={"mean_ms": 20})
    short = asyncio.create_task(provider.charge("short"))
    await asyncio.sleep(0)
    await provider.put_habits(latency={"mean_ms": 600_000})
    long = asyncio.create_task(provider.charge("long"))
    await asyncio.sleep(0)
    provider.behaviour.release()

    assert [answer.status for answer in await asyncio.gather(short, long)] == [201, 503]
    assert provider.lines() == ["charge"]


async def test_the_same_seed_brings_the_same_luck(provider: Provider) -> None:
    """Putting the seed again starts chance anew."""

    async def luck() -> list[int]:
        await provider.put_habits(seed=7, error_rate=0.3, too_many_rate=0.3)
        return [(await provider.charge(f"o{n}")).status for n in range(40)]

    first, second = await luck(), await luck()

    # 201 becomes 200 the second time: the order was charged, whatever the luck.
    assert [status if status > 299 else 200 for status in first] == [
        status if status > 299 else 200 for status in second
    ]
    assert {429, 500} < set(first)
