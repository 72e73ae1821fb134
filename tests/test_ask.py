"""ask.py: a clip's answer is the one that stage 2 wrote of it, and what was sent is counted."""

import csv
import io
import math
import re
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch

import ask
from tests.helpers.bad_media import tone, write_video
from tests.helpers.limit import LIMIT
from tests.helpers.scripts import asked, here, places, refused
from utils import asking
from utils.config import quieten
from utils.data.features import read_tokens
from utils.report import page

QUESTION = "Who plays the drum?"
STEPS = ("--init", "none", "--steps", 3, "--batch", 8, "--lr", 0.02, "--workers", 1)
TEST = ("--test_snr_db", "inf", "--question_only", "false", "--figures", "none")
TEST += ("--snr_range", 0, 9)


@pytest.fixture(scope="module")
def folder(mini_world):
    """A small mini world and, as avqa-mini, a model that was trained a little on it."""
    here("task_avqa.py", *places("task_avqa.py", mini_world), *STEPS, *TEST)
    return mini_world


@pytest.fixture(scope="module")
def checkpoint(folder):
    return folder / "checkpoint/avqa-mini.pth"


@pytest.fixture(scope="module")
def rows(folder):
    """The first question of each clip, with what stage 2 answered without noise."""
    with open(folder / "checkpoint/avqa-mini.answers.csv", newline="") as file:
        table = list(csv.DictReader(file))
    clips = dict.fromkeys(row["clip"] for row in table)
    return [next(row for row in table if row["clip"] == clip) for clip in clips]


@pytest.fixture(scope="module")
def trained(checkpoint):
    quieten()
    return ask.load(str(checkpoint))


def video(folder: Path, name: str) -> str:
    return str(folder / "mini/MUSIC-AVQA/videos" / f"{name}.mp4")


def test_answers_are_those_that_stage_2_wrote(folder, trained, rows):
    """From the mp4, at an infinite SNR: the same text for each clip, of which there are several."""
    found = []
    for row in rows:
        clip = trained.encode(video(folder, row["clip"]))
        told = trained.ask(clip, row["question"], math.inf, trained.lengths)
        found.append(next(iter(told.answers)))
    assert found == [row["said_inf"].strip() for row in rows]
    assert len(set(found)) > 1


def test_a_clip_is_encoded_as_the_cache_keeps_it(folder, trained, rows):
    """Bit by bit: the same frames, sound, windows, compression and precision."""
    name = rows[0]["clip"]
    clip = trained.encode(video(folder, name))
    for kind, encoder in (("visual", "VivitModel"), ("audio", "ASTModel")):
        files = (folder / "cache/MUSIC-AVQA").glob(f"{encoder}-*/{name}.safetensors")
        ours = clip.encoded[kind].tokens[0], clip.encoded[kind].layout.places[0]
        cached = [read_tokens(file, None) for file in files]  # of other tests' lengths too
        assert any(
            torch.equal(ours[0], kept.tokens) and torch.equal(ours[1], kept.layout.places)
            for kept in cached
        )


def test_a_system_trained_on_videos_reads_the_video_itself(folder, trained, rows):
    """As its cache does; of a world that was extracted in the encoder's own size the tokens are
    those of the extraction, but for rounding."""
    path = video(folder, rows[0]["clip"])
    readers = {k: replace(r, media="videos") for k, r in trained.processors.readers.items()}
    straight = ask.Trained(
        trained.model,
        replace(trained.processors, readers=readers),
        replace(trained.config, media="videos"),
    )
    for kind, tokens in straight.encode(path).encoded.items():
        wanted = trained.encode(path).encoded[kind].tokens
        torch.testing.assert_close(tokens.tokens, wanted, rtol=2e-2, atol=2e-2)


def test_the_same_seed_gives_the_same_noise(folder, checkpoint, trained, rows):
    """A question is answered alike however often it is asked; another seed or SNR changes
    probabilities, and they are probabilities."""
    clip = trained.encode(video(folder, rows[0]["clip"]))
    told = [trained.ask(clip, QUESTION, snr_db, [4, 4]) for snr_db in (-3.0, -3.0, 12.0)]
    assert told[0].answers == told[1].answers != told[2].answers
    other = ask.load(str(checkpoint), seed=7)
    assert other.ask(clip, QUESTION, -3.0, [4, 4]).answers != told[0].answers
    for each in told:
        own, *others = each.answers.values()
        assert 0 < own <= 1 and sum(each.answers.values()) <= 1 + 1e-6
        assert others == sorted(others, reverse=True)


