"""From the name of a model to its files: what is sound, what is refused, and what the fingerprint notices."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from clipflow import catalogue
from clipflow.errors import ClipflowError, InvalidParameter, NotFound
from clipflow.pictures import prepare
from clipflow.weights import ModelSpec, is_served, load_spec

from . import checkpoints

Checkpoint = Callable[[str], Path]


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text(encoding='utf-8')) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture
def clip(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the tiny CLIP, to be spoilt."""
    return Path(shutil.copytree(checkpoint('clip'), tmp_path / 'copy'))


@pytest.mark.parametrize(
    ('family', 'padding', 'shortest'),
    [
        ('clip', 'longest', 32),
        ('clip-legacy', 'longest', 32),
        ('siglip', 'fixed', None),
        ('siglip2', 'fixed', 32),
        ('chinese_clip', 'longest', None),
        ('altclip', 'longest', 32),
        ('vision-text-dual-encoder', 'longest', 36),
    ],
)
def test_a_checkpoint_tells_what_it_asks_for(
    checkpoint: Checkpoint, family: str, padding: str, shortest: int | None
) -> None:
    spec = load_spec(str(checkpoint(family)))
    assert spec.family == family.removesuffix('-legacy')
    assert spec.name == family
    assert (spec.picture.height, spec.picture.width, spec.picture.resize_shortest) == (32, 32, shortest)
    assert (spec.context, spec.padding) == (checkpoints.CONTEXT, padding)
    assert spec.scale == pytest.approx(math.exp(checkpoints.LOG_SCALE))


@pytest.mark.parametrize('family', checkpoints.FAMILIES)
def test_the_positions_of_the_model_limit_a_tokenizer_without_a_limit(
    checkpoint: Checkpoint, tmp_path: Path, family: str
) -> None:
    directory = Path(shutil.copytree(checkpoint(family), tmp_path / 'copy'))
    for limit in (None, 10**30):
        edit(directory / 'tokenizer_config.json', model_max_length=limit)
        assert load_spec(str(directory)).context == checkpoints.CONTEXT


def test_the_bundled_model_is_as_its_files_say(mini: ModelSpec) -> None:
    assert (mini.name, mini.family, mini.context) == ('clip-mini', 'vision-text-dual-encoder', 64)
    assert (mini.picture.height, mini.picture.width, mini.picture.resize_shortest, mini.picture.resample) == (
        224,
        224,
        224,
        3,
    )


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_temperature_is_read_in_every_number_format(tmp_path: Path, dtype: torch.dtype) -> None:
    # 2.5 is exact in all four.
    spec = load_spec(str(checkpoints.build('clip', tmp_path / 'model', dtype)))
    assert spec.scale == pytest.approx(math.exp(2.5))


def test_a_model_without_temperature_has_a_hundred(clip: Path) -> None:
    weights = load_file(clip / 'model.safetensors')
    del weights['logit_scale']
    save_file(weights, clip / 'model.safetensors', metadata={'format': 'pt'})
    assert load_spec(str(clip)).scale == 100.0


def test_the_fingerprint_does_not_depend_on_the_place(checkpoint: Checkpoint, clip: Path) -> None:
    assert load_spec(str(clip)).fingerprint == load_spec(str(checkpoint('clip'))).fingerprint


def change_a_weight(directory: Path) -> None:
    weights = load_file(directory / 'model.safetensors')
    weights['visual_projection.weight'][3, 5] += 1e-6
    save_file(weights, directory / 'model.safetensors', metadata={'format': 'pt'})


def change_the_tokenizer(directory: Path) -> None:
    content = json.loads((directory / 'tokenizer.json').read_text(encoding='utf-8'))
    content['model']['merges'].pop()
    (directory / 'tokenizer.json').write_text(json.dumps(content))


CHANGES: dict[str, Callable[[Path], None]] = {
    'weight': change_a_weight,
    'tokenizer': change_the_tokenizer,
    'lower case': lambda d: edit(d / 'tokenizer_config.json', do_lower_case=False),
    'mean': lambda d: edit(d / 'preprocessor_config.json', image_mean=[0.5, 0.5, 0.5]),
    'std': lambda d: edit(d / 'preprocessor_config.json', image_std=[0.5, 0.5, 0.5]),
    'resample': lambda d: edit(d / 'preprocessor_config.json', resample=2),
    'size': lambda d: edit(d / 'preprocessor_config.json', size={'shortest_edge': 40}),
    'activation': lambda d: edit(
        d / 'config.json',
        text_config=json.loads((d / 'config.json').read_text())['text_config'] | {'hidden_act': 'gelu'},
    ),
}


