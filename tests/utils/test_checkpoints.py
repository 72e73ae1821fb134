"""Checkpoints: the trained parts bit by bit, and no code, encoder or foreign shape with them."""

import copy
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from modules.token_receiver import ResidualReceiver, WordDetector
from tests.helpers.tiny import tiny_lora, tiny_parts
from utils.checkpoints import (
    CheckpointError,
    load_checkpoint,
    load_parts,
    require,
    save_checkpoint,
    whole,
)

ABOUT = {"task": "align", "config": {"snr_db": 10.0, "targets": ["q_proj"]}, "step": 3}


def edit(path, change):
    """Change what a checkpoint holds, in place."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def refused(path, *parts, load=None, longest=400, **kwargs):
    """The one-line CheckpointError with which `load`, or that of tiny parts, refuses the file."""
    load = load or (lambda path: load_parts(path, tiny_parts(**kwargs)))
    with pytest.raises(CheckpointError) as error:
        load(path)
    message = str(error.value)
    assert "\n" not in message and len(message) < longest
    assert all(part in message for part in (str(path), *parts)), message


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "runs" / "align.pth"
    save_checkpoint(path, tiny_parts(), None, ABOUT)
    return path


def test_file_loads_without_running_code(saved):
    """The file opens with weights_only=True and holds parts by name, facts beside them."""
    content = torch.load(saved, weights_only=True)
    assert set(content) == {"img_tx", "text_receiver", "img_receiver", "about"}
    assert content["about"] == ABOUT
    assert set(content["text_receiver"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert [path.name for path in saved.parent.iterdir()] == ["align.pth"], "nothing left beside"


def test_encoder_is_not_saved(saved):
    """The frozen encoder stays out of the file, which is far smaller than it."""
    content = torch.load(saved, weights_only=True)
    assert set(content["img_tx"]) == {"projection.weight", "projection.bias"}
    encoder = tiny_parts()["img_tx"].encoder
    kept = sum(t.numel() for name in tiny_parts() for t in content[name].values())
    assert sum(p.numel() for p in encoder.parameters()) > 5 * kept
    assert saved.stat().st_size < 4 * kept + 10_000


def check_filled(parts, encoder):
    """That parts hold what was saved in every bit, and still the same encoder."""
    for name, wanted in tiny_parts().items():
        state = parts[name].state_dict()
        for key, value in wanted.state_dict().items():
            value = encoder[key] if key.startswith("encoder.") else value
            assert torch.equal(state[key], value), (name, key)


def test_round_trip_is_bit_exact(saved):
    """Other parts of the same shape become the saved ones in every bit; encoders stay, whatever
    the file holds of them. Parts that are not asked for are passed over."""
    parts, some = tiny_parts(seed=1), tiny_parts(seed=1)
    encoder = copy.deepcopy(parts["img_tx"].state_dict())
    assert load_parts(saved, parts) == ABOUT
    check_filled(parts, encoder)
    assert all(p.requires_grad for p in parts["text_receiver"].parameters())
    edit(saved, lambda content: content["img_tx"].update({"encoder.extra": torch.ones(3)}))
    del some["text_receiver"]
    assert load_parts(saved, some) == ABOUT
    check_filled({**parts, **some}, encoder)


def test_lora_round_trip(tmp_path):
    """LoRA weights come back bit by bit, alone and without the base model."""
    path = tmp_path / "avqa.pth"
    for seed in (0, 1):
        trained, fresh = tiny_lora(seed=seed), tiny_lora(seed=2)
        save_checkpoint(path, tiny_parts(), trained, ABOUT)
        content = torch.load(path, weights_only=True)
        assert len(content["lora"]) == 2 * 2 * 2 and all("lora_" in k for k in content["lora"])
        assert load_parts(path, tiny_parts(seed=1), fresh) == ABOUT
        wanted = dict(trained.named_parameters())
        for name, weight in fresh.named_parameters():
            assert torch.equal(weight, wanted[name]), name
            assert weight.requires_grad == ("lora_" in name)


@pytest.mark.parametrize(
    "options", [{"rank": 2}, {"hidden": 32}, {"targets": ["q_proj"]}, {"targets": ["k_proj"]}]
)
def test_other_lora_is_refused(tmp_path, options):
    """LoRA of another rank, width or set of projections is refused, not loaded in part."""
    path = tmp_path / "avqa.pth"
    save_checkpoint(path, {}, tiny_lora(), ABOUT)
    load = partial(load_parts, parts={}, lora=tiny_lora(**options))
    refused(path, load=load, longest=600)


def test_missing_lora_is_refused(saved):
    """A stage-1 checkpoint has no LoRA to give."""
    refused(saved, "has no lora", load=partial(load_parts, parts=tiny_parts(), lora=tiny_lora()))


def test_another_hidden_size_is_refused(saved):
    """Parts made for another language model are named with both shapes."""
    refused(saved, "img_tx.projection.weight", "(16, 24)", "(32, 24)", hidden=32)


def test_another_preset_is_refused(saved):
    """A file that says which preset made it is refused by another one, both named, also where all
    shapes fit by chance; a file that does not say it loads, whatever it says instead."""
    load_parts(saved, tiny_parts(), preset="mini")
    for about in (None, 3, {"config": 3}, {"config": {"preset": ["paper"]}}):
        edit(saved, lambda content, about=about: content.update(about=about))
        load_parts(saved, tiny_parts(), preset="mini")
    edit(saved, lambda content: content.update(about={"config": {"preset": "paper"}}))
    load_parts(saved, tiny_parts(), preset="paper")
    for hidden in (16, 32):
        parts = tiny_parts(hidden)
        refused(saved, "'paper'", "'mini'", load=partial(load_parts, parts=parts, preset="mini"))


def test_another_frozen_model_is_refused(saved):
    """Encoders of one width differ in what their tokens mean; a file that does not say which models
    it had loads."""
    now = {"visual_encoder": {"sha256": "a1"}, "audio_encoder": {"sha256": "b1"}}
    load_parts(saved, tiny_parts(), models=now)
    other = {**now, "audio_encoder": {"sha256": "b2"}}
    edit(saved, lambda content: content.update(about={"models": other}))
    load = partial(load_parts, parts=tiny_parts(), models=now)
    refused(saved, "another audio_encoder", "--audio_encoder", load=load)
    load_parts(saved, tiny_parts(), models=other)


def test_another_receiver_is_refused(saved):
    """A file of the published receiver is not taken for one with a skip, nor the other way round:
    both are named where the file says how it was made, and else the keys that differ."""
    residual = {**tiny_parts(), "img_receiver": ResidualReceiver(16, 20, 1e-2)}
    refused(
        saved,
        "img_receiver",
        "'correction.0.bias'",
        "'0.bias'",
        "receiver",
        load=partial(load_parts, parts=residual),
    )
    edit(saved, lambda content: content.update(about={"config": {"receiver": "mlp"}}))
    load_parts(saved, tiny_parts(), receiver="mlp")
    load = partial(load_parts, parts=residual, preset="mini", receiver="residual")
    refused(saved, "'mlp'", "'residual'", "--receiver", load=load)
    save_checkpoint(saved, residual, None, ABOUT)
    refused(saved, "img_receiver", "'correction.0.bias'", "'0.bias'")


def test_the_detector_of_words_needs_no_weights(saved):
    """It is saved as a part that holds nothing, and stands after any stage 1; a receiver that has
    weights does not take them from nothing."""
    table = torch.ones(3, 16)
    detecting = {**tiny_parts(), "text_receiver": WordDetector(lambda: table)}
    load_parts(saved, detecting)
    save_checkpoint(saved, detecting, None, ABOUT)
    assert load_checkpoint(saved)["text_receiver"] == {}
    load_parts(saved, detecting)
    refused(saved, "text_receiver lacks '0.bias'")


PUBLISHED = {
    "receiver in receivers": lambda part, key: f"receiver.{key}" if "receiver" in part else key,
    "DataParallel": lambda part, key: f"module.{key}",
    "both": lambda part, key: "module." + ("receiver." if "receiver" in part else "") + key,
    "DataParallel in it": lambda _, key: key.replace("encoder.", "encoder.module."),
}


def in_published_layout(rename):
    """A state_dict a part, encoder weights included, and nothing beside; keys renamed."""
    return {
        name: {rename(name, key): value for key, value in part.state_dict().items()}
        for name, part in tiny_parts().items()
    }


@pytest.mark.parametrize("rename", PUBLISHED.values(), ids=PUBLISHED)
def test_published_layout_loads(tmp_path, rename):
    """Older files hold whole state_dicts: keys wrapped by DataParallel or by the published
    receiver's attribute, encoders among them; what is trained is loaded bit by bit."""
    path, parts = tmp_path / "old.pth", tiny_parts(seed=1)
    content = in_published_layout(rename)
    content["img_tx"][rename("img_tx", "encoder.position_ids")] = torch.arange(3)  # no weight
    torch.save(content, path)
    encoder = copy.deepcopy(parts["img_tx"].state_dict())
    assert load_parts(path, parts, preset="mini") == {}
    check_filled(parts, encoder)