def test_answers_may_be_as_long_as_in_the_run(checkpoint):
    """Stage 2 raises the limit to its data's longest answer, and says so in the checkpoint."""
    content = torch.load(checkpoint, weights_only=True)
    assert content["about"]["answer_tokens"] == ask.load(str(checkpoint)).model.answer_tokens
    content["about"]["answer_tokens"] += 3
    longer = checkpoint.with_name("longer.pth")
    torch.save(content, longer)
    assert ask.load(str(longer)).model.answer_tokens == content["about"]["answer_tokens"]


def test_what_was_sent_is_counted(folder, checkpoint, rows):
    """Special tokens beside those asked for, 64 complex symbols for each token of 128 numbers, and
    their time at the bandwidth; the sum is that of the rows."""
    flags = ("--snr_db", 0, "--visual_tokens", 3, "--audio_tokens", 20, "--bandwidth", "2e5")
    clip = video(folder, rows[0]["clip"])
    done = asked(clip, QUESTION, "--checkpoint", checkpoint, *flags)
    assert re.match(r"answer: .* [01]\.\d{3}\nrunners-up: (.* 0\.\d{3}, )+", done.stdout)
    assert "ms at 0.2 MHz" in done.stdout
    lines = re.findall(r"^(\w+) +(\d+) +([\d,]+) +([\d.]+)$", done.stdout, re.M)
    table = {name: (int(n), int(uses.replace(",", "")), float(ms)) for name, n, uses, ms in lines}
    words = table["question"][0]
    assert words > 5
    sent = {"visual": 1 + 3, "audio": 2 + 20, "question": words, "together": 26 + words}
    assert table == {k: (n, 64 * n, pytest.approx(64 * n / 200)) for k, n in sent.items()}
    done = asked(clip, QUESTION, "--checkpoint", checkpoint, "--question_snr_db", "inf")
    assert "together        35          2,240" in done.stdout and "question " not in done.stdout
    assert asking.table({}, 1e6).endswith("0.000")  # a question-only system, asked at home


