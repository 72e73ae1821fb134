"""Whole runs on bad input: broken clips cost themselves alone, and any other mistake one line."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import matplotlib
import pytest
import torch

import task_align
from benchmarks.full_size import caption_row, question_row
from tests.helpers import bad_media
from tests.helpers.bad_media import BAD_MEDIA
from tests.helpers.scripts import ROOT, apart, here, refused
from utils.checkpoints import load_checkpoint
from utils.data.datasets import frames_path, wav_path
from utils.data.models import build_system
from utils.training.states import States

pytestmark = pytest.mark.usefixtures("one_process")
STAGES = pytest.mark.parametrize("stage", ["align", "avqa"])
QWEN = ROOT / "checkpoint/mini/qwen2"
SPLITS = ("train", "train", "val", "test")  # in turn
REASONS = {name: reason for kind in BAD_MEDIA.values() for name, reason in kind.items()}
REASONS |= dict.fromkeys(("no sound", "no picture", "nowhere"), "not extracted")


def rows_of(names: list[str]) -> dict[str, list[dict]]:
    """Both data sets' annotation files, a caption and a question a clip."""
    files = {f"{kind}{split}": [] for kind in ("desc_", "avqa-") for split in SPLITS}
    for i, name in enumerate(names):
        split = SPLITS[i % len(SPLITS)]
        if name is not None:
            files[f"desc_{split}"].append(caption_row(name, i))
            files[f"avqa-{split}"].append(question_row(name, i))
    return files


def write_annotations(root: Path, files: dict[str, list[dict]]) -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (root / "annotations" / f"{name}.json").write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One folder of media under two sets of annotations: `all` names every clip, each with one
    fault at most, `good` the good ones alone. Both data sets are called DATA."""
    world = tmp_path_factory.mktemp("world")
    everything, good = world / "all" / "DATA", world / "good" / "DATA"
    bad_media.write_frames(everything)
    bad_media.write_sounds(everything)
    frames, wavs = frames_path(everything, "plain"), wav_path(everything, "plain")
    names = {path.name for path in frames.parent.iterdir()}
    names |= {path.stem for path in wavs.parent.iterdir()}
    for name in sorted(names | {"no sound", "no picture"}):
        if name != "no picture" and not frames_path(everything, name).exists():
            shutil.copytree(frames, frames_path(everything, name))
        if name != "no sound" and not wav_path(everything, name).exists():
            shutil.copy(wavs, wav_path(everything, name))
    names = sorted(names | REASONS.keys())
    write_annotations(everything, rows_of(names))
    write_annotations(good, rows_of([None if name in REASONS else name for name in names]))
    (good / "extraction").symlink_to(everything / "extraction")
    return world


@pytest.fixture
def script(models, tmp_path):
    """Runs the paper preset's code path on tiny models, for a few steps."""

    def script(stage: str, data: Path, *flags, ok=True, run=here, out=None) -> CompletedProcess:
        out = out or tmp_path / "out"
        words = f"""--preset paper --data {data} --name {stage} --out {out} --cache {out}/cache
            --visual_encoder {models}/visual --audio_encoder {models}/audio --dtype float32
            --foundation_model {QWEN} --workers 0 --encode_batch 5 --visual_tokens 4 --cache_shard 1
            --audio_tokens 4 --receiver_width 32 --batch 4 --steps 3 --figures none""".split()
        if stage == "avqa":
            words += "--question_only false --answer_tokens 2 --test_snr_db 12 --init none".split()
        return run(f"task_{stage}.py", *words, *flags, ok=ok)

    return script


def weights(path: Path) -> dict[str, bytes]:
    """Every weight of a checkpoint, bit by bit."""
    parts = load_checkpoint(path)
    del parts["about"]
    return {f"{p}.{k}": v.numpy().tobytes() for p, part in parts.items() for k, v in part.items()}