def test_encoder_under_another_name_is_explained(tmp_path):
    """The line names a few of the keys, says how many there are, and where an encoder's belong."""
    path = tmp_path / "old.pth"
    torch.save(in_published_layout(lambda _, key: key.replace("encoder.", "vivit.")), path)
    refused(path, "img_tx", "'vivit.", " more", "must begin with 'encoder.'")


def test_numbers_that_are_none_are_refused(saved):
    """One weight that is no number of the model would spoil all that follows; its key is named."""
    for value in (float("nan"), float("inf"), 1e300):
        weight = tiny_parts()["text_receiver"].state_dict()["2.bias"].double()
        weight[3] = value
        edit(saved, lambda content, w=weight: content["text_receiver"].update({"2.bias": w}))
        refused(saved, "text_receiver.2.bias", "not finite")


@pytest.mark.parametrize(
    "part",
    [
        {"2.bias": torch.zeros(16, dtype=torch.int64)},
        {"2.bias": torch.zeros(16, dtype=torch.complex64)},
        {"2.bias": torch.zeros(16).to_sparse()},
        {"2.bias": torch.zeros(16, device="meta")},
        *(None, torch.ones(3), [1, 2], {"0.weight": 3.0}, {5: torch.ones(1)}),
    ],
)
def test_part_that_is_no_part_is_refused(saved, part):
    """What stands in the place of a part, or of its weights, is not taken for them: whole or
    complex numbers, and tensors that hold no plain numbers, are no weights."""
    if isinstance(part, dict) and "2.bias" in part:
        part = {**tiny_parts()["text_receiver"].state_dict(), **part}
    edit(saved, lambda content: content.update({"text_receiver": part}))
    refused(saved, "text_receiver")


