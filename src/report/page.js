// The page from top to bottom, and of it: verdict, key numbers, pipeline, alarms, time and memory.

// What a run came to, in numbers: [name, value, unit, more].
function keyNumbers(run) {
  const sft = stageOf(run, "sft"),
    reward = stageOf(run, "reward"),
    ppo = stageOf(run, "ppo");
  const s = run.summary || {},
    q = run.quality || {},
    c = run.comparison;
  const decided = c ? c.wins + c.ties + c.losses : 0;
  const list = [];
  const add = (name, value, kind, more) => {
    if (isNumber(value)) list.push({ name, value, kind: kind || "short", more: more || "" });
  };
  add(
    "SFT loss",
    newest(sft, "loss"),
    "",
    isNumber(newest(sft, "eval_loss"))
      ? `held out ${number(newest(sft, "eval_loss"), "short")}`
      : "nats a token, last row",
  );
  const accuracy = [q.accuracy, s.reward_accuracy, newest(reward, "eval_accuracy")].find(isNumber);
  add("Reward model's accuracy", accuracy, "share", "on held-out pairs");
  if (accuracy === undefined)
    add("Reward model's accuracy", newest(reward, "accuracy"), "share", "on training pairs, last row");
  add(
    "PPO preferred",
    isNumber(s.win_rate) ? s.win_rate : decided ? (c.wins + c.ties / 2) / decided : null,
    "share",
    isNumber(s.win_rate) || (c && c.judged) ? "over SFT, by the judge" : "over the baseline, by the reward model",
  );
  add("Score", newest(ppo, "objective/scores"), "", `from ${number(oldest(ppo, "objective/scores"), "short")}`);
  add(
    "Judge's score",
    isNumber(s.gold_ppo) ? s.gold_ppo : newest(ppo, "objective/judge_scores"),
    "",
    isNumber(s.gold_sft) ? `SFT ${number(s.gold_sft)}` : `from ${number(oldest(ppo, "objective/judge_scores"))}`,
  );
  add("KL", isNumber(s.kl) ? s.kl : newest(ppo, "objective/kl"), "", "nats an answer");
  add(
    "Answers that end",
    newest(ppo, "response/eos_share"),
    "share",
    `${number(newest(ppo, "response/length_mean"), "short")} tokens on average`,
  );
  const seconds = run.stages.map((stage) => stage.seconds).filter(isNumber);
  add(
    "Time",
    seconds.length ? seconds.reduce((a, b) => a + b, 0) : null,
    "seconds",
    plural(run.stages.length, "stage"),
  );
  const peaks = run.stages.map((stage) => stage.memory_peak).filter(isNumber);
  add("Memory", peaks.length ? Math.max(...peaks) : null, "bytes", "the most that was seen");
  return list;
}

function verdict(run) {
  const ppo = stageOf(run, "ppo"),
    c = run.comparison,
    s = run.summary || {};
  const n = run.alarms_total,
    alarms = n === 0 ? "no alarm was raised" : `${plural(n, "alarm")} ${n === 1 ? "was" : "were"} raised`;
  const moved = (stage, key, name, kind = "short") => {
    const [from, to] = [oldest(stage, key), newest(stage, key)];
    if (!isNumber(from) || !isNumber(to)) return null;
    return `${name} ${to > from ? "rose" : to < from ? "fell" : "stayed"} from ${number(from, kind)} to ${number(to, kind)}`;
  };
  const kl = isNumber(s.kl) ? s.kl : newest(ppo, "objective/kl");
  const decided = c ? c.wins + c.ties + c.losses : 0;
  const rate = isNumber(s.win_rate) ? s.win_rate : decided ? (c.wins + c.ties / 2) / decided : null;
  let first = null;
  if (isNumber(rate)) {
    const by = isNumber(s.win_rate) || c.judged ? "the judge" : "the reward model";
    const [baseline, model] = sidesOf(run);
    first = `${model}'s answers were preferred to ${baseline === "SFT" ? "SFT's" : "the baseline's"} in ${number(rate, "share")} of ${decided ? plural(decided, "prompt") : "the prompts"}, by ${by}`;
    if (isNumber(kl)) first += `, at a KL of ${number(kl, "short")} nats an answer`;
  } else if (ppo) {
    first = moved(ppo, "objective/scores", "The score");
    if (first && isNumber(kl)) first += ` at a KL of ${number(kl, "short")} nats an answer`;
  } else if (run.quality && isNumber(run.quality.accuracy)) {
    first = `The reward model orders ${number(run.quality.accuracy, "share")} of the held-out pairs as people do`;
  } else {
    for (const [name, key, words, kind] of [
      ["reward", "eval_accuracy", "The held-out accuracy", "share"],
      ["reward", "accuracy", "The accuracy", "share"],
      ["sft", "eval_loss", "The held-out loss"],
      ["sft", "loss", "The loss"],
    ])
      first = first || moved(stageOf(run, name), key, words, kind);
  }
  if (!first) return `No result is known yet; ${alarms}.`;
  return `${first}; ${alarms}.`;
}