def test_questions_come_on_standard_input(folder, checkpoint, rows, monkeypatch):
    """One a line, each with its answer, up to an empty line; the answer is that of a question which
    was given."""
    clip = video(folder, rows[0]["clip"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\nWhere?\n\nnever asked\n"))
    done = asked(clip, "--checkpoint", checkpoint)
    assert done.stdout.count("answer: ") == 2
    assert done.stdout.startswith(asked(clip, QUESTION, "--checkpoint", checkpoint).stdout)


def test_mistakes_end_in_one_line(folder, checkpoint, tmp_path):
    """Each names what is wrong and what to do, before or after the checkpoint was read."""
    good = write_video(tmp_path / "good.mp4", sound=tone(1, 16000))
    mute = write_video(tmp_path / "mute.mp4")
    blind = write_video(tmp_path / "blind.mp4", (), tone(1, 16000))
    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 99)
    stage_1 = tmp_path / "stage_1.pth"
    torch.save({"about": {"task": "align"}}, stage_1)
    known = ("--checkpoint", checkpoint)
    digital, about = tmp_path / "digital.pth", torch.load(checkpoint, weights_only=True)["about"]
    about["config"]["channel"] = "quantised"
    torch.save({"about": about}, digital)
    for flags, says in (
        ((good, "?", "--checkpoint", tmp_path / "none.pth"), "run `python task_avqa.py` first"),
        ((good, "?", "--checkpoint", stage_1), "stage_1.pth: not of stage 2"),
        ((good, "?", "--checkpoint", digital), "digital.pth: of quantised tokens"),
        ((tmp_path / "gone.mp4", "?", *known), "gone.mp4: no such file"),
        ((mute, "?", *known), "mute.mp4: no audio stream; give a video with picture and sound"),
        ((blind, "?", *known), "blind.mp4: no video stream"),
        ((text, "?", *known), "text.mp4: cannot be decoded"),
        (known, "no clip; name a video, or give --page"),
        ((good, "?", *known, "--snr_db", "nan"), "--snr_db nan: must be a number"),
        ((good, "?", *known, "--visual_tokens", 0), "--visual_tokens 0: must be 1 or more"),
        ((good, "?", *known, "--bandwidth", 0), "--bandwidth 0: must be a positive number"),
    ):
        refused(asked(*flags, ok=False), says)
    refused(asked("--loud", ok=False), "unrecognized arguments: --loud", status=2)


def test_without_gradio_the_page_says_so(monkeypatch):
    """In a line, before anything is loaded."""
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    refused(asked("--page", ok=False), "--page: needs Gradio, which is optional; pip install")


def test_what_the_page_cannot_read_is_said_in_a_line(trained, tmp_path):
    """No clip, no question, or a clip without sound: a message on the page."""
    gradio = pytest.importorskip("gradio")
    mute = str(write_video(tmp_path / "mute.mp4"))
    answers = partial(ask.tell, trained, trained.encode, 1e6)
    for clip, question, says in (
        (None, "?", "choose a clip"),
        (mute, "", "ask a question"),
        (mute, "?", "mute.mp4: no audio stream"),
    ):
        with pytest.raises(gradio.Error, match=says):
            page.asked(answers, clip, question, 12.0, 4, 4)
    gone = str(tmp_path / "gone.mp4")  # since the page was built
    with pytest.raises(gradio.Error, match="gone.mp4: not there any more"):
        page.chosen({gone: []}, gone)


@pytest.fixture(scope="module")
def address(trained, folder):
    """Where the page stands."""
    pytest.importorskip("gradio")
    answers = partial(ask.tell, trained, trained.encode, 1e6)
    data = str(folder / "mini/MUSIC-AVQA")
    blocks = page.build(answers, data, 12.0, trained.lengths, [16, 16])
    with closing(blocks):
        yield page.serve(blocks, data, inbrowser=False, prevent_thread_lock=True, quiet=True)[1]


def test_the_page_answers_over_http(address, rows):
    """It holds the test clips and the first one's questions, and none of it lies elsewhere."""
    with urlopen(address, timeout=LIMIT) as answer:
        content = answer.read().decode()
    assert answer.status == 200 and rows[0]["clip"] in content
    assert address.startswith("http://127.0.0.1:")


def test_the_page_in_a_browser(address, browser, folder, trained, rows):
    """It begins with a test clip that plays and its first question; asked, it says what the system
    says, also of fewer tokens and of a question of one's own. Nothing is loaded from elsewhere."""
    opened = browser.new_page(viewport={"width": 1200, "height": 1000})
    opened.set_default_timeout(LIMIT * 1000)  # ms
    requests = []
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(address, wait_until="domcontentloaded")
    opened.wait_for_function("document.querySelector('video')?.readyState >= 2")
    question = opened.locator("#question input")
    assert rows[0]["question"] in question.input_value()
    clip = trained.encode(video(folder, rows[0]["clip"]))

    def asked_of_it(text: str, *lengths: int) -> None:
        """Press the button, and wait until the page says what the system says of this."""
        told = trained.ask(clip, text, 12.0, list(lengths))
        visual = re.search(r"visual.*", ask.table(told.sent, 1e6))[0]
        of_question = re.search(r"question.*", ask.table(told.sent, 1e6))[0]
        opened.get_by_role("button", name="Ask", exact=True).click()
        opened.wait_for_function(
            "([said, ...sent]) => document.querySelector('#answer textarea').value === said &&"
            " sent.every(row => document.querySelector('#sent').innerText.includes(row))",
            arg=[next(iter(told.answers)) or "(nothing)", visual, of_question],
        )

    asked_of_it(rows[0]["question"], 16, 16)
    slider = opened.get_by_label("number input for Visual tokens")
    slider.fill("4")
    slider.press("Tab")
    asked_of_it(rows[0]["question"], 4, 16)
    question.fill("How many are there, and where?")
    question.press("Enter")
    asked_of_it("How many are there, and where?", 4, 16)
    opened.close()
    elsewhere = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert elsewhere == []
