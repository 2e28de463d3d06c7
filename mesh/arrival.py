"""How a request arrives at this node: its deadline, and what a node that passed it on says of it.

Not here: the headers themselves (``hop``), what becomes of the request (``dataplane``).
"""

from __future__ import annotations

from collections.abc import Mapping

from mesh import hop
from mesh.deadline import MAX_MS, Deadline
from mesh.errors import Unsupported
from mesh.hop import Context
from mesh.oip.request import InferRequest
from mesh.values import ModelIdentity
from mesh.view import View


def arrival(
    request: InferRequest,
    identity: ModelIdentity,
    arrived: float,
    headers: Mapping[str, str] | None,
    *,
    view: View,
    default_ms: float,
    streams: bool,
) -> Context:
    """Deadline and hops: what travelled, else the request's own timeout, the model's, the setting (DESIGN D10).

    ``headers`` are those of a proven caller. Raises ``Unsupported`` for a decoupled model not asked by stream.
    """
    timeout_us, facts = request.timeout_us, view.facts(identity)
    if facts is not None and facts.decoupled and not streams:
        raise Unsupported(f"model {identity.name!r} answers any number of times: ask for a stream")
    budget_ms = timeout_us / 1e3 if timeout_us else (facts.deadline_ms if facts else 0.0) or default_ms
    deadline = Deadline(arrived + min(budget_ms, MAX_MS) / 1e3)
    if headers is None:
        return Context(deadline)
    context = hop.read_context(headers, deadline)
    if context.load is not None and context.caller:
        view.watcher.observe(context.caller, context.load, identity)
    return context
