"""Speed of a plain PyTorch eager loop, and of transformers' generate (float32, CPU), on the work of benches/step.rs.

    python torch_eager.py --model gpt2 --task sft --seconds 10 --threads 2
    python torch_eager.py --all

Prints one JSON line per measurement: `rate` is per second of wall time, `cpu_rate` per second of the process's
own CPU time, which says more on a busy machine (with one thread; idle threads of several burn CPU while they wait).
Models have random weights and data are random ids, all of full length, but for `generate`, whose prompts are of mixed
lengths and padded on the left, as transformers needs it.
Needs torch and transformers only; no trainer, no compilation, no reduced precision.
"""

import argparse
import json
import platform
import statistics
import time

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig, GPT2Config, LlamaConfig

VOCAB = 512
BATCH, PAIRS, LENGTH = 8, 8, 128  # SFT rows, reward pairs, tokens in each
EPISODES, PROMPT, RESPONSE = 32, 32, 64
EPOCHS = 4
TEMPERATURE = 0.7
KL_COEF, GAMMA, LAM = 0.05, 1.0, 0.95
CLIP, CLIP_VALUE, VF_COEF = 0.2, 0.2, 0.1
MAX_NORM = 1.0
WARMUP_STEPS, MIN_STEPS = 3, 3
UNITS = {"sft": "tokens/s", "reward": "pairs/s", "generate": "tokens/s", "ppo": "episodes/s"}
PAD = 1


def config_of(model):
    if model == "gpt2":
        return GPT2Config(
            vocab_size=VOCAB, n_positions=256, n_embd=128, n_layer=4, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    return LlamaConfig(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )


class ScalarModel(nn.Module):
    """A trunk with a scalar head, for rewards and values."""

    def __init__(self, config):
        super().__init__()
        self.trunk = AutoModel.from_config(config)
        self.head = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, ids, positions):
        hidden = self.trunk(ids, use_cache=False).last_hidden_state
        return self.head(hidden[:, positions]).squeeze(-1)