// What kind of run it is, in words.
function kindOf(run) {
  const facts = run.run || (run.stages.find((stage) => stage.run) || {}).run || {};
  const stages = run.stages.map((stage) => SHORT_NAMES[stage.name] || plain(stage.name)).join(" → ");
  const device = facts.device && `on ${plain(facts.device)}`;
  return [stages, device, facts.version && `rlhf ${plain(facts.version)}`].filter(Boolean).join(" · ");
}

function head() {
  const root = document.documentElement;
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const button = el("button", { type: "button", id: "theme" });
  const set = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    button.textContent = dark ? "Light" : "Dark";
    button.setAttribute("aria-label", dark ? "Use the light theme" : "Use the dark theme");
  };
  let isChosen = false;
  set(prefers.matches);
  prefers.addEventListener("change", () => {
    if (!isChosen) set(prefers.matches);
  });
  button.addEventListener("click", () => {
    isChosen = true;
    set(root.dataset.theme !== "dark");
  });
  const title = SINGLE ? plain(RUNS[0].name) : `${RUNS.length} runs side by side`;
  document.title = title + " · rlhf report";
  const notes = RUNS.flatMap((run) => run.notes.map((note) => (SINGLE ? note : `${plain(run.name)}: ${note}`)));
  build(document.getElementById("head"), null, [
    el(
      "div",
      { class: "top" },
      el("div", null, SINGLE && el("div", { class: "kind" }, kindOf(RUNS[0])), el("h1", null, title)),
      button,
    ),
    SINGLE
      ? [
          el("p", { class: "verdict" }, verdict(RUNS[0])),
          tiles(keyNumbers(RUNS[0]).map((k) => [k.name, number(k.value, k.kind), k.more])),
        ]
      : RUNS.map((run, r) =>
          el(
            "p",
            { class: "note" },
            el("span", { class: `swatch s${r} inline` }),
            " ",
            el("b", null, plain(run.name)),
            ": ",
            verdict(run),
          ),
        ),
    notes.map((note) => el("p", { class: "weak small note" }, note)),
  ]);
}

function numbersSection() {
  const lists = RUNS.map(keyNumbers);
  const names = [...new Set(lists.flat().map((k) => k.name))];
  return section(
    "numbers",
    "Key numbers",
    null,
    el(
      "div",
      { class: "scroll" },
      tabular(
        names.map((name) =>
          named(
            name,
            lists.map((list) => {
              const k = list.find((entry) => entry.name === name);
              return el("td", { class: "num" }, k ? number(k.value, k.kind) : "–");
            }),
          ),
        ),
        [el("th", null, ""), RUNS.map((run) => el("th", { class: "num", scope: "col" }, plain(run.name)))],
      ),
    ),
  );
}

// The data ledgers among a run's facts, whatever they are called there.
function ledgersOf(run) {
  const found = [];
  const look = (facts, prefix) => {
    for (const [role, value] of Object.entries(facts || {})) {
      if (!value || typeof value !== "object" || Array.isArray(value)) continue;
      if (isNumber(value.rows_in) && isNumber(value.tokens_in)) found.push({ role: prefix + role, ...value });
      else if (["data", "datasets", "ledgers", "sft", "reward", "ppo"].includes(role)) look(value, role + " ");
    }
  };
  look(run.run, "");
  for (const stage of run.stages) look(stage.run, "");
  return found;
}

