"""Batches of clips: padded on the right, answers with their end, every clip once a pass."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modules.foundation_model import PROMPT
from modules.system import Batch
from modules.token_compression import Layout
from modules.token_transmitter import Encoded
from tests.helpers.tiny import write_clip
from utils.data import clips
from utils.data.clips import (
    ClipMedia,
    ClipTokens,
    Collate,
    ShuffledBatches,
    answer_ids,
    answer_limit,
    by_clip,
    in_order,
    pad,
    side_by_side,
    text_number,
    training_loader,
)
from utils.data.datasets import AnnotationFile, Caption, Question
from utils.data.features import packed

END = 0


class Letters:
    """A tokenizer with one token a letter."""

    eos_token_id = END

    def __call__(self, texts, add_special_tokens=True):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def shuffled_batches(rows, batch, batches, seed, **options):
    """All batches of a sampler of so many clips, or of rows about these; it says how many there
    are."""
    clips = range(rows) if isinstance(rows, int) else rows
    sampler = ShuffledBatches(clips, batch, batches, seed, **options)
    steps = list(sampler)
    assert len(steps) == len(sampler) == batches and sampler.batch_size == len(steps[0])
    assert list(sampler) == steps, "it may be read again"
    return steps


def settings(batch, steps=1, seed=0, accumulate=1, **more):
    """What a training loader reads of a script's hyperparameters."""
    shared = dict(batch=batch, steps=steps, seed=seed, accumulate=accumulate, workers=0)
    return SimpleNamespace(**shared, **more)


def spell(ids):
    return "".join(chr(i) for i in ids)


def question(text, answer, video_id="00000001"):
    return Question(video_id, "Audio Counting", text, text, answer)


def collated(*rows, **options):
    """The batch of rows, with tokens that tell which row they belong to."""
    items = [
        (torch.full((5, 4), i).half(), torch.full((6, 3), -i).half(), row)
        for i, row in enumerate(rows)
    ]
    return Collate(Letters(), **options)(items)


def cached(tmp_path, names):
    """Cache folders as the feature cache writes them: clip i holds i and -i."""
    folders = {kind: tmp_path / kind for kind in ("visual", "audio")}
    for kind, folder in folders.items():
        folder.mkdir()
        for i, name in enumerate(names):
            tokens = torch.full((5, 4), float(i if kind == "visual" else -i))
            clip = Encoded(tokens, Layout(torch.full((4, 2), float(i)), torch.full((4,), i / 8)))
            (folder / f"{name}.safetensors").write_bytes(packed(clip, "stamp"))
    return folders


def test_pad_is_on_the_right():
    """Ids come first and padding after; the mask tells them apart, also for the value itself. Texts
    without a token leave one column of padding."""
    ids, mask = pad([[5, 9, 9], [9], [7, 8]], 9)
    assert ids.tolist() == [[5, 9, 9], [9, 9, 9], [7, 8, 9]]
    assert mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    for rows in ([[]], [[], []]):
        ids, mask = pad(rows, 9)
        assert ids.tolist() == [[9]] * len(rows) and not mask.any()
        assert ids.dtype == torch.long and mask.dtype == torch.bool


