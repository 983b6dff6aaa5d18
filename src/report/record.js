// What a run was made from: its settings, its data, and how to make it again.

// Every setting of a run: stage, name, value, origin.
function settingsOf(run) {
  const list = [];
  const add = (stage, f) => {
    for (const [name, entry] of Object.entries((f && f.settings) || {})) {
      const isEntry = entry && typeof entry === "object" && !Array.isArray(entry) && "value" in entry;
      list.push({
        stage,
        name,
        value: isEntry ? entry.value : entry,
        origin: isEntry ? String(entry.origin || "") : "",
      });
    }
  };
  if (run.run) add(run.run.command in SHORT_NAMES ? run.run.command : "", run.run);
  for (const stage of run.stages) if (stage.run) add(stage.name, stage.run);
  return list;
}

function settingsSection() {
  const lists = RUNS.map(settingsOf);
  const title = "Settings";
  if (!lists.flat().length)
    return section(
      "settings",
      title,
      null,
      empty("No settings are known: training writes run.json into its output directory."),
    );
  const search = el("input", {
    type: "search",
    placeholder: "Search settings",
    "aria-label": "Search settings",
    id: "search-settings",
  });
  const key = (s) => (s.stage ? (SHORT_NAMES[s.stage] || plain(s.stage)) + " " : "") + plain(s.name);
  const value = (s) => (s ? plain(s.value === null ? "–" : s.value) : "–");
  const body = el("div", null);
  const single = (needle) => {
    const item = (s) =>
      el(
        "li",
        null,
        el("span", null, key(s)),
        el(
          "span",
          { class: "value" },
          value(s),
          s.origin && s.origin !== "default" && el("span", { class: "origin" }, " " + plain(s.origin)),
        ),
      );
    const kept = lists[0].filter((s) => (key(s) + " " + value(s)).toLowerCase().includes(needle));
    const [chosen, usual] = [kept.filter((s) => s.origin !== "default"), kept.filter((s) => s.origin === "default")];
    return [
      chosen.length
        ? el("ul", { class: "settings" }, chosen.map(item))
        : empty(needle ? "No chosen setting has this." : "Nothing was chosen: all settings are defaults."),
      usual.length > 0 &&
        el(
          "details",
          { open: needle !== "" },
          el("summary", null, plural(usual.length, "default")),
          el("ul", { class: "settings" }, usual.map(item)),
        ),
    ];
  };
  const several = (needle) => {
    const names = [...new Set(lists.flat().map(key))].filter((name) => name.toLowerCase().includes(needle));
    const rows = names.map((name) => {
      const values = lists.map((list) => value(list.find((s) => key(s) === name)));
      return { name, values, differs: new Set(values).size > 1 };
    });
    const table = (rows) =>
      el(
        "div",
        { class: "scroll" },
        tabular(
          rows.map((row) =>
            el(
              "tr",
              { class: row.differs ? "differs" : null },
              el("th", { scope: "row" }, row.name),
              row.values.map((v) => el("td", null, v)),
            ),
          ),
          [el("th", null, "Setting"), RUNS.map((run) => el("th", { scope: "col" }, plain(run.name)))],
        ),
      );
    const [other, same] = [rows.filter((row) => row.differs), rows.filter((row) => !row.differs)];
    return [
      other.length ? table(other) : empty("No setting differs."),
      same.length > 0 &&
        el(
          "details",
          { open: needle !== "" },
          el("summary", null, `${plural(same.length, "setting")} that ${same.length === 1 ? "is" : "are"} the same`),
          table(same),
        ),
    ];
  };
  const fill = () => {
    const needle = search.value.trim().toLowerCase();
    body.replaceChildren(...(SINGLE ? single : several)(needle).filter(Boolean));
  };
  search.addEventListener("input", fill);
  fill();
  return section(
    "settings",
    title,
    SINGLE ? "What was chosen, with where it was chosen; the defaults below." : "What differs is marked.",
    el("div", { class: "bar" }, search),
    body,
  );
}

