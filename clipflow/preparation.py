"""What the preprocessor does to one Document: check it, fetch it, decode it, make it the model's input."""

import numpy as np
from docarray import Document
from PIL import Image

from clipflow import pictures, wire
from clipflow.errors import ClipflowError, InvalidDocument, ModelMismatch, NotReady, TooLarge
from clipflow.pictures import Filled
from clipflow.settings import PreprocessorSettings
from clipflow.sources import Sources
from clipflow.tags import drop_private_tags, unsendable
from clipflow.weights import ModelSpec

STAGE = 'preprocessor'


class Preparation:
    """Turns the content of Documents into `text` or `tensor` (uint8, the model's input size).

    Args:
        spec: of the model that the encoder runs; its fingerprint goes with every tensor.
        settings: limits, and what URIs may be read.
    """

    def __init__(self, spec: ModelSpec, settings: PreprocessorSettings) -> None:
        self._spec = spec
        self._settings = settings
        self._sources = Sources(settings.file_roots, settings.allow_http, settings.max_bytes, settings.http_timeout)
        # Twice the largest thing made from a picture: then a JPEG decoded at a fraction still shrinks by two or more.
        sides = (spec.picture.resize_shortest or 0, spec.picture.height, spec.picture.width, pictures.THUMBNAIL_SIDE)
        self._draft = 2 * max(sides)

    def prepare(
        self, doc: Document, *, needs_content: bool, trust_embedding: bool, thumbnail: bool, keep: bool
    ) -> None:
        """Prepare one Document in place; what is wrong with it is written into it, never raised.

        Args:
            doc: as the client sent it.
            needs_content: whether an empty Document is an error.
            trust_embedding: whether a ready embedding stands for the content (else content, if any, wins).
            thumbnail: whether to attach a thumbnail of a picture.
            keep: whether the encoded or raw picture has to come back with the reply.
        """
        try:
            drop_private_tags(doc)
            for modality in wire.CHUNKS:
                while wire.detach(doc, modality) is not None:
                    pass
            self._prepare(doc, needs_content, trust_embedding, thumbnail, keep)
        except ClipflowError as error:
            wire.fail(doc, type(error)(f'{doc.id!r}: {error.message}'), STAGE)

    def _prepare(self, doc: Document, needs_content: bool, trust_embedding: bool, thumbnail: bool, keep: bool) -> None:
        if doc.embedding is not None and (trust_embedding or not (doc.text or doc.blob or doc.tensor is not None)):
            doc.pop('blob', 'tensor')
            return
        doc.pop('embedding')
        if doc.text:
            self._check_text(doc.text)
        elif doc.tensor is not None:
            self._picture(
                doc, pictures.from_tensor(doc.tensor, self._settings.max_pixels), thumbnail=thumbnail, keep=keep
            )
        elif doc.blob or (doc.uri and not doc.chunks):
            encoded = doc.blob or self._sources.read(doc.uri)
            self._picture(doc, *self._decode(encoded), thumbnail=thumbnail, keep=keep, encoded=encoded)
        elif doc.chunks:
            self._prepare_parts(doc)
        elif needs_content:
            raise InvalidDocument('has no content; give it text, blob, uri, tensor or embedding')

    def _check_text(self, text: str) -> None:
        if len(text) > self._settings.max_characters:
            raise TooLarge(f'the text has {len(text):,} characters, more than {self._settings.max_characters:,}')
        if reason := unsendable(text):
            raise InvalidDocument(f'the text holds {reason}')

    def _decode(self, blob: bytes) -> tuple[Image.Image, Filled]:
        if len(blob) > self._settings.max_bytes:
            raise TooLarge(f'the picture has {len(blob):,} bytes, more than {self._settings.max_bytes:,}')
        return pictures.decode_for(self._draft, blob, self._settings.max_pixels)

    def _picture(
        self,
        doc: Document,
        image: Image.Image,
        filled: Filled = None,
        *,
        thumbnail: bool,
        keep: bool,
        encoded: bytes | None = None,
    ) -> None:
        if thumbnail:
            wire.attach(doc, wire.THUMBNAIL, blob=pictures.thumbnail(image))
        if keep and doc.content_type in ('blob', 'tensor'):
            wire.attach(doc, wire.ORIGINAL, **{doc.content_type: doc.content})
        self._put(doc, image, filled, encoded)

    def _put(self, doc: Document, image: Image.Image, filled: Filled, encoded: bytes | None) -> None:
        """Give a Document what the encoder takes: `image` in the size of the model."""
        doc.tensor = pictures.prepare(image, self._spec.picture, filled)
        doc.tags[wire.MODEL] = self._spec.fingerprint

    def _prepare_parts(self, doc: Document) -> None:
        check_parts(len(doc.chunks))
        for part in doc.chunks:
            if wire.is_empty(part):
                raise InvalidDocument('a part of the query has no content')
            if part.chunks:
                raise InvalidDocument('a part of a query cannot have parts of its own')
            drop_private_tags(part)
            self._prepare(part, needs_content=True, trust_embedding=True, thumbnail=False, keep=False)


def check_parts(number: int) -> None:
    """Raises TooLarge for a query of too many parts; the encoder checks too: it may be asked without this stage."""
    if number > wire.MAX_PARTS:
        raise TooLarge(f'a query of {number:,} parts; it may have {wire.MAX_PARTS}')


def check_pixels(doc: Document, spec: ModelSpec) -> np.ndarray:
    """The prepared picture of a Document, for the encoder.

    Returns:
        uint8 of shape (height, width, 3).

    Raises:
        NotReady: the preprocessor has another model, as long as the model is being changed.
        ModelMismatch: it was not made by a preprocessor.
    """
    pixels = np.asarray(doc.tensor)
    expected = (spec.picture.height, spec.picture.width, 3)
    made_for = doc.tags.get(wire.MODEL)
    if made_for not in (None, spec.fingerprint):
        raise NotReady(
            f'the picture was prepared for another model than {spec.name!r}; try again if the model is being changed, '
            'else give all stages the same CLIPFLOW_MODEL'
        )
    if made_for is None or pixels.shape != expected or pixels.dtype != np.uint8:
        raise ModelMismatch('the picture was not prepared for this model; send the picture itself')
    return pixels
