// Samples: two models (or several runs) side by side on the same prompt, and one model's answers over time.

const PAGE_SIZE = 8;

// The names of the two sides of a run's comparison.
function sidesOf(run) {
  return stageOf(run, "ppo") ? ["SFT", "PPO"] : ["Baseline", "Model"];
}

// How far the second side is ahead, by the judge where there is one, else by the reward model.
function gainOf(row) {
  const by = (kind) =>
    isNumber(row[kind + "_model"]) && isNumber(row[kind + "_baseline"])
      ? row[kind + "_model"] - row[kind + "_baseline"]
      : null;
  const judge = by("judge");
  return judge === null ? by("score") : judge;
}

// Cards of one run: each has a prompt, answers, and the gain of the last over the first.
function pairsOf(run) {
  const [first, second] = sidesOf(run);
  return run.comparison.rows.map((row) => {
    const gain = gainOf(row);
    const side = (key, name, sign) => ({
      name,
      text: row[key],
      score: row["score_" + key],
      judge: row["judge_" + key],
      state: gain === null || gain === 0 ? "" : gain * sign > 0 ? "won" : "lost",
    });
    return { prompt: row.prompt, gain, answers: [side("baseline", first, -1), side("model", second, 1)] };
  });
}

// The last answers of several runs to the prompts that at least two of them answered.
function pairsAcross() {
  const prompts = new Map();
  RUNS.forEach((run, r) => {
    const seen = new Set();
    const add = (prompt, answer) => {
      if (seen.has(prompt)) return;
      seen.add(prompt);
      if (!prompts.has(prompt)) prompts.set(prompt, []);
      prompts.get(prompt).push({ name: run.name, run: r, state: "", ...answer });
    };
    for (const row of run.comparison ? run.comparison.rows : [])
      add(row.prompt, { text: row.model, score: row.score_model, judge: row.judge_model });
    for (const track of run.samples)
      for (const { prompt, answers } of track.prompts) {
        const last = answers[answers.length - 1];
        if (last)
          add(prompt, { text: last.completion, score: last.score, judge: last.judge, finish: last.finish_reason });
      }
  });
  return [...prompts]
    .filter(([, answers]) => answers.length > 1)
    .map(([prompt, answers]) => {
      const kind = answers.every((a) => isNumber(a.judge)) ? "judge" : "score";
      const values = answers.map((a) => a[kind]);
      let gain = null;
      if (values.every(isNumber)) {
        const best = Math.max(...values),
          worst = Math.min(...values);
        gain = values[values.length - 1] - values[0];
        if (best > worst)
          answers.forEach((a) => {
            a.state = a[kind] === best ? "won" : answers.length === 2 ? "lost" : "";
          });
      }
      return { prompt, gain, answers };
    });
}

function sideOf(answer, found) {
  return el(
    "div",
    { class: "side " + answer.state },
    el(
      "div",
      { class: "who" },
      el("b", null, plain(answer.name)),
      isNumber(answer.score) && el("span", null, "score " + number(answer.score)),
      isNumber(answer.judge) && el("span", null, "judge " + number(answer.judge)),
      answer.finish === "length" && el("span", null, "cut at the length limit"),
      answer.state && el("span", { class: "badge" }, answer.state === "won" ? "✓ better" : "worse"),
    ),
    answer.text === "" ? el("span", { class: "weak" }, "(an empty answer)") : shown(answer.text, found),
  );
}

function cardOf(pair, found) {
  return el(
    "article",
    { class: "card sample" },
    el("div", { class: "prompt" }, shown(pair.prompt, found)),
    el(
      "div",
      { class: "sides" },
      pair.answers.map((answer) => sideOf(answer, found)),
    ),
  );
}

