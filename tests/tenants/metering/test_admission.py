import asyncio
import time

import pytest

from policies.errors import LimitExceeded
from tenants.metering.admission import Admission
from tenants.metering.limits import Judgement, Reading, duration, exceeded, headers
from tenants.metering.meters import FIELDS, limits_of
from tenants.metering.settlement import today
from tenants.metering.usage import read_usage
from tenants.records import keyspace
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, until
from tests.tenants.requests import MODEL, attempt, tenant, total


@pytest.mark.parametrize(
    ("limits", "request_", "admitted"),
    [
        ({"rpm": 10}, {}, 10),
        ({"tpm": 100}, {"tokens": 9}, 11),
        ({"quota_requests_day": 7}, {}, 7),
        ({"quota_requests_month": 7}, {}, 7),
        ({"quota_images_day": 10}, {"images": 3}, 3),
        ({"quota_images_month": 10}, {"images": 3}, 3),
        ({"quota_tokens_day": 100}, {"tokens": 30}, 3),
        ({"quota_tokens_month": 100}, {"tokens": 30}, 3),
        ({}, {"tokens": 30, "images": 2}, 64),
    ],
)
async def test_of_64_requests_at_once_exactly_as_many_are_admitted_as_the_limit_allows(
    store: TenantStore, admission: Admission, limits: dict[str, int], request_: dict[str, int], admitted: int
) -> None:
    own = tenant(**limits)
    results = await asyncio.gather(*(attempt(admission, own, **request_) for _ in range(64)))
    assert sum(results) == admitted
    assert await admission.drain()
    counters = await total(store)
    assert (counters["requests"], counters["rejected"]) == (admitted, 64 - admitted)


async def test_two_replicas_share_one_limit(shared_backend: Backend, store: TenantStore, admission: Admission) -> None:
    async with await TenantStore.connect(shared_backend.url, timeout_s=5.0) as other:
        second = Admission(other)
        own = tenant(rpm=10)
        results = await asyncio.gather(*(attempt(a, own) for a in (admission, second) for _ in range(32)))
        assert sum(results) == 10
        await second.aclose()


async def test_no_more_run_at_once_than_the_concurrency_allows_and_an_end_makes_room(admission: Admission) -> None:
    own = tenant(concurrency=3)
    leases = [admission.admit(own, model=MODEL) for _ in range(3)]
    for lease in leases:
        await lease.__aenter__()
    with pytest.raises(LimitExceeded) as caught:
        await admission.admit(own, model=MODEL).__aenter__()
    assert (caught.value.code, caught.value.retry_after) == ("concurrency_limit_exceeded", 1)
    assert "3" in caught.value.message and "at a time" in caught.value.message
    await leases[0].__aexit__(None, None, None)
    # At once: the next admission passes over a lease that has ended, settled or not.
    await admission.admit(own, model=MODEL).__aenter__()


async def test_a_client_that_sends_one_after_another_is_never_refused_by_its_own_last_request(
    admission: Admission,
) -> None:
    own = tenant(concurrency=1)
    assert all([await attempt(admission, own) for _ in range(200)])


async def test_a_lease_whose_process_died_makes_room_when_it_expires(admission: Admission) -> None:
    own = tenant(concurrency=1)
    await admission.admit(own, model=MODEL, lease_s=0.05).__aenter__()
    await until(lambda: attempt(admission, own))


async def test_scripts_that_the_server_forgot_are_loaded_again(store: TenantStore, admission: Admission) -> None:
    own = tenant(rpm=5)
    for _ in range(3):
        await store.execute("SCRIPT", "FLUSH")
        assert await attempt(admission, own)
        await store.execute("SCRIPT", "FLUSH")
        assert await admission.drain()
    assert (await total(store))["requests"] == 3