def test_a_flipped_bit_is_noticed(saved):
    """torch.load reads a damaged weight as another number; its checksum tells."""
    content = bytearray(saved.read_bytes())
    weight = tiny_parts()["text_receiver"].state_dict()["0.weight"].numpy().tobytes()
    content[content.index(weight) + 99] ^= 1
    saved.write_bytes(content)
    torch.load(saved, weights_only=True)
    refused(saved, "Bad CRC-32")


def test_torch_and_zipfile_read_the_same(saved):
    """An entry marked as a folder would be read by torch as whatever was in memory before."""
    content = bytearray(saved.read_bytes())
    for at in range(len(content)):
        if content[at : at + 4] == b"PK\x01\x02":  # an entry of the archive's index
            content[at + 38] = 16
    saved.write_bytes(content)
    parts = tiny_parts(seed=1)
    load_parts(saved, parts)
    check_filled(parts, parts["img_tx"].state_dict())


@pytest.mark.parametrize("part, key", [("text_receiver", "2.bias"), ("img_tx", "projection.bias")])
def test_missing_and_unknown_keys_are_refused(saved, part, key):
    """A key too few or too many is named, and a part that the file lacks."""
    edit(saved, lambda content: content[part].pop(key))
    refused(saved, part, key)
    edit(saved, lambda content: content[part].update({key: torch.zeros(16), "odd": torch.ones(1)}))
    refused(saved, part, "odd")
    edit(saved, lambda content: content.pop(part))
    refused(saved, part)