@pytest.mark.parametrize('change', CHANGES)
def test_the_fingerprint_notices_a_change(clip: Path, change: str) -> None:
    before = load_spec(str(clip)).fingerprint
    CHANGES[change](clip)
    assert load_spec(str(clip)).fingerprint != before


END = {'content': '<|endoftext|>', 'lstrip': False, 'normalized': True, 'rstrip': False, 'single_word': False}
SAME = {'eos_token': END, 'bos_token': '<|startoftext|>', 'pad_token': '<|endoftext|>'}
NOT_READ: dict[str, Any] = {'added_tokens_decoder': {}}
VERSIONS = {'fast_tokenizer_files': ['tokenizer.json', 'tokenizer.4.0.0.json']}


@pytest.mark.parametrize(
    ('config', 'file', 'content'),
    [
        ({}, 'added_tokens.json', {'qq': 5}),
        (NOT_READ, 'added_tokens.json', {'qq': 5}),
        ({}, 'special_tokens_map.json', {'additional_special_tokens': ['qq']}),
        ({}, 'special_tokens_map.json', {'eos_token': 'a'}),
        (NOT_READ, 'special_tokens_map.json', {'eos_token': 'a'}),
        ({}, 'special_tokens_map.json', SAME),
        (VERSIONS, 'tokenizer.4.0.0.json', None),
    ],
)
def test_the_fingerprint_notices_another_file_if_it_changes_token_ids(
    clip: Path, config: dict[str, Any], file: str, content: Any
) -> None:
    edit(clip / 'tokenizer_config.json', **config)
    text, before = 'a cat qq dog', load_spec(str(clip)).fingerprint
    ids = transformers.AutoTokenizer.from_pretrained(clip)(text)['input_ids']
    if content is None:
        content = json.loads((clip / 'tokenizer.json').read_text())
        content['model']['merges'] = []
    (clip / file).write_text(json.dumps(content))
    same = transformers.AutoTokenizer.from_pretrained(clip)(text)['input_ids'] == ids
    assert (load_spec(str(clip)).fingerprint == before) == same


def test_templates_stand_beside_the_weights_and_the_fingerprint_does_not_notice_them(clip: Path) -> None:
    plain = load_spec(str(clip))
    assert plain.templates == ()
    (clip / 'templates.json').write_text('["a photo of {}", "{}"]')
    spec = load_spec(str(clip))
    assert (spec.templates, spec.fingerprint) == (('a photo of {}', '{}'), plain.fingerprint)


@pytest.mark.parametrize('content', ['', '{"a": 1}', '"a {}"', '[1]', '["a photo"]', '["{} {}"]', '[null]'])
def test_templates_that_are_none_are_refused_with_their_file(clip: Path, content: str) -> None:
    (clip / 'templates.json').write_text(content)
    with pytest.raises(InvalidParameter, match=r'templates\.json'):
        load_spec(str(clip))


def test_the_fingerprint_does_not_notice_who_wrote_the_files(clip: Path) -> None:
    before = load_spec(str(clip)).fingerprint
    edit(clip / 'config.json', transformers_version='4.0.0', architectures=['X'], _name_or_path='/elsewhere')
    assert load_spec(str(clip)).fingerprint == before


WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'


