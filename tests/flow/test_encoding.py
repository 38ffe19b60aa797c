"""`/`, `/encode`, `/rank` and `/classify` through plain `jina.Client`."""

import io
from pathlib import Path

import numpy as np
import pytest
from docarray import Document, DocumentArray
from PIL import Image

from clipflow import ROOT
from clipflow.errors import InvalidParameter, ModelMismatch
from clipflow.weights import load_spec
from forms import long
from service import Service, error_codes, error_of, picture, png, until


@pytest.mark.parametrize('endpoint', ['/', '/encode', '/encode/clip-mini'])
def test_encode_answers_with_unit_vectors_under_the_ids(fake: Service, endpoint: str) -> None:
    docs = [Document(id=f'd{i}', text=f'text {i}') for i in range(40)] + [Document(id='p', blob=png())]
    reply = fake.post(endpoint, docs)
    assert [doc.id for doc in reply] == [doc.id for doc in docs]
    assert reply.embeddings.shape == (41, 32)
    assert reply.embeddings.dtype == np.float32
    assert np.linalg.norm(reply.embeddings, axis=1) == pytest.approx(np.ones(41), abs=1e-5)


def test_encode_stores_nothing(fake: Service) -> None:
    fake.post('/encode', Document(id='a', text='x'))
    assert fake.stored_ids() == set()


def test_one_picture_has_one_vector_whatever_form_it_comes_in(fake: Service) -> None:
    image = picture('green', (100, 80))
    pixels = np.asarray(image)
    forms = {
        'png': Document(blob=png('green', (100, 80))),
        'bmp': Document(blob=png('green', (100, 80), 'BMP')),
        'tiff': Document(blob=png('green', (100, 80), 'TIFF')),
        'gif': Document(blob=png('green', (100, 80), 'GIF')),
        'tensor': Document(tensor=pixels),
        'floats': Document(tensor=(pixels / 255).astype(np.float32)),
    }
    vectors = {name: fake.one('/encode', doc).embedding for name, doc in forms.items()}
    for name, vector in vectors.items():
        assert vector == pytest.approx(vectors['png'], abs=1e-5), name


def test_text_wins_over_a_picture_in_the_same_document(fake: Service) -> None:
    both = fake.one('/encode', Document(text='words', uri='data:image/png;base64,AAAA'))
    assert np.array_equal(both.embedding, fake.one('/encode', Document(text='words')).embedding)


@pytest.mark.parametrize('endpoint', ['/', '/encode'])
def test_a_document_without_content_passes_untouched(fake: Service, endpoint: str) -> None:
    reply = fake.post(endpoint, [Document(id='empty', tags={'a': 1}), Document(id='full', text='x')])
    assert [(doc.id, doc.embedding is None) for doc in reply] == [('empty', True), ('full', False)]
    assert dict(reply[0].tags) == {'a': 1}
    only = fake.request(endpoint, Document(id='alone'))
    assert [doc.id for doc in only.docs] == ['alone']
    assert len(only.routes) >= 2


@pytest.mark.parametrize('endpoint', ['/', '/encode', '/index'])
def test_drop_image_content_false_brings_the_picture_back(fake: Service, endpoint: str) -> None:
    blob, pixels = png('blue'), np.asarray(picture('red'))
    sent = [Document(id='b', blob=blob, uri='http://there'), Document(id='t', tensor=pixels)]
    kept = fake.post(endpoint, sent, {'drop_image_content': False})
    assert kept[0].blob == blob
    assert np.array_equal(kept[1].tensor, pixels)
    dropped = fake.post(endpoint, sent)
    assert [(doc.blob, doc.tensor) for doc in dropped] == [(b'', None), (b'', None)]
    for reply in (kept, dropped):
        assert reply[0].uri == 'http://there'
        assert all(doc.embedding is not None and not doc.chunks and not doc.tags for doc in reply)


