"""Every Redis key name, in one place. A tenant's counters share a hash tag, so that one script may touch them all."""

from __future__ import annotations

import hashlib
import re
import secrets

TIER = "tier:"
TENANT = "tenant:"
APIKEY = "apikey:"
PLAN = "plan:"
"""A version of a price list: `plan:<name>@<version>`."""
PROJECT = "project:"
INSTALLATION = "installation"
"""That this store is an installation's, and which: without it nobody's key is called unknown."""
TRACKED_PREFIXES = (TIER, TENANT, APIKEY, PLAN, PROJECT, INSTALLATION)
"""What entitlements are resolved from: the prefixes whose edits the server announces."""

ADMIN_KEY = "adminkey:"
INDEX = "index"
"""Sorted set of the records' keys, and of who belongs to whom, so that a list need not scan the keyspace."""
AUDIT = "audit:log"
"""List of one JSON line a change, each with the hash of the one before. A list, since RPUSH can only add: whoever may
XADD to a stream may trim it by the same command."""
AUDIT_BEFORE = "audit"
"""The stream in which changes were noted before `AUDIT` was; nothing writes it."""
CATALOG = "catalog"
"""Hash of every model that has been served to its classes (JSON), or to null where it answers in words."""
CALIBRATION = "calibration:"
FIELD = "field:"
AUDIT_MODELS = "audit:models"
"""What replicas began by themselves. Apart from `audit`, to which they have no right: who can add can trim."""
LEVELS = "levels:"
NOISE_SECRET = "secret:noise"
NOISE_SECRET_ID = "noise-secret-id"
"""Which noise secret the installation's replicas serve with: 16 hex digits, no secret."""
RECEIPT_SECRET = "secret:receipts"
SEED_GUARD = "seed:demo"
SETTINGS = "settings"
"""What an admin has set for the whole installation."""
WEBHOOKS = "webhooks"
"""Hash of names to addresses: where alerts are sent."""
WEBHOOK_SECRET = "secret:webhook:"
"""Before a webhook's name: what its messages are signed with. Apart from its record: admins write and never read it."""

_RANDOM = 43
"""Characters of 256 bits in URL-safe base 64."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_name(text: str) -> bool:
    """Whether `text` may name a tenant or a tier: letters, digits, `.`, `_`, `-`, 64 characters at most."""
    return _NAME.fullmatch(text) is not None


def is_model(text: str) -> bool:
    """Whether `text` may name a model: a name, or two with a slash between them."""
    return len(parts := text.split("/")) <= 2 and all(map(is_name, parts))


_PLAN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})@([1-9][0-9]{0,5})")


def is_plan(text: str) -> bool:
    """Whether `text` may name a version of a plan: `<name>@<number from 1>`."""
    return _PLAN.fullmatch(text) is not None


def plan(reference: str) -> str:
    return PLAN + reference


def tier(name: str) -> str:
    return TIER + name


def tenant(tenant_id: str) -> str:
    return TENANT + tenant_id


def project(project_id: str) -> str:
    return PROJECT + project_id


def shared(project_id: str) -> str:
    """What a project is called where a tenant's counters are named: no tenant may be called so."""
    return f"project:{project_id}"


def apikey(digest: str) -> str:
    return APIKEY + digest


def key_digest(secret: str) -> str:
    """SHA-256 of an API key, 64 hex digits: the only form in which a key is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_secret(tenant_id: str) -> str:
    """A new API key of a tenant: 256 random bits behind its name."""
    return f"sk-{tenant_id}-{secrets.token_urlsafe(32)}"


def named_tenant(secret: str) -> str | None:
    """The tenant that a key of the form of `new_secret` names, whosever it is; None for one of another form."""
    name = secret[3 : -_RANDOM - 1] if secret.startswith("sk-") and secret[-_RANDOM - 1 : -_RANDOM] == "-" else ""
    return name if is_name(name) else None


def webhook_secret(name: str) -> str:
    return WEBHOOK_SECRET + name


ALERT = "alert:{alerts}:"
"""Before all that is known of alerts; one hash tag, so that one script may touch them all."""


def alert_seen(subject: str) -> str:
    """That an alert was raised; it expires when it may be raised again."""
    return f"{ALERT}seen:{subject}"


def alert_body(number: str) -> str:
    """An alert's message (JSON)."""
    return f"{ALERT}body:{number}"


ALERTS_DUE = f"{ALERT}due"
"""Sorted set of deliveries, `<id> <webhook>`, by the unix second at which each is to be tried next."""
ALERTS_TRIED = f"{ALERT}tried"
"""Hash of deliveries to how often each was tried."""
ALERTS_LEADER = f"{ALERT}leader"
"""Which gateway delivers alerts; it expires with it."""


def admin_key(digest: str) -> str:
    return ADMIN_KEY + digest


def known(record: str) -> str:
    """A record's fields as the last audited change left them (JSON), in the record's own slot of a Cluster."""
    return f"known:{{{record}}}"