def save_in_parts(directory: Path) -> None:
    """The weights in two files and an index, as transformers saves a large model."""
    weights = load_file(directory / 'model.safetensors')
    (directory / 'model.safetensors').unlink()
    names = sorted(weights)
    parts = {
        'model-00001-of-00002.safetensors': names[: len(names) // 2],
        'model-00002-of-00002.safetensors': names[len(names) // 2 :],
    }
    for file, some in parts.items():
        save_file({name: weights[name] for name in some}, directory / file, metadata={'format': 'pt'})
    index = {'metadata': {}, 'weight_map': {name: file for file, some in parts.items() for name in some}}
    (directory / INDEX).write_text(json.dumps(index))


def test_weights_in_parts_are_those_of_the_index_and_all_count(clip: Path) -> None:
    save_in_parts(clip)
    spec = load_spec(str(clip))
    assert spec.scale == pytest.approx(math.exp(checkpoints.LOG_SCALE))
    last = max(clip.glob('model-*'))
    save_file({name: w + 1 for name, w in load_file(last).items()}, last, metadata={'format': 'pt'})
    assert load_spec(str(clip)).fingerprint != spec.fingerprint


@pytest.mark.parametrize(
    'stray', ['model-ema.safetensors', 'model.fp16.safetensors', 'model-00001-of-00002.safetensors']
)
def test_weights_that_are_not_loaded_do_not_count(clip: Path, stray: str) -> None:
    before = load_spec(str(clip))
    save_file({'logit_scale': torch.tensor(0.0)}, clip / stray, metadata={'format': 'pt'})
    assert load_spec(str(clip)) == before


def test_another_name_for_the_weights_is_refused(clip: Path) -> None:
    edit(clip / 'config.json', transformers_weights='other.safetensors')
    with pytest.raises(InvalidParameter, match=r'config\.json: transformers_weights.*model\.safetensors'):
        load_spec(str(clip))


def no_file(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).unlink()


def content(name: str, blob: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(blob)


def a_folder_for(name: str) -> Callable[[Path], object]:
    """In the place of the file, and no more to be read than one of another user."""

    def spoil(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return spoil


def in_parts_without(name: str) -> Callable[[Path], object]:
    def spoil(directory: Path) -> None:
        save_in_parts(directory)
        (directory / name).unlink()

    return spoil


def an_index_of_something_else(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / INDEX).write_text('{"weight_map": {"a": "../model.safetensors"}}')


SPOILT: dict[str, Callable[[Path], object]] = {
    'no weights': no_file(WEIGHTS),
    'pickle only': lambda directory: (directory / WEIGHTS).rename(directory / 'pytorch_model.bin'),
    'truncated weights': lambda directory: (directory / WEIGHTS).write_bytes(
        (directory / WEIGHTS).read_bytes()[:-1000]
    ),
    'empty weights': content(WEIGHTS, b''),
    'a web page for weights': content(WEIGHTS, b'<html>not found</html>'),
    'weights that cannot be read': a_folder_for(WEIGHTS),
    'a part is missing': in_parts_without('model-00001-of-00002.safetensors'),
    'parts without an index': in_parts_without(INDEX),
    'an index of something else': an_index_of_something_else,
    'tokenizer that cannot be read': a_folder_for('tokenizer.json'),
    'no tokenizer': no_file('tokenizer.json'),
    'another kind': lambda directory: edit(directory / 'config.json', model_type='bert'),
    'no kind': lambda directory: edit(directory / 'config.json', model_type=None),
    'no config': no_file('config.json'),
    'config no JSON': content('config.json', b'{'),
    'config a list': content('config.json', b'[]'),
    'preprocessor no JSON': content('preprocessor_config.json', b'\xff\xfe'),
}


@pytest.mark.parametrize(
    ('how', 'kind', 'sentence'),
    [
        ('no weights', NotFound, 'holds no model.safetensors'),
        ('pickle only', InvalidParameter, 'pickle'),
        ('truncated weights', InvalidParameter, 'damaged'),
        ('empty weights', InvalidParameter, 'damaged'),
        ('a web page for weights', InvalidParameter, 'damaged'),
        ('weights that cannot be read', InvalidParameter, r'model\.safetensors cannot be read: Is a directory; let'),
        ('a part is missing', NotFound, 'model-00001-of-00002.safetensors is not there, which the index'),
        ('parts without an index', NotFound, 'holds no model.safetensors'),
        ('an index of something else', InvalidParameter, r'index\.json: weight_map'),
        ('tokenizer that cannot be read', InvalidParameter, r'tokenizer\.json cannot be read: Is a directory'),
        ('no tokenizer', NotFound, 'holds no tokenizer'),
        ('another kind', InvalidParameter, "'bert'.*clip, siglip"),
        ('no kind', InvalidParameter, "''.*clip, siglip"),
        ('no config', NotFound, 'holds no config.json'),
        ('config no JSON', InvalidParameter, 'config.json cannot be read'),
        ('config a list', InvalidParameter, 'not a JSON object'),
        ('preprocessor no JSON', InvalidParameter, 'preprocessor_config.json cannot be read'),
    ],
)
def test_spoilt_files_are_refused_in_one_sentence(
    clip: Path, how: str, kind: type[ClipflowError], sentence: str
) -> None:
    SPOILT[how](clip)
    with pytest.raises(kind, match=sentence):
        load_spec(str(clip))


@pytest.mark.parametrize('name', ['/no/such/model', './no-such-model', '~/no-such-model', '../models'])
def test_a_directory_that_is_not_there_is_not_found(name: str) -> None:
    with pytest.raises(NotFound, match='no model directory'):
        load_spec(name)


def test_an_empty_directory_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r'config\.json'):
        load_spec(str(tmp_path))


def test_a_name_that_nothing_can_have_is_not_found(offline: None) -> None:
    with pytest.raises(NotFound, match='neither a directory'):
        load_spec('a/b/c d')


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's client as HF_HUB_OFFLINE=1 and an empty cache make it; it reads both once, when it is imported."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))


@pytest.mark.parametrize(
    ('name', 'repository'),
    [
        ('somebody/some-clip', 'somebody/some-clip'),
        ('ViT-B/32', 'openai/clip-vit-base-patch32'),
        ('ViT-L/14@336px', 'openai/clip-vit-large-patch14-336'),
        ('ViT-B-32::laion2b-s34b-b79k', 'laion/CLIP-ViT-B-32-laion2B-s34B-b79K'),
    ],
)
def test_a_model_that_cannot_be_fetched_says_what_was_tried_and_what_to_do(
    offline: None, name: str, repository: str
) -> None:
    with pytest.raises(NotFound) as caught:
        load_spec(name)
    assert f'hf download {repository}' in caught.value.message
    assert 'CLIPFLOW_MODEL' in caught.value.message


def test_a_model_of_open_clip_alone_is_refused_before_anything_is_fetched(offline: None) -> None:
    with pytest.raises(NotFound, match='open_clip'):
        load_spec('ViT-B-16::laion400m_e31')


def test_a_model_of_the_catalogue_is_read_with_the_catalogue_s_own_numbers(
    offline: None, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    # The cache of the hub's client, as a download would have left it.
    repository = tmp_path / 'cache' / 'models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K'
    snapshot = repository / 'snapshots' / ('0' * 40)
    shutil.copytree(checkpoint('clip'), snapshot)
    edit(snapshot / 'preprocessor_config.json', image_mean=[0.1, 0.1, 0.1])
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text('0' * 40)
    spec = load_spec('ViT-B-32::laion2b-s34b-b79k')
    entry = catalogue.find('ViT-B-32::laion2b-s34b-b79k')
    assert entry is not None
    assert spec.picture.mean == entry.mean
    assert (spec.name, spec.activation) == ('ViT-B-32::laion2b-s34b-b79k', entry.activation)
    assert is_served('ViT-B-32::laion2b_s34b_b79k', spec)
    assert not is_served('ViT-B-32::openai', spec)


def test_the_fingerprint_notices_an_activation_that_config_json_does_not_tell(
    offline: None, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    name = 'ViT-B-32::laion2b-s34b-b79k'
    entry = catalogue.find(name)
    assert entry is not None
    repository = tmp_path / 'cache' / 'models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K'
    snapshot = Path(shutil.copytree(checkpoint('clip'), repository / 'snapshots' / ('0' * 40)))
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text('0' * 40)
    edit(snapshot / 'preprocessor_config.json', image_mean=entry.mean, image_std=entry.std)

    def says(activation: str) -> tuple[str, str]:
        config = json.loads((snapshot / 'config.json').read_text())
        for part in ('text_config', 'vision_config'):
            config[part]['hidden_act'] = activation
        (snapshot / 'config.json').write_text(json.dumps(config))
        return load_spec(name).fingerprint, load_spec(str(snapshot)).fingerprint

    assert entry.activation == 'gelu'
    by_name, by_directory = says('gelu')
    assert by_name == by_directory
    by_name, by_directory = says('quick_gelu')
    assert by_name != by_directory


@pytest.mark.parametrize(
    ('asked', 'served'), [('clip', True), ('clip2', False), ('', False), ('ViT-B/32', False), ('a/b', False)]
)
def test_a_directory_is_served_under_its_own_name(checkpoint: Checkpoint, asked: str, served: bool) -> None:
    assert is_served(asked, load_spec(str(checkpoint('clip')))) == served


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ({'size': 40, 'crop_size': 32}, (32, 32, 40)),
        ({'size': {'shortest_edge': 40}, 'crop_size': {'height': 24, 'width': 32}}, (24, 32, 40)),
        ({'size': {'height': 30, 'width': 20}, 'do_center_crop': False}, (30, 20, None)),
        ({'size': {'height': 32, 'width': 32}, 'do_center_crop': None}, (32, 32, None)),
        ({'image_processor_type': 'SiglipImageProcessor', 'size': None, 'do_center_crop': None}, (32, 32, None)),
    ],
)
def test_older_and_newer_forms_of_the_preprocessing_are_understood(
    clip: Path, given: dict[str, Any], expected: tuple[int, int, int | None]
) -> None:
    edit(clip / 'preprocessor_config.json', **given)
    picture = load_spec(str(clip)).picture
    assert (picture.height, picture.width, picture.resize_shortest) == expected


PROCESSORS = 'preprocessor_config.json'


def followed(directory: Path) -> float:
    """The largest difference between our input and that of the checkpoint's own processor."""
    from transformers import AutoImageProcessor

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((60, 45), 3)
    spec = load_spec(str(directory)).picture
    found = (prepare(image, spec) / 255 - np.array(spec.mean)) / np.array(spec.std)
    own = AutoImageProcessor.from_pretrained(directory, backend='pil')(image)['pixel_values'][0]
    return float(np.abs(found - np.asarray(own, np.float64).transpose(1, 2, 0)).max())


@pytest.mark.parametrize(
    'given',
    [
        {'do_normalize': False},
        {'rescale_factor': 1 / 127.5},
        {'do_rescale': False},
        {'do_rescale': False, 'do_normalize': False},
        {'do_rescale': False, 'rescale_factor': 7},
        {'resample': 2},
        {'size': {'height': 32, 'width': 32}},
        {'size': {'height': 32, 'width': 32}, 'do_center_crop': False},
    ],
    ids=str,
)
def test_what_is_followed_gives_the_input_of_the_checkpoint_s_own_processor(clip: Path, given: dict[str, Any]) -> None:
    edit(clip / PROCESSORS, **given)
    assert followed(clip) < 1e-3


SQUARE = {'size': {'height': 32, 'width': 32}}


@pytest.mark.parametrize('left_out', ['image_mean', 'image_std', 'resample', 'do_center_crop', 'do_normalize'])
@pytest.mark.parametrize(
    ('processor', 'given'),
    [
        ('CLIPImageProcessor', {}),
        ('CLIPImageProcessorFast', {}),
        ('ChineseCLIPImageProcessor', {}),
        ('SiglipImageProcessor', SQUARE),
        ('ViTImageProcessor', SQUARE),
    ],
)
def test_what_a_processor_s_file_leaves_out_is_as_its_class_has_it(
    clip: Path, processor: str, given: dict[str, Any], left_out: str
) -> None:
    edit(clip / PROCESSORS, image_processor_type=processor, **given | {left_out: None})
    assert followed(clip) < 1e-3


@pytest.mark.parametrize('key', ['image_mean', 'image_std', 'resample', 'size'])
def test_what_is_left_out_for_an_unknown_processor_is_refused(clip: Path, key: str) -> None:
    edit(clip / PROCESSORS, image_processor_type='BitImageProcessor')
    load_spec(str(clip))
    edit(clip / PROCESSORS, **{key: None})
    with pytest.raises(InvalidParameter, match=rf'{PROCESSORS}: {key} is missing.*write it there'):
        load_spec(str(clip))


def test_a_pair_of_towers_without_a_processor_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(checkpoint('vision-text-dual-encoder'), tmp_path / 'copy'))
    (directory / PROCESSORS).unlink()
    with pytest.raises(InvalidParameter, match=rf'{PROCESSORS}: size is missing'):
        load_spec(str(directory))


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        ({'size': {'height': 40, 'width': 40}}, 'another size before the crop'),
        ({'size': {'height': 30, 'width': 20}, 'do_center_crop': None}, 'another size before the crop'),
        ({'size': {'shortest_edge': 32}, 'do_center_crop': False}, 'do_center_crop is false .*a height and a width'),
        ({'size': 40, 'do_center_crop': False}, 'do_center_crop'),
        ({'do_resize': False}, 'do_resize'),
        ({'do_pad': True}, 'do_pad'),
        ({'size': {'longest_edge': 40}}, 'size'),
        ({'size': '224'}, 'size'),
        ({'size': {'shortest_edge': 'x'}}, 'shortest_edge'),
        ({'size': {'shortest_edge': 0}}, 'shortest_edge'),
        ({'crop_size': [32, 32]}, 'crop_size'),
        ({'crop_size': {'height': 32}}, 'width'),
        ({'resample': 99}, 'resample'),
        ({'resample': 'bicubic'}, 'resample'),
        ({'rescale_factor': 0}, 'rescale_factor'),
        ({'rescale_factor': 'x'}, 'rescale_factor'),
        ({'image_mean': 0.5}, 'image_mean'),
        ({'image_mean': [0.5]}, 'image_mean'),
        ({'image_mean': ['a', 'b', 'c']}, 'image_mean'),
        ({'image_mean': [0.5, 0.5, float('nan')]}, 'image_mean'),
        ({'image_std': [0, 0, 0]}, 'image_std'),
    ],
    ids=str,
)
def test_preprocessing_that_is_not_followed_is_refused_with_its_file_and_key(
    clip: Path, given: dict[str, Any], sentence: str
) -> None:
    edit(clip / PROCESSORS, **given)
    with pytest.raises(InvalidParameter, match=rf'{PROCESSORS}: .*{sentence}'):
        load_spec(str(clip))