function pipelineSection(run) {
  const ledgers = ledgersOf(run);
  const goals = {
    sft: "Learns from demonstrations what answers look like.",
    reward: "Learns from preferences what people like.",
    ppo: "Finds answers that score well, near the SFT model.",
  };
  const made = { sft: "the start and the reference of PPO", reward: "the scores of PPO", ppo: "the aligned model" };
  const card = (name, i) => {
    const stage = stageOf(run, name),
      f = facts(run, name);
    if (!stage) {
      return el(
        "div",
        { class: "card absent" },
        el("h3", null, `${i + 1}. ${STAGE_NAMES[name]}`),
        el("p", { class: "goal" }, goals[name]),
        el("p", { class: "weak small" }, `Not in this directory: rlhf ${name} does it.`),
      );
    }
    const data = ledgers
      .filter((l) => l.stage === name)
      .map(
        (l) =>
          `${number(l.rows_kept, "count")} rows, ${number(l.tokens_kept, "count")} tokens${/eval/.test(l.role) ? " held out" : ""}`,
      );
    // The embedded job makes its data, and says only how much.
    const rows = run.run && run.run.rows;
    if (!data.length && rows && isNumber(rows[name])) data.push(`${number(rows[name], "count")} rows, made by the run`);
    const models = ["model", "sft_model", "reward_model"]
      .map(
        (key) =>
          f && typeof f[key] === "string" && `${key === "reward_model" ? "reward model" : "model"} ${plain(f[key])}`,
      )
      .filter(Boolean);
    const episodes = newest(stage, "episode"),
      tokens = newest(stage, "num_tokens");
    const work = [
      plural(stage.last_step, "step"),
      isNumber(stage.seconds) && number(stage.seconds, "seconds"),
      name === "ppo" && isNumber(episodes) && `${number(episodes, "count")} episodes`,
      isNumber(tokens) && `${number(tokens, "count")} tokens`,
    ].filter(Boolean);
    const ends = {
      sft: [
        ["loss", "short"],
        ["mean_token_accuracy", "share"],
      ],
      reward: [
        ["accuracy", "share"],
        ["margin", "short"],
      ],
      ppo: [
        ["objective/scores", "short"],
        ["objective/kl", "short"],
      ],
    }[name];
    const words = {
      loss: "loss",
      mean_token_accuracy: "token accuracy",
      accuracy: "accuracy",
      margin: "margin",
      "objective/scores": "score",
      "objective/kl": "KL",
    };
    const came = ends
      .filter(([key]) => isNumber(newest(stage, key)))
      .map(([key, kind]) => `${words[key]} ${number(newest(stage, key), kind)}`)
      .join(", ");
    const row = (term, items) =>
      items.length > 0 && [
        el("dt", null, term),
        el(
          "dd",
          null,
          items.map((item) => el("div", null, item)),
        ),
      ];
    return el(
      "div",
      { class: "card" },
      el("h3", null, `${i + 1}. ${STAGE_NAMES[name]}`),
      el("p", { class: "goal" }, goals[name]),
      el(
        "dl",
        null,
        row("took", [...data, ...models]),
        row("did", [work.join(", ")]),
        row("came to", came ? [came] : []),
        row("gave", [made[name]]),
      ),
    );
  };
  const arrow = () =>
    el(
      "span",
      { class: "arrow", "aria-hidden": "true" },
      draw(
        "svg",
        { width: 26, height: 14, viewBox: "0 0 26 14" },
        draw("path", {
          d: "M1 7h22M17 1.5 23.5 7 17 12.5",
          fill: "none",
          stroke: "currentColor",
          "stroke-width": 1.6,
          "stroke-linecap": "round",
          "stroke-linejoin": "round",
        }),
      ),
    );
  return section(
    "pipeline",
    "Pipeline",
    null,
    el(
      "ol",
      { class: "pipeline" },
      ["sft", "reward", "ppo"].map((name, i) => el("li", null, i > 0 && arrow(), card(name, i))),
    ),
  );
}

