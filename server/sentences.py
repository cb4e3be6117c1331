"""Says what is wrong with a value of a request, in a sentence for a person.

A sentence names a field by its label, such as "birth date". A text may leave the place of the label open: `{field}`.
"""

import re
from collections.abc import Mapping
from typing import Any

_labels: dict[str, str] = {}

GIVE = "Please give the {field}."
WHOLE_NUMBER = "Please give a whole number for the {field}."
_YES_OR_NO = "Please give true or false for the {field}."
_ONE_OF = "Please choose one of these for the {field}: {choices}."
_OBJECT = "Please send an object with the names of fields and their values."

# The sentence for each kind of fault (https://docs.pydantic.dev/latest/errors/validation_errors/) of a strict model.
SENTENCES = {
    "missing": GIVE,
    "string_type": "Please give a text for the {field}.",
    "string_unicode": "Please write the {field} in UTF-8.",
    "string_too_short": "The {field} needs at least {min_length:,} characters.",
    "string_too_long": "The {field} can have at most {max_length:,} characters.",
    "too_short": "Please give at least {min_length:,} for the {field}.",
    "too_long": "Please give at most {max_length:,} for the {field}.",
    "list_type": "Please give a list for the {field}.",
    "int_type": WHOLE_NUMBER,
    "int_parsing": WHOLE_NUMBER,
    "int_parsing_size": WHOLE_NUMBER,
    "int_from_float": WHOLE_NUMBER,
    "greater_than_equal": "Please give at least {ge:,} for the {field}.",
    "less_than_equal": "Please give at most {le:,} for the {field}.",
    "bool_type": _YES_OR_NO,
    "bool_parsing": _YES_OR_NO,
    "literal_error": _ONE_OF,
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "dict_type": _OBJECT,
}
_ANY_OTHER = "Please check the {field}."


def name_fields(**labels: str) -> None:
    """Name fields in sentences otherwise than their names do: `name_fields(date_of_birth="birth date")`."""
    _labels.update(labels)


def label(field: str) -> str:
    """Return a field's name in plain words, to follow "the": "phone number"."""
    last = field.rpartition(".")[2]
    return _labels.get(last, last.replace("_", " "))


def about(field: str, sentence: str) -> str:
    """Return the sentence with the field's label where it says `{field}`."""
    return sentence.replace("{field}", label(field))


def one_of(words: Any) -> str:
    """Return the sentence that lists the words of which a field takes one."""
    return _ONE_OF.replace("{choices}", ", ".join(words))


def of_fault(fault: Mapping[str, Any]) -> str:
    """Return the sentence for a fault of pydantic, without the value. It says `{field}` for the label.

    A validator of ours writes its sentence itself, as a ValueError.
    """
    kind, values = fault["type"], fault.get("ctx", {})
    if kind == "value_error":
        return str(values["error"])
    if kind in SENTENCES and not kind.startswith(("literal_error", "bool_")) and fault.get("input") in (None, ""):
        return GIVE
    if values.get("min_length") == 1:  # nothing but blanks
        return GIVE
    if kind == "literal_error":
        return one_of(re.findall("'([^']*)'", values["expected"]))
    return SENTENCES.get(kind, _ANY_OTHER).format(field="{field}", **values)
