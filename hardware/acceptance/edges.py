"""The edges of what a model takes: the smallest, the best and the largest shape answer right, one row more is refused.

Not here: what is between them (``exam``).
"""

from __future__ import annotations

from hardware.acceptance.finding import CheckFailed, Found
from hardware.acceptance.place import Place
from hardware.acceptance.reference import Reference
from hardware.acceptance.subjects import Subject
from hardware.errors import InvalidInput

ROWS = 8


async def profiles(place: Place, subject: Subject, reference: Reference) -> Found:
    """An engine for 1 to 8 rows, tuned for 4."""
    async with place.opened(subject, rows=ROWS) as opened:
        limit = opened.loaded.batch_limit
        if limit != ROWS:
            raise CheckFailed(f"the engine says that it takes {limit} rows, built for {ROWS}")
        for rows in (1, ROWS // 2, ROWS):
            request = subject.request(rows, rows)
            right = await reference.answer(subject, request)
            place.demand(right, await opened.ask(request), f"an answer of {rows} rows")
        try:
            await opened.run(ROWS + 1)
        except InvalidInput as refused:
            said = refused.text
        else:
            raise CheckFailed(f"{ROWS + 1} rows were answered by an engine for {ROWS}")
        request = subject.request(ROWS, 99)
        right = await reference.answer(subject, request)
        place.demand(right, await opened.ask(request), "the answer after a refusal")
    return Found(f"1, {ROWS // 2} and {ROWS} rows are right; {ROWS + 1} are refused ({said}); the next is right")


async def refusals(place: Place, subject: Subject, reference: Reference) -> Found:
    """A wrong width, type and name are refused before the model runs."""
    right_request = subject.request(2, 1)
    tensor = right_request[0]
    wrong = {
        "width": tensor._replace(shape=(*tensor.shape[:-1], tensor.shape[-1] - 1), data=tensor.whole[:-8]),
        "type": tensor._replace(datatype="INT32"),
        "name": tensor._replace(name="no such input"),
        "size": tensor._replace(data=tensor.whole[:-4]),
    }
    async with place.opened(subject) as opened:
        for what, given in wrong.items():
            try:
                await opened.ask([given])
            except InvalidInput:
                continue
            raise CheckFailed(f"an input of the wrong {what} was answered")
        right = await reference.answer(subject, right_request)
        place.demand(right, await opened.ask(right_request), "the answer after the refusals")
    return Found(f"inputs of the wrong {', '.join(wrong)} are refused; the next is right")
