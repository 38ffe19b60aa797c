"""From the name of a model to its files: where they are, whether they are sound, and what they ask of their input.

Nothing here imports torch: the preprocessor, the indexer and the ranker need the specification and the fingerprint,
not the model.
"""

import hashlib
import json
import math
import struct
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from clipflow import catalogue, templates
from clipflow.checkpoint import blamed, part, read_json, whole
from clipflow.errors import ClipflowError, InvalidParameter, NotFound, first_line
from clipflow.preprocessing import CLIP_MEAN, CLIP_STD, PictureSpec, picture_spec

FAMILIES = ('clip', 'siglip', 'siglip2', 'chinese_clip', 'altclip', 'vision-text-dual-encoder')
DEFAULT_SCALE = 100.0
CLIP_SERVER = 'clip-server'
"""Family of a model that clip-as-service runs, whose files are not ours. Its name is `clip-server::<name there>`."""
LARGEST = 2
"""What old CLIP checkpoints name as the end token; transformers pools at the largest id then."""
_VOCABULARIES = ('tokenizer.json', 'vocab.json', 'vocab.txt', 'spiece.model', 'sentencepiece.bpe.model')
_TOKENIZER_FILES = (
    'tokenizer.json',
    'tokenizer_config.json',
    'vocab.json',
    'merges.txt',
    'vocab.txt',
    'spiece.model',
    'sentencepiece.bpe.model',
)
_BYTES_PER_FILE_READ = 1 << 20
_NUMBERS = {'F64': ('<d', 8), 'F32': ('<f', 4), 'F16': ('<e', 2), 'BF16': ('<f', 2)}
"""Of a weights file: the form that `struct` reads, and the bytes of one number."""
_NOISE = ('transformers_version', '_name_or_path', 'dtype', 'torch_dtype', 'architectures')


@dataclass(frozen=True)
class ModelSpec:
    """What the rooms need to know of a model."""

    name: str
    directory: Path
    family: str
    fingerprint: str
    picture: PictureSpec
    context: int
    """Longest text in tokens, special tokens included."""
    padding: Literal['longest', 'fixed']
    scale: float
    """Temperature: similarity logits are scale times cosine."""
    activation: str
    """Activation the weights were trained with, where the catalogue knows better than the checkpoint; else empty."""
    templates: tuple[str, ...] = ()
    """Sentences that the text of a query is put into, from `templates.json`. Not in the fingerprint: stored vectors do
    not depend on them."""
    dimension: int = 0
    """Of the vectors; 0 if the files do not say."""
    end: int | None = None
    """Id of the token at which a CLIP text tower pools, `LARGEST` for the largest of the text; None of other towers."""


def load_spec(model: str) -> ModelSpec:
    """Find the files of `model`, check them, and read what they ask for.

    Args:
        model: a directory in the Hugging Face format, a hub name, or a name of the catalogue.

    Raises:
        NotFound: it cannot be had; says what was tried and how to fetch it.
        InvalidParameter: the files are there, but damaged, of another kind, or only in pickle format.
    """
    if model.startswith(f'{CLIP_SERVER}::'):
        return _elsewhere(model.removeprefix(f'{CLIP_SERVER}::'))
    entry = None if Path(model).expanduser().is_dir() else catalogue.find(model)
    directory = _locate(model, entry.repository if entry else model)
    config = read_json(directory / 'config.json')
    family = str(config.get('model_type', ''))
    if family not in FAMILIES:
        raise InvalidParameter(
            f'the model {model!r} is of type {family!r}; clipflow serves models with image and text features: '
            f'{", ".join(FAMILIES)}'
        )
    weights = _weight_files(directory, config)
    if not any((directory / name).exists() for name in _VOCABULARIES):
        # transformers would make a tokenizer that knows no word, and every text would get the same vector.
        raise NotFound(f'{directory} holds no tokenizer (none of {", ".join(_VOCABULARIES)})')
    picture = picture_spec(directory, config)
    with blamed(directory / 'config.json'):
        dimension = _dimension(config)
        untold = _untold_activation(config, entry.activation if entry else '')
        end = _end(config)
    if entry is not None:
        picture = replace(picture, mean=entry.mean, std=entry.std)
    return ModelSpec(
        name=model if entry is not None or not Path(model).expanduser().is_dir() else directory.name,
        directory=directory,
        family=family,
        fingerprint=_fingerprint(directory, config, picture, weights, untold),
        picture=picture,
        context=_context(directory, config),
        padding='fixed' if family in ('siglip', 'siglip2') else 'longest',
        scale=_scale(weights),
        activation=entry.activation if entry else '',
        templates=_templates(directory / 'templates.json'),
        dimension=dimension,
        end=end,
    )


