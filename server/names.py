"""Checks a person's name: it must be visible, and must not disguise itself as another name."""

import re
import unicodedata

_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")  # U+2028 and U+2029 begin a new line
_OVERRIDES = re.compile("[\u202a-\u202e\u2066-\u2069]")  # https://trojansource.codes, CVE-2021-42574
# Unicode counts these as letters or symbols, but fonts show nothing: Hangul fillers, the empty Braille cell, the empty
# notehead, Egyptian blanks.
_EMPTY = "\u115f\u1160\u3164\uffa0\u2800\U0001d159\U00013441\U00013442"


def check_name(name: str) -> str:
    """Return the name. Raises ValueError for control characters, direction overrides, or a name with nothing visible.

    Joiners and direction marks are allowed beside visible characters: Persian and Indic names have them.
    """
    if _CONTROLS.search(name):
        raise ValueError("The {field} cannot have control characters.")
    if _OVERRIDES.search(name):
        raise ValueError("The {field} cannot have characters that override the direction of the text.")
    if not shows_something(name):
        raise ValueError("The {field} needs a visible character.")
    return name


def shows_something(text: str) -> bool:
    """Return whether the text has a character that a reader can see."""
    return any(_is_visible(character) for character in text)


def _is_visible(character: str) -> bool:
    """Return whether the character shows by itself. Letters, numbers, punctuation and symbols do; marks do not."""
    return unicodedata.category(character)[0] in "LNPS" and character not in _EMPTY
