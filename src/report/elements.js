// What everything is built with: elements, numbers and texts. Text from models and data enters the page here alone,
// as text nodes, with its control characters made visible.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const SINGLE = RUNS.length === 1;
const STAGE_NAMES = { sft: "Supervised fine-tuning", reward: "Reward model", ppo: "PPO" };
const SHORT_NAMES = { sft: "SFT", reward: "Reward model", ppo: "PPO" };

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const draw = (tag, attributes, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// A table of rows, with the cells of its head if it has one, and a row that begins with its name.
const tabular = (rows, head) =>
  el("table", null, head && el("thead", null, el("tr", null, head)), el("tbody", null, rows));
const named = (name, ...cells) => el("tr", null, el("th", { scope: "row" }, name), cells);

// Characters that a reader would not see, or that would turn the text around: controls but line feed and tab,
// directional and zero-width characters, line separators, lone surrogates.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/u;
const HIDDEN_ALL = new RegExp(HIDDEN.source, "gu");

function code(character) {
  return el("span", { class: "code" }, "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0"));
}

// A text from outside; occurrences of `found` are marked.
function shown(text, found) {
  const parts = [];
  const plain = (piece) => {
    const needle = (found || "").toLowerCase();
    const lower = piece.toLowerCase();
    // Lower case may be longer than the text itself; then places would not match.
    if (!needle || lower.length !== piece.length) return void parts.push(piece);
    let from = 0;
    for (let at = lower.indexOf(needle); at >= 0; at = lower.indexOf(needle, from)) {
      parts.push(piece.slice(from, at), el("mark", null, piece.slice(at, at + needle.length)));
      from = at + needle.length;
    }
    parts.push(piece.slice(from));
  };
  let from = 0;
  for (const match of text.matchAll(HIDDEN_ALL)) {
    plain(text.slice(from, match.index));
    parts.push(code(match[0]));
    from = match.index + match[0].length;
  }
  plain(text.slice(from));
  return el("span", { class: "text", dir: "auto" }, parts);
}

// Names of runs, keys, paths: short and on one line.
function plain(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.replace(HIDDEN_ALL, (c) => "\\u{" + c.codePointAt(0).toString(16) + "}");
}

const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

function digits(x, n) {
  return x.toLocaleString("en-US", { maximumSignificantDigits: n });
}

// A number in its unit.
function number(x, kind) {
  if (!isNumber(x)) return x === null || x === undefined ? "–" : plain(x);
  if (kind === "share") return digits(100 * x, Math.abs(x) >= 0.1 ? 3 : 2) + " %";
  if (kind === "count") return x.toLocaleString("en-US", { maximumFractionDigits: 1 });
  if (kind === "bytes") {
    const unit = x >= 2 ** 30 ? [2 ** 30, "GiB"] : x >= 2 ** 20 ? [2 ** 20, "MiB"] : [2 ** 10, "KiB"];
    return digits(x / unit[0], 3) + " " + unit[1];
  }
  if (kind === "seconds") {
    const whole = Math.round(x);
    if (x < 10) return digits(x, 2) + " s";
    if (whole < 120) return whole + " s";
    if (whole < 7200) return Math.floor(whole / 60) + " min " + (whole % 60) + " s";
    return Math.floor(whole / 3600) + " h " + Math.round((whole % 3600) / 60) + " min";
  }
  if (kind === "short" && !Number.isInteger(x) && Math.abs(x) >= 1 && Math.abs(x) < 1000)
    return x.toPrecision(3).replace("-", "−");
  const size = Math.abs(x);
  if (Number.isInteger(x) && size < 1000) return String(x).replace("-", "−");
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return x.toExponential(2).replace("-", "−").replace("e+", "e");
  if (size >= 1000) return x.toLocaleString("en-US", { maximumFractionDigits: size >= 1e5 ? 0 : 1 }).replace("-", "−");
  return (size >= 100 ? x.toFixed(1) : x.toPrecision(size < 1 ? 3 : 4)).replace("-", "−");
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + ".";

const plural = (n, word) => number(n, "count") + " " + word + (n === 1 ? "" : "s");

// One series of a stage: its steps, its values, and what of it is not finite.
function series(stage, key, part) {
  const table = stage && stage[part || "metrics"];
  const found = table && table.series.find((entry) => entry.key === key);
  if (!found || (!found.values.length && !found.odd)) return null;
  return { key, x: table.axes[found.axis], y: found.values, odd: found.odd || [], width: found.width || 1 };
}

function newest(stage, key, part) {
  const found = series(stage, key, part);
  return found && found.y.length ? found.y[found.y.length - 1] : null;
}

function oldest(stage, key) {
  const found = series(stage, key);
  return found && found.y.length ? found.y[0] : null;
}

const stageOf = (run, name) => run.stages.find((stage) => stage.name === name);

// The facts of a stage: its own run.json, or that of the run if there is but one.
function facts(run, name) {
  const stage = stageOf(run, name);
  if (stage && stage.run) return stage.run;
  return run.run && run.run.command === name ? run.run : null;
}

const SECTIONS = [];

// A section of the page; nothing is drawn that has no content.
function section(id, title, lead, ...content) {
  SECTIONS.push([id, title]);
  return el(
    "section",
    { id, "aria-labelledby": id + "-title" },
    el("h2", { id: id + "-title" }, title),
    lead && el("p", { class: "lead" }, lead),
    content,
  );
}

const empty = (text) => el("p", { class: "empty" }, text);