def test_null_stands_for_what_is_as_usual_but_a_mean_is_needed(clip: Path) -> None:
    before = load_spec(str(clip))
    content = json.loads((clip / PROCESSORS).read_text())
    # As transformers' fast processors write them.
    unset = dict.fromkeys(('do_convert_rgb', 'do_pad', 'do_resize', 'do_rescale', 'data_format', 'device', 'resample'))
    (clip / PROCESSORS).write_text(json.dumps(content | unset))
    assert load_spec(str(clip)) == before
    (clip / PROCESSORS).write_text(json.dumps(content | {'image_mean': None}))
    with pytest.raises(InvalidParameter, match='image_mean'):
        load_spec(str(clip))


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'text_config': [1]}, 'text_config'),
        ({'vision_config': 'x'}, 'vision_config'),
        ({'vision_config': {'image_size': [32, 32]}}, 'image_size'),
        ({'text_config': {'max_position_embeddings': 'many'}}, 'max_position_embeddings'),
        ({'projection_dim': [1]}, 'projection_dim'),
        ({'text_config': {'eos_token_id': None}}, 'eos_token_id is null'),
        ({'text_config': {'eos_token_id': [517]}}, 'eos_token_id'),
        ({'text_config_dict': {'eos_token_id': None}}, 'eos_token_id is null'),
    ],
    ids=str,
)
def test_a_configuration_of_other_types_is_refused_in_one_sentence(
    clip: Path, changes: dict[str, Any], sentence: str
) -> None:
    edit(clip / 'config.json', **changes)
    with pytest.raises(InvalidParameter, match=rf'config\.json.*{sentence}'):
        load_spec(str(clip))


