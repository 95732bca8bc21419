"""What each user of the store may do, in the server's words; docs/operations.md says who they are."""

from __future__ import annotations

from collections.abc import Mapping

_CONNECT = "-@all +hello +auth +ping"
USERS: Mapping[str, str] = {
    "gateway": f"{_CONNECT} +client|tracking +eval +evalsha +time +get +set +del +exists +expire +hgetall +hmget +hset"
    " +hdel +hincrby +zadd +zrem +zcount +zscore +zmscore +zrangebyscore +xadd +xtrim %R~tier:* %R~tenant:* %R~apikey:*"
    " ~used:* ~usage:* ~window:* ~running:* ~reserved:* ~request:* ~events:* ~store-id %R~secret:receipts",
    "replica": f"{_CONNECT} +eval +evalsha +get +set +del +incr +scan +hmget +xadd %R~tier:* %R~tenant:* ~calibration:*"
    " ~calibration-version:* ~calibrate:* ~field:* ~levels:* ~audit:models ~noise-secret-id"
    " %R~secret:noise",
    "admin": f"{_CONNECT} +eval +evalsha +get +set +del +exists +scan +hget +hgetall +hset +hdel +xadd +xrange"
    " +xrevrange ~tier:* ~tenant:* ~apikey:* ~audit %R~audit:models ~calibrate:* %R~used:* %R~usage:* %R~reserved:*"
    " %R~events:* %R~levels:* %R~noise-secret-id %R~secret:receipts",
    "installer": f"{_CONNECT} +scan +exists +set +del +xadd %W~secret:noise %W~secret:receipts ~noise-secret-id ~audit",
}
"""Rules of ACL SETUSER by user, without password. From Redis 7.2 and Valkey on each wants `NEWER` as well."""
NEWER = "+client|setinfo"
