"""@mosaic: receives Gitea's webhooks. One delivery in, at most one job out; it executes nothing.

Verify the raw bytes, then parse; commit the delivery and what it asks for together; answer 202. No network call.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from functools import cache
from typing import Any

from flask import Request as HttpRequest
from flask.typing import ResponseReturnValue

from app import queries
from app.edge import Refusal, edge, raw_body, settings
from app.gitea_events import MAX_ID, Ignored, Known, Malformed, Request, interpret
from app.ledger import inbox
from app.ledger.chain import transaction
from app.rules import ServerConfig, most_requests
from app.stitcher.intake import floods, take
from app.strict_json import BadJson, parse_object
from app.types import ConfigInvalid

log = logging.getLogger("mosaic.receiver")
_DELIVERY = re.compile(r"[0-9A-Za-z-]{8,80}")
_HEX = re.compile(r"[0-9a-f]{64}")


@edge
def receive(request: HttpRequest) -> ResponseReturnValue:
    """`POST /webhooks/gitea`: 202 once committed; 400, 401, 411, 413 or 415 with a reason; bad input is never a 500."""
    body = raw_body(request)
    if not genuine(request.headers.getlist("X-Gitea-Signature"), body, settings().webhook_secrets):
        raise Refusal(401, "bad_signature", "The signature does not fit. Check the secret of the webhook.")
    delivery_id = request.headers.get("X-Gitea-Delivery", "")
    if not _DELIVERY.fullmatch(delivery_id):
        raise Refusal(400, "bad_delivery_id", "X-Gitea-Delivery is missing or odd.")
    event = request.headers.get("X-Gitea-Event-Type") or request.headers.get("X-Gitea-Event", "")
    try:
        payload = parse_object(body)
        found = interpret(event, payload, _known(payload))
    except (BadJson, Malformed) as error:
        return _unreadable(delivery_id, event, body, str(error))
    if isinstance(found, Ignored):
        return _ignored(delivery_id, event, found)
    if floods(found.trigger.actor_id, _most_requests()):
        return _ignored(delivery_id, event, Ignored("too many requests of this person within an hour"))
    return _accepted(delivery_id, event, body, found)


def genuine(signatures: list[str], body: bytes, secrets: tuple[bytes, ...]) -> bool:
    """Whether exactly one signature came and it is the HMAC-SHA256 of these bytes under one of the secrets."""
    if len(signatures) != 1 or not secrets or not _HEX.fullmatch(signatures[0]):
        return False
    given = signatures[0].encode()
    return any(
        hmac.compare_digest(hmac.new(secret, body, hashlib.sha256).hexdigest().encode(), given)
        for secret in secrets
        if secret
    )


def _known(payload: dict[str, Any]) -> Known:
    """What the repository's id is worth is judged later; True is an int, too."""
    repository = payload.get("repository")
    found = repository.get("id") if isinstance(repository, dict) else None
    good = isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= MAX_ID
    return Known(*queries.ourselves(found if good else None))


@cache
def _most_requests() -> int:
    """Read once; a file that is faulty by now must not cost a delivery: the consumers say what is wrong with it."""
    try:
        return most_requests(ServerConfig.load(settings().config_path))
    except ConfigInvalid as error:
        log.error("%s", error)
        return most_requests(ServerConfig())


def _unreadable(delivery_id: str, event: str, body: bytes, why: str) -> ResponseReturnValue:
    """Signed by Gitea but not what Gitea sends: kept for the operator, refused."""
    with transaction():
        inbox.receive("gitea", delivery_id, dedup_key=None, event=event[:80], state="failed", reason=why, body=body)
    log.warning("delivery %s (%s) cannot be read: %s", delivery_id, event[:80], why)
    raise Refusal(400, "bad_payload", f"The payload cannot be read: {why}.")


def _ignored(delivery_id: str, event: str, found: Ignored) -> ResponseReturnValue:
    with transaction():
        inbox.receive("gitea", delivery_id, dedup_key=None, event=event[:80], state="ignored", reason=found.reason)
        if found.frees:
            inbox.release("gitea", found.frees)
    return {"ignored": found.reason}, 202


def _accepted(delivery_id: str, event: str, body: bytes, found: Request) -> ResponseReturnValue:
    taken = take(found, delivery_id, event, body)
    if taken is None:
        return {"duplicate": True}, 202
    return {"delivery": taken.delivery, "job": taken.job}, 202
