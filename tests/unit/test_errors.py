"""The tree of errors, and the one line in which an error travels."""

import pytest

from clipflow import errors
from clipflow.errors import BY_CODE, ClipflowError, Internal, NotFound, from_code, from_description

# DESIGN, section 6.
STATUSES = {
    'invalid-parameter': 400,
    'invalid-filter': 400,
    'invalid-document': 400,
    'unauthorized': 401,
    'forbidden': 403,
    'forbidden-source': 403,
    'not-found': 404,
    'conflict': 409,
    'dimension-mismatch': 409,
    'model-mismatch': 409,
    'too-large': 413,
    'unsupported-media': 415,
    'undecodable': 422,
    'overloaded': 429,
    'internal': 500,
    'unavailable': 503,
    'not-ready': 503,
    'read-only': 503,
    'timeout': 504,
    'storage-full': 507,
}


def test_codes_and_statuses_are_those_of_the_design() -> None:
    assert {code: kind.status for code, kind in BY_CODE.items()} == STATUSES


def test_every_class_has_a_code_of_its_own() -> None:
    classes = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ClipflowError) and kind is not ClipflowError
    ]
    assert sorted(kind.code for kind in classes) == sorted(STATUSES)


def test_exactly_four_kinds_may_be_tried_again() -> None:
    retryable = {code for code, kind in BY_CODE.items() if kind.retryable}
    assert retryable == {'overloaded', 'unavailable', 'not-ready', 'timeout'}


def test_a_special_error_is_caught_as_its_general_one() -> None:
    assert issubclass(errors.ForbiddenSource, errors.Forbidden)
    assert issubclass(errors.DimensionMismatch, errors.Conflict)
    assert issubclass(errors.ModelMismatch, errors.Conflict)
    assert issubclass(errors.NotReady, errors.Unavailable)


@pytest.mark.parametrize('code', STATUSES)
@pytest.mark.parametrize('sentence', ['the id is empty', 'a: b: c', 'two\nlines', '', '猫 — «x»'])
def test_the_description_of_an_error_becomes_the_same_error_again(code: str, sentence: str) -> None:
    error = BY_CODE[code](sentence)
    back = from_description(repr(error))
    assert (type(back), back.message) == (type(error), sentence)


def test_repr_is_code_and_sentence_and_str_the_sentence_alone() -> None:
    error = NotFound('there is no such id')
    assert (repr(error), str(error), error.message) == (
        'not-found: there is no such id',
        'there is no such id',
        'there is no such id',
    )


@pytest.mark.parametrize('text', ['no-such-code: something', 'KeyError: x', 'a sentence without a code', 'not-found'])
def test_a_description_of_no_known_code_is_internal_and_keeps_its_text(text: str) -> None:
    back = from_description(text)
    assert (type(back), back.message) == (Internal, text)


def test_an_empty_description_still_gives_a_sentence() -> None:
    assert from_description('').message


def test_an_unknown_code_of_a_newer_server_keeps_its_text() -> None:
    assert repr(from_code('brand-new', 'what happened')) == 'internal: brand-new: what happened'
