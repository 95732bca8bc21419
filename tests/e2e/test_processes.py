"""A bare `serve run serve_config.yaml` is the whole product, as the list of processes shows."""

from __future__ import annotations

from urllib.parse import urlsplit

import psutil

from tests.e2e.conftest import Application


def test_haproxy_is_what_listens_and_not_a_proxy_of_serves_own(app: Application) -> None:
    assert app.process is not None
    port = urlsplit(app.base_url).port
    listening = {
        child.name()
        for child in psutil.Process(app.process.pid).children(recursive=True)
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in child.net_connections("tcp"))
    }
    assert listening == {"haproxy"}
