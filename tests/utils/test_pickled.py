"""Pickled weights become safetensors, and nothing that lies in a pickle runs."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from utils.pickled import as_safetensors


def test_weights_stay_what_they_are(tmp_path):
    """Protects: names, shapes, numbers and precisions, of tied and transposed weights as well."""
    weight = torch.arange(6.0).view(2, 3)
    content = {"a.weight": weight, "tied": weight, "ids": torch.arange(3), "b": weight.half().T}
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert as_safetensors(tmp_path, tmp_path) == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == content.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in content.items())


def test_shards_stay_shards(tmp_path):
    """Protects: weights in several files, and the index that says which is where."""
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for name in names:
        torch.save({name[14:19]: torch.ones(2)}, tmp_path / name)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {name[14:19]: name for name in names}}))
    (out := tmp_path / "out").mkdir()
    written = as_safetensors(tmp_path, out)
    assert {*written} == {path.name for path in out.iterdir()}
    where = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert all(key in load_file(out / name) for key, name in where.items()) and len(where) == 2


class Evil:
    """What a pickle may hold: a call."""

    def __reduce__(self):
        return os.mkdir, ("was run",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": Evil()}, "mkdir, which is never run"),
        ({"a": 1}, "'a' is no plain tensor"),
        ({1: torch.ones(2)}, "'1' is no plain tensor"),
        ([torch.ones(2)], "holds no named weights"),
        ({"a": torch.tensor([torch.nan])}, "'a' holds numbers that are not finite"),
    ],
)
def test_anything_else_is_refused(tmp_path, monkeypatch, content, says):
    """Protects: code never runs; one line says what is wrong; nothing is left half written."""
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError) as error:
        as_safetensors(tmp_path, tmp_path)
    assert str(error.value).startswith("pytorch_model.bin: ") and says in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    """Protects: a damaged download is no model."""
    place = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1000)}, place)
    place.write_bytes(place.read_bytes()[:2000])
    with pytest.raises(ValueError, match="no readable weights"):
        as_safetensors(tmp_path, tmp_path)
