"""What a fine-tuning run is told: typed, and found faulty before any work, with a sentence for each fault.

Every field is an option of the YAML file; docs/relevance.md shows them all.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clipflow import ROOT
from clipflow.errors import ClipflowError, InvalidParameter, NotFound
from clipflow.tags import unsendable
from clipflow.templates import checked

LEARNING_RATES = {'full': 1e-6, 'last-n-layers': 1e-5, 'projection': 1e-4, 'lora': 1e-4}
"""Where none is given. All parameters of a CLIP take 1e-7 to 1e-5; more, and it forgets what it knew."""

_Config = TypeVar('_Config', bound=BaseModel)


def at_least_one(templates: tuple[str, ...]) -> tuple[str, ...]:
    """For pydantic: the templates; ValueError if there is none, or one has no place for the name of a class."""
    if not templates:
        raise ValueError('at least one template is needed, such as "a photo of a {}"')
    return checked(templates)


class TuneConfig(BaseModel):
    """One run. `load` is the way in."""

    model_config = ConfigDict(frozen=True, extra='forbid', protected_namespaces=())

    model: str = Field(str(ROOT / 'models' / 'clip-mini'), description='The start: a directory or a name.')
    out: Path = Field(Path('runs/finetune'), description='The run folder. The same command again goes on there.')

    captions: Path | None = Field(None, description='Pictures with captions: .jsonl, .csv, .tsv or Karpathy .json.')
    labelled: Path | None = Field(None, description='Pictures in a folder for each class, or a table of labels.')
    feedback: Path | None = Field(None, description='What `clipflow feedback export` wrote.')
    images: Path | None = Field(None, description='Folder or zip file of the pictures, if not beside the table.')
    templates: tuple[str, ...] = Field(('a photo of a {}',), description='Sentences for the name of a class.')
    splits: tuple[str, ...] = Field(
        (),
        description='Of data that name splits: those to learn from, to choose on (when to stop, how much to mix), and, '
        'if there is one, to report on, such as `train, val, test`. `none`: draw them all the same.',
    )
    validation_share: float = Field(
        0.1, gt=0, lt=1, description='Of data without splits: the part to choose on, drawn by what pictures hold.'
    )
    old_task: Path | None = Field(None, description='Captions or labelled pictures on which nothing may be forgotten.')
    old_images: Path | None = Field(None, description='As `images`, for the old task.')
    old_split: str | None = Field(None, description='Only this split of the old task.')
    old_templates: tuple[str, ...] = Field(('a photo of a {}',), description='As `templates`, for the old task.')

    strategy: Literal['full', 'last-n-layers', 'projection', 'lora'] = Field('full', description='What learns.')
    towers: Literal['both', 'image', 'text'] = Field('both', description='Whose weights learn.')
    layers: int = Field(2, ge=1, description='For last-n-layers: blocks at the end of each tower.')
    lora_rank: int = Field(8, ge=1, le=4096, description='Rank of the matrices of `lora`.')
    lora_alpha: int = Field(16, ge=1, description='Weight of `lora`: its matrices count alpha / rank.')
    loss: Literal['clip', 'siglip', 'triplet', 'ranking'] = Field('clip', description='What is made small.')
    margin: float = Field(0.2, gt=0, lt=2, description='For triplet: how much nearer than a wrong one, in cosine.')
    hard_negatives: int = Field(
        0,
        ge=0,
        description='So many of the most similar wrong pairs come into the batch beside each pair; 0: by chance.',
    )
    rejected: int = Field(
        4, ge=0, description='For feedback: at most so many shown and not clicked pictures beside each clicked one.'
    )
    learn_scale: bool = Field(True, description='Whether the temperature learns too.')

    epochs: int = Field(5, ge=1, description='Passes over the pictures, each time with another caption.')
    batch: int = Field(64, ge=2, description='Pairs that are compared with each other, over all processes.')
    part: int = Field(64, ge=1, description='Pairs that are in memory at once; it does not change the result.')
    learning_rate: float | None = Field(None, gt=0, lt=1, description='At its highest; the default is by strategy.')
    layer_decay: float = Field(0.98, gt=0, le=1, description='Each block learns this much slower than the next one.')
    weight_decay: float = Field(0.01, ge=0, description='Of AdamW, on matrices only.')
    warmup: float = Field(0.1, ge=0, lt=1, description='Part of all steps in which the learning rate rises.')
    clip_gradient: float = Field(1.0, gt=0, description='Longest gradient.')
    patience: int = Field(2, ge=1, description='Epochs without a better validation recall, then it stops.')
    augment: bool = Field(True, description='Random crops, and mirrored pictures unless left or right matters.')
    seed: int = Field(0, ge=0, lt=2**32, description='Of everything that is drawn.')

    device: Literal['auto', 'cpu', 'cuda'] = Field('auto', description='Where it computes.')
    precision: Literal['auto', 'float32', 'bfloat16'] = Field(
        'auto', description='auto: bfloat16 where the hardware multiplies in it. Weights stay float32.'
    )
    checkpointing: bool = Field(False, description='Compute blocks again instead of keeping them: less memory.')
    cache_mb: int = Field(4096, ge=0, description='Decoded pictures that are kept in memory, in MB.')
    save_every: int = Field(200, ge=1, description='Steps between two checkpoints; there is one after each epoch too.')
    save_precision: Literal['float32', 'float16', 'bfloat16'] = Field(
        'float32', description='Of the final weights. Small learning rates change less than float16 can tell.'
    )
    alphas: tuple[float, ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), description='Shares of the tuned weights that are tried for the mix.'
    )

    @field_validator('splits', mode='before')
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(',')) if isinstance(value, str) else value

    @field_validator('splits')
    @classmethod
    def _two_or_three(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value not in ((), ('none',)) and len(value) not in (2, 3):
            raise ValueError('name two or three splits, such as train,val,test, or none')
        if len(set(value)) < len(value):
            raise ValueError('what is learned from cannot be chosen or reported on')
        return value

    @field_validator('strategy', mode='before')
    @classmethod
    def _of_the_model(cls, value: Any) -> Any:
        if value == 'head':
            raise ValueError('a head is trained by `clipflow head train`, and stands in the ranker')
        return value

    @field_validator('templates', 'old_templates', mode='before')
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    _templates = field_validator('templates', 'old_templates')(at_least_one)

    @field_validator('alphas')
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 <= alpha <= 1 for alpha in value):
            raise ValueError('alphas are numbers from 0 (the start weights) to 1 (the tuned ones)')
        return tuple(sorted(set(value)))

    @model_validator(mode='after')
    def _one_source(self) -> Self:
        given = [name for name in ('captions', 'labelled', 'feedback') if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f'name one of captions, labelled and feedback to learn from; {len(given)} are given')
        if self.feedback is not None and self.images is None:
            raise ValueError('feedback names pictures by their ids: name their folder with images')
        return self

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return self.learning_rate or LEARNING_RATES[self.strategy]

    @classmethod
    def load(cls, file: Path | None, given: Mapping[str, Any]) -> Self:
        """Read a YAML file, if there is one; `given` wins over it. Relative paths are from where the command runs.

        Raises:
            NotFound: no such file.
            InvalidParameter: a sentence for each fault, all at once.
        """
        values = read_yaml(file) if file else {}
        return made(cls, values | {name: value for name, value in given.items() if value is not None})


def made(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    """The configuration of these options.

    Raises:
        InvalidParameter: a sentence for each fault, all at once.
    """
    texts = {name: str(value) for name, value in values.items()}
    # Such as a path that is no UTF-8: the file of the options could not hold it.
    if halves := {name: reason for name, text in texts.items() if (reason := unsendable(text))}:
        raise faulty([f'{name}={texts[name]!r} is not valid: it holds {reason}' for name, reason in halves.items()])
    try:
        return kind(**values)
    except ValidationError as error:
        raise faulty([_sentence(item, kind.model_fields) for item in error.errors()]) from None


def faulty(sentences: list[str]) -> InvalidParameter:
    """One error of all that is wrong."""
    if len(sentences) == 1:
        return InvalidParameter(sentences[0])
    return InvalidParameter(f'{len(sentences)} things are wrong:' + ''.join(f'\n- {one}' for one in sentences))


class Faults:
    """Collects what is wrong, so that all is told at once."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, ClipflowError):
            self.sentences.append(error.message)
        return isinstance(error, ClipflowError)

    def check(self, sound: bool, sentence: str) -> None:
        """Note the sentence if it is not sound."""
        if not sound:
            self.sentences.append(sentence)

    def finish(self) -> None:
        """Raise InvalidParameter with every sentence, if there is any."""
        if self.sentences:
            raise faulty(self.sentences)


def read_yaml(file: Path) -> dict[str, Any]:
    """The options in a file.

    Raises:
        NotFound: it cannot be read.
        InvalidParameter: it holds no options.
    """
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding='utf-8'))
    except OSError as error:
        raise NotFound(f'{file} cannot be read: {error.strerror}') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidParameter(f'{file} is not YAML: {" ".join(str(error).split())}') from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InvalidParameter(f'{file} holds no options, each a name and a value such as "seed: 3"')
    return found


def _sentence(item: Any, known: Mapping[str, Any]) -> str:
    name = '.'.join(map(str, item['loc']))
    if item['type'] == 'extra_forbidden':
        near = difflib.get_close_matches(name, known, 1)
        return f'unknown option {name!r}' + (f'; did you mean {near[0]!r}?' if near else '')
    if item['type'] == 'missing':
        return f'{name} is missing'
    said = str(item['ctx']['error']) if item['type'] == 'value_error' else item['msg'][:1].lower() + item['msg'][1:]
    return f'{name}={item["input"]!r} is not valid: {said}' if name else said
