"""herald.probe: while the forge is left alone, ask it once in a while whether it is back."""

from __future__ import annotations

import logging

from app.breaker import word
from app.clients.gitea import GiteaClient
from app.context import Clients
from app.ledger import breaker
from app.types import Permanent, Transient

log = logging.getLogger("mosaic.breaker")
_TIMEOUT = (3.05, 10.0)


def probe(_: int, clients: Clients) -> None:
    """One look by whoever is first; the breaker closes when Gitea answers to each of our tokens."""
    fence = breaker.claim_probe()
    if fence is None:
        return
    settings = clients.settings
    bundle = str(settings.ca_bundle) if settings.ca_bundle else None
    try:
        for token in filter(None, (settings.gitea_token, settings.gitea_push_token, settings.gitea_authz_token)):
            GiteaClient(settings.gitea_url, token, ca_bundle=bundle, timeout=_TIMEOUT).probe()
    except Transient as error:
        log.warning("Gitea is still not to be used: %s", error)
        breaker.probe_failed(fence, word(error), str(error), error.retry_after or 0.0)
    except Permanent as error:  # an answer no Gitea gives: something else stands in its place
        log.warning("Gitea is still not to be used: %s", error)
        breaker.probe_failed(fence, "unreachable", str(error))
    else:
        if breaker.close(fence):
            log.info("Gitea answers again: what waited goes out")
