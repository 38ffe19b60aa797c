"""Runs in clip-retrieval's own environment: its `back`, its `index`, and the writer of its `inference`.

    python clip_retrieval_bulk.py back PATHS PORT | index EMBEDDINGS INDEX | write SOURCE TARGET

The model is left out: `back` is asked by vectors only, and what the writer is given comes from SOURCE.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any


def stand_in(name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module


# The packages import the model's libraries when they are imported; these modules do not need them.
for package in ('clip_retrieval', 'clip_retrieval.clip_inference'):
    places = importlib.util.find_spec(package)
    assert places is not None
    stand_in(package, __path__=list(places.submodule_search_locations or ()))


def back(paths: str, port: str) -> None:
    stand_in('torch', cuda=types.SimpleNamespace(is_available=lambda: False))
    stand_in('all_clip', load_clip=lambda *_, **__: (None, None, None))
    from clip_retrieval import clip_back

    run = clip_back.Flask.run
    clip_back.Flask.run = lambda app, host=None, port=None, **given: run(app, host='127.0.0.1', port=port, **given)
    clip_back.clip_back(
        indices_paths=paths, port=int(port), enable_mclip_option=False, provide_aesthetic_embeddings=False
    )


def index(embeddings: str, target: str) -> None:
    from clip_retrieval.clip_index import clip_index

    clip_index(embeddings, target, max_index_memory_usage='100M', current_memory_available='1G', nb_cores=1)


def write(source: str, target: str) -> None:
    """SOURCE holds vectors.npy and rows.json, a list of [path, caption, metadata]; eleven partitions are written."""
    import numpy as np
    from clip_retrieval.clip_inference.writer import NumpyWriter

    vectors = np.load(Path(source) / 'vectors.npy')
    rows = json.loads((Path(source) / 'rows.json').read_text())
    for number, part in enumerate(np.array_split(np.arange(len(rows)), 11)):
        writer = NumpyWriter(number, target, True, True, True, 11)
        for some in np.array_split(part, 2):
            names, captions, metadata = zip(*(rows[n] for n in some), strict=True)
            writer(
                {
                    'image_embs': vectors[some].astype(np.float16),
                    'text_embs': vectors[some][:, ::-1].astype(np.float16),
                    'image_filename': list(names),
                    'text': list(captions),
                    'metadata': [json.dumps(fields) for fields in metadata],
                }
            )
        writer.flush()


if __name__ == '__main__':
    {'back': back, 'index': index, 'write': write}[sys.argv[1]](*sys.argv[2:])
