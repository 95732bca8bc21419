"""A bare `serve run serve_config.yaml` is the whole product: what stands in the list of processes."""

from __future__ import annotations

from urllib.parse import urlsplit

import psutil

from tests.e2e.conftest import Application


def test_haproxy_answers_and_no_proxy_of_serves_own(app: Application) -> None:
    assert app.process is not None
    port = urlsplit(app.base_url).port
    children = psutil.Process(app.process.pid).children(recursive=True)
    listening = {
        child.name()
        for child in children
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in child.net_connections("tcp"))
    }
    assert listening == {"haproxy"}
    # The one Python proxy that there is stands by for a gateway without a replica; it has seen no request.
    proxies = [child for child in children if "Proxy" in " ".join(child.cmdline()) and child.name() != "haproxy"]
    for proxy in proxies:
        held = {c.raddr.port for c in proxy.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED and c.raddr}
        assert port not in held
