"""Annotations are read as published, and what is wrong with a file is said in one line."""

import hashlib
import json
from pathlib import Path

import pytest

from modules.foundation_model import PROMPT
from tests.helpers.bad_media import SHELL
from utils.data.answers import is_right
from utils.data.datasets import (
    QUESTION_TYPES,
    Caption,
    DataError,
    annotation_path,
    contradicting,
    fill_template,
    frames_path,
    parse_question,
    read_music_avqa,
    read_valor,
    wav_path,
    without_media,
)
from utils.report.metrics import accuracy_report, majority_answers, majority_right

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = ROOT.parent / "shared" / "annotations"
published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="published annotations not here")

ROW = {
    "video_id": "00000093",
    "question_id": 12,
    "type": '["Audio-Visual", "Location"]',
    "question_content": "Where is the <FL> sounding <Object>?",
    "templ_values": '["first", "cello"]',
    "question_deleted": 0,
    "anser": "left",
}


def write(root, name, content, folder="annotations"):
    """Put rows (as JSON), text or bytes at root/folder/name."""
    path = root / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_placeholders_are_filled_in_order():
    """All seven kinds of placeholder take their values as they come, also where a value looks like
    a placeholder; other brackets stay. A full-width question mark becomes a plain one, and blanks
    around the question go."""
    content = " <LL>: is the <Object> <BA> the <Object> on the <LR> (<LRer>, <FL>, <TH>)？ "
    filled = fill_template(content, ["1", "2", "3", "<LL>", r"\1", "6", "7", "8"])
    assert filled == r"1: is the 2 3 the <LL> on the \1 (6, 7, 8)?"
    assert fill_template("Is <b> < <object>?", []) == "Is <b> < <object>?"


@pytest.mark.parametrize("values", [[], ["a"], ["a", "b", "c"]])
def test_wrong_number_of_values_is_refused(values):
    """A value too many or too few is not passed over."""
    with pytest.raises(ValueError, match=f"2 placeholders but {len(values)}"):
        fill_template("Is <Object> <BA> it?", values)


def test_question_is_read_whole(tmp_path):
    """A row keeps its fields, template and text side by side, and leading zeros of its id."""
    path = write(tmp_path, "avqa-test.json", [ROW])
    (question,), file = read_music_avqa(tmp_path, "test")
    assert question.video_id == "00000093" and not question.synthetic
    assert question.type == "Audio-Visual Location" and question.answer == "left"
    assert question.template == "Where is the <FL> sounding <Object>?"
    assert question.text == "Where is the first sounding cello?"
    assert file.path == str(path) and file.rows == 1
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_synthetic_videos():
    """Videos whose sound was replaced are told apart by their ids."""
    for video_id in ("sa00007384", "va00000001", "vv00002999", "ev00000011"):
        assert parse_question({**ROW, "video_id": video_id}, "here").synthetic


def test_deleted_questions_are_skipped(tmp_path):
    """Rows marked deleted are left out, even broken ones; the file's row count stays."""
    deleted = [{**ROW, "question_deleted": mark, "type": "?"} for mark in (1, 2, "1")]
    kept = [{**ROW, "question_deleted": mark} for mark in (0, "0", None)]
    unmarked = {k: v for k, v in ROW.items() if k != "question_deleted"}
    write(tmp_path, "avqa-val.json", [*deleted, *kept, unmarked])
    questions, file = read_music_avqa(tmp_path, "val")
    assert len(questions) == 4 and file.rows == 7


def test_contradicting_questions_are_counted():
    """Rows of the same clip and question, as filled, whose answers differ in more than their form:
    all of them count, other rows do not."""
    rows = [
        ROW,
        {**ROW, "anser": "right"},
        {**ROW, "anser": " Left. "},
        {**ROW, "video_id": "00000094", "anser": "two"},
        {**ROW, "video_id": "00000094", "anser": "2"},
        {**ROW, "templ_values": '["last", "cello"]', "anser": "right"},
        {**ROW, "question_content": "Where is the first sounding <Object>?",
         "templ_values": '["cello"]', "anser": "middle"},
    ]  # fmt: skip
    questions = [parse_question(row, "here") for row in rows]
    assert contradicting(questions) == 4 and contradicting(questions[2:6]) == 0
    assert contradicting([Caption("x", "a dog"), Caption("x", "a cat")]) == 0


