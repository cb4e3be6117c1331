"""Phone numbers: cleaned as they come in, and read as international and national numbers.

Our own grammar comes first: `phonenumbers` takes `00254…` for a Kenyan number, and Excel's `.0` for a digit. It is
imported with the first number that is read, since the import takes 0.13 seconds.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

LENGTH = 32  # characters of a cleaned number
DIGITS = (3, 17)  # E.164 has up to 15; `00` or a `0` in brackets may come before them
PATTERN = r"[+(]{0,2}[0-9]([ ()./-]*[0-9]){2,16}[ ()./-]*( ?(x|ext\.?) ?[0-9]+)?"  # of a cleaned number
# What versions before 0010 took. A client may send such a number back with the rest of its record.
_OLD_PATTERN = r"\+?[0-9 ()./-]*[0-9][0-9 ()./-]*( ?(x|ext\.?) ?[0-9]+)?"

EXTENSION = r"\s*(?:;\s*ext=|#|x|ext(?:ensio)?n?\.?)\s*"  # the sign between a number and its extension
_EXTENSION = re.compile(rf"(?<=[\d)])({EXTENSION})(\d+)$", re.IGNORECASE)
_SIGNS = str.maketrans({**dict.fromkeys("‐‑‒–—―−﹣－ー", "-"), "＋": "+", "（": "(", "）": ")"})
_OF_EXCEL = re.compile(r"\+?\d[\d ()/-]*\.0|\d([.,]\d+)?e\+?\d+", re.IGNORECASE)
_TRUNK_IN_BRACKETS = re.compile(r"\(\s*0\s*\)")
_NO_DIGIT = re.compile("[^0-9]")
DIALLED = re.compile(r"^00(?=[1-9])")  # begins an international number as it is dialled in most countries
_SHORTEST_DIALLED = 9  # digits; a shorter number with `00` is read as it is


def ascii_digits(text: str) -> str:
    """Replace the decimal digits of all scripts by 0 to 9."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(character)) if character.isdecimal() else character for character in text)


def digits_of(text: str) -> str:
    """Return the digits of a text, of all scripts, as 0 to 9."""
    return _NO_DIGIT.sub("", ascii_digits(text))


def plain_signs(text: str) -> str:
    """Return a text with ASCII digits, and the signs of phone numbers as keyboards have them, without `tel:`."""
    return ascii_digits(re.sub(r"\btel:", "", text, flags=re.IGNORECASE).translate(_SIGNS))


def without_trunk(text: str) -> str:
    """Drop the `(0)` of an international number: `+44 (0)20` is `+44 20`."""
    international = "+" in text or DIALLED.match(digits_of(text))
    return _TRUNK_IN_BRACKETS.sub("", text) if international and "(" in text else text


# --- Cleaning ---


def cleaned(text: str) -> str:
    """Return a number with ASCII digits, hyphens and single blanks, without `tel:` (RFC 3966) and invisible signs.

    An extension keeps its `x` or `ext.` and stands at the end. Raises ValueError with the reason of a refusal.
    """
    if not text.isascii():
        text = "".join(sign for sign in unicodedata.normalize("NFKC", text) if unicodedata.category(sign) != "Cf")
    text = " ".join(plain_signs(text).split())
    text = _EXTENSION.sub(_spelled_extension, text)
    if refusal := _refusal(text):
        raise ValueError(refusal)
    return text


def _spelled_extension(match: re.Match[str]) -> str:
    sign = match[1].lower()
    if "#" in sign or "=" in sign:
        return f" x{match[2]}"
    return re.sub(r"ext(ensio)?n?", "ext", sign) + match[2]


def _refusal(text: str) -> str:
    """Return why a number that is otherwise clean is refused, or ""."""
    fewest, most = DIGITS
    number, _, _ = text.partition("x")
    if _OF_EXCEL.fullmatch(text):
        return "The {field} looks like a number of Excel: please format its column as text, and send the digits alone."
    if re.search("[,;،、]", text):
        return "Please give one {field}, and the other one elsewhere."
    if re.match(r"[-./]", text):
        return "Please begin the {field} with a digit, a plus sign or a bracket."
    if 0 < len(digits_of(number)) < fewest:
        return f"The {{field}} needs at least {fewest} digits."
    if len(digits_of(number)) > most and re.fullmatch(_OLD_PATTERN, text):
        return f"Please give one {{field}} of at most {most} digits."
    if len(text) > LENGTH or not re.fullmatch(PATTERN, text):
        return "Please write the {field} as +254 712 345 678."
    return ""


