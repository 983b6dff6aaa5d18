"""One PPO iteration of TRL 1.12, the last release that has it, on random models of Qwen2.5-0.5B's shape: prompts and
responses of fixed lengths, no token that ends a row, a reward model of the same shape, one epoch, one minibatch. The
weights are bf16 without f32 masters and nothing is recomputed, which is TRL at its fastest. Its rollout keeps the f32
logits of every sampled token, so the batch is halved until an iteration fits; the rate is in episodes a second.
"""

import tempfile
import time

import torch

import shapes
from gpu_step import fitting
from protocol import ITERATION_RUNS, spread, told

MODEL = "qwen2.5-0.5b"
MICRO_BATCH = 8  # rows of a backward pass: TRL materialises logits of all 512 positions in f32


def models_of(lab):
    """Policy, reference, reward model, value model."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(1)
    config = shapes.config_of(MODEL, lab.tiny)
    config.pad_token_id = 1
    policy, reference = (AutoModelForCausalLM.from_config(config, dtype=lab.floats) for _ in range(2))
    reference.load_state_dict(policy.state_dict())
    config.num_labels = 1
    scored = [AutoModelForSequenceClassification.from_config(config, dtype=lab.floats) for _ in range(2)]
    return [model.to(lab.device) for model in (policy, reference, *scored)]


def tokenizer_of(vocabulary):
    """TRL wants one for padding alone: a word for every id."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t0", pad_token="t1", padding_side="left")


def trainer_of(lab, folder, sizes, iterations, callback):
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    episodes, query, response = sizes
    vocabulary = shapes.sizes_of(shapes.raw_config(MODEL, lab.tiny))[3]
    # Ids from 2 on: 0 ends a row and 1 is padding.
    rows = [{"input_ids": ids} for ids in (torch.randint(vocabulary - 2, (episodes, query)) + 2).tolist()]
    policy, reference, reward, value = models_of(lab)
    micro = min(MICRO_BATCH, episodes)
    config = PPOConfig(
        output_dir=folder, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=micro, gradient_accumulation_steps=episodes // micro, num_mini_batches=1,
        num_ppo_epochs=shapes.PPO_EPOCHS, total_episodes=episodes * iterations, response_length=response,
        local_rollout_forward_batch_size=min(64, episodes), num_sample_generations=0, temperature=1.0,
        gradient_checkpointing=False, bf16=False, optim="adamw_torch_fused", use_cpu=not lab.on_gpu,
    )
    return PPOTrainer(args=config, processing_class=tokenizer_of(vocabulary), model=policy, ref_model=reference,
                      reward_model=reward, value_model=value, train_dataset=rows, eval_dataset=rows[:1],
                      callbacks=[callback])


def clock():
    """A callback that notes when each iteration ends."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.ends = []

        def on_step_end(self, args, state, control, **_):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

    return Clock()


def measured(lab, episodes, query, response):
    """Seconds between the ends of iterations; the first iteration warms up."""
    if lab.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    clocked, iterations = clock(), 1 + (2 if lab.tiny else ITERATION_RUNS)
    with tempfile.TemporaryDirectory() as folder:
        trainer_of(lab, folder, (episodes, query, response), iterations, clocked).train()
    found = spread([b - a for a, b in zip(clocked.ends, clocked.ends[1:])])
    peak = torch.cuda.max_memory_allocated() if lab.on_gpu else None
    found |= {"per_run": episodes, "rate": episodes / found["median_s"], "unit": "episodes/s", "peak_bytes": peak}
    return found | {"episodes": episodes}


def run(lab):
    episodes, query, response = (4, 8, 8) if lab.tiny else (shapes.PPO_EPISODES, shapes.PPO_QUERY, shapes.PPO_RESPONSE)
    with told(lab, "ppo", MODEL, "TRL"):
        import trl

        found = fitting(lambda rows: measured(lab, rows, query, response), episodes)
        fits = f", batches of {found['episodes']} fit" if found["episodes"] != episodes else ""
        lab.emit({"name": "ppo", "shape": MODEL, "peer": f"TRL {trl.__version__}{fits}"} | found)
