"""A stage in several shards: every one sees every call, and their answers become one.

The gateway does this itself. Jina's head between gateway and shards costs a call more, hides a shard that failed, keeps
whatever came first and sorts nothing.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from docarray.proto.docarray_pb2 import DocumentProto
from google.protobuf.json_format import MessageToDict
from jina.proto.jina_pb2 import DataRequestProto, StatusProto
from jina.types.request.data import DataRequest

from clipflow import wire
from clipflow.border.stage import Stage
from clipflow.errors import ClipflowError, InvalidParameter, Timeout, Unavailable, from_description
from clipflow.sharding import shard_of
from clipflow.store import facets, feedback

Replies = dict[int, DataRequestProto]
"""By number of the shard, without those that are away."""
Away = dict[int, ClipflowError]
"""By number of the shard, why it did not do its part."""
Ask = Callable[[int], 'asyncio.Task[bytes]']
Answers = dict[int, bytes | BaseException]


class Shards:
    """See the module.

    Args:
        name: of the stage.
        members: its shards, by their numbers.
        patience: seconds for which a search waits for the others once the first shard has answered.
    """

    def __init__(self, name: str, members: Sequence[Stage], patience: float) -> None:
        self.name = name
        self._members = members
        self._patience = patience
        self._late: set[int] = set()
        """Shards that a search has given up. No search waits for them until that call of theirs has ended."""

    def check(self, request: DataRequest) -> None:
        """Raises InvalidParameter for what several shards cannot answer as one does."""
        given = request.proto_wo_data.parameters
        paths = next((given[name] for name in ('access_paths', 'traversal_paths') if name in given), '@r')
        if request.header.exec_endpoint in _OF_ROOTS and paths != '@r':
            raise InvalidParameter(
                f"with several shards {request.header.exec_endpoint} takes 'access_paths' '@r' only, not {paths!r}, "
                'because each chunk belongs to a shard of its own; send the chunks as documents'
            )

    async def send(self, data: bytes, deadline: float, *, patient: bool = True) -> bytes:
        """Pass a message to all shards, and make one message of their answers; see `Stage.send`.

        Raises:
            ClipflowError: no shard can be reached, or one that this call cannot do without.
        """
        request = DataRequestProto.FromString(data)
        merge = _MERGES.get(request.header.exec_endpoint)
        if merge is None:
            return await self._any(data, deadline, patient)
        # What a shard that is away can be missing from does not wait for it.
        patient = patient and request.header.exec_endpoint not in _PARTIAL

        def ask(number: int) -> 'asyncio.Task[bytes]':
            return asyncio.create_task(self._members[number].send(data, deadline, patient=patient))

        answers = await (self._in_time(ask) if request.header.exec_endpoint == '/search' else self._all(ask))
        replies: Replies = {}
        refusals: Replies = {}
        away: Away = {}
        for number, answer in answers.items():
            if isinstance(answer, ClipflowError):
                away[number] = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                reply = DataRequestProto.FromString(answer)
                (refusals if reply.header.status.code == StatusProto.ERROR else replies)[number] = reply
        if refusals and not (replies and merge is _owned):
            return bytes(next(iter(refusals.values())).SerializeToString())
        # The others have done theirs: what one refuses concerns its own documents.
        away |= {number: from_description(reply.header.status.description) for number, reply in refusals.items()}
        if not replies:
            raise next(iter(away.values()))
        merge(request, replies, away)
        return bytes(next(iter(replies.values())).SerializeToString())

    async def _all(self, ask: Ask) -> Answers:
        calls = [ask(number) for number in range(len(self._members))]
        return dict(enumerate(await asyncio.gather(*calls, return_exceptions=True)))

    async def _in_time(self, ask: Ask) -> Answers:
        """Of all shards their answers, or a Timeout for one that takes much longer than the first."""
        numbers = range(len(self._members))
        calls = {
            number: ask(number) for number in numbers if number not in self._late or len(self._late) == len(numbers)
        }
        try:
            await _first(calls.values())
            await asyncio.wait(calls.values(), timeout=self._patience)
        except asyncio.CancelledError:
            for call in calls.values():
                call.cancel()
            raise
        answers: Answers = {
            number: Timeout(f'{self._members[number].name} did not answer in time') for number in numbers
        }
        for number, call in calls.items():
            if call.done():
                answers[number] = _answer(call)
            else:
                self._late.add(number)
                call.add_done_callback(partial(self._ended, number))
        return answers

    def _ended(self, number: int, call: 'asyncio.Task[bytes]') -> None:
        self._late.discard(number)
        if not call.cancelled():
            call.exception()  # it is known by now, and nobody else asks

    async def _any(self, data: bytes, deadline: float, patient: bool) -> bytes:
        """One shard is as good as another for what it only passes on."""
        for member in self._members[:-1]:
            try:
                return await member.send(data, deadline, patient=False)
            except Unavailable:
                continue
        return await self._members[-1].send(data, deadline, patient=patient)

    async def close(self) -> None:
        """Close the channels."""
        for member in self._members:
            await member.close()


async def _first(calls: Iterable['asyncio.Task[bytes]']) -> None:
    """Wait until one call has an answer, or all have failed."""
    waiting = {*calls}
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if any(not isinstance(_answer(call), BaseException) for call in done):
            return


def _answer(call: 'asyncio.Task[bytes]') -> bytes | BaseException:
    return call.exception() or call.result()


# Each of these changes the first reply in place.


def _searched(request: DataRequestProto, replies: Replies, away: Away) -> None:
    """All matches of a query; the ranker sorts and cuts. What is missing is said."""
    first, *others = (reply.data.docs.docs for reply in replies.values())
    for position, doc in enumerate(first):
        for other in others:
            doc.matches.extend(other[position].matches)
            doc.chunks.extend(chunk for chunk in other[position].chunks if chunk.modality == wire.BACKGROUND)
            if wire.ERROR in other[position].tags:
                doc.tags[wire.ERROR] = other[position].tags[wire.ERROR]
        if away:
            doc.tags[wire.PARTIAL] = True


def _owned(request: DataRequestProto, replies: Replies, away: Away) -> None:
    """Of each document what its own shard says of it."""
    shards = len(replies) + len(away)
    first = next(iter(replies.values())).data.docs.docs
    for position, doc in enumerate(first):
        owner = shard_of(doc.id, shards)
        if owner in replies:
            doc.CopyFrom(replies[owner].data.docs.docs[position])
        elif wire.ERROR not in doc.tags:
            _fail(doc, away[owner])


def _counted(request: DataRequestProto, replies: Replies, away: Away) -> None:
    """The sum of the numbers that the shards have counted."""
    _need_all(away)
    first, *others = (reply.data.docs.docs[0].tags for reply in replies.values())
    for name in first:
        first[name] += sum(other[name] for other in others)


def _written(request: DataRequestProto, replies: Replies, away: Away) -> None:
    """The sums; without the number of the latest change, of which each shard has its own."""
    _counted(request, replies, away)
    del next(iter(replies.values())).data.docs.docs[0].tags['sequence']


def _got(request: DataRequestProto, replies: Replies, away: Away) -> None:
    """Documents by id in the order in which they were asked for, or a page: in turns of the shards."""
    first = next(iter(replies.values()))
    parameters = request.parameters
    asked = list(parameters['ids']) if 'ids' in parameters else []
    ids = list(dict.fromkeys([*(doc.id for doc in request.data.docs.docs), *asked]))
    if 'keys' in parameters:
        shards = len(replies) + len(away)
        _need_all({number: away[number] for key in parameters['keys'] if (number := int(key) % shards) in away})
        every = [doc for reply in replies.values() for doc in reply.data.docs.docs]
        docs = [DocumentProto.FromString(doc.SerializeToString()) for doc in every]
    elif ids:
        found = {doc.id: doc for reply in replies.values() for doc in reply.data.docs.docs}
        for identifier in ids:
            if identifier not in found:
                found[identifier] = DocumentProto(id=identifier)
                _fail(found[identifier], away[shard_of(identifier, len(replies) + len(away))])
        docs = [DocumentProto.FromString(found[identifier].SerializeToString()) for identifier in ids]
    else:
        _need_all(away)
        pages = [list(reply.data.docs.docs) for reply in replies.values()]
        turns = [page[place] for place in range(max(map(len, pages))) for page in pages if place < len(page)]
        offset, limit = (int(parameters[name]) if name in parameters else default for name, default in _PAGE)
        docs = [DocumentProto.FromString(doc.SerializeToString()) for doc in turns[offset : offset + limit]]
    del first.data.docs.docs[:]
    first.data.docs.docs.extend(docs)


def _facetted(request: DataRequestProto, replies: Replies, away: Away) -> None:
    """The sums of what the shards have counted."""
    _need_all(away)
    tags = [MessageToDict(reply.data.docs.docs[0].tags) for reply in replies.values()]
    limit = int(request.parameters['limit']) if 'limit' in request.parameters else wire.FacetParameters().limit
    summed = facets.merged([facets.from_json(facet) for found in tags for facet in found['facets']])
    first = next(iter(replies.values())).data.docs.docs[0].tags
    first['facets'] = [facet.json(limit) for facet in summed if facet.is_useful]
    first['sampled'] = any(found['sampled'] for found in tags)


def _noted(request: DataRequestProto, replies: Replies, away: Away) -> None:
    """The sums of what the shards have in their logs."""
    _need_all(away)
    tags = next(iter(replies.values())).data.docs.docs[0].tags
    parts = [MessageToDict(reply.data.docs.docs[0].tags) for reply in replies.values()]
    tags.Clear()
    tags.update(feedback.summed(parts))


def _exported(request: DataRequestProto, replies: Replies, away: Away) -> None:
    """Entries of all shards, and how far the longest of their logs goes."""
    _need_all(away)
    first, *others = (reply.data.docs.docs for reply in replies.values())
    for other in others:
        first[0].tags['last'] = max(first[0].tags['last'], other[0].tags['last'])
        first.extend(other[1:])


def _told(request: DataRequestProto, replies: Replies, away: Away) -> None:
    """What earlier stages said, then what each shard says."""
    first, *others = (reply.data.docs.docs for reply in replies.values())
    for other in others:
        first.append(other[-1])
    for number, error in away.items():
        doc = DocumentProto(id=f'indexer_{number}')
        doc.tags.update({'stage': f'indexer_{number}', 'ready': False, 'warnings': [error.message]})
        first.append(doc)


def _need_all(away: Away) -> None:
    for error in away.values():
        raise error


def _fail(doc: DocumentProto, error: ClipflowError) -> None:
    doc.tags[wire.ERROR] = {'code': error.code, 'message': error.message, 'stage': 'indexer'}
    for field in ('blob', 'tensor', 'embedding', 'matches', 'chunks'):
        doc.ClearField(field)


_PAGE = (('offset', 0), ('limit', 10))
_OF_ROOTS = ('/search', '/index')
_PARTIAL = ('/search', '/status')
_MERGES = {
    '/search': _searched,
    '/index': _owned,
    '/update': _owned,
    '/delete': _counted,
    '/clear': _counted,
    '/snapshot': _written,
    '/get': _got,
    '/facets': _facetted,
    '/feedback/stats': _noted,
    '/feedback/export': _exported,
    '/feedback/purge': _counted,
    '/status': _told,
}