def test_captions_are_read(tmp_path):
    """VALOR ids, which may hold - and _ or begin with -, and captions come as they are."""
    rows = [{"video_id": "-a_B-c_10.000_20.000", "desc": " A dog barks, caf\u00e9. "}]
    write(tmp_path, "desc_train.json", rows)
    (caption,), file = read_valor(tmp_path, "train")
    assert (caption.video_id, caption.text) == ("-a_B-c_10.000_20.000", "A dog barks, caf\u00e9.")
    assert file.rows == 1


@pytest.mark.parametrize("folder", ["annotations", "annotation"])
def test_either_folder_name_is_accepted(tmp_path, folder):
    """`annotation` is read as well as `annotations`."""
    path = write(tmp_path, "avqa-test.json", [ROW], folder)
    assert annotation_path(tmp_path, "avqa-test.json") == path
    assert len(read_music_avqa(tmp_path, "test")[0]) == 1


def test_byte_order_mark_is_read_over(tmp_path):
    """JSON saved by a Windows editor, with a byte order mark, is read."""
    write(tmp_path, "desc_val.json", b"\xef\xbb\xbf" + b'[{"video_id": "x", "desc": "y"}]')
    assert read_valor(tmp_path, "val")[0][0].video_id == "x"


def one_line(error, *parts):
    message = str(error.value)
    assert len(message.splitlines()) == 1 and len(message) < 600
    assert all(part in message for part in parts), message


def refused(root, name, content, *parts):
    """That a file of the data set, read as its name says, is refused in a line with these parts."""
    path = write(root, name, content)
    read = read_valor if name.startswith("desc") else read_music_avqa
    with pytest.raises(DataError) as error:
        read(root, path.stem[5:])
    one_line(error, str(path), *parts)


@pytest.mark.parametrize(
    "content, part",
    [
        ("", "not valid JSON"),
        ('[{"video_id": "x",', "not valid JSON"),
        (b"\xff\xfe[\x00]\x00", "not valid JSON"),
        ("<html>\nnot found\n</html>", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ('{"video_id": "x"}', "not a list"),
        ("null", "not a list"),
        ("[]", "no rows"),
        (["text"], "row 0"),
    ],
)
def test_malformed_json_ends_in_one_line(tmp_path, content, part):
    """A damaged, foreign or empty file is named, with what is wrong."""
    for name in ("avqa-train.json", "desc_train.json"):
        refused(tmp_path, name, content, part)


def test_a_row_that_is_none_is_refused(tmp_path):
    """The row is named, and the field that it lacks: also where a list, a text or a number stands
    in place of a row."""
    caption = {"video_id": "x", "desc": "y"}
    for row, file in ((ROW, "avqa-val.json"), (caption, "desc_val.json")):
        for field in row.keys() - {"question_id", "question_deleted"}:
            rows = [row, {k: v for k, v in row.items() if k != field}]
            refused(tmp_path, file, rows, "row 1", f"has no field {field!r}")
        for other in (["x", "y"], "x", None, 5):
            refused(tmp_path, file, [row, other], "row 1", "has no field")
    refused(tmp_path, "desc_val.json", [caption, {**caption, "desc": 5}], "row 1", "desc")


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "field, value, part",
    [
        ("type", '["Audio", "Temporal"]', "'Audio Temporal'"),
        ("type", '["Visual"]', "'Visual'"),
        ("type", '["Audio", "Counting", "Counting"]', "type"),
        *(("type", value, "type") for value in (None, "3", DEEP, "Audio-Visual")),
        ("type", ["Audio", "Counting"], "type"),
        ("type", '{"Audio": 0, "Counting": 1}', "type"),
        ("type", '"Audio Counting"', "type"),
        ("type", '[["Audio"], "Counting"]', "type"),
        ("templ_values", '["first"]', "2 placeholders but 1"),
        ("templ_values", ["first", "cello"], "templ_values"),
        *(("templ_values", value, "templ_values") for value in ("[", "null", "[1, 2]", DEEP)),
        ("templ_values", '"ab"', "templ_values"),
        ("templ_values", '{"a": 1, "b": 2}', "templ_values"),
        ("templ_values", '["first", null]', "templ_values"),
        ("templ_values", '["first", "\\ud800"]', "templ_values"),
        ("question_content", 5, "question_content"),
        ("question_content", ["Where is <FL> <Object>?"], "question_content"),
        ("question_content", "Where is it?", "0 placeholders but 2"),
        *(("question_deleted", v, "question_deleted") for v in (float("inf"), [1], "9" * 5000)),
        ("question_deleted", "yes", "question_deleted"),
        *(("anser", value, "anser") for value in (2, None, "\udc80", "", " ", ".", "“…”")),
    ],
)
def test_a_bad_question_names_its_field(tmp_path, field, value, part):
    """An unknown type, wrong nesting, numbers for text, half characters, values that do not fit and
    answers that an empty prediction would equal are refused with their row, never guessed at."""
    refused(tmp_path, "avqa-val.json", [ROW, {**ROW, field: value}], "row 1", part)


