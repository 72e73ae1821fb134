"""Model folders: a damaged or foreign one ends in a line, and code that lies in one never runs."""

import copy
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TimesformerConfig,
    TimesformerModel,
    VideoMAEImageProcessor,
)

import task_align
from modules.system import Alignment
from modules.token_transmitter import GRIDS, places_of
from tests.helpers.tiny import SIZES, write_clip
from tests.modules.test_families import FAMILIES
from utils.data.clips import ClipMedia, Collate, in_order
from utils.data.datasets import Caption
from utils.data.media import video_input
from utils.data.models import (
    ENCODERS,
    Encoder,
    ModelError,
    build_system,
    load_encoder,
    load_language_model,
    models_used,
    revision,
)

ROOT = Path(__file__).resolve().parents[3]
LOADERS = {
    "vivit": partial(load_encoder, kind="visual"),
    "ast": partial(load_encoder, kind="audio"),
    "qwen2": load_language_model,
}


@pytest.fixture(params=LOADERS)
def model(request, tmp_path):
    """A copy of a mini model's folder, and its loader."""
    folder = shutil.copytree(ROOT / "checkpoint" / "mini" / request.param, tmp_path / request.param)
    return folder, LOADERS[request.param]


def edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(folder, load, kind=ModelError):
    """The line by which a folder is refused."""
    with pytest.raises(kind) as error:
        load(folder)
    message = str(error.value)
    assert message.startswith(f"{folder}") and len(message.splitlines()) == 1
    assert "hf-download" in message and len(message) < 600
    return message


def test_truncated_weights_are_refused(model):
    """A download that was cut off, anywhere."""
    weights = model[0] / "model.safetensors"
    content = weights.read_bytes()
    for share in (0, 0.01, 0.5, 0.999):
        weights.write_bytes(content[: int(share * len(content))])
        refused(*model)


# Files of a model's folder that no loader needs.
NOT_READ = ("generation_config.json", "tokenizer_config.json", "ceilings.json")


def test_malformed_configuration_is_refused(model):
    """JSON that is none, or of something else, in each file that a loader reads."""
    for path in sorted(model[0].glob("*.json")):
        before = path.read_text()
        for content in ("", "{", "[1]", '"x"', "<html>", "\0"):
            path.write_text(content)
            if path.name not in NOT_READ:
                refused(*model)
        path.write_text(before)
    model[1](model[0])


