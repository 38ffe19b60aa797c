"""Sentences that a query is put into: what is one, and whose count."""

import pytest

from clipflow import templates


def test_the_setting_beats_the_model_also_where_it_is_empty() -> None:
    assert templates.usual(None, ('model {}',)) == ('model {}',)
    assert templates.usual(('own {}',), ('model {}',)) == ('own {}',)
    assert templates.usual((), ('model {}',)) == ()


def test_each_has_one_place_and_there_are_not_too_many() -> None:
    assert templates.checked(['{}', 'a {} b']) == ('{}', 'a {} b')
    assert templates.checked([]) == ()
    for wrong in (['a'], ['{} {}'], [3], [None]):
        with pytest.raises(ValueError, match='one place'):
            templates.checked(wrong)
    with pytest.raises(ValueError, match='half a surrogate pair'):
        templates.checked(['a \udcff {}'])
    with pytest.raises(ValueError, match='1,001'):
        templates.checked(['{}'] * 1001)
