"""The record of a run as a table of Markdown, our numbers beside those of the peers. Ours are what criterion left
behind (`OUT/criterion/**/new/*.json`): an equal name and shape makes rows neighbours.

    python benches/peers/report.py peers.jsonl --ours OUT/criterion
"""

import argparse
import json
import pathlib

from protocol import spread

UNITS = {"sft": "tokens/s", "reward": "pairs/s", "generate": "tokens/s", "prefill": "rows/s", "ppo": "episodes/s"}
HEAD = ("what", "shape", "who", "median", "p10 .. p90", "rate", "of the ceiling", "error vs f64", "memory",
        "ours / theirs")


def ours(criterion):
    """Our rows in the form of the peers' rows: seconds of one pass, from criterion's samples."""
    rows = []
    for place in sorted(pathlib.Path(criterion).glob("**/new/benchmark.json")):
        about = json.loads(place.read_text())
        sample = json.loads(place.with_name("sample.json").read_text())
        samples = [ns * 1e-9 / n for ns, n in zip(sample["times"], sample["iters"], strict=True)]
        row = {"side": "rlhf", "name": about["group_id"], "shape": about["value_str"], "peer": "rlhf"} | spread(samples)
        for kind, n in (about.get("throughput") or {}).items():
            # A kernel's benchmark names its floats; its elements are FLOP.
            unit = "bytes/s" if kind == "Bytes" else "flop/s" if about["function_id"] else UNITS[about["group_id"]]
            row |= {"per_run": n, "rate": n / row["median_s"], "unit": unit}
        rows.append(row)
    return rows


def decoded(rows):
    """Decoded tokens a second without the prompts' share: what `generate` takes beyond `prefill`, less one token of
    each row, which the prefill samples."""
    by_name = {(row["name"], row["shape"], row["peer"]): row for row in rows if "median_s" in row}
    found = []
    for (name, shape, peer), full in by_name.items():
        first = by_name.get(("prefill", shape, peer))
        if name != "generate" or not first or full["median_s"] <= first["median_s"]:
            continue
        seconds, tokens = full["median_s"] - first["median_s"], full["per_run"] - first["per_run"]
        found.append(full | {"name": "decode", "median_s": seconds, "per_run": tokens, "rate": tokens / seconds})
        for key in ("p10_s", "p90_s"):
            found[-1].pop(key, None)
    return found


def with_shares(rows):
    """The share of the measured ceiling wherever a peer's row says what a unit costs; the ceilings are the record's
    last ones."""
    ceilings = {kind: n for row in rows for kind, n in row.get("ceilings", {}).items()}
    priced = [row for row in rows if "cost_kind" in row]
    costs = {(row["name"], row["shape"]): (row["cost_kind"], row["cost_per_unit"]) for row in priced}
    for row in rows:
        kind, cost = costs.get((row.get("name"), row.get("shape")), (None, None))
        if row.get("rate") and ceilings.get(kind):
            row["share"] = row["rate"] * cost / ceilings[kind]
    return rows


def scaled(value, unit):
    factors = ((1e12, "T"), (1e9, "G"), (1e6, "M"))
    factor, prefix = next(((f, p) for f, p in factors if value >= f and "token" not in unit), (1, ""))
    return f"{value / factor:.5g} {prefix}{unit}"


def time_of(row, key):
    seconds = row[key]
    factor, unit = next(((f, u) for f, u in ((1, "s"), (1e3, "ms")) if seconds * f >= 1), (1e6, "us"))
    return f"{seconds * factor:.4g} {unit}"


def ratio_of(mine, row):
    """How many times as fast ours is."""
    if mine is None or row["side"] == "rlhf" or "absent" in row:
        return ""
    if row.get("rate") and row.get("unit") == mine.get("unit"):
        return f"{mine['rate'] / row['rate']:.2f}"
    return f"{row['median_s'] / mine['median_s']:.2f}"


def cells_of(row, mine):
    cells = [row["name"], row["shape"], row["peer"]]
    if "absent" in row:
        return [*cells, "absent: " + row["absent"].replace("|", "/"), *[""] * 6]
    error, extra = row.get("error_vs_f64"), row.get("peak_extra_bytes")
    return [
        *cells,
        time_of(row, "median_s"),
        f"{time_of(row, 'p10_s')} .. {time_of(row, 'p90_s')}" if "p10_s" in row else "",
        scaled(row["rate"], row["unit"]) if row.get("rate") else "",
        f"{100 * row['share']:.1f} %" if row.get("share") else "",
        f"{error:.1e}" if error is not None else "",
        f"{extra / 2**20:.0f} MiB" if extra is not None else "",
        ratio_of(mine, row),
    ]


def table(rows):
    """All rows, those of one name and shape together, ours first."""
    rows = [row for row in with_shares(rows + decoded(rows)) if "name" in row]
    mine = {(row["name"], row["shape"]): row for row in rows if row["side"] == "rlhf"}
    compared = {(row["name"], row["shape"]) for row in rows if row["side"] == "peer"}
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for key in dict.fromkeys((row["name"], row["shape"]) for row in rows if row["side"] == "peer"):
        group = [row for row in rows if (row["name"], row["shape"]) == key]
        for row in sorted(group, key=lambda row: row["side"] != "rlhf"):
            lines.append("| " + " | ".join(cells_of(row, mine.get(key))) + " |")
    alone = sorted({f"{name} {shape}" for name, shape in mine if (name, shape) not in compared})
    return "\n".join(lines + (["", "Ours without a peer in this record: " + "; ".join(alone) + "."] if alone else []))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", help="the file that gpu.py --out wrote")
    parser.add_argument("--ours", help="a directory of criterion's")
    options = parser.parse_args()
    rows = [json.loads(line) for line in pathlib.Path(options.record).read_text().splitlines()]
    for row in rows:
        if "header" in row:
            print(f"- {row['part']}: " + ", ".join(f"{key} {value}" for key, value in row["header"].items()))
    print("\n" + table((ours(options.ours) if options.ours else []) + rows))


if __name__ == "__main__":
    main()
