"""Who may be believed on a hop: proofs by the site key or over the bus (DESIGN D4). Pure: keys and texts in, texts out.

Two secrets prove that a node is of this mesh. The *site key* is one shared secret of all nodes of a site. The *hop key*
is made by each process for itself and published only in its reports on the bus, so whoever knows it may read that bus.
A caller first has the callee prove itself (:meth:`Trust.answer` to a fresh challenge), then shows a token with every
hop. A token names the caller and works for one incarnation of one callee only: it dies when that process ends.

What this does not do: on plain HTTP a token can be read off the wire and replayed against the same callee while it
lives, and a box between two nodes can pass a challenge on and so pose as the callee. It keeps strangers and other
meshes out; against somebody who can listen on the LAN only TLS helps. Everybody who holds the site key, or reads the
bus, may speak under any node name: these are secrets of a group, not of a node. A site key is stretched by scrypt, as
anybody on the LAN can obtain proofs to guess against; choose it at random nevertheless.

Not here: which header carries what (``hop``), when a node is probed (``neighbours``), users of the doors.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from functools import lru_cache
from typing import Literal

from mesh.errors import ConfigError
from mesh.values import NAME_PATTERN

Kind = Literal["site", "bus"]

MIN_KEY_BYTES = 16
MAX_TOKEN_CHARS = 256
CACHED_TOKENS = 4096


class Trust:
    """The secrets of one process: ``node`` of ``mesh``, in its life ``incarnation``.

    ``site_key`` is the site's shared secret, at least 16 bytes, or None where the site has none: then only nodes on the
    same bus can prove anything. Raises ``ConfigError`` on a shorter key.
    """

    def __init__(self, mesh: str, node: str, incarnation: int, site_key: bytes | None) -> None:
        if site_key is not None and len(site_key) < MIN_KEY_BYTES:
            raise ConfigError(f"site.key: {len(site_key)} bytes are too short, at least {MIN_KEY_BYTES} are needed")
        self.mesh = mesh
        self.node = node
        self.incarnation = incarnation
        self.hop_key = secrets.token_hex(32)
        """For our own reports on the bus, and nowhere else."""
        self._site_key = None if site_key is None else _stretched(mesh, site_key)
        self._own_hop_key = _hop_key(self.hop_key)
        self._callers: dict[str, str] = {}

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits by which neighbours see whether they hold the same site key; empty without one."""
        return "" if self._site_key is None else _mac(self._site_key, "fingerprint", self.mesh)[:16]

    def answer(self, challenge: str, kind: Kind) -> str:
        """Our proof for a caller's ``challenge``; empty where we hold no key of that kind."""
        key = self._site_key if kind == "site" else self._own_hop_key
        return "" if key is None else self._proof(key, kind, self.node, self.incarnation, challenge)

    def proves(
        self, challenge: str, node: str, incarnation: int, *, site: str = "", bus: str = "", hop_key: str = ""
    ) -> bool:
        """Whether the answer of ``node`` to our ``challenge`` proves that it is of this mesh.

        ``site`` and ``bus`` are the proofs it sent, one is enough; ``hop_key`` is what its report on the bus said for
        this ``incarnation``, empty if unknown.
        """
        known: tuple[tuple[Kind, bytes | None, str], ...] = (
            ("site", self._site_key, site),
            ("bus", _hop_key(hop_key), bus),
        )
        return any(
            key is not None and _same(proof, self._proof(key, kind, node, incarnation, challenge))
            for kind, key, proof in known
        )

    def token_for(self, callee: str, callee_incarnation: int, callee_hop_key: str | None) -> str | None:
        """The token that proves us to ``callee`` on every hop; None where no key is shared, so nothing may be sent."""
        key = _hop_key(callee_hop_key or "")
        if key is not None:
            return self._token(key, "bus", callee, callee_incarnation, self.node)
        if self._site_key is not None:
            return self._token(self._site_key, "site", callee, callee_incarnation, self.node)
        return None

    def verify_token(self, token: str) -> str | None:
        """The caller's node name if ``token`` proves it to this very process, else None. Takes any text."""
        caller = self._callers.get(token)
        if caller is None:
            caller = self._caller(token)
            if caller is not None:
                if len(self._callers) >= CACHED_TOKENS:
                    del self._callers[next(iter(self._callers))]
                self._callers[token] = caller
        return caller

    @staticmethod
    def kind(token: str) -> Kind:
        """The key behind a token that was verified. The bus's is known to whoever reads the bus."""
        return "site" if token.startswith("site:") else "bus"

    def sign(self, callee: str, *said: str) -> str:
        """Proof that a holder of the site key says this to ``callee``; empty without one. What was said before can be
        said again: let ``said`` hold a challenge."""
        return "" if self._site_key is None else _mac(self._site_key, "say", self.mesh, callee, *said)

    def signed(self, proof: str, *said: str) -> bool:
        """Whether a holder of our site key says this to us."""
        return self._site_key is not None and _same(proof, self.sign(self.node, *said))

    def _caller(self, token: str) -> str | None:
        kind, _, rest = token[: MAX_TOKEN_CHARS + 1].partition(":")
        caller = rest.partition(":")[0]
        if len(token) > MAX_TOKEN_CHARS or not NAME_PATTERN.fullmatch(caller):
            return None
        for known, key in (("site", self._site_key), ("bus", self._own_hop_key)):
            if kind == known and key is not None:
                return caller if _same(token, self._token(key, kind, self.node, self.incarnation, caller)) else None
        return None

    def _proof(self, key: bytes, kind: str, node: str, incarnation: int, challenge: str) -> str:
        return _mac(key, "report", kind, self.mesh, node, str(incarnation), challenge)

    def _token(self, key: bytes, kind: str, callee: str, incarnation: int, caller: str) -> str:
        return f"{kind}:{caller}:{_mac(key, 'hop', kind, self.mesh, callee, str(incarnation), caller)}"


@lru_cache(maxsize=8)
def _stretched(mesh: str, site_key: bytes) -> bytes:
    """About 50 ms and 16 MiB, once: what guessing one key costs."""
    return hashlib.scrypt(site_key, salt=b"inference-mesh site key\0" + mesh.encode(), n=2**14, r=8, p=1, dklen=32)


def _hop_key(text: str) -> bytes | None:
    """The key in a report's ``hop_key``; None for anything shorter than a node makes: nobody may prove with it."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        return None
    return key if len(key) >= MIN_KEY_BYTES else None


def _mac(key: bytes, *parts: str) -> str:
    """HMAC-SHA256 over the parts, each with its length, so that no two lists of parts sign alike."""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    message = b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())