// A list with search, order and filter, drawn a page at a time.
function browser(pairs, names) {
  let limit = PAGE_SIZE;
  const search = el("input", {
    type: "search",
    id: "search",
    placeholder: "Search prompts and answers",
    "aria-label": "Search prompts and answers",
  });
  const option = ([value, text]) => el("option", { value }, text);
  const order = el(
    "select",
    { id: "order", "aria-label": "Order" },
    [
      ["file", "In order"],
      ["gain", "Largest gain first"],
      ["loss", "Largest loss first"],
    ].map(option),
  );
  const filter = el(
    "select",
    { id: "filter", "aria-label": "Filter" },
    [
      ["all", "All"],
      ["won", `${names[1]} better`],
      ["lost", `${names[1]} worse`],
      ["tie", "Ties"],
    ].map(option),
  );
  const count = el("span", { class: "weak small", "aria-live": "polite", id: "count" });
  const list = el("div", { class: "samples", id: "pairs" });
  const more = el("button", { type: "button" }, "Show more");
  const is = { all: () => true, won: (p) => p.gain > 0, lost: (p) => p.gain < 0, tie: (p) => p.gain === 0 };
  const fill = () => {
    const found = search.value.trim(),
      needle = found.toLowerCase();
    const has = (text) => text.toLowerCase().includes(needle);
    let kept = pairs.filter(
      (p) => is[filter.value](p) && (!needle || has(p.prompt) || p.answers.some((a) => has(a.text))),
    );
    const value = (p) => (p.gain === null ? -Infinity : order.value === "gain" ? p.gain : -p.gain);
    if (order.value !== "file") kept = [...kept].sort((a, b) => value(b) - value(a));
    list.replaceChildren(...kept.slice(0, limit).map((pair) => cardOf(pair, found)));
    count.textContent =
      kept.length === pairs.length
        ? plural(kept.length, "prompt")
        : `${number(kept.length, "count")} of ${plural(pairs.length, "prompt")}`;
    more.classList.toggle("hidden", kept.length <= limit);
  };
  const restart = () => {
    limit = PAGE_SIZE;
    fill();
  };
  search.addEventListener("input", restart);
  order.addEventListener("change", restart);
  filter.addEventListener("change", restart);
  more.addEventListener("click", () => {
    limit += 2 * PAGE_SIZE;
    fill();
  });
  fill();
  const sortable = pairs.some((p) => p.gain !== null);
  return el(
    "div",
    null,
    el("div", { class: "bar" }, search, sortable && [order, filter], count),
    list,
    el("div", { class: "bar" }, more),
  );
}

function tallyOf(run) {
  const c = run.comparison,
    decided = c.wins + c.ties + c.losses;
  if (!decided) return null;
  const part = (kind, n, text) => {
    if (!n) return null;
    const node = el("span", { class: kind }, n / decided > 0.2 ? `${text} ${number(n / decided, "share")}` : "");
    node.style.flex = `${n} 0 0`;
    return node;
  };
  const [, second] = sidesOf(run);
  const words =
    `${second} better in ${number(c.wins, "count")}, tied in ${number(c.ties, "count")}, worse in ${number(c.losses, "count")} of ${number(decided, "count")} prompts, by ` +
    (c.judged ? "the judge." : "the reward model that PPO maximises, so take it with care.");
  return el(
    "div",
    null,
    el(
      "div",
      { class: "tally", role: "img", "aria-label": words },
      part("w", c.wins, "better"),
      part("t", c.ties, "tied"),
      part("l", c.losses, "worse"),
    ),
    el("p", { class: "weak small" }, words),
  );
}