function alarmsSection() {
  const blocks = RUNS.map((run) => {
    const watched = run.stages.flatMap((stage) => stage.watched.map((w) => ({ ...w, stage: stage.name })));
    const fired = new Set(run.alarms.map((alarm) => alarm.stage + alarm.id));
    const list = run.alarms.map((alarm) =>
      el(
        "div",
        { class: "card alarm" },
        el(
          "h3",
          null,
          `${alarm.id} · ${SHORT_NAMES[alarm.stage] || plain(alarm.stage)}, step ${number(alarm.step, "count")}`,
        ),
        el("p", null, shown(sentence(alarm.what))),
        el("p", { class: "small" }, el("b", null, "Why it matters: "), sentence(alarm.why)),
        el("p", { class: "small" }, el("b", null, "What to do: "), sentence(alarm.advice)),
      ),
    );
    if (!list.length)
      list.push(
        el(
          "div",
          { class: "card calm" },
          el("p", null, watched.length ? "No alarm." : "Nothing was watched: there are no rows of metrics."),
        ),
      );
    if (run.alarms_total > run.alarms.length)
      list.push(el("p", { class: "weak" }, `The first ${run.alarms.length} of ${run.alarms_total} alarms are shown.`));
    const details =
      watched.length > 0 &&
      el(
        "details",
        { open: false },
        el(
          "summary",
          null,
          `What was watched: ${plural(watched.filter((w) => w.seen).length, "alarm")} of ${watched.length}`,
        ),
        el(
          "ul",
          { class: "watched" },
          watched.map((w) =>
            el(
              "li",
              { class: fired.has(w.stage + w.id) ? "fired" : w.seen ? "" : "unseen" },
              el("b", null, `${SHORT_NAMES[w.stage] || plain(w.stage)}, ${w.id}: `),
              w.when + (w.seen ? "" : ` (not watched: no row has ${w.key})`),
            ),
          ),
        ),
      );
    return el("div", null, SINGLE ? null : el("h3", { class: "stage-title" }, plain(run.name)), list, details);
  });
  return section("alarms", "Alarms", null, blocks);
}

function costSection() {
  const title = "Time and memory";
  const rows = (key) =>
    RUNS.flatMap((run) =>
      run.stages
        .filter((stage) => isNumber(stage[key]))
        .map((stage) => [
          (SINGLE ? "" : plain(run.name) + ", ") + (SHORT_NAMES[stage.name] || plain(stage.name)),
          stage[key],
        ]),
    );
  const card = (heading, note, list, kind, color) => {
    const most = Math.max(...list.map(([, value]) => value));
    return (
      list.length > 0 &&
      el(
        "div",
        { class: "card" },
        el("h4", null, heading),
        note && el("p", { class: "weak small" }, note),
        bars(
          list.map(([name, value]) => [name, most > 0 ? value / most : 0, number(value, kind)]),
          color,
        ),
      )
    );
  };
  const planned = RUNS.flatMap((run) =>
    [run.run, ...run.stages.map((stage) => stage.run)]
      .filter((f) => f && f.memory && typeof f.memory === "object")
      .flatMap((f) =>
        Object.entries(f.memory)
          .filter(([, part]) => part && typeof part === "object")
          .map(([part, sizes]) =>
            card(
              `Planned memory, ${plain(part)}`,
              `${SINGLE ? "" : plain(run.name) + ", "}${plain(f.command || "")}`,
              Object.entries(sizes)
                .filter(([, size]) => isNumber(size))
                .map(([name, size]) => [plain(name), size]),
              "bytes",
              4,
            ),
          ),
      ),
  );
  const cards = [
    card("Time by stage", "Seconds of the clock, checkpoints and evaluation included.", rows("seconds"), "seconds", 0),
    card("Memory by stage", "The peak that was seen.", rows("memory_peak"), "bytes", 2),
  ].filter(Boolean);
  const plan = planned.filter(Boolean);
  if (!cards.length && !plan.length)
    return section(
      "cost",
      title,
      null,
      empty("Time and memory are read from timings.jsonl, which training writes beside metrics.jsonl."),
    );
  const noMemory = !rows("memory_peak").length && empty("No row of timings.jsonl has the memory that was used.");
  return section(
    "cost",
    title,
    null,
    el("div", { class: "grid two" }, cards),
    noMemory,
    plan.length > 0 &&
      el("details", null, el("summary", null, "The plan of the GPU's memory"), el("div", { class: "grid two" }, plan)),
  );
}

function main() {
  head();
  const sections = [
    !SINGLE && numbersSection(),
    ...(SINGLE ? [pipelineSection(RUNS[0])] : []),
    alarmsSection(),
    frontierSection(),
    samplesSection(),
    curvesSection(),
    qualitySection(),
    costSection(),
    settingsSection(),
    dataSection(),
    reproduceSection(),
  ].filter(Boolean);
  document.getElementById("main").append(...sections);
  document.getElementById("contents").append(...SECTIONS.map(([id, title]) => el("a", { href: "#" + id }, title)));
  document
    .getElementById("foot")
    .append(
      `Made by rlhf ${plain(DATA.version)} from the files of the run. This page is one file, fetches nothing, and is made again by `,
      el("code", null, "rlhf report"),
      ".",
    );
}

main();
document.documentElement.dataset.ready = "true";