def optimizer_of(model, lr, kind):
    """Weight decay on matrices only."""
    matrices = [tensor for tensor in model.parameters() if tensor.dim() >= 2]
    vectors = [tensor for tensor in model.parameters() if tensor.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    extra = {} if kind == "default" else {kind: True}
    return torch.optim.AdamW(groups, lr=lr, **extra)


def update(model, optimizer):
    nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def make_sft(config, kind):
    model = AutoModelForCausalLM.from_config(config).train()
    optimizer = optimizer_of(model, 2e-5, kind)

    def step():
        ids = torch.randint(VOCAB, (BATCH, LENGTH))
        # Shifted labels with an ignored last column spare a copy of the logits.
        labels = F.pad(ids[:, 1:], (0, 1), value=-100)
        logits = model(ids, use_cache=False).logits
        F.cross_entropy(logits.view(-1, VOCAB), labels.view(-1)).backward()
        update(model, optimizer)
        return ids.numel()

    return step


def make_reward(config, kind):
    model = ScalarModel(config).train()
    optimizer = optimizer_of(model, 1e-4, kind)

    def step():
        ids = torch.randint(VOCAB, (2 * PAIRS, LENGTH))  # the chosen ones first
        chosen, rejected = model(ids, -1).chunk(2)
        (-F.logsigmoid(chosen - rejected).mean()).backward()
        update(model, optimizer)
        return PAIRS

    return step


def make_generate(config, _):
    """transformers' own loop, with its cache; no token ends a row."""
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    options = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, use_cache=True, pad_token_id=PAD, eos_token_id=None,
        min_new_tokens=RESPONSE, max_new_tokens=RESPONSE,
    )
    lengths = torch.tensor([PROMPT // 2 + row * PROMPT // EPISODES for row in range(EPISODES)])
    longest = int(lengths.max())
    mask = (torch.arange(longest) >= longest - lengths[:, None]).long()

    def step():
        ids = torch.where(mask == 1, torch.randint(2, VOCAB, mask.shape), PAD)
        answers = model.generate(ids, attention_mask=mask, generation_config=options)[:, longest:]
        assert answers.shape == (EPISODES, RESPONSE), "a row ended early"
        return answers.numel()

    return step


def response_logprobs(model, ids):
    """Log-probabilities of the response; logits exist only at the positions that predict it."""
    positions = torch.arange(PROMPT - 1, PROMPT + RESPONSE - 1)
    logits = model(ids, use_cache=False, logits_to_keep=positions).logits
    losses = F.cross_entropy(logits.view(-1, VOCAB) / TEMPERATURE, ids[:, PROMPT:].reshape(-1), reduction="none")
    return -losses.view(EPISODES, RESPONSE)


@torch.inference_mode()
def generate(policy, prompts):
    """Samples RESPONSE tokens with a KV cache; the log-probabilities come from the logits that were sampled."""
    tokens, chosen = [], []
    step_ids, cache = prompts, None
    for _ in range(RESPONSE):
        out = policy(step_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logprobs = F.log_softmax(out.logits[:, -1] / TEMPERATURE, dim=-1)
        step_ids = torch.multinomial(logprobs.exp(), 1)
        cache = out.past_key_values
        tokens.append(step_ids)
        chosen.append(logprobs.gather(1, step_ids))
    return torch.cat([prompts] + tokens, dim=1), torch.cat(chosen, dim=1)


def gae(rewards, values):
    """Generalised advantage estimation, one step of time after the other."""
    last = torch.zeros_like(rewards[:, 0])
    columns, length = [], rewards.shape[1]
    for t in reversed(range(length)):
        following = values[:, t + 1] if t + 1 < length else 0.0
        last = rewards[:, t] + GAMMA * following - values[:, t] + GAMMA * LAM * last
        columns.append(last)
    return torch.stack(columns[::-1], dim=1)


def whitened(x):
    return (x - x.mean()) * torch.rsqrt(x.var() + 1e-8)


@torch.no_grad()
def advantages_of(rewards, values):
    """Advantages, whitened, and returns, which are taken before that."""
    advantages = gae(rewards, values)
    return whitened(advantages), advantages + values


def ppo_losses(logprobs, old_logprobs, advantages, values, old_values, returns):
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    policy_loss = torch.max(-advantages * ratio, -advantages * clipped).mean()
    near = torch.clamp(values, old_values - CLIP_VALUE, old_values + CLIP_VALUE)
    value_loss = 0.5 * torch.max((values - returns) ** 2, (near - returns) ** 2).mean()
    return policy_loss, value_loss


def make_ppo(config, kind):
    policy, reference = (AutoModelForCausalLM.from_config(config) for _ in range(2))
    reference.load_state_dict(policy.state_dict())
    value_model, reward_model = ScalarModel(config), ScalarModel(config)
    policy_optimizer = optimizer_of(policy, 3e-6, kind)
    value_optimizer = optimizer_of(value_model, 3e-6, kind)
    before_tokens = slice(PROMPT - 1, PROMPT + RESPONSE - 1)

    def step():
        ids, old_logprobs = generate(policy, torch.randint(VOCAB, (EPISODES, PROMPT)))
        ids, old_logprobs = ids.clone(), old_logprobs.clone()  # out of inference mode, for autograd
        with torch.no_grad():
            rewards = -KL_COEF * (old_logprobs - response_logprobs(reference, ids))
            rewards[:, -1] += reward_model(ids, -1)
            old_values = value_model(ids, before_tokens)
        advantages, returns = advantages_of(rewards, old_values)
        for _ in range(EPOCHS):
            logprobs = response_logprobs(policy, ids)
            values = value_model(ids, before_tokens)
            policy_loss, value_loss = ppo_losses(logprobs, old_logprobs, advantages, values, old_values, returns)
            (policy_loss + VF_COEF * value_loss).backward()
            update(policy, policy_optimizer)
            update(value_model, value_optimizer)
        return EPISODES

    return step


def measure(model, task, seconds, kind):
    torch.manual_seed(0)
    make = {"sft": make_sft, "reward": make_reward, "generate": make_generate, "ppo": make_ppo}[task]
    step = make(config_of(model), kind)
    for _ in range(WARMUP_STEPS):
        step()
    rates, cpu_rates = [], []
    start = time.perf_counter()
    while len(rates) < MIN_STEPS or time.perf_counter() - start < seconds:
        begin, cpu_begin = time.perf_counter(), time.process_time()
        units = step()
        rates.append(units / (time.perf_counter() - begin))
        cpu_rates.append(units / (time.process_time() - cpu_begin))
    return statistics.median(rates), statistics.median(cpu_rates), len(rates)


def report(model, task, arguments):
    rate, cpu_rate, steps = measure(model, task, arguments.seconds, arguments.optimizer)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions["python"] = platform.python_version()
    line = {"side": "torch", "model": model, "task": task, "unit": UNITS[task], "rate": round(rate, 2), "steps": steps}
    line["cpu_rate"] = round(cpu_rate, 2)
    line |= {"threads": torch.get_num_threads(), "optimizer": arguments.optimizer, "versions": versions}
    print(json.dumps(line), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["gpt2", "llama"])
    parser.add_argument("--task", choices=list(UNITS))
    parser.add_argument("--all", action="store_true", help="both models, all tasks")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--optimizer", choices=["default", "foreach", "fused"], default="default",
                        help="AdamW's implementation; torch's default on a CPU is a loop over tensors")
    arguments = parser.parse_args()
    if not arguments.all and not (arguments.model and arguments.task):
        parser.error("give --model and --task, or --all")
    torch.set_num_threads(arguments.threads)
    models = ["gpt2", "llama"] if arguments.all else [arguments.model]
    for model in models:
        for task in UNITS if arguments.all else [arguments.task]:
            report(model, task, arguments)


if __name__ == "__main__":
    main()