def calibration(fingerprint: str) -> str:
    return CALIBRATION + fingerprint


def field(name: str) -> str:
    """What a noise field is beside its key (JSON), written once: models that share the field are solved on it."""
    return FIELD + name


def field_shape(name: str) -> str:
    """`<features>x<classes>` of the final layers that share a field."""
    return f"{FIELD}{name}:shape"


def calibration_version(fingerprint: str) -> str:
    """Counts how often a calibration was put in place, so that replicas need not read it to see that it is another."""
    return f"calibration-version:{fingerprint}"


def calibration_before(fingerprint: str) -> str:
    """The calibration that a refit replaced (JSON), to put back."""
    return f"calibration:{fingerprint}:before"


def calibration_rest(fingerprint: str) -> str:
    """Why no refit of a calibration begins by itself now, in a few words; it expires when one may."""
    return f"calibrate:{fingerprint}:rest"


def calibration_job(subject: str) -> str:
    """A refit of a model, or a first calibration by its own key, and how far it is (JSON).

    It expires when nobody works on it.
    """
    return f"calibrate:{subject}"


def calibration_outcome(model: str, job: str) -> str:
    """How a refit ended (JSON), for the one who asked: by then another may stand in `calibration_job`."""
    return f"calibrate:{model}:{job}"


def levels(model: str, replica: str) -> str:
    """What one replica sold and delivered (JSON); it expires with the replica."""
    return f"{LEVELS}{model}:{replica}"


def used(digest: str) -> str:
    """When an API key was last used. Apart from its record: writing it is no edit, and is announced to nobody."""
    return f"used:{digest}"


def usage(tenant_id: str, key_id: str = "") -> str:
    """Stem of the usage counters; `:<yyyy-mm-dd>` (a day) or `:<yyyy-mm>` (a month), both UTC, follows.

    Here and below, `key_id` names the counters of one of the tenant's API keys that has limits of its own. The scripts
    make the names of other owners and periods by the stems (`tenants/metering/meters.lua`).
    """
    return f"usage:{{{tenant_id}}}{_part(key_id)}"


def usage_period(tenant_id: str, period: str, key_id: str = "") -> str:
    return f"{usage(tenant_id, key_id)}:{period}"


def sold(tenant_id: str, day: str) -> str:
    """What was settled on a UTC day, by model, level, tier and key."""
    return f"{usage(tenant_id)}:sold:{day}"


def window(tenant_id: str, key_id: str = "") -> str:
    """Stem of the sliding minutes; `:<counter>` follows."""
    return f"window:{{{tenant_id}}}{_part(key_id)}"


def running(tenant_id: str, key_id: str = "") -> str:
    """Sorted set of requests under way: id to expiry in unix milliseconds."""
    return f"running:{{{tenant_id}}}{_part(key_id)}"


def reserved(tenant_id: str, key_id: str = "") -> str:
    """Hash of what the requests under way are admitted with."""
    return f"reserved:{{{tenant_id}}}{_part(key_id)}"


def request(tenant_id: str) -> str:
    """Stem of what single requests are admitted with, and of the tombstones of settled ones; `:<id>` follows."""
    return f"request:{{{tenant_id}}}"


EVENTS = "events:"


def events(tenant_id: str) -> str:
    """Stream with an entry for each settled request."""
    return f"{EVENTS}{{{tenant_id}}}"


def tenant_of_events(key: str) -> str:
    """Whose stream of `events` this is."""
    return key[len(EVENTS) + 1 : -1]


BATCHES_OPEN = "batches-open"
"""Sorted set of the batches that have not ended, `<tenant> <id>` by the second of their making: gateways look here."""
FILE_BYTES = "file-bytes"
"""Hash of tenant to the bytes of its files, for the bound over all of them."""


def files(tenant_id: str) -> str:
    """Hash of a tenant's files, id to what they are (JSON)."""
    return f"files:{{{tenant_id}}}"


def file_part(tenant_id: str, file_id: str, number: int) -> str:
    """A piece of a file; it expires with the file."""
    return f"file:{{{tenant_id}}}:{file_id}:{number}"


def batches(tenant_id: str) -> str:
    """Sorted set of a tenant's batches, id by the second of their making."""
    return f"batches:{{{tenant_id}}}"


def open_batches(tenant_id: str) -> str:
    """The same of those that have not ended."""
    return f"batches:{{{tenant_id}}}:open"


def batch(tenant_id: str, batch_id: str) -> str:
    """Hash of a batch: what was asked, its status, its counts, and which gateway has it until when."""
    return f"batch:{{{tenant_id}}}:{batch_id}"


def batch_results(tenant_id: str, batch_id: str) -> str:
    """Hash of a batch's results, the number of their line to one line of output; gone once its files are written."""
    return f"batch:{{{tenant_id}}}:{batch_id}:results"


STORE_ID = "store-id"
"""Which store this is: 16 hex digits, drawn by the first gateway. Settlements that are held on disk name it."""


def _part(key_id: str) -> str:
    return f":key:{key_id}" if key_id else ""
