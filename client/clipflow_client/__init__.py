"""The client library of clipflow: `Client` for ordinary code, `AsyncClient` for asyncio, typed results and errors.

from pathlib import Path

from clipflow_client import Client

with Client('127.0.0.1:51000') as client:
    client.index([Path('photos/cat.jpg'), Path('photos/dog.jpg')])
    for match in client.search('a cat'):
        print(match.id, match.score)
"""

from clipflow.errors import ClipflowError
from clipflow_client.aio import AsyncClient
from clipflow_client.client import Client
from clipflow_client.items import Item, document
from clipflow_client.results import Match, Matches, Outcome

__all__ = ['AsyncClient', 'Client', 'ClipflowError', 'Item', 'Match', 'Matches', 'Outcome', 'document']
