"""transformers' generate on a random model of Qwen2.5-0.5B's shape in bf16: all prompts of one length, so that its
padding costs nothing, sampling at temperature 1 without truncation, and no token that ends a row. `generate` is the
whole call and `prefill` the call for one token; the table takes one from the other for the decoding rate. Its limit is
the bytes of a decoding step: weights, keys and values at the mean context, logits.
"""

import torch

import shapes
from protocol import STEP_RUNS, samples_of, spread, told

MODEL = "qwen2.5-0.5b"
CACHES = {"HF generate, dynamic cache": {}, "HF generate, static cache, compiled": {"cache_implementation": "static"}}


def options(new, **more):
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new, min_new_tokens=new,
                            eos_token_id=None, pad_token_id=1, **more)


def model_of(lab):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    with torch.device(lab.device):
        model = AutoModelForCausalLM.from_config(shapes.config_of(MODEL, lab.tiny), dtype=lab.floats)
    # The configuration names a token that ends a row.
    model.generation_config.eos_token_id = None
    return model.eval()


def caller(lab, model, batch, prompt, config):
    vocabulary = model.config.vocab_size
    prompts = [lab.randint(vocabulary, batch, prompt) for _ in range(2)]
    mask = torch.ones_like(prompts[0])

    def call(ids):
        out = model.generate(ids, attention_mask=mask, generation_config=config)
        made = out.shape[1] - ids.shape[1]
        if made != config.max_new_tokens:
            raise RuntimeError(f"{made} tokens instead of {config.max_new_tokens}")

    return [lambda ids=ids: call(ids) for ids in prompts]


def run(lab):
    batches, prompt, new = shapes.DECODE_BATCHES, shapes.DECODE_PROMPT, shapes.DECODE_NEW
    if lab.tiny:
        batches, prompt, new = (2,), 8, 6
    model, context = model_of(lab), prompt + new // 2
    raw = shapes.raw_config(MODEL, lab.tiny)
    runs, warmup = (2, 1) if lab.tiny else (STEP_RUNS, 2)
    tasks = lambda batch: [("prefill", 1, batch, "rows/s"), ("generate", new, batch * new, "tokens/s")]
    for batch in batches:
        shape = f"{MODEL} B {batch}"
        limit = shapes.decode_bytes(raw, batch, context, lab.floats.itemsize) / batch
        for peer, cache in CACHES.items():
            for name, length, units, unit in tasks(batch):
                with told(lab, name, shape, peer):
                    torch._dynamo.reset()
                    calls = caller(lab, model, batch, prompt, options(length, **cache))
                    found = spread(samples_of(lab, calls, runs, warmup))
                    found |= {"per_run": units, "rate": units / found["median_s"], "unit": unit}
                    if name == "generate":
                        found |= {"cost_kind": "bytes", "cost_per_unit": limit}
                    lab.emit({"name": name, "shape": shape, "peer": peer} | found)
