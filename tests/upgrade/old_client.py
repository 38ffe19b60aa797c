"""What a caller does whose client is of an older version; run with that version's programs before all others.

Arguments: the address, and what the new document is to be called. Prints what it got as JSON.
"""

import json
import sys

from docarray import Document
from documents import COLOURS, picture

from clipflow_client import Client

address, new = sys.argv[1:]
with Client(address, retries=30) as client:
    found = {query: client.search(query)[0].id for query in (f'text {n}' for n in range(9))}
    found |= {colour: client.search(picture(colour))[0].id for colour in COLOURS}
    (outcome,) = client.index([Document(id=new, text=new, tags={'number': 100})])
    (updated,) = client.update({'text 0': {'seen': new}})
    got = client.get(['text 0', new])
    told = {
        'found': found,
        'errors': [str(one.error) for one in (outcome, updated) if one.error],
        'tags': {name: doc.tags for name, doc in got.items()},
        'filtered': sorted(match.id for match in client.search('text 1', filter={'even': {'$eq': True}}, limit=20)),
        'dimension': client.encode(['text 1']).shape[1],
        'stages': sorted(client.status()),
        'deleted': client.delete([f'{new}?']),
    }
print(json.dumps(told))