def test_captions_are_collated():
    """Captions are padded on the right and cut at the most tokens; clips keep their order."""
    rows = [Caption("a", "a dog"), Caption("b", "cat"), Caption("c", "x" * 30)]
    batch = collated(*rows, max_tokens=10)
    assert batch.ids.shape == batch.mask.shape == (3, 10)
    texts = [spell(ids[mask]) for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    assert texts == ["a dog", "cat", "x" * 10]
    assert batch.mask.sum(1).tolist() == [5, 3, 10] and batch.mask[:, 0].all()
    assert batch.ids[~batch.mask].eq(END).all()
    assert batch.answer_ids is None and batch.answer_mask is None
    assert batch.visual.shape == (3, 5, 4) and batch.audio.shape == (3, 6, 3)
    assert batch.visual[:, 0, 0].tolist() == [0, 1, 2] and batch.rows == rows


def test_questions_are_collated():
    """A question stands in its prompt; its answer begins with a blank and ends in the end token."""
    rows = [question("How many?", "more than ten"), question("Is it?", "no")]
    batch = collated(*rows)
    texts = [spell(ids[mask]) for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    assert texts == [PROMPT.format(question=row.text) for row in rows]
    assert END not in batch.ids[batch.mask], "the prompt does not end the text"
    assert batch.answer_mask.sum(1).tolist() == [15, 4]
    for ids, mask, row in zip(batch.answer_ids, batch.answer_mask, rows, strict=True):
        assert spell(ids[mask]) == f" {row.answer}{chr(END)}"
        assert mask.tolist() == sorted(mask.tolist(), reverse=True), "padding on the right"
    assert batch.rows == rows


def test_a_long_question_still_asks_for_its_answer():
    """Cut at the most tokens, a question keeps its beginning and the prompt's ending; the longest
    that fits is whole."""
    fits = 256 - len(PROMPT.format(question=""))
    batch = collated(question("x" * fits, "no"), question("x" * 300, "no"))
    texts = [spell(ids[mask]) for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    assert texts == 2 * [PROMPT.format(question="x" * fits)]
    assert texts[0].endswith(" Answer:") and len(texts[0]) == 256


def test_the_longest_answer_of_any_split_fits():
    """Answers may be as long as the longest true one, of which a line tells, and at least as long
    as was asked for."""
    rows = {"train": ["no", "yes"], "val": ["more than ten"], "test": ["no"]}
    splits = {k: SimpleNamespace(rows=[question("?", a) for a in v]) for k, v in rows.items()}
    said = []
    assert answer_limit(splits, Letters(), 14, said.append) == 14 and not said
    assert answer_limit(splits, Letters(), 8, said.append) == 14
    assert len(said) == 1 and "--answer_tokens 8" in said[0] and "14" in said[0]


def test_what_became_of_the_rows():
    """Each split's rows: scored, without media, deleted, contradicting, and all; in a line too."""
    rows = [question("?", "no"), question("?", "yes"), question("?", "no", "2")]
    files = {"train": AnnotationFile("x", "y", 9), "val": AnnotationFile("x", "y", 1)}
    splits = {"train": SimpleNamespace(rows=rows), "val": SimpleNamespace(rows=rows[:1])}
    found = clips.Clips(splits, files, {"train": 5, "val": 1}, {})
    assert found.counts("train") == {
        **{"scored": 3, "without_media": 2, "deleted": 4, "contradicting": 2, "total": 9}
    }
    first, second = found.summary().splitlines()
    assert first.startswith("train: 3 of 9 rows, 2 without media, 4 deleted; 2 contradict")
    assert second == "val: 1 of 1 rows"


def test_batch_moves_whole():
    """`to` moves every tensor, widens the half-precision tokens and leaves the original."""
    batch = collated(question("How?", "so"))
    moved = batch.to(torch.device("cpu"))
    assert moved.visual.dtype == moved.audio.dtype == torch.float32
    assert batch.visual.dtype == torch.float16 and isinstance(moved, Batch)
    for name in ("clip", "ids", "mask", "text", "answer_ids", "answer_mask", "rows", "windows"):
        assert getattr(moved, name) is getattr(batch, name), name


@pytest.mark.parametrize("row", [question("How?", "so"), Caption("a", "a dog")])
def test_batch_is_pinned_whole(monkeypatch, row):
    """A loader that pins memory asks the batch, which pins every tensor it holds."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: ("pinned", tensor))
    batch = collated(row)
    pinned = batch.pin_memory()
    assert isinstance(pinned, Batch) and vars(pinned).keys() == vars(batch).keys()
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            assert getattr(pinned, name)[0] == "pinned" and getattr(pinned, name)[1] is value
        else:
            assert getattr(pinned, name) is value


def test_equal_texts_have_equal_numbers():
    """Captions, and questions in their prompts, get one number a text, the same anywhere."""
    captions = ["a dog", "a cat", "a dog", "A dog", "a dog ", ""]
    for rows in ([Caption("a", t) for t in captions], [question(t, "no") for t in captions]):
        found = collated(*rows).text
        assert found.dtype == torch.long and found.ge(0).all()
        same = found[:, None] == found
        assert same.tolist() == [[a == b for b in captions] for a in captions]
    cut = collated(*(Caption("a", t) for t in captions), max_tokens=3)
    assert len(set(cut.text.tolist())) == 5, "captions are told apart by their whole texts"
    assert text_number("a dog") == 0xFD87F17025F0A4
    assert len({text_number(str(i)) for i in range(10_000)}) == 10_000


def test_texts_are_padded_to_the_longest_of_the_batch():
    """Short texts make short batches: no length is fixed, neither of texts nor of answers."""
    for longest in (1, 9):
        assert collated(Caption("a", "x"), Caption("b", "x" * longest)).ids.shape == (2, longest)
        batch = collated(question("?", "x"), question("x" * longest, "x" * longest))
        wanted = len(PROMPT.format(question="x" * longest))
        assert batch.ids.shape == batch.mask.shape == (2, wanted)
        assert batch.answer_ids.shape == batch.answer_mask.shape == (2, 1 + longest + 1)


@pytest.mark.parametrize("rows, batch", [(10, 3), (12, 4), (64, 64), (7, 1), (1, 8), (3, 8)])
def test_batches_cover_each_pass(rows, batch):
    """A pass shows no row twice and leaves out less than a batch, which another pass shows; a data
    set smaller than a batch gives batches of all its rows."""
    batch_size = min(batch, rows)
    a_pass = rows // batch_size
    steps = shuffled_batches(rows, batch, 10 * a_pass, seed=1)
    assert all(len(step) == batch_size for step in steps)
    orders = [sum(steps[i : i + a_pass], []) for i in range(0, len(steps), a_pass)]
    assert all(len(set(order)) == len(order) == a_pass * batch_size for order in orders)
    assert set().union(*orders) == set(range(rows))
    if a_pass > 1:
        assert len({tuple(order) for order in orders}) == 10, "passes are shuffled anew"


def test_batches_repeat_with_their_seed():
    """The same seed gives the same batches, however many steps follow; another does not."""
    first = shuffled_batches(20, 4, 17, seed=3)
    assert first == shuffled_batches(20, 4, 17, seed=3) == shuffled_batches(20, 4, 50, seed=3)[:17]
    assert first != shuffled_batches(20, 4, 17, seed=4)
    state = torch.random.get_rng_state()
    shuffled_batches(20, 4, 17, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_clips_carry_their_tokens(tmp_path, monkeypatch, memory):
    """A row gets the tokens of its own clip, read once or as asked for, in every loader."""
    monkeypatch.setattr(clips, "IN_MEMORY", memory)
    names = [f"{i:08}" for i in range(4)]
    rows = [question(f"{i}?", "yes", names[i % 4]) for i in range(10)]
    data = ClipTokens(rows, cached(tmp_path, names))
    assert len(data) == 10 and len(data.kept) == (4 if memory else 0)
    collate = Collate(Letters())
    ordered = list(in_order(data, collate, 4))
    assert [len(batch.rows) for batch in ordered] == [4, 4, 2]
    assert sum((batch.rows for batch in ordered), []) == rows
    shuffled = list(training_loader(data, collate, settings(batch=4, steps=6, seed=1)))
    assert len(shuffled) == 6 and all(len(batch.rows) == 4 for batch in shuffled)
    asked = [row.video_id for row in rows]
    wanted = [[rows[i] for i in step] for step in shuffled_batches(asked, 4, 6, seed=1)]
    assert [batch.rows for batch in shuffled] == wanted
    for batch in ordered + shuffled:
        clip = torch.tensor([int(row.video_id) for row in batch.rows]).half()
        assert torch.equal(batch.visual[:, 0, 0], clip) and torch.equal(batch.audio[:, 4, 3], -clip)
        for places, attention in batch.layouts.values():
            assert places.shape == (len(clip), 4, 2) and attention.shape == (len(clip), 4)
            assert torch.equal(places[:, 3, 1], clip.float())
            assert torch.equal(attention[:, 3], clip.float() / 8)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_lost_cache_file_is_named(tmp_path, damage):
    """A cache file that went missing or broke during a run is named in one line."""
    folders = cached(tmp_path, ["a"])
    damage(folders["audio"] / "a.safetensors")
    with pytest.raises(OSError) as error:
        ClipTokens([Caption("a", "text")], folders)
    assert str(folders["audio"] / "a.safetensors") in str(error.value)
    assert "\n" not in str(error.value)


def test_media_of_clips_with_different_numbers_of_windows(tmp_path, readers):
    """Without a cache a batch holds what the encoders read, and how many windows each clip has;
    tokens from the cache are told from it by counting none, or they would be encoded once more."""
    for seed, seconds in enumerate([0.3, 1.3, 0.7]):  # 1, 3 and 2 windows
        write_clip(tmp_path, f"{seed:08}", seconds, seed)
    rows = [question(f"{i}?", "yes", f"{i:08}") for i in (2, 0, 1, 2)]
    data = ClipMedia(rows, tmp_path, readers)
    batches = list(in_order(data, Collate(Letters()), 3))
    counts = [[len(w.frames) for w in batch.windows] for batch in batches]
    assert counts == [[2, 1, 3], [2]]
    assert [row for batch in batches for row in batch.rows] == rows
    for batch, count in zip(batches, counts, strict=True):
        assert batch.visual.shape == (len(batch.rows), 4, 3, 32, 32)
        assert batch.audio.shape == (sum(count), 48, 32)
        sounds = batch.audio.split(count)
        for row, seen, heard in zip(batch.rows, batch.visual, sounds, strict=True):
            for kind, found in (("visual", seen[None]), ("audio", heard)):
                read, _ = readers[kind](readers[kind].path(tmp_path, row.video_id))
                assert torch.equal(found, read)
    shuffled = next(iter(training_loader(data, Collate(Letters()), settings(batch=2))))
    assert len(shuffled.windows) == 2
    assert sum(len(w.frames) for w in shuffled.windows) == len(shuffled.audio)
    assert collated(*rows).windows is None


def test_accumulated_batches_are_counted():
    """A run of so many steps reads as many batches as they accumulate."""
    rows = [Caption(f"{i}", "text") for i in range(6)]
    data = ClipMedia(rows, Path(), {})
    loader = training_loader(data, Collate(Letters()), settings(batch=2, steps=3, accumulate=4))
    assert len(loader) == 12


# Questions that share their clip.

OF = [3, 1, 4, 1, 2, 4, 1, 3]  # how many questions are about each clip
NAMED = [f"{clip}" for clip, count in enumerate(OF) for _ in range(count)]


@pytest.mark.parametrize("packed", [1, 2, 3, 9])
@pytest.mark.parametrize("batch", [1, 4, 6, len(NAMED), 50])
def test_questions_of_a_clip_stay_together(packed, batch):
    """Every question comes once a pass, but for less than a batch; those of a clip follow each
    other, up to `packed` of them, and only the end of a batch parts them further."""
    size = min(batch, len(NAMED))
    a_pass = len(NAMED) // size
    steps = shuffled_batches(NAMED, batch, 20 * a_pass, seed=1, packed=packed)
    assert all(len(step) == size for step in steps)
    orders = [sum(steps[i : i + a_pass], []) for i in range(0, len(steps), a_pass)]
    assert all(len(set(order)) == len(order) == a_pass * size for order in orders)
    assert set().union(*orders) == set(range(len(NAMED)))
    assert len({tuple(order) for order in orders}) == 20, "passes are shuffled anew"
    fewest = sum(-(-count // packed) for count in OF)
    for i in range(0, len(steps), a_pass):
        asked = [
            [question("?", "no", NAMED[row]) for row in step] for step in steps[i : i + a_pass]
        ]
        shared = sum(len(side_by_side(rows, packed)) for rows in asked)
        assert shared <= fewest + a_pass - 1
    of_one = [[row for row in order if NAMED[row] == "2"] for order in orders]
    assert any(rows != sorted(rows) for rows in of_one), "within a clip, too"


def test_a_run_goes_on_within_a_pass():
    """After so many batches the rest is what it would have been, in any number of processes."""
    whole = shuffled_batches(NAMED, 4, 30, seed=2, packed=3)
    rest = ShuffledBatches(NAMED, 4, 30, 2, skip=13, packed=3)
    assert [*rest] == whole[13:] and len(rest) == 17
    assert [*ShuffledBatches(NAMED, 4, 30, 2, processes=2, packed=3)] == whole


@pytest.mark.parametrize(
    "most, wanted",
    [
        (1, [0, 1, 2, 3, 4, 5, 6]),
        (2, [0, 0, 1, 2, 3, 3, 4]),
        (3, [0, 0, 0, 1, 2, 2, 3]),
        (9, [0, 0, 0, 1, 2, 2, 3]),
    ],
)
def test_neighbours_share_their_clip(most, wanted):
    """Questions of a clip that follow each other share its tokens, up to `packed` of them; it is
    known how long the longest of these sequences is. Captions share none."""
    names = ["a", "a", "a", "b", "c", "c", "a"]
    rows = [question("x" * (i + 1), "y" * (7 - i), name) for i, name in enumerate(names)]
    batch = collated(*rows, packed=most)
    assert batch.clip.tolist() == wanted and batch.rows == rows
    first = [wanted.index(clip) for clip in range(max(wanted) + 1)]
    assert batch.visual[:, 0, 0].tolist() == first and batch.audio.shape[0] == len(first)
    lengths = [0] * len(first)
    for clip, row in zip(wanted, rows, strict=True):
        lengths[clip] += len(PROMPT.format(question=row.text)) + len(row.answer) + 2
    assert batch.text_tokens == max(lengths)
    captions = collated(*(Caption(name, "text") for name in names), packed=most)
    assert captions.clip.tolist() == [*range(7)] and len(captions.visual) == 7


def test_training_shares_as_asked_and_testing_all(tmp_path, readers):
    """In training up to `packed` questions share a clip, in a split that is read in order all of
    them; without a cache each clip is read once for them."""
    for seed in range(2):
        write_clip(tmp_path, f"{seed:08}", 0.3, seed)
    rows = [question(f"{i}?", "yes", f"{i // 6:08}") for i in range(12)]
    data, read = ClipMedia(rows, tmp_path, readers), []
    data.readers = {k: replace(r, read=noted(r.read, read)) for k, r in readers.items()}
    (batch,) = in_order(data, Collate(Letters()), 12)
    assert batch.clip.tolist() == [0] * 6 + [1] * 6 and len(batch.visual) == len(batch.windows) == 2
    assert len(read) == 2 * 2
    for most in (1, 4):
        for step in training_loader(data, Collate(Letters()), settings(12, 5, packed=most)):
            assert max(step.clip.bincount()) == most and len(step.rows) == 12
            assert len(step.visual) == len(step.windows) == step.clip[-1] + 1


def noted(read, seen):
    """A reader's function that notes its calls."""
    return lambda *args: (seen.append(1), read(*args))[1]


def test_rows_are_brought_together_by_clip():
    """Rows keep their order within a clip, and clips that in which they first come."""
    rows = [question(f"{i}?", "no", name) for i, name in enumerate("babcab")]
    assert [row.text for row in by_clip(rows)] == ["0?", "2?", "5?", "1?", "4?", "3?"]


def test_an_answer_begins_with_its_own_token():
    """Protects: tokenizers that begin every text with a token of their own (Llama's, Gemma's) do
    not put it before an answer or caption, which the model would have to write first, or amidst
    what a clip's questions share."""

    class Beginning(Letters):
        def __call__(self, texts, add_special_tokens=True):
            ids = super().__call__(texts)["input_ids"]
            return {"input_ids": [[1] * add_special_tokens + row for row in ids]}

    assert answer_ids(Beginning(), ["no"]) == [[ord(letter) for letter in " no"]]
    tokens = torch.zeros(3, 4)
    layouts = {kind: Layout(torch.zeros(2, 1)) for kind in ("visual", "audio")}
    batch = Collate(Beginning())([(tokens, tokens, Caption("a", "no"), layouts)])
    assert batch.ids[batch.mask].tolist() == [ord(letter) for letter in "no"]
