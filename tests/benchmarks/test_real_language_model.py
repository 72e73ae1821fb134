"""The benchmark of a real language model as a user runs it, with the mini one in its place."""

import json
from dataclasses import replace

import pytest
import torch

import task_align
import task_avqa
from benchmarks import from_captions, real_language_model
from benchmarks.real_language_model import RECEIVERS, Config, answering, recipes
from modules.system import System
from tests.helpers.scripts import apart, here, refused
from tests.helpers.stages import RandomClips, questions
from tests.helpers.stages import answering as stage_2
from utils.data.models import build_system
from utils.runs import unique

MINI = "checkpoint/mini/qwen2"
FEW = ("--align_steps", 2, "--align_warm_up", 1, "--align_batch", 4, "--steps", 2, "--warm_up", 1,
       "--batch", 4, "--published_steps", 2, 2, "--sent", 6, "--snr_db", 0, 12, "--tokens", 4,
       "--align_clips", 24, 8, 12, "--avqa_clips", 24, 8, 12, "--jobs", 1)  # fmt: skip


@pytest.fixture(scope="module")
def folder(mini_world):
    return mini_world / "real"


def measure(folder, *flags, run=apart, **options):
    """A small measurement beside the shared mini world, into `folder`."""
    places = ("--data", folder.parent / "mini", "--cache", folder.parent / "cache")
    places += ("--out", folder / "checkpoint", "--results", folder / "real.json")
    script = "benchmarks/real_language_model.py"
    return run(script, "--foundation_model", MINI, *places, *FEW, *flags, **options)


@pytest.mark.slow
def test_it_measures_what_it_promises(folder):
    """DESIGN's keys for each receiver, the ceiling, and the tables of the page; what has run is not
    run again. Other steps stand beside the recipe's, which share its first stage."""
    folder.mkdir(exist_ok=True)
    flags = ("--seeds", 1, "--only", "residual", "published", "--curve", "1x2", "2x3")
    done = measure(folder, *flags)
    found = json.loads((folder / "real.json").read_text())
    assert found["model"] == "qwen2" and found["questions"] > 0 and found["seeds"] == [1]
    assert found["caption_as_text"].keys() == {"mean", "min", "max", "sd"}
    for arm in ("residual", "published"):
        assert 0 <= found[arm]["accuracy"]["mean"] <= 1
        assert found[arm].keys() >= {"question_only", "majority", "over_question_only"}
    assert found["residual"]["question_tokens_kept"].keys() == {"published", "recipe"}
    assert found["mlp"]["question_tokens_kept"].keys() == {"published"}
    assert found["detect"]["caption_tokens_kept"]["untrained"]["12"] == 1
    assert real_language_model.tables(found) in done.stdout
    runs = {path: path.read_bytes() for path in (folder / "checkpoint/real").glob("*.json")}
    # Three first stages, two second ones with their baselines, captions; a first and two second.
    assert len(runs) == 11 and found["curve"].keys() == {"1x2", "2x3", "2x2"}
    again = measure(folder, *flags)
    assert ", 0 of them left" in again.stdout
    assert runs == {path: path.read_bytes() for path in runs}


def test_mistakes_end_in_a_line_before_anything_runs(tmp_path):
    """An answer that nobody gives, a model that is not there, texts that are not."""
    for flags, says in (
        (("--only", "ear"), "--only ear: unknown, choose from residual, mlp, detect, published"),
        (("--foundation_model", "nowhere"), "nowhere: no config.json"),
        (("--curve", "0x300"), "--curve 0x300: not steps of both stages"),
        (("--texts", "nowhere"), "nowhere/MUSIC-AVQA/annotations/avqa-test.json: not found"),
    ):
        refused(measure(tmp_path / "real", *flags, run=here, ok=False), says)
    assert not list(tmp_path.iterdir())


def test_the_published_recipe_is_that_of_the_published_presets():
    """Whatever either preset has otherwise than the mini one is in the recipe, or is a receiver, a
    model, a size or a place."""
    first, second = recipes(Config())["published"]
    places = {"preset", "name", "init", "data", "visual_encoder", "audio_encoder"}
    places |= {"foundation_model", "dtype", "cache_shard", "encode_batch", "workers", "threads"}
    places |= {"visual_tokens", "audio_tokens", "receiver_width", "test_batch"}
    for script, recipe in ((task_align, first), (task_avqa, second)):
        published, mini = (vars(script.PRESETS[name]) for name in ("published", "mini"))
        for name in recipe:
            assert recipe[name] == published[name], name
        other = {name for name, value in published.items() if value != mini[name]}
        assert other - places - recipe.keys() <= {"receiver", "text_receiver"}


def test_runs_fit_together():
    """Each arm starts from a first stage of its own receivers and recipe, with each seed; no two
    runs share a name."""
    config, every = Config(), []
    for arm, (receiver, recipe) in real_language_model.ARMS.items():
        for seed in config.seeds:
            sighted, blind = answering(config, arm, seed)
            start = real_language_model.aligning(config, receiver, recipe, seed)
            assert sighted.after == start.name and sighted.config.init.endswith(f"{start.name}.pth")
            for name, value in RECEIVERS[receiver].items():
                assert getattr(start.config, name) == getattr(sighted.config, name) == value
            assert blind.config == replace(sighted.config, name=blind.name, modalities=["none"])
            every += [start, sighted, blind]
    assert len(unique(every)) == len({run.name for run in every}) == 3 * 4 * len(config.seeds)


@pytest.fixture(scope="module")
def model():
    """Stage 2 of the mini preset."""
    return stage_2()


def test_captions_stand_in_place_of_their_clips(model):
    """Each question of a batch is asked about its own clip's caption, whatever else is in it; only
    LoRA is trained."""
    system, processors = model[0].system, model[1]
    config = replace(task_avqa.PRESETS["mini"], init="none")
    captions = {"0": "In a hall we see a left cello.", "1": "On a beach."}
    reader = from_captions.FromCaptions(system, config, captions, processors.tokenizer)
    asked = questions(["Is it?", "What is it?", "Who?"], ["yes", "no", "no"], [1, 0, 0])
    batch = RandomClips(system, asked).batch(processors)
    received = reader.receive(batch, None, 12.0)
    for row, clip in zip(batch.rows, batch.clip.tolist(), strict=True):
        ids = processors.tokenizer(captions[row.video_id], return_tensors="pt")["input_ids"][0]
        seen = received.media[clip][received.media_mask[clip]]
        torch.testing.assert_close(seen, system.foundation.embed(ids))
    trained = [name for name, w in reader.named_parameters() if w.requires_grad]
    assert trained and all(".lora_" in name for name in trained)


def test_tokens_that_arrive_are_counted():
    """Without noise a residual receiver, untrained, keeps every token; drowned in noise, next to
    none. Detection does better than it at the same SNR."""
    shares = {}
    for kind in ("residual", "detect"):
        config = replace(task_align.PRESETS["mini"], text_receiver=kind)
        system, processors = build_system(config)
        assert isinstance(system, System)
        some = ["We see a cello and a left bell.", "Is it loud? Answer:"] * 8
        shares[kind] = [
            real_language_model.arriving(system, processors.tokenizer, some, snr, config)
            for snr in (100.0, -6.0, -40.0)
        ]
    for clear, _, drowned in shares.values():
        assert clear == 1 and drowned < 0.1
    assert shares["detect"][1] >= shares["residual"][1]
