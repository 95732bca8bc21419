"""What is long has threads of its own, behind everything else, and does not hold up what is short."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import pytest

from deployments.queues.two_speeds import LONG_S, NICENESS, TwoSpeeds
from policies.terms import Share

SHARE = Share(flow="a")


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has a priority of its own")
async def test_long_work_of_one_tenant_holds_up_no_short_work_and_yields_to_all() -> None:
    gate, began = threading.Event(), threading.Semaphore(0)

    def run(seconds: float) -> int:
        if seconds > LONG_S:
            began.release()
            gate.wait()
        return os.getpriority(os.PRIO_PROCESS, 0)

    pool = TwoSpeeds(run, cost=float, workers=2, queue_bound=50)
    try:
        long = [asyncio.create_task(pool.submit(1.0, SHARE)) for _ in range(9)]
        await asyncio.to_thread(began.acquire)
        short = [await pool.submit(0.01, share) for share in (SHARE, Share(flow="b"))]
        assert short == [os.getpriority(os.PRIO_PROCESS, 0)] * 2
        gate.set()
        assert set(await asyncio.gather(*long)) == {min(19, short[0] + NICENESS)}
    finally:
        gate.set()
        pool.close()
