"""What transformers computes from saved models, beside what rlhf wrote about them. It measures and judges nothing; a
model that transformers does not load is an error.

    python check.py CASES.json MEASURES.jsonl

A case is an object: `model`, a directory; `tokenizer`, auto or file; `head`, language or score; `texts`, JSON Lines as
`rlhf score` reads them, and `scored`, what it wrote; under a language head also `prompts`, as `rlhf generate` reads
them, and `answers`, what it wrote with `--temperature 0`. Computed in float32 on the CPU, each sequence alone.
"""

import json
import sys

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

# For model type qwen2, AutoTokenizer puts byte-level steps in place of those in tokenizer.json: the same for a real
# Qwen2, whose file has these steps, and another tokenizer for a file that has others.
TOKENIZERS = {"auto": AutoTokenizer, "file": PreTrainedTokenizerFast}
CLASSES = {"language": AutoModelForCausalLM, "score": AutoModelForSequenceClassification}


def rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def tokens(tokenizer, text, is_conversation):
    """A template writes its own special tokens."""
    return tokenizer(text, add_special_tokens=not is_conversation)["input_ids"]


def whole(tokenizer, row):
    """The tokens of a row with its answer, and whether a template wrote them."""
    if "messages" in row:
        return tokens(tokenizer, tokenizer.apply_chat_template(row["messages"], tokenize=False), True), True
    return tokens(tokenizer, row["text"] if "text" in row else row["prompt"] + row["completion"], False), False


def question(tokenizer, prompt):
    """The text that is asked, and its tokens."""
    if isinstance(prompt, str):
        return prompt, tokens(tokenizer, prompt, False)
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == tokens(tokenizer, text, True), "transformers' own two ways disagree"
    return text, ids


def largest(differences):
    return max(differences, default=0.0)


def logprobs(model, tokenizer, case):
    """The largest difference of the last tokens' log-probabilities, and of how many; rows whose tokens are others."""
    differences, other_tokens = [], 0
    for row, scored in zip(rows(case["texts"]), rows(case["scored"]), strict=True):
        ids, count = whole(tokenizer, row)[0], len(scored["tokens"])
        if count == 0 or ids[-count:] != scored["tokens"]:
            other_tokens += 1
            continue
        logits = model(torch.tensor([ids])).logits[0, :-1].float()
        theirs = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[-count:, 0]
        differences += (theirs.double() - torch.tensor(scored["logprobs"]).double()).abs().tolist()
    return {"logprobs": len(differences), "logprob_difference": largest(differences), "other_tokens": other_tokens}


def answers(model, tokenizer, case):
    """Prompts that the template writes otherwise, greedy answers that are others, and of how many."""
    other_prompts, other_answers, written = 0, 0, rows(case["answers"])
    for row, answer in zip(rows(case["prompts"]), written, strict=True):
        text, ids = question(tokenizer, row["prompt"])
        other_prompts += text != answer["prompt"]
        length = max(len(answer["tokens"]), 1) + (answer["finish_reason"] == "stop")
        ids = torch.tensor([ids])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length, pad_token_id=0
        )
        other_answers += out[0, ids.shape[1] :].tolist() != answer["tokens"]
    return {"answers": len(written), "other_prompts": other_prompts, "other_answers": other_answers}


def rewards(model, tokenizer, case):
    """The largest difference of the rewards, and of how many."""
    if model.config.pad_token_id in (None, tokenizer.eos_token_id):
        # transformers looks for the last token that is no padding, which would pass the end over.
        model.config.pad_token_id = None
    differences = []
    for row, scored in zip(rows(case["texts"]), rows(case["scored"]), strict=True):
        ids, is_conversation = whole(tokenizer, row)
        if not is_conversation and ids[-1] != tokenizer.eos_token_id:
            ids = ids + [tokenizer.eos_token_id]
        differences.append(abs(model(torch.tensor([ids])).logits[0, 0].item() - scored["score"]))
    return {"rewards": len(differences), "reward_difference": largest(differences)}


def measure(case):
    tokenizer = TOKENIZERS[case["tokenizer"]].from_pretrained(case["model"])
    model, loading = CLASSES[case["head"]].from_pretrained(
        case["model"], dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    model.eval()
    if case["head"] == "score":
        return rewards(model, tokenizer, case)
    return logprobs(model, tokenizer, case) | answers(model, tokenizer, case)


def main():
    cases, out = sys.argv[1:]
    with open(cases, encoding="utf-8") as file:
        cases = json.load(file)
    with open(out, "w", encoding="utf-8") as file, torch.no_grad():
        for case in cases:
            file.write(json.dumps(measure(case)) + "\n")


if __name__ == "__main__":
    main()
