// Which numbers are drawn together, and how to read them; then the over-optimisation picture and the reward model.

// Stage, title, keys, how to read it, unit, and the value that the axis begins at.
const CHARTS = [
  ["sft", "Loss", "loss eval_loss", "Nats a target token. Both should fall; when the held-out loss turns up, stop."],
  [
    "sft",
    "Token accuracy",
    "mean_token_accuracy eval_mean_token_accuracy",
    "Share of targets that were the likeliest token.",
    "share",
  ],
  ["sft", "Entropy", "entropy eval_entropy", "Nats, of the predicted distributions. Falls as the model grows sure."],
  ["sft", "Gradient norm", "grad_norm", "Before clipping. Spikes name batches worth a look."],
  ["sft", "Learning rate", "learning_rate", "What the schedule gave."],
  ["reward", "Loss", "loss eval_loss", "Nats a pair; a coin has 0.693."],
  ["reward", "Accuracy", "accuracy eval_accuracy", "Share of pairs in the right order; a coin has 50 %.", "share"],
  ["reward", "Margin", "margin eval_margin", "Mean score of chosen minus rejected answers."],
  ["reward", "Scores", "min_reward mean_reward max_reward", "A drift of the mean is harmless, a growing range is not."],
  ["reward", "Gradient norm", "grad_norm", "Before clipping."],
  ["reward", "Learning rate", "learning_rate", "What the schedule gave."],
  ["ppo", "Score", "objective/scores", "Mean score of the answers, after normalisation and penalty. It should rise."],
  [
    "ppo",
    "Judge's score",
    "objective/judge_scores",
    "A judge that nothing is trained on. If it falls while the score rises, the reward model is exploited.",
  ],
  [
    "ppo",
    "KL to the SFT model",
    "objective/kl",
    "Nats an answer, summed over its tokens. The price of the score; it should level off.",
    "",
    0,
  ],
  [
    "ppo",
    "Reward after KL",
    "objective/rlhf_reward objective/non_score_reward",
    "What PPO maximises, and what KL cost of it.",
  ],
  ["ppo", "Entropy", "policy/entropy_avg", "Nats a token. A slow fall is learning, near 0 is collapse.", "", 0],
  [
    "ppo",
    "Answers that end",
    "response/eos_share",
    "Share that ended by themselves, before the length limit.",
    "share",
  ],
  [
    "ppo",
    "Answer length",
    "response/length_min response/length_mean response/length_max",
    "Tokens. Steady growth often means that the reward model likes length.",
    "",
    0,
  ],
  ["ppo", "Score and length", "response/score_length_correlation", "Correlation within a batch; near 0 is best."],
  [
    "ppo",
    "Different word pairs",
    "response/distinct_2",
    "Share of different neighbouring tokens. A fall means that answers grow alike.",
    "share",
  ],
  [
    "ppo",
    "Update size",
    "policy/approxkl_avg",
    "Half the mean squared change of log-probabilities in an update. Small and steady.",
  ],
  [
    "ppo",
    "Clipped tokens",
    "policy/clipfrac_avg val/clipfrac_avg",
    "Share at the clip's edge, of the policy and of the values. A third is too much.",
    "share",
    0,
  ],
  ["ppo", "Probability ratio", "val/ratio", "New over old probability: near 1."],
  ["ppo", "Policy loss", "loss/policy_avg", "Means little by itself; look for jumps."],
  [
    "ppo",
    "Value loss",
    "loss/value_avg",
    "Half the mean squared error of the value model. Should fall and stay down.",
    "",
    0,
  ],
  [
    "ppo",
    "Explained variance",
    "val/explained_variance",
    "Of the returns, by the value model: 1 is all, below 0 is worse than nothing.",
  ],
  ["ppo", "Gradient norms", "policy/grad_norm value/grad_norm", "Before clipping."],
  ["ppo", "Learning rates", "lr value_lr", "What the schedules gave."],
  ["ppo", "KL coefficient", "objective/kl_coef", "The price of a nat; it moves if kl_target is set."],
];
const NAMES = {
  loss: "training",
  eval_loss: "held-out",
  accuracy: "training",
  eval_accuracy: "held-out",
  entropy: "training",
  eval_entropy: "held-out",
  mean_token_accuracy: "training",
  eval_mean_token_accuracy: "held-out",
  margin: "training",
  eval_margin: "held-out",
  "objective/scores": "score",
  "objective/judge_scores": "judge",
  "objective/kl": "KL",
  "objective/rlhf_reward": "score − cost of KL",
  "objective/non_score_reward": "cost of KL",
  min_reward: "lowest",
  mean_reward: "mean",
  max_reward: "highest",
  "response/length_min": "shortest",
  "response/length_mean": "mean",
  "response/length_max": "longest",
  "policy/clipfrac_avg": "policy",
  "val/clipfrac_avg": "values",
  "policy/grad_norm": "policy",
  "value/grad_norm": "value model",
  lr: "policy",
  value_lr: "value model",
};