NO_NAMES = ["", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\0b", "a\nb", "日" * 67]


@pytest.mark.parametrize("name", [*NO_NAMES, 93, None, ["x"], {"x": 1}, True, "\ud800"])
def test_a_video_id_stays_within_its_folder(tmp_path, name):
    """An id that is no file's name is refused with file, row and field, in both data sets."""
    refused(tmp_path, "avqa-val.json", [ROW, {**ROW, "video_id": name}], "row 1", "video_id")
    rows = [{"video_id": "x", "desc": "y"}, {"video_id": name, "desc": "y"}]
    refused(tmp_path, "desc_val.json", rows, "row 1", "video_id")


@pytest.mark.parametrize("name", [*SHELL, "..a", "-_.", "日" * 66])
def test_an_odd_video_id_is_a_name(tmp_path, name):
    """Any other id is kept as it is and names a file in the folder of its kind."""
    assert parse_question({**ROW, "video_id": name}, "here").video_id == name
    wav_path(tmp_path, name).parent.mkdir(parents=True)
    wav_path(tmp_path, name).touch()
    frames_path(tmp_path, name).mkdir(parents=True)
    assert without_media(tmp_path, [name, "x"]).keys() == {"x"}


def test_an_id_may_come_twice(tmp_path):
    """A clip with two captions, or two questions of one id, keeps both."""
    write(tmp_path, "desc_val.json", [{"video_id": "x", "desc": d} for d in "ab"])
    assert [c.text for c in read_valor(tmp_path, "val")[0]] == ["a", "b"]
    write(tmp_path, "avqa-val.json", [ROW, ROW])
    assert len(read_music_avqa(tmp_path, "val")[0]) == 2


def test_missing_annotations_end_in_one_line(tmp_path):
    """A data set that is not there is named."""
    with pytest.raises(DataError) as error:
        read_valor(tmp_path / "nowhere", "test")
    one_line(error, str(tmp_path / "nowhere" / "annotations" / "desc_test.json"))


def test_clips_without_media(tmp_path):
    """Clips that lack sound or frames are named once, with what they lack; all of them: refused."""
    for name in ("both", "sound", "also"):
        wav_path(tmp_path, name).parent.mkdir(parents=True, exist_ok=True)
        wav_path(tmp_path, name).touch()
    for name in ("both", "frames", "also"):
        frames_path(tmp_path, name).mkdir(parents=True)
    names = ["also", "sound", "both", "frames", "also", "neither", "both"]
    absent = without_media(tmp_path, names)
    assert list(absent) == ["sound", "frames", "neither"]
    for name, gone in (("sound", [frames_path]), ("neither", [wav_path, frames_path])):
        assert absent[name].endswith(": not extracted")
        assert all(str(of(tmp_path, name)) in absent[name] for of in gone)
    assert without_media(tmp_path, []) == {}
    with pytest.raises(DataError) as error:
        without_media(tmp_path, ["sound", "sound", "frames"])
    one_line(error, str(tmp_path / "extraction"), "none of the 2")


def avqa(tmp_path, split):
    """A split of the published questions."""
    root = tmp_path / "MUSIC-AVQA"
    if not root.exists():
        root.mkdir()
        (root / "annotations").symlink_to(PUBLISHED / "MUSIC-AVQA")
    return read_music_avqa(root, split)


def valor(tmp_path):
    """All published captions."""
    root = tmp_path / "VALOR"
    root.mkdir()
    (root / "annotations").symlink_to(PUBLISHED / "VALOR")
    return [caption for split in ("train", "val", "test") for caption in read_valor(root, split)[0]]


@published
def test_published_questions(tmp_path):
    """All 13,780 questions parse and fill; no placeholder or full-width mark is left."""
    val, test = avqa(tmp_path, "val")[0], avqa(tmp_path, "test")[0]
    assert (len(val), len(test)) == (4595, 9185)
    for question in val + test:
        assert "<" not in question.text and question.text.endswith("?"), question
        assert "？" not in question.text and question.answer, question
    assert {q.type for q in test} == set(QUESTION_TYPES) and len(QUESTION_TYPES) == 9
    assert {len(q.video_id) for q in test if not q.synthetic} == {8}, "leading zeros were lost"
    assert 0 < sum(q.synthetic for q in test) < len(test) / 2


@published
def test_published_contradictions(tmp_path):
    """The first annotation set holds questions with several answers, the corrected one none."""
    found = {}
    for name in ("MUSIC-AVQA", "MUSIC-AVQA-corrected"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "annotations").symlink_to(PUBLISHED / name)
        for split in ("val", "test"):
            questions, file = read_music_avqa(tmp_path / name, split)
            found[name, split] = (file.rows, contradicting(questions))
    assert list(found.values()) == [(4595, 54), (9185, 110), (4568, 0), (9129, 0)]


@published
def test_published_captions(tmp_path):
    """All 32,318 captions of VALOR parse, none of them empty."""
    captions = valor(tmp_path)
    assert len(captions) == 32_318 and all(c.text for c in captions)


@published
def test_published_text_survives_the_tokenizer(tmp_path):
    """Every published caption, question and answer comes back from its tokens unchanged."""
    folder = ROOT / "checkpoint" / "mini" / "qwen2"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("no tokenizer in checkpoint/mini/qwen2")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    questions = avqa(tmp_path, "val")[0] + avqa(tmp_path, "test")[0]
    texts = [c.text for c in valor(tmp_path)]
    texts += [PROMPT.format(question=q.text) for q in questions]
    texts = list(dict.fromkeys(texts + [" " + q.answer for q in questions]))
    ids = tokenizer(texts)["input_ids"]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts
    assert tokenizer.eos_token_id not in set().union(*ids)


@published
def test_published_majority_baselines(tmp_path):
    """Always "yes", and majority answers fitted on val, score on test what is known of them."""
    val, test = avqa(tmp_path, "val")[0], avqa(tmp_path, "test")[0]
    yes = accuracy_report(test, [is_right("yes", q.answer) for q in test])["overall"]
    assert 100 * yes == pytest.approx(26.2, abs=0.1)
    for by, expected in {"all": 26.2, "type": 35.8, "template": 51.1}.items():
        right = majority_right(majority_answers(val, by), test, by)
        assert 100 * accuracy_report(test, right)["overall"] == pytest.approx(expected, abs=0.1), by