def left(out: Path, stage: str) -> dict:
    """What a run leaves of its good clips."""
    metrics = json.loads((out / f"{stage}.json").read_text())
    keys = ("loss", "validation_loss", "retrieval", "held_out_loss", "accuracy", "clips")
    cached = {
        path.relative_to(out): path.read_bytes()
        for path in out.glob("cache/**/*.safetensors")
        if path.stem not in REASONS  # of which one medium may be good
    }
    features = out / f"{stage}.features.safetensors"
    return {
        "metrics": {key: metrics.get(key) for key in keys},
        "weights": weights(out / f"{stage}.pth"),
        "rows": (out / f"{stage}.csv").read_bytes(),
        "features": features.read_bytes() if features.exists() else None,
        "cached": cached,
    }


@STAGES
@pytest.mark.parametrize("cached", [True, False])
def test_bad_clips_cost_a_run_nothing_but_themselves(world, script, tmp_path, stage, cached):
    """A run over every kind of broken and missing media ends well, lists each clip with its reason
    after training and in its metrics; weights, losses, held-out figures, features and cached tokens
    of the good clips are byte for byte those of a run that never saw a bad one."""
    found = {}
    for kind in ("good", "all"):
        out = tmp_path / kind
        flags = () if cached else ("--cache", "none")
        said = script(stage, world / kind / "DATA", *flags, out=out).stdout
        found[kind] = left(out, stage)
        if kind == "good":
            assert "left out" not in said
    assert found["all"] == found["good"]
    assert len(found["good"]["cached"]) == (2 * 23 if cached else 0)
    metrics = json.loads((out / f"{stage}.json").read_text())
    assert metrics["left_out"].keys() == REASONS.keys()
    results = "held-out clips" if stage == "align" else "accuracy (%)"
    closing = said[said.rindex(results) :].splitlines()
    assert f"{len(REASONS)} clips left out:" in closing
    for name, reason in REASONS.items():
        assert f"  {name}: {metrics['left_out'][name]}" in closing
        kinds = {reason, *(kind.get(name, reason) for kind in BAD_MEDIA.values())}
        assert any(reason in metrics["left_out"][name] for reason in kinds), name


QUESTION, CAPTION = question_row("plain", 0), caption_row("plain", 0)
FILES = {  # one of each way to end; all other faults: tests/utils/data/test_datasets.py
    "number": ("desc_val", [CAPTION, {**CAPTION, "desc": 5}], "row 1: desc is 5"),
    "no rows": ("desc_train", [], "holds no rows"),
    "other clips": ("desc_val", [{**CAPTION, "video_id": "x"}], "utils/raw_video_preprocess.py"),
    "bad clips": ("desc_val", [{**CAPTION, "video_id": "cut"}], "no clip of the val split is left"),
    "placeholders": (
        "avqa-test",
        [QUESTION, {**QUESTION, "templ_values": '["cello"]'}],
        "row 1: 0 placeholders but 1 templ_values",
    ),
}


def variant(world: Path, root: Path) -> Path:
    """A data set of the good clips whose annotations may be changed."""
    shutil.copytree(world / "good/DATA/annotations", root / "annotations")
    (root / "extraction").symlink_to(world / "all/DATA/extraction")
    return root


@pytest.mark.parametrize("kind", FILES)
def test_a_bad_annotation_file_ends_the_script_in_a_line(world, script, tmp_path, kind):
    """The line names the file, and the row and field if there is one."""
    name, rows, part = FILES[kind]
    data = write_annotations(variant(world, tmp_path / "DATA"), {name: rows})
    stage = "align" if name.startswith("desc") else "avqa"
    done = script(stage, data, "--cache", "none", ok=False)
    where = "DATA" if "clips" in kind else f"{name}.json"
    refused(done, where, part, bars=kind == "bad clips")  # after those of checking


@STAGES
def test_byte_order_marks_and_rows_that_come_twice_are_read(world, script, tmp_path, stage):
    """As some editors and the published files have them: nothing is lost and nothing refused."""
    data = variant(world, tmp_path / "DATA")
    rows = 0
    for path in (data / "annotations").iterdir():
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content + content[:1]), encoding="utf-8-sig")
        rows += (len(content) + 1) * path.name.startswith("desc" if stage == "align" else "avqa")
    script(stage, data, "--steps", 1)
    metrics = json.loads((tmp_path / "out" / f"{stage}.json").read_text())
    assert sum(file["rows"] for file in metrics["annotations"].values()) == rows == 23 + 3


