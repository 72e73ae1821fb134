"""What the mini language model is pretrained on."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Tokenizer

from modules.foundation_model import IGNORED
from modules.token_compression import COMPRESSIONS, Layout
from modules.token_transmitter import places_of
from utils.mini.language import Reader, new_model, pooling, too_low
from utils.mini.scenes import draw_scene
from utils.mini.text import caption

SCENES = [draw_scene(0, "train", i) for i in range(4)]


@pytest.fixture(scope="module")
def reader() -> Reader:
    torch.manual_seed(0)
    lines = [caption(scene, np.random.default_rng(0)) for scene in SCENES]
    tokenizer = Qwen2Tokenizer(vocab={}, merges=[]).train_new_from_iterator(lines, vocab_size=300)
    return Reader(new_model(tokenizer).eval(), tokenizer, seed=0)


@pytest.mark.parametrize("lengths", [None, (4, 2)])
@torch.inference_mode()
def test_a_block_sees_the_prefix_and_itself_alone(reader, lengths):
    """Other questions and their answers change nothing that is predicted in a block; the prefix
    does."""
    tokens, block, position, *_ = reader.batch(SCENES, 3, lengths)
    before = reader.logits(tokens, block, position)
    for other, same in ((1, False), (0, True)):
        changed = tokens.clone()
        changed[block == other] += 1
        after = reader.logits(changed, block, position)
        moved = (after - before)[block == 2].abs().max().item()
        assert (moved > 1e-3) == same


@pytest.mark.parametrize("lengths", [None, (4, 2)])
def test_answers_and_captions_are_the_targets(reader, lengths):
    """What has to be predicted at a block is its answer with the end of text, one place earlier,
    and its positions go on behind the prefix."""
    _, block, position, target, weight, blocks = reader.batch(SCENES, 3, lengths)
    for row, parts in enumerate(blocks):
        head = (block[row] == 0).sum().item()
        assert position[row][block[row] == 2].tolist() == [
            head + i for i in range(len(parts[1].ids))
        ]
        wanted = [i for part in parts for i in part.ids[-part.answer :]]
        start = head - 1 if lengths or parts[0].type == "caption" else head
        found = [i for i in target[row, start:].tolist() if i != IGNORED]
        assert found == wanted
    assert ((weight > 0) == (target != IGNORED)).all()


@pytest.mark.parametrize("how", ["grid", "sliding_window", "uniform"])
def test_bags_are_pooled_as_tokens_are(how):
    """The weights of a bag are what the compression of that name does."""
    patches = torch.randn(2, 128, 5)
    layout = Layout(places_of(8, 4, 4).expand(2, -1, -1))
    expected, _ = COMPRESSIONS[how](patches, 16, layout)
    torch.testing.assert_close(pooling("visual", how, 16) @ patches, expected)


def test_thoughts_stand_where_players_are_named(reader):
    """In teaching the last token of each name is to predict what belongs to the player."""
    _, block, _, target, _, blocks = reader.batch(SCENES, 20, None, shares={})
    thoughts = 0
    for row, parts in enumerate(blocks):
        at = (block[row] == 0).sum().item()
        for part in parts:
            for place, what in part.thoughts:
                assert target[row, at + place] == what
                assert part.ids[place] != part.ids[-1]
                thoughts += 1
            at += len(part.ids)
    assert thoughts > 30


def test_a_weak_model_is_not_kept():
    """Types under their ceiling are named; comparing may be a little harder than the rest."""
    assert too_low({"Audio Comparative": 0.81, "Audio Counting": 0.95}) == []
    assert too_low({"Audio Comparative": 0.79, "Audio Counting": 0.89}) == [
        "Audio Comparative 79.0%",
        "Audio Counting 89.0%",
    ]