// The alarms of a run that judge one of these keys.
function marksOf(run, name, keys) {
  const stage = stageOf(run, name);
  const watched = stage ? stage.watched.filter((w) => keys.includes(w.key)).map((w) => w.id) : [];
  return run.alarms.filter((alarm) => alarm.stage === name && watched.includes(alarm.id));
}

// A chart of some keys of a stage; with several runs a colour is a run, and a dash a key.
function chartOf(name, title, keys, note, kind, floor, part) {
  const list = [];
  RUNS.forEach((run, r) =>
    keys.forEach((key, k) => {
      const found = series(stageOf(run, name), key, part);
      if (!found) return;
      const label = NAMES[key] || key;
      list.push(
        SINGLE
          ? { ...found, name: label, color: k % 6 }
          : { ...found, name: keys.length > 1 ? `${run.name}: ${label}` : run.name, color: r, dash: k % 4 },
      );
    }),
  );
  if (!list.length) return null;
  const marks = SINGLE ? marksOf(RUNS[0], name, keys) : [];
  return lineChart({
    title,
    note,
    kind,
    floor,
    series: list,
    marks,
    exact: keys.some((key) => /(^|_|\/)lr$|learning_rate/.test(key)),
  });
}

function stageNames() {
  return [...new Set(RUNS.flatMap((run) => run.stages.map((stage) => stage.name)))];
}

const stageTitle = (name) => STAGE_NAMES[name] || plain(name || "unnamed stage");

// Numbers that have no chart above: drawn when they are asked for.
function restOf(name, drawn) {
  const keys = (part) => [
    ...new Set(
      RUNS.flatMap((run) => {
        const stage = stageOf(run, name);
        return stage ? stage[part].series.map((s) => s.key) : [];
      }),
    ),
  ];
  const rest = [
    ...keys("metrics")
      .filter((key) => !drawn.has(key))
      .map((key) => [key, "metrics"]),
    ...keys("timings")
      .filter((key) => key !== "seconds")
      .map((key) => [key, "timings"]),
  ];
  if (!rest.length) return null;
  const grid = el("div", { class: "grid" });
  const details = el("details", null, el("summary", null, `${plural(rest.length, "more number")} of this stage`), grid);
  details.addEventListener("toggle", () => {
    if (!details.open || grid.childElementCount) return;
    for (const [key, part] of rest) {
      const chart = chartOf(
        name,
        plain(key),
        [key],
        part === "timings" ? "From timings.jsonl: not the same in every run." : "",
        /memory/.test(key) ? "bytes" : "",
        undefined,
        part,
      );
      if (chart) grid.append(chart);
    }
  });
  return details;
}

function curvesSection() {
  const stages = stageNames().map((name) => {
    const drawn = new Set();
    const charts = CHARTS.filter((chart) => chart[0] === name).map(([, title, keys, note, kind, floor]) => {
      keys.split(" ").forEach((key) => drawn.add(key));
      return chartOf(name, title, keys.split(" "), note, kind, floor);
    });
    const parts = RUNS.flatMap((run) => {
      const stage = stageOf(run, name);
      if (!stage || !stage.metrics.rows) return [];
      const said = [
        `${SINGLE ? "" : plain(run.name) + ": "}${plural(stage.last_step, "step")}, ${plural(stage.metrics.rows, "row")}`,
      ];
      if (stage.metrics.series.some((s) => s.width > 1))
        said.push("long curves are thinned: of each group of rows the lowest and the highest value are drawn");
      if (stage.metrics.left_out) said.push(`${stage.metrics.left_out} values of further numbers are left out`);
      return [said.join("; ")];
    });
    if (!charts.some(Boolean) && !parts.length) return null;
    // On a phone the stages would be metres apart: there the last alone is open.
    const isOpen = innerWidth > 740 || name === stageNames().at(-1);
    return el(
      "details",
      { class: "stage", open: isOpen },
      el("summary", null, el("h3", null, stageTitle(name)), el("span", { class: "weak small" }, parts.join(" · "))),
      el("div", { class: "grid" }, charts),
      restOf(name, drawn),
    );
  });
  if (!stages.some(Boolean)) {
    return section(
      "curves",
      "Curves",
      null,
      empty("There are no numbers over time: training writes metrics.jsonl into its output directory."),
    );
  }
  const toggle = el("button", { type: "button", "aria-pressed": "true", id: "smooth" }, "Smooth");
  toggle.addEventListener("click", () => {
    settings.smooth = !settings.smooth;
    toggle.setAttribute("aria-pressed", String(settings.smooth));
    redraws.forEach((redraw) => redraw());
  });
  return section(
    "curves",
    "Curves",
    "Hover, touch, or use the arrow keys to read a step. Smoothing applies to curves of more than 30 points; the raw values stay as a faint line." +
      (SINGLE ? "" : " A colour is a run."),
    el("div", { class: "bar" }, toggle),
    stages,
  );
}