def cut_rows(path: Path) -> int:
    """Leave all rows of an annotation file but one; how many that is."""
    rows = json.loads(path.read_text())[1:]
    path.write_text(json.dumps(rows))
    return len(rows)


@pytest.mark.slow
def test_a_baseline_of_other_questions_is_made_anew(world, script, tmp_path):
    """The model and the question-only baseline beside it answer the same questions; with the same
    data and code the baseline is not made again."""
    data = variant(world, tmp_path / "DATA")
    script("avqa", data, "--question_only", "true")
    baseline = tmp_path / "out/avqa-question-only.json"
    before = baseline.stat().st_mtime_ns
    script("avqa", data, "--question_only", "true")
    assert baseline.stat().st_mtime_ns == before
    rows = cut_rows(data / "annotations/avqa-test.json")
    script("avqa", data, "--question_only", "true")
    blind, model = (json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in
                    ("avqa-question-only", "avqa"))  # fmt: skip
    assert blind["accuracy"]["n"] == model["accuracy"]["n"] == rows
    assert blind["annotations"] == model["annotations"]
    assert model["baselines"]["question_only"] == blind["accuracy"]["overall"]
    assert model["questions"]["test"] == {
        **{"scored": rows, "without_media": 0, "deleted": 0, "contradicting": 0, "total": rows}
    }


@pytest.mark.slow
def test_a_baseline_that_was_stopped_on_other_questions_is_made_anew(world, script, tmp_path):
    """Its saved state is of no use then, and does not keep the model from its results."""
    data = variant(world, tmp_path / "DATA")
    flags = ("--question_only", "true", "--resume", "true")
    script("avqa", data, *flags)
    state, blind = tmp_path / "state", tmp_path / "out/avqa-question-only.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(States, "finish", lambda self: shutil.copytree(self.folder, state))
        blind.unlink()
        cut_rows(data / "annotations/avqa-val.json")
        script("avqa", data, "--name", "other", *flags, "--question_only", "false")
    shutil.copytree(state, tmp_path / "out/avqa-question-only.resume")
    script("avqa", data, *flags)
    assert json.loads(blind.read_text())["config"]["modalities"] == ["none"]


def test_a_finished_run_on_other_captions_is_made_anew(world, script, tmp_path):
    """Asked to go on after captions were removed, a run does not pass for finished."""
    data = variant(world, tmp_path / "DATA")
    script("align", data)
    assert "finished before" in script("align", data, "--resume", "true").stdout
    rows = cut_rows(data / "annotations/desc_train.json")
    assert "finished before" not in script("align", data, "--resume", "true").stdout
    assert json.loads((tmp_path / "out/align.json").read_text())["clips"]["train"] == rows


def test_figures_cost_a_run_nothing(world, script, tmp_path, monkeypatch):
    """A question with dollar signs, under a matplotlibrc that wants LaTeX, is drawn; a figure that
    cannot be drawn is named and skipped. Results are there either way, and the run is finished."""
    data, out = variant(world, tmp_path / "DATA"), tmp_path / "out"
    odd = [{**QUESTION, "question_content": f"Is it {text}?"} for text in ("$$", "$5", "\\frac{")]
    write_annotations(data, {"avqa-test": odd})
    flags = ("--figures", out / "imgs", "--steps", 1)
    with matplotlib.rc_context({"text.usetex": True}):
        script("avqa", data, *flags)
    figures = [str(out / "imgs" / f"avqa-{n}.png") for n in ("loss", "types", "snr", "examples")]
    assert json.loads((out / "avqa.json").read_text())["figures"] == figures

    def fails(*_):
        raise RuntimeError("no such\nfont")

    monkeypatch.setattr("utils.report.plots.examples", fails)
    (out / "avqa.csv").unlink()
    said = script("avqa", data, *flags).stdout
    assert f"{figures[-1]}: not drawn (RuntimeError: no such font)" in said.splitlines()
    metrics = json.loads((out / "avqa.json").read_text())
    assert metrics["figures"] == figures[:-1] and metrics["accuracy"]["n"] == 3
    assert (out / "avqa.csv").is_file() and not (out / "avqa.resume").exists()
    assert "finished before" in script("avqa", data, *flags, "--resume", "true").stdout


