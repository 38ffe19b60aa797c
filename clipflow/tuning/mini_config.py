"""What the training of a small model is told: one YAML file, checked whole before any work.

models/clip-mini.yml is one; docs/relevance.md explains it.
"""

from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from clipflow.tuning.config import Faults, at_least_one, made, read_yaml


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra='forbid')


class _Collection(_Part):
    table: Path = Field(description='As for `clipflow evaluate`; relative to the data folder, as all paths are.')
    images: Path | None = Field(None, description='Folder or zip file of the pictures, if not beside the table.')


class Captions(_Collection):
    """Pictures with captions."""

    train: str | None = Field(None, description='Split to learn from; none: drawn by name, 8 of 10.')
    paraphrases: bool = Field(False, description='Of a .jsonl: learn also that captions of an absent picture agree.')
    validation: str | None = Field(None, description='Split to choose on; none: drawn by name, 1 of 10.')

    @field_validator('paraphrases')
    @classmethod
    def _of_lines(cls, value: bool, others: ValidationInfo) -> bool:
        table = others.data.get('table')
        if value and table is not None and table.suffix.lower() not in ('.jsonl', '.ndjson'):
            raise ValueError(f'paraphrases are read from a .jsonl, and {table} is none')
        return value


class Labelled(_Collection):
    """Pictures with one class each, which they learn; and they are negatives of every caption."""

    train: str = Field(description='Split to learn from.')
    validation: str = Field(description='Split to choose on.')
    templates: tuple[str, ...] = Field(description='Sentences for a class; the first is what is measured with.')
    weight: float = Field(ge=0, description='Of its cross entropy beside that of the captions.')
    batch: int = Field(ge=1, description='Of its pictures in a step.')
    negatives: int = Field(ge=0, description='Further pictures in a step that count against every caption.')

    _templates = field_validator('templates')(at_least_one)


class ClassNames(_Part):
    """An ImageNet classifier whose probabilities are taught to the joint space through the names of its classes."""

    model: Path = Field(description='Directory in the Hugging Face format with a linear classifier and id2label.')
    templates: tuple[str, ...] = Field(description='Sentences for a class, one of them a step.')
    weight: float = Field(ge=0, description='Of the cross entropy beside that of the captions.')
    batch: int = Field(ge=1, description='Pictures of any collection in a step.')

    _templates = field_validator('templates')(at_least_one)


class Optimiser(_Part):
    """AdamW with a cosine schedule."""

    steps: int = Field(ge=1)
    warmup: int = Field(ge=1)
    batch: int = Field(ge=2, description='Captioned pictures in a step.')
    image_rate: float = Field(gt=0, lt=1, description='Learning rate of the projection of pictures.')
    text_rate: float = Field(gt=0, lt=1, description='Learning rate of the projection of texts.')
    scale: float = Field(gt=0, description='Temperature where it begins.')
    scale_rate: float = Field(gt=0, lt=1, description='Learning rate of the logarithm of the temperature.')
    weight_decay: float = Field(ge=0, description='Of the projection of pictures.')
    label_smoothing: float = Field(ge=0, lt=1)
    noise: float = Field(ge=0, description='Gaussian, on features of pictures, in units of their deviation.')
    dropout: float = Field(ge=0, lt=1, description='Of features of pictures.')
    seed: int = Field(ge=0, lt=2**32)
    save_every: int = Field(100, ge=1, description='Steps between two checkpoints.')


class MiniConfig(_Part):
    """One training. `load` is the way in."""

    start: Path = Field(description='Checkpoint of two towers with a linear projection each. The towers stay frozen.')
    captions: tuple[Captions, ...]
    labelled: tuple[Labelled, ...] = ()
    class_names: ClassNames
    paraphrase_weight: float = Field(ge=0, description='Of the loss of captions of absent pictures.')
    mix: float = Field(
        gt=0, le=1, description='Share of the trained weights; the rest is the start, which forgets nothing.'
    )
    precision: Literal['float32', 'bfloat16'] = Field('float32', description='In which pictures are computed.')
    optimiser: Optimiser

    @field_validator('captions')
    @classmethod
    def _some(cls, value: tuple[Captions, ...]) -> tuple[Captions, ...]:
        if not value:
            raise ValueError('at least one table of captions is needed')
        return value

    @classmethod
    def load(cls, file: Path, data: Path) -> Self:
        """Read the file; its paths are then those below `data`, and all are there.

        Raises:
            NotFound: no such file.
            InvalidParameter: a sentence for each fault, all at once.
        """
        config = made(cls, read_yaml(file))
        faults = Faults()
        found = config.model_copy(
            update={
                'start': data / config.start,
                'captions': tuple(_below(data, part) for part in config.captions),
                'labelled': tuple(_below(data, part) for part in config.labelled),
                'class_names': config.class_names.model_copy(update={'model': data / config.class_names.model}),
            }
        )
        for path in found.paths():
            faults.check(path.exists(), f'{path}: there is no such file or folder')
        faults.finish()
        return found

    def paths(self) -> list[Path]:
        """All that is read."""
        parts = [*self.captions, *self.labelled]
        several = [path for part in parts for path in (part.table, part.images) if path is not None]
        return [self.start, *several, self.class_names.model]


_P = TypeVar('_P', bound=_Collection)


def _below(data: Path, part: _P) -> _P:
    images = None if part.images is None else data / part.images
    return part.model_copy(update={'table': data / part.table, 'images': images})