@pytest.mark.parametrize('name', ['access_paths', 'traversal_paths'])
def test_access_paths_choose_what_is_encoded(fake: Service, name: str) -> None:
    doc = Document(
        id='r',
        text='root',
        chunks=DocumentArray([Document(id='c', text='chunk')]),
        matches=DocumentArray([Document(id='m', text='match')]),
    )
    encoded = {}
    for path in ('@r', '@c', '@m', '@r,m', '@r,c,m'):
        reply = fake.one('/encode', doc, {name: path})
        parts = {'r': reply, 'c': reply.chunks[0], 'm': reply.matches[0]}
        encoded[path] = {part for part, found in parts.items() if found.embedding is not None}
        assert all(not found.tags for found in parts.values())
    assert encoded == {'@r': {'r'}, '@c': {'c'}, '@m': {'m'}, '@r,m': {'r', 'm'}, '@r,c,m': {'r', 'c', 'm'}}


def test_encode_trusts_the_content_more_than_an_embedding_beside_it(fake: Service) -> None:
    reply = fake.one('/encode', Document(text='x', embedding=np.ones(32)))
    assert np.array_equal(reply.embedding, fake.one('/encode', Document(text='x')).embedding)


@pytest.mark.parametrize('endpoint', ['/encode', '/rank'])
def test_another_model_than_the_served_one_is_refused_by_its_name(fake: Service, endpoint: str) -> None:
    doc = Document(text='x', matches=DocumentArray([Document(text='y')]))
    with pytest.raises(ModelMismatch, match=r"'clip-mini'.*'ViT-L-14::openai'"):
        fake.post(f'{endpoint}/ViT-L-14::openai', doc)
    fake.post(f'{endpoint}/clip-mini', doc)


def test_rank_orders_the_matches_of_each_document_with_scores_that_sum_to_one(fake: Service) -> None:
    scale = load_spec(str(ROOT / 'models' / 'clip-mini')).scale
    queries = []
    for i in range(3):
        matches = DocumentArray([Document(id=f'{i}{j}', text=f'answer {j}', tags={'j': j}) for j in range(6)])
        matches.append(Document(id=f'{i} picture', blob=png('green'), uri='http://green'))
        queries.append(Document(id=f'q{i}', text=f'question {i}', matches=matches))
    reply = fake.post('/rank', queries)
    assert [doc.id for doc in reply] == ['q0', 'q1', 'q2']
    for sent, got in zip(queries, reply, strict=True):
        query = fake.one('/encode', Document(text=sent.text)).embedding.astype(np.float64)
        answers = fake.post('/encode', [Document(m, copy=True) for m in sent.matches])
        cosines = {doc.id: float(doc.embedding.astype(np.float64) @ query) for doc in answers}
        assert [m.id for m in got.matches] == sorted(cosines, key=lambda name: -cosines[name])
        shares = np.exp(scale * np.array([cosines[m.id] for m in got.matches]))
        shares /= shares.sum()
        assert [m.scores['clip_score'].value for m in got.matches] == pytest.approx(shares, abs=1e-4)
        assert sum(m.scores['clip_score'].value for m in got.matches) == pytest.approx(1, abs=1e-6)
        for match in got.matches:
            assert match.scores['clip_score_cosine'].value == pytest.approx(cosines[match.id], abs=1e-5)
            assert (match.embedding, match.blob, match.tensor) == (None, b'', None)
            assert match.tags == ({'j': int(match.id[-1])} if match.text else {})
            assert match.uri == ('' if match.text else 'http://green')


def test_rank_puts_a_match_that_fails_last_and_keeps_the_others(fake: Service) -> None:
    matches = DocumentArray([Document(id='bad', blob=b'no picture'), Document(id='good', text='y')])
    reply = fake.one('/rank', Document(id='q', text='x', matches=matches))
    assert error_codes(reply.matches) == {'good': None, 'bad': 'unsupported-media'}
    assert [match.id for match in reply.matches] == ['good', 'bad']
    assert reply.matches[0].scores['clip_score'].value == pytest.approx(1)


def test_rank_without_matches_is_an_error_of_that_document_alone(fake: Service) -> None:
    good = Document(id='good', text='x', matches=DocumentArray([Document(text='y')]))
    reply = fake.post('/rank', [Document(id='bare', text='x'), good])
    assert error_codes(reply) == {'bare': 'invalid-document', 'good': None}
    assert "'bare'" in error_of(reply[0]).message