def _dimension(config: dict[str, Any]) -> int:
    """SigLIP projects nothing: what its picture tower gives is the vector."""
    if str(config.get('model_type', '')).startswith('siglip'):
        return whole(part(config, 'vision_config'), 'hidden_size', 768)
    return whole(config, 'projection_dim', 0, least=0)


def _end(config: dict[str, Any]) -> int | None:
    """See `ModelSpec.end`. Old files have a second description of the text tower, which wins."""
    if config.get('model_type') != 'clip' and part(config, 'text_config').get('model_type') != 'clip_text_model':
        return None
    text = part(config, 'text_config' if config.get('text_config_dict') is None else 'text_config_dict')
    if text.get('eos_token_id', LARGEST) is None:
        raise ValueError('eos_token_id is null; write the id there with which the tokenizer ends a text')
    return whole(text, 'eos_token_id', 49407, least=0)


def _elsewhere(name: str) -> ModelSpec:
    """A model that clip-as-service runs: known by its name only, prepared there as all of its models are."""
    if not name:
        raise InvalidParameter(f"the model '{CLIP_SERVER}::' lacks its name, such as {CLIP_SERVER}::ViT-B-32::openai")
    return ModelSpec(
        name=name,
        directory=Path(),
        family=CLIP_SERVER,
        fingerprint=hashlib.sha256(f'{CLIP_SERVER}::{name}'.encode()).hexdigest()[:16],
        picture=PictureSpec(224, 224, 224, 3, CLIP_MEAN, CLIP_STD),
        context=77,
        padding='longest',
        scale=DEFAULT_SCALE,
        activation='',
    )


def is_served(asked: str, spec: ModelSpec) -> bool:
    """Whether `asked` (from `/encode/<model>`) names the model of `spec`."""
    if asked in (spec.name, spec.directory.name):
        return True
    if spec.family == CLIP_SERVER:  # which knows models that cannot be loaded here
        return catalogue.key(asked) == catalogue.key(spec.name)
    one, other = catalogue.find(asked), catalogue.find(spec.name)
    return one is not None and other is not None and one.repository == other.repository


def _locate(model: str, repository: str) -> Path:
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or model.startswith(('.', '~')):
        raise NotFound(f'there is no model directory {model!r}')
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    patterns = ['*.json', '*.safetensors', '*.txt', '*.model']
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
    except HFValidationError:
        raise NotFound(f'{model!r} is neither a directory, nor a name of the catalogue, nor a hub name') from None
    except Exception as error:  # The hub client raises dozens of kinds, network libraries' own among them.
        reason = first_line(error)[:200]
        raise NotFound(
            f'the model {model!r} could not be had: tried the directory {path}, the local cache and the hub repository '
            f'{repository!r} ({reason}). Fetch it where there is a network with "hf download {repository}" and set '
            f'CLIPFLOW_MODEL to the directory'
        ) from None


