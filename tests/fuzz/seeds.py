"""Writes tests/fuzz/seeds: a few small inputs for each target, from the fixtures and by hand. The Parquet files are not
made here: they are the file of src/data/parquet_tests.rs (`write`) in each codec and page version."""

import hashlib
import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent
FIXTURES = HERE.parent / "fixtures"
SPLIT = b"\xff"  # between the parts of an input that is more than one file


def put(target, name, data):
    folder = HERE / "seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def weights(entries, metadata=None, tail=b"", pad=0):
    """Tensors by (name, dtype, shape, bytes), one after the other."""
    header, end = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, dtype, shape, size in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = compact(header).encode() + b" " * pad
    return struct.pack("<Q", len(text)) + text + bytes(i % 251 for i in range(end)) + tail


def safetensors():
    bits = dict(BOOL=8, U8=8, I8=8, F4=4, F6_E2M3=6, F6_E3M2=6, F8_E4M3=8, F8_E5M2=8, F8_E8M0=8, U16=16, I16=16, F16=16)
    bits |= dict(BF16=16, U32=32, I32=32, F32=32, U64=64, I64=64, F64=64, C64=64)
    one = [("wte.weight", "F32", [2, 3], 24)]
    put("safetensors", "one", weights(one, {"format": "pt"}))
    put("safetensors", "padded", weights(one, pad=7))
    put("safetensors", "every_dtype", weights([(d.lower(), d, [2, 4], b) for d, b in bits.items()]))
    put("safetensors", "empty", weights([]))
    put("safetensors", "no_elements", weights([("a", "F32", [0, 3], 0), ("b", "F16", [1], 2), ("c", "U8", [0], 0)]))
    put("safetensors", "scalar", weights([("a", "BF16", [], 2)]))
    put("safetensors", "eight_dimensions", weights([("a", "U8", [1] * 8, 1)]))
    put("safetensors", "nine_dimensions", weights([("a", "U8", [1] * 9, 1)]))
    put("safetensors", "trailing", weights(one, tail=b"x"))
    put("safetensors", "overflow", weights([("a", "F32", [2**32, 2**32, 4], 16)]))
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    put("safetensors", "twice", struct.pack("<Q", len(text)) + text + b"x")
    put("safetensors", "terabytes", struct.pack("<Q", 2**63) + b"{}")
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":{"b":[1]}}}'
    put("safetensors", "unknown_field", struct.pack("<Q", len(text)) + text + b"x")


def index():
    qwen = json.loads((FIXTURES / "models/qwen2_untied/model.safetensors.index.json").read_text())
    put("index", "qwen2", compact(qwen))
    shard = "model-00001-of-00001.safetensors"
    put("index", "small", compact({"metadata": {"total_size": 16.0}, "weight_map": {"a": shard, "h.0.attn.bias": shard}}))
    for number, name in enumerate(["../a.safetensors", "/a.safetensors", "a\\b.safetensors", ".safetensors", "C:a.safetensors",
                                   "a/../b.safetensors", "a\u0000.safetensors", "ä.safetensors", "..", ""]):
        put("index", f"name_{number}", compact({"weight_map": {"a": name}}))
    put("index", "twice", '{"weight_map":{"a":"a.safetensors","a":"b.safetensors"}}')
    put("index", "no_map", '{"metadata":{"total_size":"16"}}')


def config():
    for model in sorted((FIXTURES / "models").iterdir()):
        if model.name.split("_", 1)[1] in ("tied", "untied", "untied_gqa", "reward", "f16"):
            generation = model / "generation_config.json"
            text = compact(json.loads((model / "config.json").read_text())).encode()
            more = SPLIT + compact(json.loads(generation.read_text())).encode() if generation.exists() else b""
            put("config", model.name, text + more)
    put("config", "code", '{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"auto_map":{"AutoModel":"m.M"},"n_embd":8,'
        '"n_head":2,"n_layer":1,"n_positions":8,"vocab_size":8,"attn_implementation":"eager"}')
    put("config", "huge", '{"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":65536,'
        '"intermediate_size":1048576,"max_position_embeddings":16777216,"num_attention_heads":1024,"num_hidden_layers":1024,'
        '"vocab_size":16777216,"rms_norm_eps":1e-300,"rope_theta":1e308}')


