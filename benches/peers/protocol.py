"""How a peer is timed: the same work over copies of random inputs that together pass the last-level cache, CUDA events
around each sample, a warm-up, the median with p10 and p90, the relative L2 error against f64, and the share of a
ceiling that was measured in the same process. What cannot run is a row with its reason. It knows no operation.

On a CPU the clock of the wall stands in for the events; such numbers show that a script works, and mean nothing.
"""

import contextlib
import gc
import json
import math
import statistics
import sys
import time

import torch
from torch._functorch import config as functorch

CACHE_BYTES = 100e6  # a set of inputs beyond this does not live in any card's L2
SAMPLE_SECONDS = 2e-4  # short calls are repeated inside one sample: events tick at about half a microsecond
KERNEL_RUNS, STEP_RUNS, ITERATION_RUNS = 30, 10, 3
WARMUP_RUNS = 10


class Lab:
    """The device, the sizes, the ceilings that were measured, and the rows so far."""

    def __init__(self, device, tiny, out=None):
        self.device, self.tiny, self.out = torch.device(device), tiny, out
        self.on_gpu = self.device.type == "cuda"
        self.floats = torch.bfloat16 if self.on_gpu else torch.float32
        self.ceilings, self.rows, self.part = {}, [], ""
        self.generator = torch.Generator(self.device).manual_seed(1)

    def randn(self, *shape, dtype=None, grad=False):
        x = torch.randn(shape, generator=self.generator, device=self.device, dtype=dtype or self.floats)
        return x.requires_grad_(grad)

    def randint(self, high, *shape):
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def compile(self, f):
        """torch.compile; without a GPU its front end alone, which is what a trial of the script needs."""
        return torch.compile(f) if self.on_gpu else torch.compile(f, backend="aot_eager")

    def synchronize(self):
        if self.on_gpu:
            torch.cuda.synchronize()

    def emit(self, row):
        """Keeps a row, prints it, and appends it to the record."""
        row = {"side": "peer", "part": self.part} | row
        self.rows.append(row)
        line = json.dumps(row)
        print(line, file=sys.stderr, flush=True)
        if self.out:
            with open(self.out, "a") as record:
                record.write(line + "\n")

    def absent(self, name, shape, peer, reason):
        self.emit({"name": name, "shape": shape, "peer": peer, "absent": reason})


def cost_of(flop=0.0, nbytes=0.0):
    """What an operation cannot do without; FLOP are the limit if there are any."""
    return {"flop": float(flop), "bytes": float(nbytes)}


def forward(f):
    """A peer that is one call."""
    return lambda inputs: lambda: f(*inputs)


def backward(f):
    """A peer that is the backward pass of `f` alone; the last input is the gradient of the output."""

    def prepare(inputs):
        *arguments, dout = inputs
        # A compiled backward pass gives its saved tensors away unless told that it runs again.
        with functorch.patch(donated_buffer=False):
            out = f(*arguments)
        leaves = leaves_of(arguments)
        return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return prepare


def leaves_of(inputs):
    return [x for x in inputs if torch.is_tensor(x) and x.requires_grad]


def whole(inputs, outputs):
    return inputs, outputs


def against_f64(f, cut=whole):
    """An error of `f`; `cut` takes the part that is compared, where f64 of the whole is too much."""

    def check(inputs, outputs):
        inputs, outputs = cut(inputs, outputs)
        with torch.no_grad():
            return relative(outputs, f(*map(double, inputs)))

    return check


def gradients_against_f64(f, cut=whole):
    """The same for the gradients of the leaves; the last input is the gradient of the output."""

    def check(inputs, outputs):
        inputs, outputs = cut(inputs, outputs)
        *arguments, dout = map(double, inputs)
        return relative(outputs, torch.autograd.grad(f(*arguments), leaves_of(arguments), dout))

    return check


def double(x):
    if not torch.is_tensor(x) or not x.is_floating_point():
        return x
    return x.detach().double().requires_grad_(x.requires_grad)


def relative(outputs, expected):
    """The largest relative L2 error over the outputs."""
    outputs, expected = (x if isinstance(x, (tuple, list)) else [x] for x in (outputs, expected))
    pairs = list(zip(outputs, expected, strict=True))
    return max(float((a.double() - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)


def bytes_of(inputs):
    return sum(x.numel() * x.element_size() for x in inputs if torch.is_tensor(x))


def copies_for(lab, first):
    """How many sets of inputs make the cache useless."""
    return max(1, math.ceil(CACHE_BYTES / max(bytes_of(first), 1)) + 1) if lab.on_gpu and not lab.tiny else 2


def seconds_of(lab, call):
    """Of one call, between two events, or on the clock of the wall."""
    if not lab.on_gpu:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def samples_of(lab, calls, runs, warmup):
    """Seconds of one call, `runs` times; the calls take turns."""
    for i in range(warmup):
        calls[i % len(calls)]()
    lab.synchronize()
    once = max(seconds_of(lab, calls[0]), 1e-7)
    repeats, turn = max(1, min(200, math.ceil(SAMPLE_SECONDS / once))), 0

    def some():
        nonlocal turn
        for _ in range(repeats):
            turn += 1
            calls[turn % len(calls)]()

    return [seconds_of(lab, some) / repeats for _ in range(runs)]


def spread(samples):
    """Median, p10 and p90; with few samples the smallest and the largest."""
    ranked = sorted(samples)
    at = lambda share: ranked[min(len(ranked) - 1, max(0, round(share * (len(ranked) - 1))))]
    return {"median_s": statistics.median(ranked), "p10_s": at(0.1), "p90_s": at(0.9), "runs": len(ranked)}


def rate_of(median, cost):
    """FLOP/s or bytes/s; the table adds the share of what this card did on a product or a copy."""
    kind = "flop" if cost["flop"] else "bytes"
    if not cost[kind]:
        return {}
    return {"rate": cost[kind] / median, "unit": f"{kind}/s", "cost_kind": kind, "cost_per_unit": 1}


def measure(lab, name, shape, peers, make, cost, check=None, runs=KERNEL_RUNS):
    """A row for every peer: `make` makes one set of inputs, a peer turns it into the call that is timed."""
    for peer, prepare in peers.items():
        with told(lab, name, shape, peer):
            lab.emit({"name": name, "shape": shape, "peer": peer} | timed(lab, prepare, make, cost, check, runs))


def timed(lab, prepare, make, cost, check, runs):
    """A function of its own, so that its tensors are gone before the next peer's are made."""
    first = make()
    sets = [first] + [make() for _ in range(copies_for(lab, first) - 1)]
    calls = [prepare(inputs) for inputs in sets]
    error = check(first, calls[0]()) if check else None
    found = spread(samples_of(lab, calls, 3 if lab.tiny else runs, 1 if lab.tiny else WARMUP_RUNS))
    found |= rate_of(found["median_s"], cost)
    return found | {"error_vs_f64": error, "peak_extra_bytes": peak_of(lab, calls[0])}


def peak_of(lab, call):
    """Bytes that one call holds at once beyond its inputs, its outputs included."""
    if not lab.on_gpu:
        return None
    lab.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    lab.synchronize()
    return torch.cuda.max_memory_allocated() - before


@contextlib.contextmanager
def told(lab, name, shape, peer):
    """What cannot run is a row that says so; the memory goes back either way."""
    try:
        yield
    except Exception as error:  # A peer may refuse in any way it likes.
        why = (str(error).strip() or "no message").splitlines()[0]
        lab.absent(name, shape, peer, f"{type(error).__name__}: {why[:300]}")
    finally:
        gc.collect()
        if lab.on_gpu:
            torch.cuda.empty_cache()