def test_metrics_are_there_before_t_sne(world, script, tmp_path, monkeypatch):
    """A t-SNE that breaks costs its pictures, and nothing that was measured."""
    data, out = variant(world, tmp_path / "DATA"), tmp_path / "out"

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr("task_align.tsne_points", fails)
    said = script("align", data, "--figures", out / "imgs", "--steps", 1).stdout
    assert "figures of align: not drawn (MemoryError: )" in said.splitlines()
    metrics = json.loads((out / "align.json").read_text())
    assert "retrieval" in metrics and metrics["figures"] == []


class Code:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.fixture(scope="module")
def published(models):
    """A checkpoint as published ones are laid out: whole state_dicts, encoders included, the
    receivers' layers under the name of their attribute, and nothing beside."""
    config = replace(
        task_align.PRESETS["paper"],
        visual_encoder=str(models / "visual"),
        audio_encoder=str(models / "audio"),
        foundation_model=str(QWEN),
        dtype="float32",
        receiver="mlp",
        text_receiver="mlp",
        receiver_width=32,
        seed=7,
    )
    system, _ = build_system(config)
    content = {name: part.state_dict() for name, part in system.transceivers.items()}
    for name in ("text_receiver", "img_receiver", "audio_receiver"):
        content[name] = {f"receiver.{key}": value for key, value in content[name].items()}
    return content


def test_a_checkpoint_of_the_published_layout_is_fine_tuned(world, script, tmp_path, published):
    """Stage 2 starts from its weights: after a step that moves nothing they are what it saves."""
    path = tmp_path / "published.pth"
    torch.save(published, path)
    assert any(key.startswith("encoder.") for key in published["img_tx"])
    flags = ("--init", path, *PUBLISHED, "--steps", 1, "--lr", "1e-12")
    script("avqa", world / "good/DATA", *flags)
    saved = torch.load(tmp_path / "out/avqa.pth", weights_only=True)
    for name, part in published.items():
        wanted = {k.removeprefix("receiver."): v for k, v in part.items() if "encoder" not in k}
        assert saved[name].keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(saved[name][key], value, rtol=0, atol=1e-9)


PUBLISHED = ("--receiver", "mlp", "--text_receiver", "mlp")
NARROW = {"projection.weight": torch.ones(9, 16), "projection.bias": torch.ones(9)}
SPOILT = {  # what a checkpoint holds, and what the line says; more: utils/test_checkpoints.py
    "other size": ({"img_tx": NARROW}, ("img_tx.projection", "(9,", "(128")),
    "other preset": ({"about": {"config": {"preset": "mini"}}}, ("'mini'", "'paper'", "--preset")),
    "other receiver": (
        {"about": {"config": {"receiver": "residual"}}},
        ("'residual'", "'mlp'", "--receiver"),
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_bad_checkpoint_ends_stage_2_in_a_line(world, script, tmp_path, published, how):
    """Given by --init, one that does not fit the run."""
    path, (change, says) = tmp_path / "x.pth", SPOILT[how]
    torch.save({**published, **change}, path)
    done = script("avqa", world / "good/DATA", "--init", path, *PUBLISHED, ok=False)
    refused(done, str(path), *says)


def test_code_in_a_checkpoint_ends_a_process_in_a_line(world, script, tmp_path, published):
    """As a user sees it, in a process of its own; the code does not run."""
    path, mark = tmp_path / "x.pth", tmp_path / "code was run"
    torch.save({**published, "about": Code(mark)}, path)
    done = script("avqa", world / "good/DATA", "--init", path, ok=False, run=apart)
    refused(done, str(path), "never run")
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file must be able to do harm for this to say anything"
