#!/usr/bin/env bash
# Everything that hardware has to say, from prebuilt binaries: no Rust, no network, and Python for the peers alone.
#
#   benches/gpu.sh BIN OUT selftest          what the machine is, and every kernel against the reference
#   benches/gpu.sh BIN OUT demo              the three stages on the embedded task
#   benches/gpu.sh BIN OUT resume            the embedded task in small, resumed at many steps: the same bytes, or a failure
#   benches/gpu.sh BIN OUT model             the three stages on random weights of Qwen2.5-0.5B's shape
#   benches/gpu.sh BIN OUT bench BENCH...    benchmark binaries, as `cargo bench --no-run` builds them
#   benches/gpu.sh BIN OUT peers PYTHON PART what benches/peers/gpu.py measures: attention, head, step, ...
#   benches/gpu.sh BIN OUT compare PYTHON    our benchmarks and the peers that have run, side by side
#
# BIN is the rlhf binary, OUT a directory for the record. A part ends within ten minutes (LIMIT seconds) and leaves its
# raw output and PART.md in OUT; summary.md joins the parts that have run. DEVICE names the device (cuda:0); with
# DEVICE=emulated the part selftest runs anywhere, and the peers on toy sizes; FILTER chooses among selftest's cases and
# among benchmarks, as criterion does; EVERY is how many steps of SFT lie between two that resume starts from (25); CONFIG is another config.json for the part model. A run on a card whose
# selftest.json is copied to benches/record/ and listed in src/selftest/record.rs is what `rlhf kernels` shows. The exit
# code is 1 if anything failed.
set -uo pipefail

