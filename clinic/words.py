"""Words of texts and names: case, accents and punctuation do not matter, nor whether a name is written together.

A search text is folded by `fold`. A name has more words than it folds to, so that its other spellings are found.
"""

import re
import unicodedata
from functools import lru_cache

from models import LONGEST_WORD
from server.phones import ascii_digits

# --- Folding ---

_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th", "ـ": ""}
    | {"ة": "ه", "ٱ": "ا", "ى": "ي", "ی": "ي", "ک": "ك", "ہ": "ه", "ھ": "ه", "ە": "ه"}  # Arabic, Persian, Urdu
)
_MARKS = "'’‘`´′＇"
_APOSTROPHES = re.compile(rf"(?<=\w)[{_MARKS}](?=\w)|[ʹʻʼʾʿ]")  # Unicode counts the second set as letters
_DROPPED = {"Mn", "Mc", "Me", "Cf"}  # Unicode categories: accents, vowel signs, joiners, soft hyphens
_WORD = re.compile(r"[^\W_]+")


@lru_cache(maxsize=4096)
def fold(text: str) -> tuple[str, ...]:
    """Return the words of a text: `"José O'Brien-Łoś"` has `jose`, `obrien` and `los`."""
    plain = _APOSTROPHES.sub("", text).casefold()
    if not plain.isascii():
        # Fold the case again: only the normal form of a mathematical 𝐀 is a capital letter.
        decomposed = unicodedata.normalize("NFKD", plain).casefold()
        kept = (character for character in decomposed if unicodedata.category(character) not in _DROPPED)
        plain = ascii_digits("".join(kept).translate(_PLAIN))
    return tuple(word[:LONGEST_WORD] for word in _WORD.findall(plain))


# --- Spellings ---

MOST_PARTS = 6  # of a name that are joined

_UMLAUT = re.compile("[äöüøåÄÖÜØÅ]")
_WRITTEN_OUT = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "Ø": "Oe", "Å": "Aa"}
)
# Mueller, not Bauer, Enrique, Samuel or Monroe
_UMLAUT_WRITTEN_OUT = re.compile(r"(?<![aeiouq])([aou])e(?=[^\W\d_])(?!l\b)", re.IGNORECASE)
_PART = re.compile(
    rf"(?<=\w)[{_MARKS}ʹʻʼ](?=\w)"  # O'Brien
    "|(?<=[a-zß-öø-ÿ])(?=[A-ZÀ-ÖØ-Þ])"  # McDonald, DeSouza
    r"|(?i:(?<=\bmc)(?=[^\W\d_]{3})|(?<=\b(?:al|el))(?=(?![aeiou])[^\W\d_]{4})|(?<=\bdela)(?=[^\W\d_]{4})"
    r"|(?<=\b(?:abdul|abdel))(?=[^\W\d_]{3})|(?<=\bعبد)(?=[^\W\d_]{3}))"
)
# Scripts that write names without a blank: Thai, Lao, Burmese, Khmer; Kana, Han and Hangul.
_ALPHABET_WITHOUT_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_SYLLABLES = "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WITHOUT_BLANKS = re.compile(f"[{_ALPHABET_WITHOUT_BLANKS}{_SYLLABLES}]+")
_LONGEST_FAMILY_NAME = 3  # syllables
_SHORTEST_NAME, _MOST_TAILS = 2, 16  # letters of Thai, Lao, Burmese and Khmer


def words_of_person(first_name: str, last_name: str) -> frozenset[str]:
    """Return the words by which a person is found."""
    words = _words_of_name(first_name) | _words_of_name(last_name)
    return words if (first_name + last_name).isascii() else words | _written_together(first_name, last_name)


def plain_words(first_name: str, last_name: str) -> frozenset[str]:
    """Return the words of a name, the same for most of its spellings: two people with the same may be one."""
    return _plain_words_of_name(first_name) | _plain_words_of_name(last_name)


@lru_cache(maxsize=4096)
def _plain_words_of_name(name: str) -> frozenset[str]:
    return frozenset(_parts(_contracted(name)))


@lru_cache(maxsize=4096)
def _words_of_name(name: str) -> frozenset[str]:
    """Return the words of one name: as it folds, its parts apart, and joined with what follows.

    A search matches the beginnings of words: `delacruz` is found by `dela` too.
    """
    words = set(fold(name))
    for spelling in {name, _written_out(name), _contracted(name)}:
        parts = _parts(spelling)
        words |= set(fold(spelling)).union(parts[MOST_PARTS:])
        words |= {"".join(parts[n:MOST_PARTS])[:LONGEST_WORD] for n in range(min(len(parts), MOST_PARTS))}
    return frozenset(words)


def _parts(name: str) -> tuple[str, ...]:
    """Return the words of a name that is split at apostrophes and capitals, and after particles."""
    return fold(_PART.sub(" ", name))


def _written_out(name: str) -> str:
    """Write Müller as Mueller."""
    if name.isascii():
        return name
    composed = unicodedata.normalize("NFC", name)
    return composed.translate(_WRITTEN_OUT) if _UMLAUT.search(composed) else name


def _contracted(name: str) -> str:
    """Write Mueller as Muller, which Müller folds to."""
    return _UMLAUT_WRITTEN_OUT.sub(r"\1", name)


def _written_together(first_name: str, last_name: str) -> set[str]:
    """Return the words of a name in a script without blanks: both names joined, or the parts of a joined name."""
    first, last = (_WITHOUT_BLANKS.findall(unicodedata.normalize("NFC", name)) for name in (first_name, last_name))
    if first and last:
        orders = (first_name + last_name, last_name + first_name)
        return {"".join(fold(both))[:LONGEST_WORD] for both in orders}
    return {word for name in first or last for tail in _tails(name) for word in fold(tail)}


def _tails(name: str) -> list[str]:
    """Return what may be the given name: where the family name ends is not known."""
    if re.match(f"[{_SYLLABLES}]", name):
        return [name[n:] for n in range(1, min(len(name), _LONGEST_FAMILY_NAME + 1))]
    starts = range(_SHORTEST_NAME, len(name) - _SHORTEST_NAME + 1)
    letters = [n for n in starts if unicodedata.category(name[n]) not in _DROPPED]
    return [name[n:] for n in letters[:_MOST_TAILS]]
