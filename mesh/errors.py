"""The error tree of the mesh, and the one table that maps it to numbers on the wire.

    MeshError                      code                  retryable  status
      InvalidRequest               invalid_request       no         400
        PayloadTooLarge            payload_too_large     no         413
        EncodingUnknown            encoding_unknown      no         415
      Unsupported                  unsupported           no         501
      NotFound                     not_found             no         404
        ModelNotFound              model_not_found       no         404
      Unavailable                  unavailable           yes        503
        NoReadyInstance            no_ready_instance     yes        503
        ModelNotReady              model_not_ready       yes        503
        Draining                   draining              yes        503
        NodeLost                   node_lost             yes        503
          NodeUnreachable          node_unreachable      yes        503
        InstanceLost               instance_lost         yes        503
        BusUnavailable             bus_unavailable       yes        503
        DigestMismatch             digest_mismatch       yes        503
      Overloaded                   overloaded            yes        429
      SequenceUnknown              sequence_unknown      no         409
      DeadlineExceeded             deadline_exceeded     no         504
      InferenceFailed              inference_failed      no         500
      ModelRejected                model_rejected        no         422
      LoadFailed                   load_failed           no         500
      ProtocolError                protocol_error        yes        502
      ConfigError                  config_error          no         500
      Internal                     internal              no         500

``retryable`` means that another node may still do it; whether to try is the router's budget (DESIGN D16).
``refused`` means that the node certainly did not start the work, so that trying elsewhere costs no budget.
Texts are safe for the wire: they never carry ``str()`` of an unknown exception, a path or a secret.
Not here: HTTP or bus framing (the doors and hops), errors of devices (``hardware.errors``, translated in ``edge``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from mesh.messages import Load


class MeshError(Exception):
    """Root of everything the mesh raises on purpose; ``text`` is safe to show to a caller."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    refused: ClassVar[bool] = False

    def __init__(self, text: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.retry_after_s = retry_after_s
        """Seconds until it is worth asking again, where the node could compute it."""
        self.load: Load | None = None
        """How busy the node is that answered with this on a hop; None for what was answered by no node."""


class InvalidRequest(MeshError):
    code, status = "invalid_request", 400


class PayloadTooLarge(InvalidRequest):
    code, status = "payload_too_large", 413


class EncodingUnknown(InvalidRequest):
    """The body has a ``Content-Encoding`` that is not spoken here."""

    code, status = "encoding_unknown", 415


class Unsupported(MeshError):
    code, status = "unsupported", 501


class NotFound(MeshError):
    code, status = "not_found", 404


class ModelNotFound(NotFound):
    code = "model_not_found"


class Unavailable(MeshError):
    code, status, retryable = "unavailable", 503, True


class NoReadyInstance(Unavailable):
    code, refused = "no_ready_instance", True


class ModelNotReady(Unavailable):
    code, refused = "model_not_ready", True


class Draining(Unavailable):
    code, refused = "draining", True


class NodeLost(Unavailable):
    """The connection to the node broke while it held the request: it may or may not have run."""

    code = "node_lost"


class NodeUnreachable(NodeLost):
    """The node refused the connection, or nobody answers its subject: the request never reached it."""

    code, refused = "node_unreachable", True


class InstanceLost(Unavailable):
    """The worker process that held the request died."""

    code = "instance_lost"


class BusUnavailable(Unavailable):
    """The bus is disconnected (DESIGN D17); pending requests fail with this at once."""

    code = "bus_unavailable"


class DigestMismatch(Unavailable):
    """The node holds other bytes under the same model name and version (DESIGN D15)."""

    code, refused = "digest_mismatch", True


class Overloaded(MeshError):
    code, status, retryable, refused = "overloaded", 429, True, True


class SequenceUnknown(MeshError):
    """Whoever was asked does not hold the sequence, or holds it at another step: nothing was stepped."""

    code, status = "sequence_unknown", 409


class DeadlineExceeded(MeshError):
    code, status = "deadline_exceeded", 504


class InferenceFailed(MeshError):
    code, status = "inference_failed", 500


class ModelRejected(MeshError):
    code, status = "model_rejected", 422


class LoadFailed(MeshError):
    """The repository cannot load a model the way it is asked to; Triton answers these as internal errors."""

    code, status = "load_failed", 500


class ProtocolError(MeshError):
    """A node of the mesh answered something that is not the protocol."""

    code, status, retryable = "protocol_error", 502, True


class ConfigError(MeshError):
    """A setting, flag or file is wrong; raised before anything starts, exit code 2."""

    code = "config_error"


class Internal(MeshError):
    """Something unexpected; the text carries a log id, never the exception."""


def _tree(root: type[MeshError]) -> list[type[MeshError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


BY_CODE: dict[str, type[MeshError]] = {cls.code: cls for cls in reversed(_tree(MeshError))} | {"internal": Internal}
"""Every code of the tree, for rebuilding an error that crossed a hop."""


_BY_STATUS = (
    InvalidRequest, PayloadTooLarge, NotFound, Overloaded, Unsupported, ProtocolError, Unavailable, DeadlineExceeded,
)  # fmt: skip
"""What a status says by itself: of a plain OIP server, or of a proxy before a door."""


def from_wire(code: str, text: str, status: int = 500, retry_after_s: float | None = None) -> MeshError:
    """Rebuild the error another node answered with; an unknown code falls back to its status class."""
    cls = BY_CODE.get(code)
    if cls is None:
        cls = next((c for c in _BY_STATUS if c.status == status), InvalidRequest if 400 <= status < 500 else Internal)
    return cls(text, retry_after_s=retry_after_s)
