"""Fuzzing checkpoints and saved states: what loads is what was saved, the rest ends in a line."""

import io
import time
import zipfile

import pytest
import torch

from tests.helpers.bad_media import mutant
from tests.helpers.tiny import tiny_lora, tiny_parts
from utils.checkpoints import CheckpointError, load_parts, save_checkpoint
from utils.training.states import newest

MUTANTS = 500  # of each kind
KINDS = {"whole": 0.02, "inside": 0.05, "old": 0.05}  # least share of mutants that loads


def trained(parts, lora):
    """Every weight that a checkpoint fills, by part and name."""
    lora = {k: v for k, v in lora.named_parameters() if "lora_" in k}
    parts = {
        (name, key): value
        for name, part in parts.items()
        for key, value in part.named_parameters()
        if not key.startswith("encoder.")
    }
    return {**parts, **lora}


def entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def mutant_inside(sources: list[bytes], seed: int) -> bytes:
    """A file of which one entry is a mutant, mostly its pickle, with the checksum of the mutant."""
    parts, file = entries(sources[0]), io.BytesIO()
    names = sorted(parts, key=lambda name: "data.pkl" not in name)
    name = names[0 if seed % 4 else seed // 4 % len(names)]
    parts[name] = mutant([parts[name]], seed)
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_any_checkpoint_is_loaded_or_named(tmp_path, kind):
    """Of 500 mutants each fills every weight with finite numbers, those that were saved wherever
    the file has checksums of its own, or is refused in a line that names it, within 10 s of
    processor time."""
    path, wanted = tmp_path / "x.pth", (tiny_parts(), tiny_lora())
    save_checkpoint(path, *wanted, {"config": {"preset": "mini"}})
    source, wanted = path.read_bytes(), trained(*wanted)
    if kind == "old":  # than torch 1.6: a pickle with the numbers behind it
        file = io.BytesIO()
        content = torch.load(path, weights_only=True)
        torch.save(content, file, _use_new_zipfile_serialization=False)
        source = file.getvalue()
    changed = mutant_inside if kind == "inside" else mutant
    parts, lora, good = tiny_parts(seed=1), tiny_lora(seed=2), 0
    for seed in range(MUTANTS):
        path.write_bytes(changed([source], seed))
        found = trained(parts, lora)
        with torch.no_grad():
            for weight in found.values():
                weight.fill_(float("nan"))
        start = time.process_time()
        try:
            load_parts(path, parts, lora, preset="mini")
            good += 1
            for name, weight in trained(parts, lora).items():
                assert weight.shape == wanted[name].shape and weight.isfinite().all(), seed
                assert kind != "whole" or torch.equal(weight, wanted[name]), seed
        except CheckpointError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1, seed
        assert time.process_time() - start < 10, seed
    assert MUTANTS * KINDS[kind] < good < MUTANTS


def test_any_damaged_state_gives_way_to_the_one_before(tmp_path):
    """Of 500 mutants of the newest state each is read as it was saved, or named in a line, and
    training goes on from the one before."""
    state = {"about": {"config": {}}, "read": 8, "random": [], "model": {"w": torch.arange(99.0)}}
    torch.save({**state, "read": 4}, tmp_path / "step-00000004.pt")
    path = tmp_path / "step-00000008.pt"
    torch.save(state, path)
    source, said, good = path.read_bytes(), [], 0
    for seed in range(MUTANTS):
        path.write_bytes(mutant([source], seed))
        said.clear()
        found = newest(tmp_path, said.append)
        assert torch.equal(found["model"]["w"], state["model"]["w"]), seed
        assert found["read"] == (4 if said else 8), seed
        assert all(str(path) in line and len(line.splitlines()) == 1 for line in said), seed
        good += not said
    assert 0 < good < MUTANTS
