"""Model folders: a damaged or foreign one ends in a line, and code that lies in one never runs."""

import json
import shutil
from pathlib import Path

import pytest

from utils.data.models import ModelError, load_ast, load_language_model, load_vivit, revision

ROOT = Path(__file__).resolve().parents[3]
LOADERS = {"vivit": load_vivit, "ast": load_ast, "qwen2": load_language_model}


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


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_truncated_weights_are_refused(model, share):
    """A download that was cut off."""
    weights = model[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(share * weights.stat().st_size)])
    refused(*model)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"x"', "<html>", "\0"])
def test_malformed_configuration_is_refused(model, content):
    """JSON that is none, or of something else, in each file that a loader reads."""
    for path in sorted(model[0].glob("*.json")):
        before = path.read_text()
        path.write_text(content)
        if path.name not in ("generation_config.json", "tokenizer_config.json"):
            refused(*model)
        path.write_text(before)
    model[1](model[0])


def test_missing_files_are_refused(model):
    """Each file without which a model would be another one, or have no words."""
    folder, load = model
    for path in sorted(folder.iterdir()):
        if path.name in ("generation_config.json", "tokenizer_config.json"):
            continue
        aside = path.rename(folder.parent / path.name)
        pair = path.name in ("config.json", "model.safetensors")
        refused(folder, load, FileNotFoundError if pair else ModelError)
        aside.rename(path)


def test_pickled_weights_alone_are_refused(model):
    """A folder of the old form, whose weights could hold code."""
    folder, load = model
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
    """A folder given to the loader of another kind."""
    folder, load = model
    for other in LOADERS.values():
        if other is not load:
            refused(folder, other)


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
    if load is load_language_model and not known:
        refused(folder, load)
    else:
        load(folder)
    assert not mark.exists()


@pytest.mark.parametrize("content", ["", "[1]", '"x"'])
def test_a_damaged_record_of_the_download_is_named(tmp_path, content):
    """Where a model came from is recorded in every checkpoint, so it must be readable."""
    assert revision(tmp_path) == {}
    record = tmp_path / "revision.json"
    record.write_text(content)
    refused(record, lambda path: revision(path.parent))
    record.write_text('{"repo_id": "a/b", "commit": "c", "files": {}}')
    assert revision(tmp_path) == {"repo_id": "a/b", "commit": "c"}