function dataSection() {
  const title = "Data";
  const tables = RUNS.flatMap((run) =>
    ledgersOf(run).map((ledger) => {
      const names = {
        rows_in: "rows in",
        rows_kept: "rows kept",
        rows_cut: "rows cut at the end",
        tokens_in: "tokens in",
        tokens_kept: "tokens kept",
        tokens_target: "tokens learnt",
        tokens_masked: "tokens read, not learnt",
        tokens_cut: "tokens cut",
        tokens_dropped: "tokens dropped",
        eos_appended: "EOS appended",
      };
      const rows = Object.entries(ledger)
        .filter(([k, v]) => isNumber(v) && (v > 0 || ["rows_in", "rows_kept", "tokens_in", "tokens_kept"].includes(k)))
        .map(([k, v]) => [names[k] || plain(k.replaceAll("_", " ")), v]);
      for (const [reason, n] of Object.entries(ledger.rows_dropped || {}))
        rows.push([`rows dropped: ${plain(reason.replaceAll("_", " "))}`, n]);
      for (const [column, n] of Object.entries(ledger.extra_columns || {}))
        rows.push([`rows with the unused column ${plain(column)}`, n]);
      return el(
        "div",
        { class: "card" },
        el(
          "h4",
          null,
          [!SINGLE && plain(run.name), SHORT_NAMES[ledger.stage] || plain(ledger.stage || ""), plain(ledger.role)]
            .filter(Boolean)
            .join(" · "),
        ),
        tabular(rows.map(([name, n]) => named(name, el("td", { class: "num" }, number(n, "count"))))),
      );
    }),
  );
  if (!tables.length)
    return section(
      "data",
      title,
      null,
      empty("No data ledger is known: training on your own files keeps one in run.json."),
    );
  return section(
    "data",
    title,
    "Every row and token of the data, kept, cut or dropped. The parts add up to the whole.",
    el("div", { class: "grid" }, tables),
  );
}

function reproduceSection() {
  const title = "Reproduce";
  const blocks = RUNS.flatMap((run) =>
    [run.run, ...run.stages.map((stage) => stage.run)]
      .filter((f) => f && f.reproduce && typeof f.reproduce === "object")
      .map((f) => {
        const r = f.reproduce;
        const quote = (word) =>
          /^[A-Za-z0-9_\/.,:=@%+-]+$/.test(word) ? word : "'" + word.replaceAll("'", "'\\''") + "'";
        const command = (Array.isArray(r.command) ? r.command : [r.command])
          .filter((word) => typeof word === "string")
          .map((word) => quote(plain(word)))
          .join(" ");
        const text = el("pre", { tabindex: "0" }, command);
        const copy = el("button", { type: "button" }, "Copy");
        copy.addEventListener("click", async () => {
          try {
            await navigator.clipboard.writeText(command);
            copy.textContent = "Copied";
          } catch {
            getSelection().selectAllChildren(text);
            copy.textContent = "Selected";
          }
        });
        const program = r.program || {};
        const rows = [
          ["version", program.version || f.version],
          ["build", program.build],
          ["arithmetic", r.arithmetic],
          ["threads", r.threads],
          ["device", f.device],
          ...Object.entries(r.inputs || {}).map(([role, hash]) => [`SHA-256 of ${plain(role)}`, hash]),
        ].filter(([, v]) => v !== undefined && v !== null);
        return el(
          "div",
          null,
          SINGLE && !f.command
            ? null
            : el(
                "h3",
                { class: "stage-title" },
                [!SINGLE && plain(run.name), plain(f.command || "")].filter(Boolean).join(" · "),
              ),
          command && el("div", { class: "command" }, text, copy),
          el(
            "details",
            { open: RUNS.length === 1 && RUNS[0].stages.length < 2 },
            el("summary", null, "Build, hardware and hashes of the inputs"),
            tabular(rows.map(([name, v]) => named(name, el("td", { class: "mono" }, plain(v))))),
          ),
        );
      }),
  );
  if (!blocks.length)
    return section(
      "reproduce",
      title,
      null,
      empty("How to run this again is written into run.json by runs of this version; this one has none."),
    );
  return section(
    "reproduce",
    title,
    "The same command on the same inputs, with this build on the same kind of hardware, gives the same bytes.",
    blocks,
  );
}
