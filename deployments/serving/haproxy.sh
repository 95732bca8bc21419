#!/bin/sh
# Serve's HAProxy, started as RAY_SERVE_HAPROXY_BINARY_PATH names it: `-db -f <configuration> ...` (see haproxy.py).
# Serve writes the configuration anew before every start. What no variable of Serve's can say is said here; a line that
# is not there any more changes nothing.
before=
for word in "$@"; do
    if [ "$before" = -f ]; then
        sed -i \
            -e "s/^\( *bind \)\*\{0,1\}:\($RAY_SERVE_HAPROXY_METRICS_PORT\|$RAY_SERVE_HAPROXY_STATS_PORT\)\$/\1$AIM_HAPROXY_ADMIN_HOST:\2/" \
            -e '/^ *stats socket /s/ mode 666 / mode 600 /' \
            -e "s/^\( *\)option abortonclose\$/&\n\1timeout http-request ${AIM_HAPROXY_HEADER_TIMEOUT_S}s/" \
            "$word" || true
    fi
    before=$word
done
# -dS: no splicing. Serve's `option splice-request` blinds its `option abortonclose` where a body comes apart from its
# headers: a client that left is served to the end, and HAProxy spins meanwhile.
exec "$AIM_HAPROXY" -dS "$@"