def cleaned_or_old(text: str) -> str:
    """Return a number cleaned, or as it is if an older version may have stored it. Raises ValueError for others."""
    try:
        return cleaned(text)
    except ValueError:
        if len(text) <= LENGTH and re.fullmatch(_OLD_PATTERN, text):
            return text
        raise


# --- Reading ---


class PhoneNumber(NamedTuple):
    """The digits of a phone number."""

    international: str  # E.164 without `+`; "" if it is not known
    national: str  # as dialled within the country; if the country is unknown, as written
    extension: str

    @property
    def main(self) -> str:
        """The number without its extension: two spellings of one number have the same."""
        return self.international or self.national


@lru_cache(maxsize=1024)
def read_phone(number: str, region: str) -> PhoneNumber:
    """Return the digits of a cleaned number. `region` is the ISO 3166 country of national numbers, "" for none.

    A number that begins with `+` or `00` is international; `(0)` in it is dropped. A national number that is not of a
    length of its country is read as it is written: 911.
    """
    main, _, extension = number.replace("e", "x", 1).partition("x")
    digits, extension = digits_of(main), extension and digits_of(extension)
    plus = "+" in main
    if plus or (len(digits) >= _SHORTEST_DIALLED and DIALLED.match(digits)):
        whole = digits_of(without_trunk(main)) if "(" in main else digits
        whole = whole if plus else whole.removeprefix("00")
        international, national = _of_country_code(whole) or _parsed(f"+{whole}", "")
        if international:
            return PhoneNumber(international, national, extension)
        if plus:
            country, rest = _country_and_rest(whole)
            return PhoneNumber(whole, country.national(rest) if country else whole, extension)
    international, national = _parsed(digits, region) if region else ("", digits)
    return PhoneNumber(international, national, extension)


@dataclass(frozen=True, slots=True)
class _Country:
    """What a country's plan says of the numbers that follow its calling code."""

    lengths: frozenset[int]
    needs_parser: re.Pattern[str] | None  # begins a number that `_of_country_code` cannot read
    trunk: str | None  # what is dialled before a number within the country; None if it depends on the number
    trunks: tuple[tuple[re.Pattern[str], str], ...]  # numbers, and what is dialled before them

    def national(self, rest: str) -> str:
        if self.trunk is not None:
            return self.trunk + rest
        return next((trunk for numbers, trunk in self.trunks if numbers.match(rest)), "") + rest


@lru_cache(maxsize=1024)
def _country(code: str) -> _Country | None:
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata, region_code_for_country_code

    if not code or code[0] == "0" or int(code) not in COUNTRY_CODE_TO_REGION_CODE:
        return None
    region: str = region_code_for_country_code(int(code))
    plan: Any = PhoneMetadata.metadata_for_region_or_calling_code(int(code), region)
    trunks = []
    for form in plan.number_format:
        before, _, _ = (form.national_prefix_formatting_rule or "").partition(r"\1")
        leading = form.leading_digits_pattern[-1] if form.leading_digits_pattern else ""
        trunks.append((f"(?={leading})(?:{form.pattern})$", digits_of(before)))
    prefix = plan.national_prefix_for_parsing
    return _Country(
        frozenset(plan.general_desc.possible_length),
        re.compile(prefix) if prefix else None,
        trunks[0][1] if len({trunk for _, trunk in trunks}) == 1 else None,
        tuple((re.compile(numbers), trunk) for numbers, trunk in trunks),
    )


def _country_and_rest(digits: str) -> tuple[_Country | None, str]:
    """Split an international number after its calling code. None of these begins another."""
    for length in (1, 2, 3):
        if country := _country(digits[:length]):
            return country, digits[length:]
    return None, digits


def _of_country_code(digits: str) -> tuple[str, str] | None:
    """Return the international and the national digits of most international numbers; None for the parser.

    It takes some 10 µs and the parser 170, which would be three minutes of a million patients.
    """
    country, rest = _country_and_rest(digits)
    if country is None or len(rest) not in country.lengths:
        return None
    return None if country.needs_parser and country.needs_parser.match(rest) else (digits, country.national(rest))


def _parsed(text: str, region: str) -> tuple[str, str]:
    """Return the digits of a number as `phonenumbers` reads it."""
    from phonenumbers import (
        NumberParseException,
        PhoneNumberFormat,
        ValidationResult,
        format_number,
        is_possible_number_with_reason,
        parse,
    )

    try:
        number = parse(text, region or None)
    except NumberParseException:
        return "", digits_of(text)
    if is_possible_number_with_reason(number) != ValidationResult.IS_POSSIBLE:
        return "", digits_of(text)
    international = digits_of(format_number(number, PhoneNumberFormat.E164))
    simple = _of_country_code(international)
    return international, simple[1] if simple else digits_of(format_number(number, PhoneNumberFormat.NATIONAL))
