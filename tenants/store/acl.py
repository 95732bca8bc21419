"""What each user of the store may do, in the server's words; docs/operations.md says who they are."""

from __future__ import annotations

from collections.abc import Mapping

_CONNECT = "-@all +hello +auth +ping"
_ONLY_ADDS = "+eval +evalsha +time +lindex +rpush ~audit:log"
"""A selector: what its commands do not have in it a user may not do to the audit log, whatever else it may do."""
USERS: Mapping[str, str] = {
    "gateway": f"{_CONNECT} +client|tracking +eval +evalsha +time +get +set +del +exists +expire +hgetall +hmget +hset"
    " +hdel +hkeys +hincrby +zadd +zrem +zcount +zscore +zmscore +zrangebyscore +xadd +xtrim %R~tier:* %R~tenant:*"
    " %R~apikey:* %R~plan:* %R~project:* ~used:* ~usage:* ~window:* ~running:* ~reserved:* ~request:* ~events:*"
    " ~store-id %R~secret:receipts %R~installation %R~settings %R~webhooks %R~secret:webhook:* ~alert:* ~files:*"
    f" ~file:* ~batches:* ~batch:* ~batches-open ~file-bytes ({_ONLY_ADDS})",
    "replica": f"{_CONNECT} +eval +evalsha +get +set +del +incr +scan +hmget +hset +xadd %R~tier:* %R~tenant:*"
    " ~calibration:* ~calibration-version:* ~calibrate:* ~field:* ~levels:* ~catalog ~audit:models ~noise-secret-id"
    " %R~secret:noise",
    "admin": f"{_CONNECT} +acl|whoami +eval +evalsha +get +set +del +exists +scan +hget +hgetall +hmget +hset +hdel"
    " +zadd +zrem +zrange +zlexcount +zscore +xrange +xrevrange +xadd +xtrim +xlen +expire +time ~tier:* ~tenant:*"
    " ~plan:* ~project:* ~apikey:* ~adminkey:* ~known:* ~index ~settings ~webhooks %W~secret:webhook:* ~alert:*"
    " %R~audit:models %R~audit ~calibrate:* ~used:* ~usage:* ~window:* ~running:* ~reserved:* ~request:* ~events:*"
    " %R~levels:* %R~catalog %R~noise-secret-id %R~secret:receipts %R~installation ~files:* ~batches:* ~file-bytes"
    f" (+lrange +llen {_ONLY_ADDS})",
    "installer": f"{_CONNECT} +acl|whoami +scan +exists +set +del %W~secret:noise %W~secret:receipts ~noise-secret-id"
    f" ~installation ({_ONLY_ADDS})",
}
"""Rules of ACL SETUSER by user, without password. From Redis 7.2 and Valkey on each wants `NEWER` as well."""
NEWER = "+client|setinfo"