def test_truncated_file_is_refused(saved):
    """A half-copied file is refused in one line, wherever it was cut."""
    content = saved.read_bytes()
    for share in (0, 0.001, 0.01, 0.3, 0.6, 0.9, 0.99, 0.999):
        saved.write_bytes(content[: int(share * len(content))])
        refused(saved, load=load_checkpoint)
        refused(saved)


def test_foreign_file_is_refused(tmp_path):
    """A file of another kind, or that torch.load reads but that is no checkpoint, is refused in one
    line."""
    path = tmp_path / "x.pth"
    for content in (b"no checkpoint\n", b"\x80\x02", b"PK\x03\x04" + 99 * b"\0", 500 * b"\xff",
                    b"(lp0\n."):  # fmt: skip
        path.write_bytes(content)
        refused(path, load=load_checkpoint)
    for content in (torch.ones(3), [1, 2], 7, None):
        torch.save(content, path)
        refused(path, load=load_checkpoint)


class Touch:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle", "about"])
def test_code_in_a_file_is_not_run(tmp_path, how):
    """A file that would run code is refused before any of it has run."""
    path, mark = tmp_path / "x.pth", tmp_path / "code was run"
    content = {"img_tx": Touch(mark)} if how != "about" else {"img_tx": {}, "about": Touch(mark)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    refused(path, *([] if how == "pickle" else ["code", "never run"]), load=load_checkpoint)
    refused(path)
    assert not mark.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert mark.exists(), "the file must be able to do harm for this to say anything"


@pytest.mark.parametrize("load", [load_checkpoint, lambda path: require(path, "python x.py")])
def test_missing_file_is_named(tmp_path, load):
    """A checkpoint that is not there is named in one line; `require` says what makes it."""
    path = tmp_path / "x.pth"
    with pytest.raises(FileNotFoundError) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    path.touch()
    require(path, "python x.py")


def test_failed_write_leaves_the_old_file(saved, monkeypatch):
    """A full disk while writing keeps the old checkpoint and leaves nothing beside it."""
    before = saved.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, tiny_parts(seed=1), None, ABOUT)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["align.pth"]


def test_one_process_writes(tmp_path):
    """The others take part in putting the weights together and leave no trace on the disk."""
    path, gathered = tmp_path / "runs" / "avqa.pth", []

    class Counted(nn.Linear):
        def state_dict(self, *args, **kwargs):
            gathered.append(self)
            return super().state_dict(*args, **kwargs)

    parts = {"img_tx": Counted(2, 2)}
    save_checkpoint(path, parts, tiny_lora(), ABOUT, writes=False)
    assert gathered == [parts["img_tx"]] and list(tmp_path.iterdir()) == []
    save_checkpoint(path, parts, tiny_lora(), ABOUT)
    before = path.read_bytes()
    save_checkpoint(path, tiny_parts(), None, {}, writes=False)
    assert path.read_bytes() == before


class Sharded:
    """A weight of which this process holds a part, as FSDP's are."""

    def __init__(self, full):
        self.full = full

    def full_tensor(self):
        return self.full


def test_shards_are_put_together(tmp_path, monkeypatch):
    """What is saved is the whole of each weight, not this process's part of it."""
    weight = torch.arange(6.0).reshape(2, 3)
    assert whole(Sharded(weight)) is weight and whole(weight) is weight
    path, part, lora = tmp_path / "x.pth", nn.Linear(3, 2), tiny_lora()
    wanted = {k: v.clone() for k, v in part.state_dict().items()}
    monkeypatch.setattr(
        part, "state_dict", lambda: {k: Sharded(v) for k, v in wanted.items()}, raising=False
    )
    monkeypatch.setattr(
        "utils.checkpoints.get_peft_model_state_dict", lambda _: {"lora_A": Sharded(weight)}
    )
    save_checkpoint(path, {"img_tx": part}, lora, ABOUT)
    content = torch.load(path, weights_only=True)
    assert all(torch.equal(content["img_tx"][k], v) for k, v in wanted.items())
    assert torch.equal(content["lora"]["lora_A"], weight)