def test_a_processor_file_whose_image_processor_is_no_object_is_refused(clip: Path) -> None:
    (clip / PROCESSORS).unlink()
    (clip / 'processor_config.json').write_text(json.dumps({'image_processor': [1]}))
    with pytest.raises(InvalidParameter, match=r'processor_config\.json.*image_processor'):
        load_spec(str(clip))


@pytest.mark.parametrize('family', ['clip', 'siglip', 'chinese_clip', 'altclip'])
def test_without_a_preprocessor_file_the_size_is_the_model_s_and_the_rest_as_usual_for_its_family(
    checkpoint: Checkpoint, tmp_path: Path, family: str
) -> None:
    from transformers.image_utils import IMAGENET_STANDARD_MEAN, OPENAI_CLIP_MEAN

    directory = Path(shutil.copytree(checkpoint(family), tmp_path / 'copy'))
    (directory / PROCESSORS).unlink()
    picture = load_spec(str(directory)).picture
    half = family == 'siglip'
    assert (picture.height, picture.width, picture.resize_shortest) == (32, 32, None if half else 32)
    assert picture.mean == tuple(IMAGENET_STANDARD_MEAN if half else OPENAI_CLIP_MEAN)


def test_a_processor_file_stands_in_for_the_preprocessor_file(clip: Path) -> None:
    own = json.loads((clip / 'preprocessor_config.json').read_text())
    before = load_spec(str(clip))
    (clip / 'preprocessor_config.json').unlink()
    (clip / 'processor_config.json').write_text(json.dumps({'image_processor': own}))
    assert load_spec(str(clip)) == before
