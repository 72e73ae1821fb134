"""The three repositories of the paper preset as they stand on the hub: file lists, configurations
and key names, at full width, with fewer layers and random weights; not a test itself.

What is known, and from where:
- ViViT's keys, its classes and its size: `convert_vivit_flax_to_pytorch.py` of transformers, which
  wrote google/vivit-b-16x2. Its preprocessor_config.json was not at hand. The script checked a
  shorter edge of 256, a centre crop of 224, bilinear resizing and values about zero, and did not
  normalise; the class of today, whose defaults stand below, rescales by 1/127.5 with an offset and
  normalises by 0.5 as well. Which of the two the file says is not certain: the code follows it.
  Whether the repository has safetensors is not certain either: here it has pickled weights alone.
- AST's keys, classes and normalisation (mean -4.2677393, deviation 4.5689974):
  `convert_audio_spectrogram_transformer_original_to_pytorch.py` of transformers, which wrote
  MIT/ast-finetuned-audioset-10-10-0.4593, and src/run.py of github.com/YuanGongND/ast, its source.
- Qwen2.5-1.5B's sizes and tied head: its model card and the Qwen2.5 technical report, arXiv
  2412.15115, table 1. Its largest position (131,072) is not certain. Its words are the mini
  world's, of the same tokenizer class, as the published vocabulary was not at hand.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

QWEN, AST, VIVIT = (
    *("Qwen/Qwen2.5-1.5B", "MIT/ast-finetuned-audioset-10-10-0.4593"),
    "google/vivit-b-16x2",
)
WORDS = Path(__file__).resolve().parents[2] / "checkpoint" / "mini" / "qwen2"

ENCODER = {
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "qkv_bias": True,
    "torch_dtype": "float32",
}
CONFIGS = {
    VIVIT: {
        **ENCODER,
        "architectures": ["VivitForVideoClassification"],
        "model_type": "vivit",
        "hidden_act": "gelu_fast",
        "image_size": 224,
        "layer_norm_eps": 1e-06,
        "num_channels": 3,
        "num_frames": 32,
        "tubelet_size": [2, 16, 16],
        "video_size": [32, 224, 224],
        "id2label": {str(i): f"class {i}" for i in range(400)},  # of Kinetics
    },
    AST: {
        **ENCODER,
        "architectures": ["ASTForAudioClassification"],
        "model_type": "audio-spectrogram-transformer",
        "frequency_stride": 10,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_length": 1024,
        "num_mel_bins": 128,
        "patch_size": 16,
        "time_stride": 10,
        "id2label": {str(i): f"class {i}" for i in range(527)},  # of AudioSet
    },
    QWEN: {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 1536,
        "initializer_range": 0.02,
        "intermediate_size": 8960,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}
PREPROCESSORS = {
    VIVIT: {
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "VivitImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "offset": True,
        "resample": 2,  # bilinear
        "rescale_factor": 1 / 127.5,
        "size": {"shortest_edge": 256},
    },
    AST: {
        "do_normalize": True,
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "max_length": 1024,
        "mean": -4.2677393,
        "num_mel_bins": 128,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": 16000,
        "std": 4.5689974,
    },
}
WORD_FILES = {
    "tokenizer_config.json": {
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    },
    "generation_config.json": {
        "bos_token_id": 151643,
        "do_sample": False,
        "eos_token_id": 151643,
        "max_new_tokens": 2048,
    },
}


def encoder_shapes(base: str, c: dict, layers: int, embeddings: dict) -> dict[str, tuple]:
    """The shapes of a ViT-like encoder's weights by their published names, without a head."""
    width, inner = c["hidden_size"], c["intermediate_size"]
    linear = {f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")}
    linear |= {"attention.output.dense": (width, width), "output.dense": (width, inner)}
    linear["intermediate.dense"] = (inner, width)
    shapes = {f"{base}.embeddings.{name}": shape for name, shape in embeddings.items()}
    for i in range(layers):
        layer = f"{base}.encoder.layer.{i}"
        for name, shape in linear.items():
            shapes[f"{layer}.{name}.weight"], shapes[f"{layer}.{name}.bias"] = shape, shape[:1]
        shapes |= norm(f"{layer}.layernorm_before", width) | norm(f"{layer}.layernorm_after", width)
    return shapes | norm(f"{base}.layernorm", width)


def norm(name: str, width: int) -> dict[str, tuple]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vivit_shapes(layers: int) -> dict[str, tuple]:
    c = CONFIGS[VIVIT]
    width = c["hidden_size"]
    embeddings = {
        "cls_token": (1, 1, width),
        "position_embeddings": (1, 1 + 16 * 14 * 14, width),
        "patch_embeddings.projection.weight": (width, 3, 2, 16, 16),
        "patch_embeddings.projection.bias": (width,),
    }
    head = {"classifier.weight": (400, width), "classifier.bias": (400,)}
    return encoder_shapes("vivit", c, layers, embeddings) | head


def ast_shapes(layers: int) -> dict[str, tuple]:
    c = CONFIGS[AST]
    width = c["hidden_size"]
    embeddings = {
        "cls_token": (1, 1, width),
        "distillation_token": (1, 1, width),
        "position_embeddings": (1, 2 + 12 * 101, width),
        "patch_embeddings.projection.weight": (width, 1, 16, 16),
        "patch_embeddings.projection.bias": (width,),
    }
    head = {"classifier.dense.weight": (527, width), "classifier.dense.bias": (527,)}
    head |= norm("classifier.layernorm", width)
    return encoder_shapes("audio_spectrogram_transformer", c, layers, embeddings) | head


def qwen_shapes(layers: int) -> dict[str, tuple]:
    """Without a vocabulary head, which is the table of embeddings."""
    c = CONFIGS[QWEN]
    width, inner, narrow = c["hidden_size"], c["intermediate_size"], 2 * 128
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], width), "model.norm.weight": (width,)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        for part, out in (("q", width), ("k", narrow), ("v", narrow)):
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (out, width)
            shapes[f"{layer}.self_attn.{part}_proj.bias"] = (out,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, width)
        shapes |= {f"{layer}.mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{name}.weight"] = (width,)
    return shapes


