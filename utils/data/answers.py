"""When two answers are the same: the one place that says how they are compared."""

import unicodedata

NUMBERS = "zero one two three four five six seven eight nine ten".split()
QUOTES = "\"'`´„‚‟‛＂＇"  # besides those that Unicode calls opening and closing quotes


def normalise_answer(text: str) -> str:
    """The form in which answers are compared: lower case, no quotes, no punctuation of any script
    around it; underscores, hyphens and dashes read as spaces, words parted by single ones; the
    numbers from 0 to 10 as words. Wide and other variants of a letter are that letter."""
    text = "".join(c for c in text if c not in QUOTES and _kind(c) not in ("Pi", "Pf"))
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(" " if _kind(c) in ("Pd", "Pc") else c for c in text)
    marks = "".join(c for c in set(text) if _kind(c)[0] in "PZC")  # punctuation, blanks, controls
    return " ".join(map(_spelled, text.strip(marks).split()))


def _kind(character: str) -> str:
    """Unicode's general category: `Pd` for a dash, `Po` for a full stop, `Ll` for a letter."""
    return unicodedata.category(character)


def _spelled(word: str) -> str:
    """A number up to ten, in digits of any script, as an English word; other words as they are."""
    small = word.isdecimal() and len(word) <= 2 and int(word) < len(NUMBERS)
    return NUMBERS[int(word)] if small else word


def is_right(prediction: str, answer: str) -> bool:
    """Exact match of the normalised forms; part of an answer is not an answer."""
    return normalise_answer(prediction) == normalise_answer(answer)