function frontierSection() {
  const title = "Score against KL";
  const make = (key, root) =>
    RUNS.map((run, r) => {
      const stage = stageOf(run, "ppo");
      const kl = series(stage, "objective/kl"),
        y = series(stage, key);
      if (!kl || !y) return null;
      const at = new Map(kl.x.map((step, i) => [step, kl.y[i]]));
      const points = y.x
        .map((step, i) => ({ step, y: y.y[i], x: at.get(step) }))
        .filter((p) => isNumber(p.x))
        .map((p) => ({ ...p, x: root ? Math.sqrt(Math.max(0, p.x)) : p.x }));
      return points.length
        ? { name: SINGLE ? NAMES[key] : run.name, color: SINGLE ? (key === "objective/scores" ? 0 : 1) : r, points }
        : null;
    }).filter(Boolean);
  if (!make("objective/scores", true).length) {
    return section(
      "frontier",
      title,
      null,
      empty("This picture needs PPO: its metrics.jsonl has objective/scores and objective/kl."),
    );
  }
  const grid = el("div", { class: "grid two" });
  const select = el(
    "select",
    { id: "frontier-x" },
    el("option", { value: "root" }, "√KL"),
    el("option", { value: "plain" }, "KL"),
  );
  const fill = () => {
    const root = select.value === "root",
      xName = root ? "√KL" : "KL";
    const chart = (key, name, note) => {
      const list = make(key, root);
      return list.length ? pointChart({ title: `${name} against ${xName}`, note, xName, series: list }) : null;
    };
    const judge = chart(
      "objective/judge_scores",
      "Judge's score",
      "The held-out judge. Where it turns down while the score still rises, stop.",
    );
    grid.replaceChildren(
      ...[
        chart("objective/scores", "Score", "The reward model that PPO maximises. Later steps are stronger."),
        judge,
        judge
          ? null
          : el(
              "div",
              { class: "card" },
              el("h4", null, "No judge"),
              el(
                "p",
                { class: "empty small" },
                "Over-optimisation shows only beside a score that nothing is trained on: a judge, or a second reward model. No row has objective/judge_scores.",
              ),
            ),
      ].filter(Boolean),
    );
  };
  select.addEventListener("change", fill);
  fill();
  return section(
    "frontier",
    title,
    "What a score costs in distance from the SFT model. A reward model is right near its data; far away its score goes on rising while answers get worse (Gao et al., 2022).",
    el("div", { class: "bar" }, el("label", null, "Horizontal axis ", select)),
    grid,
  );
}

// The reward model on held-out pairs.
function qualitySection() {
  const title = "Reward model";
  const cards = RUNS.filter((run) => run.quality).map((run) => qualityCards(run));
  if (!cards.length) {
    return section(
      "quality",
      title,
      null,
      empty(
        "The reward model's quality is written by rlhf reward with an --eval-dataset, and by rlhf eval reward, as quality.json.",
      ),
    );
  }
  return section(
    "quality",
    title,
    "On held-out pairs: how often its order is people's, how honest its confidence is, and how much of it is length.",
    cards,
  );
}

