"""Changes of a node that are asked for over the bus, proven by the site key: whoever may publish there is not for that
reason one who may load and unload its models.

The caller asks for the node's challenge and signs with it what it wants. A proof counts once, at one node, in one life
of its process; no clock has a part in it. Not here: the keys (``trust``), subjects and answers (``bus_door``,
``hop_bus``), what is allowed without a proof (``repositories``).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

from mesh import hop
from mesh.errors import Unavailable, Unsupported
from mesh.trust import Trust

ASK = "challenge"
"""The operation (``hop.OP``) that asks for the challenge, answered in the header of that name."""
NONCE = "mesh-nonce"
MOST = 1024
"""Changes by one challenge."""


def proof(trust: Trust, node: str, challenge: str, what: str, model: str, body: bytes) -> dict[str, str]:
    """Headers that prove a change to ``node``, once."""
    nonce = secrets.token_hex(16)
    return {
        hop.CHALLENGE: challenge,
        NONCE: nonce,
        hop.PROOF_SITE: trust.sign(node, *_said(challenge, nonce, what, model, body)),
    }


class Changes:
    """Of the node that is changed."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self.challenge = secrets.token_hex(16)

    def take(self, trust: Trust, headers: Mapping[str, str], body: bytes) -> None:
        """Raises ``Unsupported`` where nobody with the site key asks, ``Unavailable`` for what was asked before."""
        challenge, given = headers.get(hop.CHALLENGE, ""), headers.get(hop.PROOF_SITE, "")
        what, model = headers.get(hop.OP, ""), headers.get(hop.MODEL, "")
        if not trust.signed(given, *_said(challenge, headers.get(NONCE, ""), what, model, body)):
            raise Unsupported(
                "over the bus models are loaded and unloaded only by who proves the node's site key, or with "
                "nats.repository = true"
            )
        if challenge != self.challenge or given in self._taken:
            raise Unavailable("the proof of this change was used, or is for another life of this node: ask again")
        self._taken.add(given)
        if len(self._taken) >= MOST:
            self._taken.clear()
            self.challenge = secrets.token_hex(16)


def _said(challenge: str, nonce: str, what: str, model: str, body: bytes) -> tuple[str, ...]:
    return challenge, nonce, what, model, hashlib.sha256(body).hexdigest()