async def test_a_bucket_counts_for_the_whole_sliding_minute_and_no_longer(
    store: TenantStore, admission: Admission
) -> None:
    own = tenant(rpm=10)
    now = int((await store.execute("TIME"))[0])
    window = f"{keyspace.window('acme')}:requests"
    buckets = (now - 62, 10, now - 40, 9)
    await store.execute("HSET", window, "sum", 19, "from", now - 90, "last", now - 40, *buckets)
    assert await attempt(admission, own)
    with pytest.raises(LimitExceeded) as caught:
        await admission.admit(own, model=MODEL).__aenter__()
    assert caught.value.retry_after is not None and 1 <= caught.value.retry_after <= 21
    assert not await store.execute("HEXISTS", window, now - 62)
    assert await store.execute("HGET", window, "sum") == b"10"


async def test_a_limit_says_which_it_is_and_when_to_come_back(admission: Admission) -> None:
    own = tenant(rpm=1)
    assert await attempt(admission, own)
    lease = admission.admit(own, model=MODEL)
    with pytest.raises(LimitExceeded, match="1 requests per minute") as caught:
        await lease.__aenter__()
    assert caught.value.code == "rate_limit_exceeded" and caught.value.retry_soon
    assert caught.value.retry_after is not None and 1 <= caught.value.retry_after <= 60
    assert lease.headers()["x-ratelimit-remaining-requests"] == "0"


async def test_a_request_beyond_the_whole_limit_is_told_that_waiting_does_not_help(admission: Admission) -> None:
    with pytest.raises(LimitExceeded, match="tokens per minute. This request alone") as caught:
        await admission.admit(tenant(tpm=10), model=MODEL, tokens=11).__aenter__()
    assert not caught.value.retry_soon and caught.value.retry_after is None


@pytest.mark.parametrize("quota", [name for name in FIELDS if name.startswith("quota") and "tokens" not in name])
async def test_a_quota_says_which_it_is_and_lasts_to_the_end_of_its_period(admission: Admission, quota: str) -> None:
    own = tenant(**{quota: 1})
    assert await attempt(admission, own, images=1)
    with pytest.raises(LimitExceeded) as caught:
        await admission.admit(own, model=MODEL, images=1).__aenter__()
    assert (caught.value.code, caught.value.retry_soon) == ("quota_exceeded", False)
    _, what, period = quota.split("_")
    assert f"1 {what} per {period}" in caught.value.message
    longest = {"hour": 3600, "day": 86400, "month": 31 * 86400}[period]
    assert caught.value.retry_after is not None and 0 < caught.value.retry_after <= longest


async def test_a_refused_request_leaves_nothing_but_its_counter(store: TenantStore, admission: Admission) -> None:
    with pytest.raises(LimitExceeded):
        await admission.admit(tenant(concurrency=0, rpm=5, tpm=50), model=MODEL, tokens=5).__aenter__()
    assert await admission.drain()
    assert {key async for key in store.scan("")} == {
        keyspace.INSTALLATION,
        keyspace.usage_period("acme", today()),
        keyspace.usage_period("acme", today()[:7]),
    }
    assert await total(store) == {**dict.fromkeys(await total(store), 0), "rejected": 1}


async def test_what_is_left_is_read_without_changing_it(store: TenantStore, admission: Admission) -> None:
    own = tenant(rpm=10, tpm=100, concurrency=4, quota_requests_day=20, quota_images_month=9)
    await admission.admit(own, model=MODEL, tokens=30, images=2).__aenter__()
    left = {"rpm": 9, "tpm": 70, "concurrency": 3, "quota_requests_day": 19, "quota_images_month": 7}
    for _ in range(3):
        assert await admission.remaining(own) == left
    assert await admission.remaining(tenant("other")) == {}
    assert await total(store, "other") == dict.fromkeys(await total(store), 0)