function qualityCards(run) {
  const q = run.quality;
  const interval = Array.isArray(q.accuracy_interval)
    ? `95 % interval ${number(q.accuracy_interval[0], "share")} to ${number(q.accuracy_interval[1], "share")}`
    : "";
  const facts = [
    [
      "Accuracy",
      number(q.accuracy, "share"),
      [interval, isNumber(q.pairs) && plural(q.pairs, "pair")].filter(Boolean).join(", "),
    ],
    ["Calibration error", number(q.calibration_error, "share"), "mean distance of confidence and accuracy"],
    ["Score and length", number(q.reward_length_correlation, "short"), "correlation; near 0 is best"],
    [
      "Margin",
      number(q.margin, "short"),
      `scores ${number(q.min_reward, "short")} to ${number(q.max_reward, "short")}, mean ${number(q.mean_reward, "short")}`,
    ],
  ].filter(([, value]) => value !== "–");
  const buckets = (list, unit) =>
    list.map((b) => [
      `${number(b.from, "short")} to ${number(b.to, "short")}${unit}`,
      b.accuracy,
      `${number(b.accuracy, "share")} of ${number(b.pairs, "count")}`,
    ]);
  const list = (value) => (Array.isArray(value) ? value.filter((b) => b && b.pairs > 0) : []);
  const margin = list(q.by_margin),
    length = list(q.by_length),
    bins = list(q.reliability);
  return el(
    "div",
    null,
    SINGLE ? null : el("h3", { class: "stage-title" }, plain(run.name)),
    tiles(facts),
    el("div", { class: "grid gap" }, [
      bins.length > 0 &&
        el(
          "div",
          { class: "card" },
          el("h4", null, "Reliability"),
          el(
            "p",
            { class: "weak small" },
            "Across the confidence, upward the accuracy, in percent. On the diagonal the model means what it says; larger points have more pairs.",
          ),
          reliability(bins),
        ),
      margin.length > 0 &&
        el(
          "div",
          { class: "card" },
          el("h4", null, "Accuracy by margin"),
          el("p", { class: "weak small" }, "By the distance of the two scores. It should rise; the line is a coin."),
          bars(buckets(margin, ""), 0, true),
        ),
      length.length > 0 &&
        el(
          "div",
          { class: "card" },
          el("h4", null, "Accuracy by length"),
          el("p", { class: "weak small" }, "By tokens of the chosen answer minus the rejected. A good model is even."),
          bars(buckets(length, ""), 2, true),
        ),
    ]),
  );
}

// Both axes begin at a half, where a model that cannot tell stands, or below if an accuracy does.
function reliability(bins) {
  const size = 240,
    edge = 34,
    far = size - 10;
  const known = bins.filter((b) => isNumber(b.confidence) && isNumber(b.accuracy));
  const least = Math.max(0, Math.min(0.5, ...known.map((b) => Math.floor(b.accuracy * 10) / 10)));
  const place = (v) => edge + ((v - least) / (1 - least)) * (far - edge);
  const most = Math.max(...known.map((b) => b.pairs));
  const words = (b) =>
    `confidence ${number(b.confidence, "share")}, accuracy ${number(b.accuracy, "share")}, ${plural(b.pairs, "pair")}`;
  const svg = draw("svg", {
    viewBox: `0 0 ${size} ${size}`,
    role: "img",
    "aria-label": "Reliability diagram: " + known.map(words).join("; "),
  });
  for (const t of ticks(least, 1, 5)) {
    const at = place(t),
      text = digits(100 * t, 3);
    svg.append(
      draw("line", { class: "gridline", x1: edge, x2: far, y1: size - at, y2: size - at }),
      draw("text", { x: edge - 6, y: size - at + 4, "text-anchor": "end" }, text),
      draw("text", { x: at, y: size - edge + 15, "text-anchor": "middle" }, text),
    );
  }
  svg.append(
    draw("line", { class: "rule", x1: place(least), y1: size - place(least), x2: place(1), y2: size - place(1) }),
  );
  for (const b of known) {
    svg.append(
      draw(
        "circle",
        {
          class: "dot s0",
          r: 3 + 5 * Math.sqrt(b.pairs / most),
          cx: place(b.confidence),
          cy: size - place(b.accuracy),
        },
        draw("title", null, words(b)),
      ),
    );
  }
  return el("div", { class: "chart reliability" }, svg);
}

function tiles(list) {
  return el(
    "dl",
    { class: "tiles" },
    list.map(([name, value, more]) =>
      el(
        "div",
        null,
        el("dt", null, name),
        el("dd", { class: "value" }, value),
        more && el("dd", { class: "more" }, more),
      ),
    ),
  );
}
