#!/usr/bin/env bash
# The soak: tens of thousands of tiny optimizer steps of each stage on the CPU, with a checkpoint every 500, while the
# process is watched from outside. A leak of one row a step would show.
#
#   benches/soak.sh BIN OUT [SCALE]
#
# BIN is the release binary, OUT a directory for the runs and for soak.md; SCALE divides the number of steps (1: 100,000
# of SFT, 100,000 of the reward model, 64,000 of PPO). Five times a second it reads the resident memory and counts the open
# files. After the first tenth of a stage the mean memory of the last quarter may differ by 1 % from that of the first,
# and the number of open files by none between the two quarters' medians. The exit code is 1 if one does.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '3,11p' "$0" | cut -c 3- >&2; exit 2; }
bin=$(realpath "$1") scale=${3:-1} failed=0
fixtures=$(realpath "$(dirname "$0")/../tests/fixtures/models")
mkdir -p "$2" && cd "$2"
rm -rf sft reward ppo ./*.samples

rows() { for i in $(seq 64); do printf "$1\n" "$i"; done; }
rows '{"prompt": "Say %d: ", "completion": "word word word"}' > data.jsonl
rows '{"prompt": "Say %d: ", "chosen": "good good", "rejected": "bad"}' > pairs.jsonl
rows '{"prompt": "Say %d: "}' > prompts.jsonl

# Runs a stage and samples it: kilobytes that are resident, open files, threads.
watch() {
    local stage=$1
    shift
    "$bin" "$stage" "$@" --device cpu --seed 1 --save-steps 500 --logging-steps 100 --quiet --output-dir "$stage" &
    local pid=$!
    while kill -0 "$pid" 2> /dev/null; do
        awk '/^VmRSS/ {rss = $2} /^Threads/ {threads = $2} END {printf "%d %d ", rss, threads}' "/proc/$pid/status" \
            2> /dev/null || true
        find "/proc/$pid/fd" -mindepth 1 2> /dev/null | wc -l
        sleep 0.2
    done | awk 'NF == 3 && $1 > 0' > "$stage.samples"
    wait "$pid"
}

# The table's row of a stage: what the samples behind its first tenth say.
judge() {
    awk -v stage="$1" -v steps="$2" '
        { rss[NR] = $1; threads[NR] = $2; files[NR] = $3 }
        function mean(from, to,   i, sum) { for (i = from; i <= to; i++) sum += rss[i]; return sum / (to - from + 1) }
        function median(from, to,   i, j, n, list, t) {
            for (i = from; i <= to; i++) list[++n] = files[i]
            for (i = 2; i <= n; i++) for (j = i; j > 1 && list[j] < list[j - 1]; j--) { t = list[j]; list[j] = list[j - 1]; list[j - 1] = t }
            return list[int((n + 1) / 2)]
        }
        END {
            begin = int(NR / 10) + 1; quarter = int((NR - begin + 1) / 4)
            if (quarter < 5) { print "too few samples of " stage > "/dev/stderr"; exit 1 }
            low = high = rss[begin]
            for (i = begin; i < NR; i++) { if (rss[i] < low) low = rss[i]; if (rss[i] > high) high = rss[i] }
            first = mean(begin, begin + quarter - 1); last = mean(NR - quarter, NR - 1)
            before = median(begin, begin + quarter - 1); after = median(NR - quarter, NR - 1)
            drift = 100 * (last - first) / first
            printf "| %s | %d | %d | %.0f | %.0f | %+.2f %% | %d to %d | %d | %d | %d |\n", stage, steps, NR, first, last, drift, low, high, \
                before, after, threads[NR - 1]
            exit (drift > 1 || drift < -1 || before != after)
        }' "$1.samples" >> soak.md || { echo "$1: memory or open files grow" >&2; failed=1; }
}

printf '| stage | optimizer steps | samples | kB, first quarter | kB, last quarter | drift | kB, least to most | open files, first | last | threads |\n' > soak.md
printf '|---|---|---|---|---|---|---|---|---|---|\n' >> soak.md
common="--max-length 32 --per-device-train-batch-size 4"
# shellcheck disable=SC2086 # one word an option
{
    watch sft --model-name-or-path "$fixtures/llama_tied" --dataset data.jsonl --max-steps $((100000 / scale)) $common
    judge sft $((100000 / scale))
    watch reward --model-name-or-path "$fixtures/llama_tied" --dataset pairs.jsonl --max-steps $((100000 / scale)) $common
    judge reward $((100000 / scale))
    # Four episodes a minibatch, two minibatches, two epochs: four steps for eight episodes.
    watch ppo --sft-model-path "$fixtures/llama_tied" --reward-model-path "$fixtures/llama_reward" --dataset prompts.jsonl \
        --response-length 4 --per-device-train-batch-size 4 --num-mini-batches 2 --num-ppo-epochs 2 \
        --total-episodes $((128000 / scale))
    judge ppo $((64000 / scale))
}
cat soak.md
exit "$failed"
