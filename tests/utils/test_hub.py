"""Models by the name that they have on the hub, against one in this process; none asks another."""

import io

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tests.helpers.hub import serving
from tests.helpers.scripts import here, refused
from utils.data.models import check_folder, load_encoder, model_fingerprint, models_used, revision
from utils.hub import fetch, is_hub_id

COMMIT, LATER = "a" * 40, "b" * 40
PLAIN, PICKLED = "us/plain", "us/pickled"


@pytest.fixture
def hub(models, tmp_path, monkeypatch):
    """A hub with a tiny ViViT twice, once with pickled weights alone and under the keys of a model
    that has a head; an empty cache, and this process turned to both."""
    files = {path.name: path.read_bytes() for path in (models / "visual").iterdir()}
    assert files.keys() == {"config.json", "preprocessor_config.json", "model.safetensors"}
    pickled, buffer = dict(files), io.BytesIO()
    weights = load_file(models / "visual" / "model.safetensors")
    del pickled["model.safetensors"]
    torch.save({f"vivit.{k}": v for k, v in weights.items()} | {"classifier.bias": torch.ones(4)},
               buffer)  # fmt: skip
    pickled["pytorch_model.bin"] = buffer.getvalue()
    files |= {"setup.py": b"evil", "onnx/model.safetensors": b"junk", "a.bin": b"junk"}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    fetch.cache_clear()
    with serving({PLAIN: {"main": (COMMIT, files)}, PICKLED: {"main": (LATER, pickled)}}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        place = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
        yield server
    fetch.cache_clear()


def offline(monkeypatch):
    """From here on as with HF_HUB_OFFLINE=1, in a new process."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetch.cache_clear()


@pytest.mark.parametrize("name, commit", [(PLAIN, COMMIT), (PICKLED, LATER)])
def test_a_model_by_its_name(hub, name, commit, models, tmp_path, monkeypatch):
    """Protects: it is fetched into the user's cache, weights, configuration and nothing else; what
    was pickled is kept as safetensors; the commit is recorded; a second process without a network
    finds it and asks nothing."""
    folder = check_folder(name)
    assert folder.is_relative_to(tmp_path) and folder.name == commit
    wanted = {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} - {"revision.json"} == wanted
    model, _ = load_encoder(name, "visual")
    expected, _ = load_encoder(models / "visual", "visual")
    found = model.state_dict()
    assert all(torch.equal(found[k], v) for k, v in expected.state_dict().items())
    assert revision(name) == {"repo_id": name, "commit": commit}
    offline(monkeypatch)
    asked = len(hub.paths)
    assert check_folder(name) == folder and revision(name)["commit"] == commit
    assert len(hub.paths) == asked


def test_the_hub_is_asked_once_a_process(hub):
    """Protects: the many places that look into a model's folder do not each ask the hub."""
    check_folder(PLAIN)
    asked = len(hub.paths)
    check_folder(PLAIN)
    assert len(hub.paths) == asked > 0


def test_a_revision_is_asked_for(hub):
    """Protects: OWNER/NAME@REVISION is that one, as a branch or as a commit, and is recorded."""
    files = hub.repos[PLAIN]["main"][1]
    hub.repos[PLAIN]["refs/pr/2"] = (LATER, files)
    assert check_folder(f"{PLAIN}@refs/pr/2").name == LATER
    assert check_folder(f"{PLAIN}@{COMMIT}").name == COMMIT
    assert revision(f"{PLAIN}@refs/pr/2") == {"repo_id": PLAIN, "commit": LATER}


def test_a_lost_connection_is_taken_up(hub, tmp_path):
    """Protects: a file that was cut off goes on, and is whole."""
    weights = {"a": torch.arange(3 << 20)}  # the client keeps what came in steps of 10 MiB
    save_file(weights, tmp_path / "big.safetensors")
    hub.repos[PLAIN]["main"][1]["model.safetensors"] = tmp_path / "big.safetensors"
    hub.cuts = {"model.safetensors": 11 << 20}
    found = load_file(check_folder(PLAIN) / "model.safetensors")
    assert torch.equal(found["a"], weights["a"])
    assert [begin for name, begin in hub.asked if name == "model.safetensors"] == [0, 10 << 20]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("us/nothing", "RepositoryNotFoundError"),
        (f"{PLAIN}@refs/pr/9", "RevisionNotFoundError"),
        ("us/empty", "has neither safetensors nor pytorch_model.bin"),
    ],
)
def test_what_cannot_be_had_is_one_line(hub, name, says):
    """Protects: the name, the reason and what to look at, in one line."""
    hub.repos["us/empty"] = {"main": (COMMIT, {"config.json": b"{}"})}
    with pytest.raises(FileNotFoundError) as error:
        check_folder(name)
    message = str(error.value)
    assert message.startswith(f"{name}: no such folder") and len(message.splitlines()) == 1
    assert says in message and "HF_ENDPOINT" in message and len(message) < 600


def test_offline_without_a_copy_is_one_line(hub, monkeypatch):
    """Protects: HF_HUB_OFFLINE is obeyed, and named where it stands in the way."""
    offline(monkeypatch)
    with pytest.raises(FileNotFoundError, match=f"{PLAIN}: .*HF_HUB_OFFLINE"):
        check_folder(PLAIN)
    assert not hub.paths


def test_what_is_a_name_of_the_hub(tmp_path, monkeypatch):
    """Protects: folders stay folders: those that are there, and those of this repository's places,
    which a typing mistake must not turn into a question to the network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    for name in ("Qwen/Qwen2.5-1.5B", "google/vivit-b-16x2@refs/pr/1", "mine/other"):
        assert is_hub_id(name)
    places = ("models/none", "checkpoint/mini/vivit", "../a", "./a", "mine/model", str(tmp_path))
    for name in (*places, "a", "a/b/c", "a/b@", "", "none"):
        assert not is_hub_id(name), name


def test_what_costs_nothing_is_checked_before_a_model_is_fetched(hub, tmp_path):
    """Protects: neither a missing data set nor a missing folder is found out after gigabytes."""
    flags = ("--preset", "paper", "--visual_encoder", PLAIN, "--out", tmp_path, "--figures", "none")
    flags += ("--cache", "none", "--data", tmp_path / "nowhere")
    refused(here("task_align.py", *flags, ok=False), "nowhere")
    mixed = ("--visual_encoder", PLAIN, "--audio_encoder", "models/none", "--out", tmp_path)
    mixed += ("--figures", "none", "--cache", "none", "--data", tmp_path / "mini/VALOR")
    refused(here("task_align.py", *mixed, ok=False), "models/none")
    assert not hub.paths and not (tmp_path / "mini").exists()


def test_where_a_run_had_its_models_from_is_recorded(hub, models):
    """Protects: name and commit stand in every checkpoint."""
    config = type("Config", (), {"visual_encoder": PICKLED})
    config.audio_encoder = config.foundation_model = str(models / "audio")
    used = models_used(config)
    known = {"path": PICKLED, "sha256": model_fingerprint(PICKLED)}
    assert used["visual_encoder"] == {**known, "repo_id": PICKLED, "commit": LATER}
    assert used["audio_encoder"].keys() == {"path", "sha256"}