async def test_headers_name_the_limits_that_are_set(admission: Admission) -> None:
    async with admission.admit(tenant(rpm=10, tpm=100), model=MODEL, tokens=30) as lease:
        fields = lease.headers()
    assert fields["x-ratelimit-limit-requests"] == "10" and fields["x-ratelimit-remaining-requests"] == "9"
    assert fields["x-ratelimit-limit-tokens"] == "100" and fields["x-ratelimit-remaining-tokens"] == "70"
    assert fields["x-ratelimit-reset-tokens"] in ("1m0s", "1m1s")
    async with admission.admit(tenant("free"), model=MODEL) as lease:
        assert lease.headers() == {}


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0ms"), (12, "12ms"), (999, "999ms"), (1000, "1s"), (16001, "17s"), (59001, "1m0s"), (360000, "6m0s")],
)
def test_a_duration_is_written_as_openai_writes_it(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


def test_what_remains_is_never_negative() -> None:
    (rpm,) = limits_of(tenant(rpm=5))
    judgement = Judgement(rpm, 1, (Reading(rpm, 9, 1),))
    assert headers(judgement)["x-ratelimit-remaining-requests"] == "0"
    assert exceeded(judgement).retry_after == 1


async def test_a_key_has_limits_of_its_own_beside_its_tenants(store: TenantStore, admission: Admission) -> None:
    own = tenant(rpm=10, key={"rpm": 4, "quota_images_day": 3})
    assert [await attempt(admission, own) for _ in range(6)] == [True] * 4 + [False] * 2
    with pytest.raises(LimitExceeded, match="4 requests per minute for this API key"):
        await admission.admit(own, model=MODEL).__aenter__()
    # The tenant's other keys go on, under its limit, to which this key's requests count.
    assert [await attempt(admission, tenant(rpm=10)) for _ in range(8)] == [True] * 6 + [False] * 2
    assert await admission.drain()
    assert (await total(store))["requests"] == 10
    of_key = (await read_usage(store, "acme", today(), key_id=own.key_id))[0].total
    assert (of_key["requests"], of_key["rejected"]) == (4, 3)


async def test_the_headers_and_what_is_left_speak_of_the_tighter_limit(admission: Admission) -> None:
    own = tenant(rpm=10, tpm=100, key={"rpm": 4, "tpm": 1000, "concurrency": 2})
    async with admission.admit(own, model=MODEL, tokens=30) as lease:
        fields = lease.headers()
        assert (fields["x-ratelimit-limit-requests"], fields["x-ratelimit-remaining-requests"]) == ("4", "3")
        assert (fields["x-ratelimit-limit-tokens"], fields["x-ratelimit-remaining-tokens"]) == ("100", "70")
        assert await admission.remaining(own) == {"rpm": 3, "tpm": 70, "concurrency": 1}


async def test_what_this_process_alone_has_used_up_is_refused_unasked_and_nothing_that_the_store_might_admit(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_rate, by_tokens, by_key = tenant("a", rpm=2), tenant("b", tpm=100), tenant("c", rpm=9, key={"rpm": 1})
    at_once = tenant("d", concurrency=1)
    for own, request in ((by_rate, {}), (by_rate, {}), (by_tokens, {"tokens": 90}), (by_key, {})):
        admission.check_rate(own)
        assert await attempt(admission, own, **request)
    monkeypatch.setattr(admission, "ask", None)
    for own in (by_rate, by_key):
        with pytest.raises(LimitExceeded) as refused:
            admission.check_rate(own)
        assert refused.value.code == "rate_limit_exceeded" and 0 < refused.value.retry_after <= 61
    admission.check_rate(by_tokens)  # of what was reserved, some may have been given back
    monkeypatch.undo()
    async with admission.admit(at_once, model=MODEL):
        with pytest.raises(LimitExceeded, match="at a time"):
            admission.check_rate(at_once)
    admission.check_rate(at_once)
    now = time.monotonic()
    monkeypatch.setattr("tenants.metering.local.time.monotonic", lambda: now + 60.0)
    admission.check_rate(by_rate)  # the store's seconds begin at other times: it may have forgotten the first already
