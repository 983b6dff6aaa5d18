"""The models and sizes that both sides measure, and what a token of them costs. `benches/step.rs` and
`src/selftest/workloads/` have the same numbers; a row is set beside ours by its name and shape, letter for letter.
"""

import json
import pathlib

BENCHES = pathlib.Path(__file__).resolve().parents[1]
SFT_LENGTH = 1024
SFT_ROWS = {"gpt2-124m": 32, "qwen2.5-0.5b": 8, "qwen2.5-1.5b": 8}
DECODE_BATCHES, DECODE_PROMPT, DECODE_NEW = (32, 128), 384, 256  # contexts from 384 to 640, 512 in the mean
PPO_EPISODES, PPO_QUERY, PPO_RESPONSE, PPO_EPOCHS = 256, 128, 384, 1
TINY = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": 256},
    "qwen2": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 128},
}


def raw_config(name, tiny=False):
    """The keys of `benches/NAME.json`; tiny ones keep the architecture alone."""
    raw = json.loads((BENCHES / f"{name}.json").read_text())
    return raw | (TINY[raw["model_type"]] if tiny else {})


def config_of(name, tiny=False):
    """transformers' configuration, without dropout and with SDPA."""
    from transformers import AutoConfig

    raw = raw_config(name, tiny)
    for key in ("architectures", "torch_dtype"):
        raw.pop(key, None)
    if raw["model_type"] == "gpt2":
        raw |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return AutoConfig.for_model(raw.pop("model_type"), attn_implementation="sdpa", **raw)


def sizes_of(raw):
    """Layers, width, key-value width, vocabulary, and the parameters of matrices outside the embeddings."""
    if raw["model_type"] == "gpt2":
        layers, width, vocabulary = raw["n_layer"], raw["n_embd"], raw["vocab_size"]
        return layers, width, width, vocabulary, 12 * layers * width**2
    layers, width, inner, vocabulary = (raw[key] for key in (
        "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"))
    kv_width = width // raw["num_attention_heads"] * raw["num_key_value_heads"]
    return layers, width, kv_width, vocabulary, layers * (2 * width * (width + kv_width) + 3 * width * inner)


def flop_per_token(raw, length):
    """Of a forward and backward pass, causal attention counted as half: 6 (matrices + V H) + 6 L S H."""
    layers, width, _, vocabulary, matrices = sizes_of(raw)
    return 6 * (matrices + vocabulary * width) + 6 * layers * length * width


def decode_bytes(raw, batch, context, floats=2):
    """Of one decoding step: the weights once, every row's keys and values, and its logits."""
    layers, width, kv_width, vocabulary, matrices = sizes_of(raw)
    return floats * (matrices + vocabulary * width + batch * (2 * layers * kv_width * context + vocabulary))