self=$(realpath "$0")
usage() { sed -n '3,11p' "$self" | cut -c 3- >&2; exit 2; }
[ $# -ge 3 ] || usage
bin=$(realpath "$1") part=$3
here=$(dirname "$self") from=$PWD
mkdir -p "$2" && cd "$2" || exit 2
shift 3
device=${DEVICE:-cuda:0} limit=${LIMIT:-580} failed=0
config=$(cd "$from" && realpath "${CONFIG:-$here/qwen2.5-0.5b.json}")
export RLHF_DEVICE=$device CRITERION_HOME=criterion

# The name of a benchmark binary without cargo's hash.
name_of() { basename "$1" | sed 's/-[0-9a-f]\{16\}$//'; }

# A benchmark's filter as part of a file's name.
slug() { printf '%s' "$1" | tr -cs 'a-zA-Z0-9.' '-' | sed 's/^-//;s/-$//'; }

label=$part
[ "$part" != bench ] || { [ $# -gt 0 ] || usage; label=bench-$(name_of "$1")${FILTER:+-$(slug "$FILTER")}; }
[ "$part" != peers ] || { [ $# -eq 2 ] || usage; label=peers-$2; }
[ "$part" != compare ] || [ $# -eq 1 ] || usage
notes=$label.md

say() { printf '%s\n' "$*" >> "$notes"; }

# step NAME COMMAND...: runs it within what is left of the time; its output goes to NAME.log, stdout alone to NAME.out.
step() {
    local name=$1 start=$SECONDS code=0 left=$((limit - SECONDS))
    shift
    printf '== %s: %s\n' "$name" "$*"
    if [ "$left" -lt 5 ]; then code=124; : > "$name.out" > "$name.log"
    else timeout --signal=TERM --kill-after=10 "$left" "$@" > "$name.out" 2> "$name.log" || code=$?; fi
    [ "$code" -eq 0 ] || failed=1
    say "- \`$name\`: exit code $code, $((SECONDS - start)) s"
    printf '   exit code %s, %s s\n' "$code" "$((SECONDS - start))"
    return "$code"
}

# quote FILE [LINES]: the last lines of a file, as they are; carriage returns are a progress line's.
quote() {
    [ -s "$1" ] || return 0
    say ''
    say '```text'
    tr '\r' '\n' < "$1" | tail -n "${2:-200}" >> "$notes"
    say '```'
    say ''
}

run_selftest() {
    # It describes, and does not judge.
    step doctor "$bin" doctor || failed=0
    quote "doctor.out"
    step selftest "$bin" selftest --device "$device" ${FILTER:+--filter "$FILTER"} --json
    cp "selftest.out" "selftest.json"
    quote "selftest.log"
}

run_demo() {
    rm -rf "demo"
    step demo "$bin" demo --device "$device" --output-dir "demo"
    quote "demo.out"
    quote "demo.log" 20
}

# same WHOLE DIR: what a resumed run promises to be equal.
same() {
    local file
    for file in metrics.jsonl samples.jsonl {sft,reward,ppo}/model.safetensors; do
        cmp "$1/$file" "$2/$file" || { failed=1; say "  - $file differs"; }
    done
}

run_resume() {
    local every=${EVERY:-25} path stage number
    rm -rf resume && mkdir -p resume
    step whole "$bin" demo --quick --quiet --seed 3 --device "$device" --output-dir resume/whole --save-steps 1 \
        --save-total-limit 0 || return
    for path in resume/whole/*/checkpoints/step-*; do
        number=${path##*-} stage=$(basename "${path%/checkpoints/*}")
        [ $((number % every)) -eq 1 ] || { [ "$stage" != sft ] && [ $((number % 5)) -eq 1 ]; } || continue
        cp -r resume/whole resume/part
        step "resumed-$stage-$number" "$bin" demo --quick --quiet --seed 3 --device "$device" --save-steps 0 \
            --resume "resume/part/$stage/checkpoints/step-$number" && same resume/whole resume/part
        rm -rf resume/part
    done
}

# rows FILE KIND: 256 rows that look like text and are the same every time.
rows() {
    local words=(model reward policy token answer prompt human value signal batch gradient step loss score) i j text
    for ((i = 0; i < 256; i++)); do
        text=""
        for ((j = 0; j < 60; j++)); do text+=" ${words[$(((i * 31 + j * (7 + i % 5)) % 14))]}"; done
        case $2 in
            demonstrations) printf '{"prompt": "Say %d:", "completion": "%s."}\n' "$i" "$text" ;;
            pairs) printf '{"prompt": "Say %d:", "chosen": "%s.", "rejected": " no %s"}\n' "$i" "$text" "${text:0:90}" ;;
            prompts) printf '{"prompt": "Say %d:%s"}\n' "$i" "${text:0:120}" ;;
        esac
    done > "$1"
}

run_model() {
    local dir=model tokenizer=demo/sft
    rm -rf "$dir" && mkdir -p "$dir"
    for kind in demonstrations pairs prompts; do rows "$dir/$kind.jsonl" "$kind"; done
    if [ ! -e "$tokenizer/tokenizer.json" ]; then
        step tokenizer "$bin" demo --quick --quiet --device "$device" --output-dir "$dir/demo" || return
        tokenizer=$dir/demo/sft
    fi
    step fresh "$bin" fresh --config "$config" --tokenizer "$tokenizer" --output-dir "$dir/base" || return
    local common=(--device "$device" --max-length 512 --logging-steps 1 --max-steps 10 --per-device-train-batch-size 8)
    step sft "$bin" sft --model-name-or-path "$dir/base" --dataset "$dir/demonstrations.jsonl" \
        --output-dir "$dir/sft" "${common[@]}" &&
        step reward "$bin" reward --model-name-or-path "$dir/sft" --dataset "$dir/pairs.jsonl" \
            --output-dir "$dir/reward" "${common[@]}" &&
        step ppo "$bin" ppo --sft-model-path "$dir/sft" --reward-model-path "$dir/reward" --dataset "$dir/prompts.jsonl" \
            --output-dir "$dir/ppo" --device "$device" --response-length 64 --total-episodes 192 \
            --per-device-train-batch-size 64
    for stage in sft reward ppo; do
        for file in metrics timings; do
            say ''
            say "$stage, the last rows of $file.jsonl:"
            quote "$dir/$stage/$file.jsonl" 3
        done
        quote "$stage.log" 30
    done
    # Gigabytes that nobody asks for again.
    find "$dir" -name '*.safetensors' -delete
}

run_bench() {
    local binary name
    for binary in "$@"; do
        binary=$(cd "$from" && realpath "$binary")
        name=bench-$(name_of "$binary")${FILTER:+-$(slug "$FILTER")}
        step "$name" "$binary" --bench --noplot ${FILTER:+"$FILTER"}
        quote "$name.out" 400
        quote "$name.log" 30
    done
}

# A relative path is the caller's; a link stays one, because it is what makes a virtual environment.
python_of() { case $1 in /*) echo "$1" ;; */*) echo "$from/$1" ;; *) echo "$1" ;; esac; }

# The peers' rows add up in peers.jsonl, whatever the part.
run_peers() {
    local python where=(--device "$device")
    python=$(python_of "$1")
    case $device in cuda*) ;; *) where=(--device cpu --tiny) ;; esac
    step "peers-$2" "$python" -B "$here/peers/gpu.py" --part "$2" --out peers.jsonl "${where[@]}"
    say ''
    cat "peers-$2.out" >> "$notes"
    grep -v '^{' "peers-$2.log" > "peers-$2.warnings"
    quote "peers-$2.warnings" 30
}

run_compare() {
    step compare "$(python_of "$1")" -B "$here/peers/report.py" peers.jsonl --ours criterion
    say ''
    cat "compare.out" >> "$notes"
    quote "compare.log" 30
}

case $part in selftest | demo | resume | model | bench | peers | compare) ;; *) usage ;; esac
: > "$notes"
say "## $label"
say ''
say "$("$bin" --version), device $device, $(date -u +%FT%TZ)"
say ''
"run_$part" "$@"
{
    printf '# What hardware says\n'
    for file in selftest.md demo.md resume.md model.md bench-*.md peers-*.md compare.md; do
        if [ -e "$file" ]; then printf '\n'; cat "$file"; fi
    done
} > "summary.md"
echo "the summary is $PWD/summary.md"
exit "$failed"