def test_missing_files_are_refused(model):
    """Each file without which a model would be another one, or have no words; weights of the old
    form, which could hold code, are none."""
    folder, load = model
    for path in sorted(folder.iterdir()):
        if path.name in NOT_READ:
            continue
        aside = path.rename(folder.parent / path.name)
        pair = path.name in ("config.json", "model.safetensors")
        refused(folder, load, FileNotFoundError if pair else ModelError)
        aside.rename(path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "*.safetensors" in refused(folder, load, FileNotFoundError)


@pytest.mark.parametrize(
    "fields", [{"hidden_size": 64}, {"num_hidden_layers": 9}, {"hidden_size": "big"}]
)
def test_weights_that_do_not_fit_are_refused(model, fields):
    """A weight that is missing or of another shape would be drawn at random in silence."""
    edit(model[0] / "config.json", **fields)
    refused(*model)


def test_another_model_is_refused(model):
    """A folder given to the loader of another kind: the line says what it holds and what could be
    there, an encoder of sound in the place of one of pictures as well."""
    folder, load = model
    holds = json.loads((folder / "config.json").read_text())["model_type"]
    for other in LOADERS.values():
        if other is load:
            continue
        message = refused(folder, other)
        if other is not load_language_model:
            kind = other.keywords["kind"]
            known = "vivit" if kind == "visual" else "audio-spectrogram-transformer"
            assert f"model_type is {holds}, which is no {kind} encoder's ({known}, " in message


@pytest.mark.parametrize("kind", ["visual", "audio"])
def test_an_unknown_architecture_is_refused(models, tmp_path, kind):
    """An encoder that has no entry, whether transformers knows its class or not."""
    folder = shutil.copytree(models / kind, tmp_path / kind)
    edit(folder / "config.json", model_type="timesformer")
    said = refused(folder, partial(load_encoder, kind=kind))
    assert f"its model_type is timesformer, which is no {kind} encoder's (" in said
    edit(folder / "config.json", model_type="of tomorrow")
    assert "of tomorrow" in refused(folder, partial(load_encoder, kind=kind))


def test_one_more_entry_is_another_encoder(models, tmp_path, monkeypatch):
    """A class of transformers that has an entry, and a grid, is loaded, fed and trained on like the
    others, and nothing else has to know of it."""
    sizes = {"image_size": 32, "patch_size": 16, "num_frames": 4}
    TimesformerModel(TimesformerConfig(**sizes, **SIZES)).save_pretrained(tmp_path / "model")
    side = {"height": 32, "width": 32}
    VideoMAEImageProcessor(size=side, crop_size=side).save_pretrained(tmp_path / "model")
    entry = Encoder("visual", TimesformerModel, VideoMAEImageProcessor, 1, video_input, {})
    monkeypatch.setitem(ENCODERS, "timesformer", entry)
    monkeypatch.setitem(GRIDS, "timesformer", lambda config: places_of(config.num_frames, 2, 2))
    config = task_align.Config(
        visual_encoder=str(tmp_path / "model"), audio_encoder=str(models / "audio")
    )
    system, processors = build_system(config)
    assert isinstance(system.img_tx.encoder, TimesformerModel) and system.img_tx.special == 1
    for seed, name in enumerate("ab"):
        write_clip(tmp_path, name, 0.3, seed)
    rows = [Caption("a", "a drum"), Caption("b", "two bells")]
    clips = ClipMedia(rows, tmp_path, processors.readers)
    (batch,) = in_order(clips, Collate(processors.tokenizer), 2)
    losses, features = Alignment(system, config)(batch, torch.Generator().manual_seed(0))
    losses["loss"].backward()
    assert features["visual"].isfinite().all() and system.img_tx.projection.weight.grad.any()


def save_language_model(kind, config, folder):
    """A folder of a random model over the mini world's words."""
    config = copy.deepcopy(config)
    config.get_text_config().vocab_size = 2000
    kind(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "checkpoint/mini/qwen2" / name, folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_of_language_models_is_loaded(family, dtype, tmp_path):
    """From a folder as it is published: the class, the precision asked for, and the tokenizer."""
    kind, config, _ = FAMILIES[family]
    model, tokenizer = load_language_model(save_language_model(kind, config, tmp_path), dtype)
    assert isinstance(model, kind) and model.dtype == dtype
    assert tokenizer.pad_token == tokenizer.eos_token


OTHERS = {  # class, configuration, and what the line says
    "encoder and decoder": (T5ForConditionalGeneration, T5Config(**SIZES), "a t5 is not a causal"),
    "the decoder of one": (
        BartForCausalLM,
        BartConfig(d_model=16, decoder_layers=1, decoder_ffn_dim=32, is_encoder_decoder=False),
        "is no causal language model",
    ),
    "both directions": (BertLMHeadModel, BertConfig(**SIZES), "is no causal language model"),
    "recurrent": (MambaForCausalLM, MambaConfig(**SIZES), "cannot be read by"),
    "both directions by choice": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SIZES, num_key_value_heads=1, use_bidirectional_attention=True),
        "is no causal language model",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_attention_is_refused(case, tmp_path):
    """A model that reads its input in both directions, has an encoder beside it, or takes no masks
    would give answers that depend on the questions beside them."""
    kind, config, said = OTHERS[case]
    assert said in refused(save_language_model(kind, config, tmp_path), load_language_model)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_code_in_a_folder_never_runs(model, known, monkeypatch):
    """Files name a class of a module beside them for whatever may be loaded: it is passed over, or
    the folder refused, and nobody is asked."""
    folder, load = model
    mark = folder.parent / "code was run"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    kinds = ("Config", "Model", "ModelForCausalLM", "ImageProcessor", "FeatureExtractor")
    auto_map = {f"Auto{kind}": "evil.Evil" for kind in kinds}
    auto_map["AutoTokenizer"] = ["evil.Evil", "evil.Evil"]
    for path in folder.glob("*config.json"):
        edit(path, auto_map=auto_map)
    if not known:
        edit(folder / "config.json", model_type="evil", architectures=["Evil"])
        if (folder / "tokenizer_config.json").exists():
            edit(folder / "tokenizer_config.json", tokenizer_class="Evil")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if known:
        load(folder)
    else:
        refused(folder, load)
    assert not mark.exists()


def test_where_models_came_from_is_recorded(tmp_path, monkeypatch):
    """Repository, commit and a hash of what was read stand in every checkpoint, so a damaged record
    is named."""
    monkeypatch.setattr("utils.data.models.model_fingerprint", "hash of {}".format)
    record = tmp_path / "revision.json"
    assert revision(tmp_path) == {}
    for content in ("", "[1]", '"x"'):
        record.write_text(content)
        refused(record, lambda path: revision(path.parent))
    record.write_text('{"repo_id": "a/b", "commit": "c", "files": {}}')
    assert revision(tmp_path) == {"repo_id": "a/b", "commit": "c"}
    used = models_used(task_align.Config(visual_encoder=str(tmp_path), audio_encoder="nowhere"))
    known = {"path": str(tmp_path), "sha256": f"hash of {tmp_path}"}
    assert used["visual_encoder"] == {**known, "repo_id": "a/b", "commit": "c"}
    assert used["audio_encoder"] == {"path": "nowhere", "sha256": "hash of nowhere"}