function samplesSection() {
  const title = "Samples";
  const pairs = SINGLE ? (RUNS[0].comparison ? pairsOf(RUNS[0]) : []) : pairsAcross();
  const history = RUNS.map(historyOf).filter(Boolean);
  if (!pairs.length && !history.length) {
    return section(
      "samples",
      title,
      null,
      empty(
        SINGLE
          ? "There are no answers to show: PPO writes its answers to fixed prompts into samples.jsonl, and rlhf eval win-rate writes comparison.jsonl."
          : "No prompt was answered by two of these runs: give them the same prompts, or compare two models with rlhf eval win-rate.",
      ),
    );
  }
  const names = SINGLE ? sidesOf(RUNS[0]) : ["", plain(RUNS[RUNS.length - 1].name)];
  const c = SINGLE && RUNS[0].comparison;
  const said = SINGLE
    ? c &&
      [
        `From ${plain(c.source)}`,
        c.total > c.rows.length && `the first ${number(c.rows.length, "count")} of ${plural(c.total, "prompt")}`,
      ]
        .filter(Boolean)
        .join(", ") + "."
    : "The last answers to the prompts that at least two runs share.";
  return section(
    "samples",
    title,
    "Read them: no number replaces that.",
    pairs.length ? [SINGLE && tallyOf(RUNS[0]), el("p", { class: "weak small" }, said), browser(pairs, names)] : null,
    history.length ? [el("h3", { class: "stage-title" }, "The same prompts over time"), history] : null,
  );
}

// One prompt's answers, step after step.
function historyOf(run) {
  const tracks = run.samples.filter((track) => track.prompts.length);
  if (!tracks.length) return null;
  const items = tracks.flatMap((track) => track.prompts.map((prompt) => ({ track, ...prompt })));
  let chosen = Math.max(
    0,
    items.findIndex((item) => item.track.stage === "ppo"),
  );
  const excerpt = (text) => (text.length > 60 ? text.slice(0, 60) + "…" : text);
  const select = el(
    "select",
    { "aria-label": "Prompt" },
    items.map((item, i) =>
      el(
        "option",
        { value: i, selected: i === chosen },
        `${SHORT_NAMES[item.track.stage] || plain(item.track.stage)}: ${plain(excerpt(item.prompt))}`,
      ),
    ),
  );
  select.classList.add("wide");
  const list = el("ol", { class: "timeline" });
  const step = (by) => {
    select.value = String((Number(select.value) + by + items.length) % items.length);
    fill();
  };
  const fill = () => {
    const item = items[Number(select.value)];
    list.replaceChildren(
      ...item.answers.map((answer) =>
        el(
          "li",
          null,
          el(
            "div",
            { class: "when" },
            el("b", null, answer.step === 0 ? "before training" : `step ${number(answer.step, "count")}`),
            [
              isNumber(answer.score) && `score ${number(answer.score)}`,
              isNumber(answer.judge) && `judge ${number(answer.judge)}`,
              isNumber(answer.tokens) && plural(answer.tokens, "token"),
              answer.finish_reason === "length" && "cut off",
            ]
              .filter(Boolean)
              .map((text) => el("span", null, text)),
          ),
          answer.completion === "" ? el("span", { class: "weak" }, "(an empty answer)") : shown(answer.completion),
        ),
      ),
    );
    full.replaceChildren(shown(item.prompt));
    const t = item.track;
    const cut = [
      t.prompts_total > t.prompts.length && `the first ${t.prompts.length} of ${t.prompts_total} prompts`,
      t.steps_total > t.steps.length && `${t.steps.length} of ${t.steps_total} steps`,
    ];
    said.textContent = cut.some(Boolean) ? "Shown: " + cut.filter(Boolean).join(", ") + "." : "";
  };
  const full = el("div", { class: "prompt" });
  const said = el("p", { class: "weak small" });
  select.addEventListener("change", fill);
  const node = el(
    "div",
    { class: "card sample history" },
    SINGLE ? null : el("h4", null, plain(run.name)),
    el(
      "div",
      { class: "bar" },
      el("button", { type: "button", onclick: () => step(-1), "aria-label": "Previous prompt" }, "‹"),
      select,
      el("button", { type: "button", onclick: () => step(1), "aria-label": "Next prompt" }, "›"),
    ),
    full,
    said,
    list,
  );
  fill();
  return node;
}