def tokenizer():
    small = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
             "decoder": None}
    token = {"id": 0, "content": "<s>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}
    bpe = {"type": "BPE", "dropout": None, "unk_token": "<u>", "byte_fallback": True, "ignore_merges": False,
           "vocab": {"<s>": 0, "<u>": 1, "a": 2, "b": 3, "ab": 4, " ": 5, "<0x41>": 6, "S": 7, "y": 8}, "merges": [["a", "b"]]}
    gpt2 = small | {"added_tokens": [token], "model": bpe, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False,
                    "trim_offsets": True, "use_regex": True}, "decoder": {"type": "ByteLevel", "add_prefix_space": False,
                    "trim_offsets": True, "use_regex": True}}
    put("tokenizer", "byte_level", compact(gpt2))
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}
    split = {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex":
             "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|\\s+"}, "behavior": "Isolated", "invert": False},
             {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]}
    put("tokenizer", "llama3", compact(gpt2 | {"pre_tokenizer": split, "post_processor": template, "normalizer": {"type": "NFC"}})
        .encode() + SPLIT + b'{"bos_token":"<s>","add_bos_token":true,"add_eos_token":false}' + SPLIT + "ab a<s> 12é".encode())
    normal = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"}, {"type": "Replace", "pattern":
              {"String": " "}, "content": "_"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True}]}
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "_"}, "content": " "},
               {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    put("tokenizer", "llama2", compact(gpt2 | {"normalizer": normal, "pre_tokenizer": None, "decoder": decoder}))
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<u>", 0.0], ["a", -1.5], ["ab", -2.0]], "byte_fallback": False}
    metaspace = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    put("tokenizer", "unigram", compact(small | {"model": unigram, "pre_tokenizer": metaspace, "decoder": metaspace}))
    word = {"type": "WordPiece", "unk_token": "<u>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"<u>": 0, "a": 1, "##b": 2, "[CLS]": 3, "[SEP]": 4}}
    bert = {"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3]}
    put("tokenizer", "word_piece", compact(small | {"model": word, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": bert, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                       "lowercase": True}}))
    level = {"type": "WordLevel", "vocab": {"a": 0, "<u>": 1}, "unk_token": "<u>"}
    put("tokenizer", "word_level", compact(small | {"model": level, "pre_tokenizer": {"type": "Whitespace"},
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                    "pad_token": "a"}}))
    put("tokenizer", "unknown_merge", compact(gpt2 | {"model": bpe | {"merges": [["a", "zz"]]}}))
    put("tokenizer", "wide_id", compact(gpt2 | {"model": bpe | {"vocab": bpe["vocab"] | {"wide": 2**32 - 1}}}))
    put("tokenizer", "bad_regex", compact(gpt2 | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|"},
        "behavior": "Isolated", "invert": False}}))
    slow = {"type": "Split", "pattern": {"Regex": "(a*)*(a*)*(a*)*\\\\1b"}, "behavior": "Isolated", "invert": False}
    put("tokenizer", "slow_regex", compact(gpt2 | {"pre_tokenizer": slow}).encode() + SPLIT + SPLIT + b"a" * 400)
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"}
    put("tokenizer", "expands", compact(gpt2 | {"normalizer": {"type": "Sequence", "normalizers": [double] * 12}}))
    added = {"added_tokens_decoder": {"9": {"content": "<x>", "special": True, "lstrip": True}}, "eos_token": "<x>",
             "add_eos_token": True, "bos_token": {"content": "<s>"}}
    put("tokenizer", "added", compact(gpt2).encode() + SPLIT + compact(added).encode() + SPLIT + b"<s>a <x>b")


def template():
    for path in sorted((FIXTURES / "chat_templates").iterdir()):
        put("template", path.stem, path.read_bytes())
    messages = compact([{"role": "user", "content": "\x1b]0;x\x07{{ 1 }}"}, {"role": "tool", "content": None, "tool_calls": []}])
    put("template", "messages", (FIXTURES / "chat_templates/generation.jinja").read_bytes() + SPLIT + messages.encode())
    put("template", "loop", "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}")
    put("template", "repeat", "{{ 'a' * 1000000000 }}{{ ['b'] * 1000000000 }}{{ 'c'.ljust(999999999) }}")
    put("template", "double", "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}")
    put("template", "recurse", "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}")
    put("template", "include", "{% include '/etc/passwd' %}{% import 'a' as b %}{% extends 'c' %}")
    put("template", "nested", "{{ " + "(" * 200 + "1" + ")" * 200 + " }}{{ " + "[" * 99 + "]" * 99 + " }}")
    put("template", "raise", "{{ raise_exception('no\x1b[2J') }}{{ strftime_now('%Y %q') }}")


def jsonl():
    turn = [{"role": "user", "content": "Say 3"}, {"role": "assistant", "content": " 3", "name": "x"}]
    rows = [{"prompt": "a", "completion": "b"}, {"messages": turn}, {"text": "é\u2028"}, {"prompt": turn[:1], "completion": turn[1:]},
            {"prompt": "a", "chosen": "a b", "rejected": "a c", "margin": 0.5}, {"chosen": turn, "rejected": turn[:1]},
            {"prompt": None, "text": "x", "n": [1, -2.5e-300, 18446744073709551615, True]}, {}]
    put("jsonl", "every_form", "".join(compact(row) + "\n" for row in rows))
    put("jsonl", "windows", b"\xef\xbb\xbf" + b'{"text":"a"}\r\n\r\n{"text":"b"}\r\n')
    put("jsonl", "surrogates", '{"text":"\\ud83d\\ude00"}\n{"text":"\\ud800"}\n')
    put("jsonl", "twice", '{"text":"a","text":"b"}')
    put("jsonl", "numbers", '{"margin":1e400}\n{"margin":"NaN"}\n{"margin":-0.0,"chosen":"a","rejected":"b"}')
    put("jsonl", "deep", '{"a":' + "[" * 200 + "]" * 200 + "}")
    put("jsonl", "array", '[{"text":"a"}]')
    put("jsonl", "control", '{"\\u001b[2J":1}\n{"chosen":"\\u0000","rejected":3}')


def run_config():
    shared = 'output_dir = "out"\nmodel_name_or_path = "base"\nseed = 3\ndevice = "cpu"\n'
    stages = '[sft]\ndataset = "a.jsonl"\nlearning_rate = 2e-5\npacking = true\n[reward]\ndataset = "b.jsonl"\n'
    put("run_config", "run", shared + stages + '[ppo]\ndataset = "c.jsonl"\nkl_coef = 0.05\nwhiten_rewards = true\nnum-ppo-epochs = 4\n')
    put("run_config", "stage", 'dataset = "a.jsonl"\nmax_length = 64\nlr_scheduler_type = "cosine"\nsave_steps = 5\n')
    put("run_config", "ppo", 'total_episodes = 1000\nresponse_length = 53\ncliprange = 0.2\nkl_estimator = "k3"\ntemperature = 0.7\n')
    put("run_config", "typing_error", 'output_dir = "o"\nlearning_rat = 1\n')
    put("run_config", "types", 'output_dir = "o"\nseed = [1]\npacking = 3\nlearning_rate = "fast"\nmax_length = 1979-05-27\n[sft]\nx={}\n')
    put("run_config", "numbers", "learning_rate = inf\nweight_decay = nan\nseed = -1\nmax_length = 0x7fffffffffffffff\n")
    put("run_config", "control", '"\\u001b[2J" = 1\ndataset = "\\u0000\\n--seed=4"\n')
    put("run_config", "deep", "a = " + "[" * 90 + "]" * 90 + "\n")


def manifest():
    empty = hashlib.sha256().hexdigest()
    whole = [{"name": "file", "bytes": 0, "sha256": empty}]
    pieces = [{"name": "header", "bytes": 88, "sha256": empty}, {"name": "model/weights/wte.weight", "bytes": 24, "sha256": empty}]
    files = [{"name": "config.json", "pieces": whole}, {"name": "model.safetensors", "pieces": pieces}]
    marks = {"files": [{"bytes": 0, "sha256": empty}] * 4}
    identity = {"program": {"build": empty, "version": "0.1.0"}, "arithmetic": "f32", "settings": {"seed": "42", "device": "cpu"},
                "inputs": {"dataset": empty, "model/config": empty}, "numbers": {"rows": 8, "rows_per_pass": 8}}
    state = {"numbers": {"sums": {"nll": 1.5, "hits": 4.0, "tokens": 136}, "tokens": 136}, "optimizer_steps": [["model", 1]],
             "journal": marks | {"elapsed": 0.017, "seconds": []}}
    base = {"format": 1, "kind": "checkpoint", "stage": "sft", "step": 1, "total_steps": 2, "state": state, "identity": identity,
            "files": files}

    def put_open(name, value):  # without the last brace: the target adds the checksum and the brace
        put("manifest", name, compact(value)[:-1])

    put_open("checkpoint", base)
    result = base | {"kind": "result", "state": None}
    put_open("result", result)
    text = json.dumps(result, indent=2)[:-2]
    sealed = text + ',\n  "checksum": "' + hashlib.sha256(text.encode()).hexdigest() + '"\n}\n'
    put("manifest", "sealed", sealed)
    put("manifest", "damaged", sealed.replace("sft", "ppo"))
    put("manifest", "cut", sealed[:400])
    put_open("format_2", base | {"format": 2})
    huge = [{"name": "file", "bytes": 2**64 - 1, "sha256": ""}] * 2
    put_open("huge", result | {"step": 2**64 - 1, "files": [{"name": "a", "pieces": huge}, {"name": "b/c", "pieces": huge}]})
    for number, name in enumerate(["../a", "/a", "a//b", ".", "a\\b", "a\u0000", "\u001b[2J", "C:a", ""]):
        put_open(f"name_{number}", result | {"files": [{"name": name, "pieces": []}]})
    put_open("twice", result | {"files": [files[0], files[0]]})


if __name__ == "__main__":
    for make in (safetensors, index, config, tokenizer, template, jsonl, run_config, manifest):
        make()