def test_classify_gives_the_label_of_the_nearest_text_and_probabilities(fake: Service) -> None:
    labels = ['cat', 'dog', 'rocket', 'moon']
    scale = load_spec(str(ROOT / 'models' / 'clip-mini')).scale
    docs = [Document(id='t', text='a dog'), Document(id='p', blob=png('red')), Document(id='same', text='rocket')]
    reply = fake.post('/classify', docs, {'labels': labels})
    classes = fake.post('/encode', [Document(text=label) for label in labels]).embeddings.astype(np.float64)
    vectors = fake.post('/encode', [Document(doc, copy=True) for doc in docs]).embeddings.astype(np.float64)
    for doc, cosines in zip(reply, vectors @ classes.T, strict=True):
        shares = np.exp(scale * (cosines - cosines.max()))
        expected = dict(zip(labels, shares / shares.sum(), strict=True))
        assert doc.tags['label'] == max(expected, key=lambda label: expected[label])
        assert dict(doc.tags['probabilities']) == pytest.approx(expected, abs=1e-4)
        assert doc.embedding is None
    assert reply[2].tags['label'] == 'rocket'
    assert fake.stored_ids() == set()


def test_classify_averages_templates(fake: Service) -> None:
    templates = ['a photo of a {}', 'many {}s']
    reply = fake.one('/classify', Document(text='z'), {'labels': ['cat', 'dog'], 'templates': templates})
    classes = []
    for label in ('cat', 'dog'):
        filled = fake.post('/encode', [Document(text=t.replace('{}', label)) for t in templates])
        mean = filled.embeddings.mean(axis=0, dtype=np.float64)
        classes.append(mean / np.linalg.norm(mean))
    query = fake.one('/encode', Document(text='z')).embedding.astype(np.float64)
    assert reply.tags['label'] == ('cat', 'dog')[int(np.argmax(np.stack(classes) @ query))]


@pytest.mark.parametrize(
    'parameters',
    [{}, {'labels': []}, {'labels': ['one']}, {'labels': ['a', 'a']}, {'labels': 'ab'}, {'labels': [1, 2]}],
)
def test_classify_needs_two_different_labels(fake: Service, parameters: dict[str, object]) -> None:
    with pytest.raises(InvalidParameter, match='labels'):
        fake.post('/classify', Document(text='x'), parameters)


def test_classify_reports_a_bad_document_and_classifies_the_others(fake: Service) -> None:
    docs = [Document(id='empty'), Document(id='broken', blob=b'xx'), Document(id='good', text='cat')]
    reply = fake.post('/classify', docs, {'labels': ['cat', 'dog']})
    assert error_codes(reply) == {'empty': 'invalid-document', 'broken': 'unsupported-media', 'good': None}
    assert reply[2].tags['label'] == 'cat'


def test_a_picture_that_is_turned_by_exif_is_encoded_upright(fake: Service) -> None:
    upright = picture('red', (80, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    out = io.BytesIO()
    upright.rotate(90, expand=True).save(out, 'PNG', exif=exif)
    plain = fake.one('/encode', Document(blob=png('red', (80, 60)))).embedding
    assert fake.one('/encode', Document(blob=out.getvalue())).embedding == pytest.approx(plain, abs=1e-5)


def assert_towers_are_freed_and_come_back(service: Service) -> None:
    def loaded() -> list[str]:
        return list({doc.id: doc.tags for doc in service.post('/status')}['encoder']['loaded'])

    first = service.one('/encode', Document(text='a cat')).embedding
    until(lambda: loaded() == [], 60, 'both towers are freed')
    assert np.array_equal(service.one('/encode', Document(text='a cat')).embedding, first)
    assert 'image' not in loaded()
    assert service.one('/encode', Document(blob=png('red'))).embedding is not None


def test_towers_that_nobody_asks_are_freed_and_come_back(furnished: Service) -> None:
    # What becomes of the memory of a tower of torch: tests/unit/sessions/test_torch.py.
    assert_towers_are_freed_and_come_back(furnished)


@long
@pytest.mark.parametrize('runtime', ['torch', 'onnx', 'openvino'])
def test_towers_of_every_runtime_are_freed_and_come_back(tmp_path: Path, runtime: str) -> None:
    if runtime != 'torch':
        pytest.importorskip(runtime, reason=f'the extra {runtime!r} is not installed')
    with Service(tmp_path / 'workspace', {'RUNTIME': runtime, 'TOWER_TTL': '0.5', 'TEXT_CACHE': '0'}) as service:
        assert_towers_are_freed_and_come_back(service)
