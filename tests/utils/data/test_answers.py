"""When an answer is right: the same words in another form, and nothing else."""

import pytest

from utils.data.answers import is_right, normalise_answer

NORMALISED = {
    **{"yes": "yes", " Yes. ": "yes", "YES!\n": "yes", "more  than\tten": "more than ten"},
    **{"acoustic_guitar": "acoustic guitar", "Acoustic Guitar,": "acoustic guitar"},
    **{'"violin"': "violin", "'violin'?": "violin", "_cello_": "cello", "2.5": "2.5"},
    **{"": "", " . ": "", "…": "", "。": "", "“”": ""},
    # Quotes, and punctuation of any script around the answer.
    **{"“violin”": "violin", "‘violin’": "violin", "„violin“": "violin", "«violin»": "violin"},
    **{"「violin」": "violin", "`violin`": "violin", "“Violin.”": "violin", "don’t": "dont"},
    **{"two;": "two", "two:": "two", "two。": "two", "two…": "two", "two...": "two"},
    **{"(two)": "two", "[two]": "two", "{two}.": "two", "【two】": "two", "¿yes?": "yes"},
    **{"yes？": "yes", "**yes**": "yes", "- yes": "yes", "ＹＥＳ": "yes", "是。": "是"},
    # Underscores, hyphens and dashes are spaces.
    **{"acoustic-guitar": "acoustic guitar", "acoustic – guitar": "acoustic guitar"},
    # Numbers up to ten are words.
    **{"2": "two", "0": "zero", "10.": "ten", "(3)": "three", "２": "two", "٢": "two"},
    **{"more than 10": "more than ten", "11": "11", "210": "210", "9" * 5000: "9" * 5000},
}
SAME = {
    " violin": "violin",
    "Acoustic guitar.": "acoustic_guitar",
    "more than ten": "more than ten",
    "“Acoustic-Guitar”;": "acoustic_guitar",
    "10": "ten",
}
OTHER = {
    **{"violin and cello": "violin", "one": "none", "ten": "more than ten", "yes no": "yes"},
    **{"violin violin": "violin", "guitar": "acoustic_guitar", "": "yes", "1": "10"},
    **{"acousticguitar": "acoustic_guitar", "yes, two": "two", "…": "yes", "1.0": "one"},
}


@pytest.mark.parametrize("text", NORMALISED)
def test_normalised_form(text):
    """Case, blanks, quotes, underscores, hyphens, punctuation at the ends, and the form of small
    numbers do not matter; the rest does. What is normalised stays as it is."""
    assert normalise_answer(text) == NORMALISED[text]
    assert normalise_answer(NORMALISED[text]) == NORMALISED[text]


def test_answers_are_compared_whole():
    """The same answer in another form is right, a part of an answer or more than it is wrong."""
    for pairs, right in ((SAME, True), (OTHER, False)):
        for said, answer in pairs.items():
            assert is_right(said, answer) == is_right(answer, said) == right, (said, answer)
