"""Sentences with one place `{}` that a text is put into: CLIP has learned from captions, and a bare word is none.

The vectors of several are averaged (Radford et al. 2021, section 3.1.4).
"""

from collections.abc import Iterable
from typing import Any

from clipflow.tags import unsendable

MOST = 1000
PLACE = '{}'


def checked(templates: Iterable[Any]) -> tuple[str, ...]:
    """The templates as they are, if each is a text with one place.

    Raises:
        ValueError: with a sentence that names the first that is none, or says that they are too many.
    """
    found = tuple(templates)
    if len(found) > MOST:
        raise ValueError(f'there are {len(found):,} templates; {MOST:,} are the most')
    for template in found:
        if not isinstance(template, str) or template.count(PLACE) != 1:
            raise ValueError(f"each of 'templates' has one place '{PLACE}' for the text; {template!r} has not")
        if reason := unsendable(template):
            raise ValueError(f"{template!r} of 'templates' holds {reason}")
    return found


def usual(setting: tuple[str, ...] | None, model: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the setting, where it is set (and be it to none), else those of the model."""
    return model if setting is None else setting