def _templates(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return ()
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise InvalidParameter(f'{path} cannot be read: {error}') from None
    if not isinstance(found, list):
        raise InvalidParameter(f'{path} is not a JSON list of texts with one place {templates.PLACE}')
    with blamed(path):
        return templates.checked(found)


def _weight_files(directory: Path, config: dict[str, Any]) -> list[Path]:
    """What transformers loads: one file, or those that an index names. What else lies there does not count."""
    from safetensors import SafetensorError, safe_open

    if config.get('transformers_weights') is not None:
        raise InvalidParameter(
            f'{directory / "config.json"}: transformers_weights is not followed; name the file model.safetensors'
        )
    files, index = [directory / 'model.safetensors'], directory / 'model.safetensors.index.json'
    if not files[0].exists() and index.exists():
        with blamed(index):
            files = [directory / name for name in _shards(read_json(index))]
    for file in files:
        if not file.exists():
            raise _no_weights(directory, file)
        try:
            file.open('rb').close()
            with safe_open(file, framework='np'):
                pass
        except OSError as error:
            raise _unreadable(file, error) from None
        except SafetensorError as error:
            raise InvalidParameter(f'the weights {file} are damaged: {error}; fetch them again') from None
    return files


def _shards(index: dict[str, Any]) -> list[str]:
    names = set(part(index, 'weight_map').values())
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError('weight_map does not name a file for each of the weights')
    return sorted(names)


def _no_weights(directory: Path, file: Path) -> ClipflowError:
    if file.name != 'model.safetensors':
        return NotFound(f'{file} is not there, which the index of the weights names; fetch it again')
    if list(directory.glob('*.bin')) or list(directory.glob('*.pt')):
        return InvalidParameter(
            f'{directory} has its weights only as a pickle, which clipflow does not load; save them with '
            'model.save_pretrained(directory, safe_serialization=True), or take a repository with safetensors'
        )
    return NotFound(f'{directory} holds no model.safetensors, and no index of one in parts')


def _unreadable(file: Path, error: OSError) -> InvalidParameter:
    return InvalidParameter(f'{file} cannot be read: {error.strerror}; let the user that runs clipflow read it')


def _context(directory: Path, config: dict[str, Any]) -> int:
    with blamed(directory / 'config.json'):
        text, family = part(config, 'text_config'), str(config.get('model_type'))
        defaults = {'clip': 77, 'siglip': 64, 'siglip2': 64, 'altclip': 514}
        positions = whole(text, 'max_position_embeddings', defaults.get(family, 512))
        if str(text.get('model_type', '')).startswith(('xlm', 'roberta', 'altclip')) or family == 'altclip':
            # RoBERTa counts positions from behind the padding.
            positions -= whole(text, 'pad_token_id', 1, least=0) + 1
    limit = 10**9
    file = directory / 'tokenizer_config.json'
    if file.exists():
        with blamed(file):
            limit = whole(read_json(file), 'model_max_length', limit, least=0) or limit
    return max(2, min(positions, limit))


def _scale(weights: list[Path]) -> float:
    for file in weights:
        logarithm = _first_number(file, 'logit_scale')
        if logarithm is not None:
            return math.exp(logarithm)
    return DEFAULT_SCALE


def _first_number(file: Path, name: str) -> float | None:
    """The first number of a tensor, None if the file has not got it. Read here, because NumPy knows no bfloat16."""
    with file.open('rb') as stream:
        size = int.from_bytes(stream.read(8), 'little')
        entry = json.loads(stream.read(size)).get(name)
        if entry is None or entry['dtype'] not in _NUMBERS:
            return None
        stream.seek(8 + size + entry['data_offsets'][0])
        form, bytes_read = _NUMBERS[entry['dtype']]
        raw = stream.read(bytes_read)
    # bfloat16 is the upper half of a float32.
    return float(struct.unpack(form, raw.rjust(4, b'\0') if entry['dtype'] == 'BF16' else raw)[0])


def _fingerprint(
    directory: Path, config: dict[str, Any], picture: PictureSpec, weights: list[Path], activation: str
) -> str:
    """SHA-256 over architecture, preprocessing, tokenizer and weights; not over path, precision or runtime."""
    tokens, special = _tokenizer(directory)
    digest = hashlib.sha256()
    digest.update(activation.encode())
    digest.update(json.dumps(_essential(config), sort_keys=True).encode())
    digest.update(json.dumps(asdict(picture), sort_keys=True).encode())
    if special:
        digest.update(json.dumps(special, sort_keys=True).encode())
    for file in tokens + weights:
        if file.exists():
            digest.update(file.name.encode())
            try:
                with file.open('rb') as stream:
                    while block := stream.read(_BYTES_PER_FILE_READ):
                        digest.update(block)
            except OSError as error:
                raise _unreadable(file, error) from None
    return digest.hexdigest()[:16]


def _tokenizer(directory: Path) -> tuple[list[Path], dict[str, Any]]:
    """The files that tokens come from, and those special tokens that a file of their own has otherwise.

    Most old checkpoints repeat in that file what tokenizer_config.json says, which changes nothing.
    """
    # One for each of several versions of transformers.
    files = [directory / name for name in _TOKENIZER_FILES] + sorted(directory.glob('tokenizer.*.json'))
    config, special = (
        read_json(path) if path.exists() else {}
        for path in (directory / 'tokenizer_config.json', directory / 'special_tokens_map.json')
    )
    if 'added_tokens_decoder' in config:  # then transformers reads neither of the older files
        return files, {}

    def content(token: Any) -> Any:
        return token.get('content') if isinstance(token, dict) else token

    others = {name: token for name, token in special.items() if content(token) != content(config.get(name))}
    return [*files, directory / 'added_tokens.json'], others


def _untold_activation(config: dict[str, Any], known: str) -> str:
    """The activation that is `known`, where config.json tells another for a tower; else empty."""
    told = {part(config, tower).get('hidden_act', 'quick_gelu') for tower in ('text_config', 'vision_config')}
    return known if told != {known} else ''


def _essential(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _essential(item) for key, item in value.items() if key not in _NOISE}
    return value
