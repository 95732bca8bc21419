"""Events in the forms that billing systems import: CloudEvents (OpenMeter and others), and Stripe's meter events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from urllib.parse import urlencode

from tenants.metering.events import Event
from tenants.metering.settlement import AMOUNTS
from tenants.records.fields import parse_moment

_HEAD = ("id", "at", "tenant")


def cloud_event(event: Event, source: str) -> dict[str, object]:
    """A CloudEvent 1.0 in its JSON form: `id` and `source` say that it is the same one, however often it comes.

    Args:
        source: a URI reference that names this installation.
    """
    data = {name: value for name, value in asdict(event).items() if name not in _HEAD}
    return {
        "specversion": "1.0",
        "type": f"usage.{event.kind}",
        "source": source,
        "id": event.id,
        "time": event.at,
        "subject": event.tenant,
        "datacontenttype": "application/json",
        "data": data,
    }


def stripe_events(event: Event, customers: Mapping[str, str], prefix: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Stripe's meter events, one for each counter that is not 0: its identifier, and the fields of its form.

    Args:
        customers: Stripe's customer id by tenant.
        prefix: of the meters' names; `<prefix>_tokens_in` and so on follow.

    Raises:
        KeyError: the tenant has no customer.
    """
    customer = customers[event.tenant]
    for name in AMOUNTS:
        value = getattr(event, name)
        if value:
            number = f"{event.id}-{name}"
            yield (
                number,
                {
                    "event_name": f"{prefix}_{name}",
                    "identifier": number,
                    "timestamp": str(round(parse_moment(event.at))),
                    "payload[stripe_customer_id]": customer,
                    "payload[value]": str(value),
                    "payload[model]": event.model,
                    "payload[level]": f"{event.level:g}",
                    "payload[tier]": event.tier,
                },
            )


def form(fields: Mapping[str, str]) -> bytes:
    """Fields as the body of a form."""
    return urlencode(fields).encode()