def drawn(shapes: dict[str, tuple], dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights of these shapes; norms multiply by 1 and add nothing."""
    block, weights = 0.02 * torch.randn(1 << 20).to(dtype), {}
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        weight = block.repeat(-(-count // len(block)))[:count].view(shape)
        if "norm" in name:
            weight = torch.full(shape, float(name.endswith("weight")), dtype=dtype)
        weights[name] = weight.contiguous()
    return weights


def repositories(folder: Path, layers: int = 1, pickled: bool = False) -> dict:
    """What a `Hub` serves: each repository's one revision, with the files that it has; with
    `pickled` none has safetensors, and the language model lies in two parts."""
    torch.manual_seed(0)
    made = {
        VIVIT: (drawn(vivit_shapes(layers), torch.float32), ("pytorch_model.bin",)),
        AST: (drawn(ast_shapes(layers), torch.float32), ("model.safetensors", "pytorch_model.bin")),
        QWEN: (drawn(qwen_shapes(layers), torch.bfloat16), ("model.safetensors",)),
    }
    repos = {}
    for number, (repo_id, (weights, names)) in enumerate(made.items(), start=1):
        config = {**CONFIGS[repo_id], "num_hidden_layers": layers}
        files = {".gitattributes": b"*.bin filter=lfs\n", "README.md": b"# A model\n"}
        files["config.json"] = text(config)
        if pickled:
            names = ("pytorch_model.bin",)
        if pickled and repo_id == QWEN:
            files |= in_two(weights, folder / repo_id.replace("/", "--"))
            names = ()
        for name in names:
            place = files[name] = folder / repo_id.replace("/", "--") / name
            place.parent.mkdir(exist_ok=True)
            if name.endswith(".bin"):
                torch.save(weights, place)
            else:
                save_file(weights, place, metadata={"format": "pt"})
        if repo_id in PREPROCESSORS:
            files["preprocessor_config.json"] = text(PREPROCESSORS[repo_id])
        else:
            files |= words()
        repos[repo_id] = {"main": (40 * str(number), files)}
    return repos


def in_two(weights: dict[str, torch.Tensor], folder: Path) -> dict:
    """Pickled weights in two files and the index that says which lies where."""
    folder.mkdir()
    every, files, where = list(weights), {}, {}
    for number, names in enumerate((every[::2], every[1::2]), start=1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: weights[name] for name in names}, folder / file)
        files[file] = folder / file
        where |= dict.fromkeys(names, file)
    size = sum(w.numel() * w.element_size() for w in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    return files | {"pytorch_model.bin.index.json": text(index)}


def words() -> dict[str, bytes]:
    """The files of a Qwen2 tokenizer as they are published."""
    whole = (WORDS / "tokenizer.json").read_bytes()
    model = json.loads(whole)["model"]
    merges = "\n".join(["#version: 0.2", *map(" ".join, model["merges"])])
    files = {name: text(content) for name, content in WORD_FILES.items()}
    files |= {"tokenizer.json": whole, "vocab.json": text(model["vocab"])}
    return files | {"merges.txt": merges.encode(), "LICENSE": b"Apache License 2.0\n"}


def text(content: dict) -> bytes:
    return json.dumps(content, indent=2).encode()
