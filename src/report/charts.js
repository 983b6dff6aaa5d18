// Charts: lines over steps, and points in a plane. Hovering, touching, or the arrow keys choose a step; its values
// stand in the legend, where they hide nothing. With smoothing on, the raw values stay as a faint line.

const settings = { smooth: true };
const redraws = new Set();
const CHART_HEIGHT = 170;
const MARGIN = { top: 10, right: 10, bottom: 22 };

// Round numbers that cover the range, at most `count` and one of them.
function ticks(low, high, count) {
  if (low === high) return [low];
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.min(50, last - first + 1) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function tickText(x, kind) {
  if (kind === "share") return digits(100 * x, 4) + " %";
  if (kind === "bytes") return number(x, "bytes");
  if (x !== 0 && Math.abs(x) < 1e-3) return Number(x.toPrecision(2)).toExponential().replaceAll("-", "−");
  if (Math.abs(x) >= 1e4) return Intl.NumberFormat("en-US", { notation: "compact" }).format(x);
  return digits(x, 6).replace("-", "−");
}

// At each point the line that fits its neighbours best, the nearer the more (Cleveland, 1979): unlike a mean it neither
// lags nor bends at the ends.
function smoothed(xs, ys) {
  const half = Math.max(4, Math.round(ys.length / 25));
  return ys.map((_, i) => {
    const first = Math.max(0, i - half),
      last = Math.min(ys.length - 1, i + half);
    const reach = Math.max(xs[i] - xs[first], xs[last] - xs[i]) || 1;
    let w = 0,
      wx = 0,
      wy = 0,
      wxx = 0,
      wxy = 0;
    for (let j = first; j <= last; j++) {
      const x = (xs[j] - xs[i]) / reach,
        weight = (1 - Math.min(1, Math.abs(x)) ** 3) ** 3 + 1e-9;
      w += weight;
      wx += weight * x;
      wy += weight * ys[j];
      wxx += weight * x * x;
      wxy += weight * x * ys[j];
    }
    const spread = w * wxx - wx * wx;
    return spread > 1e-12 * w * w ? (wy * wxx - wx * wxy) / spread : wy / w;
  });
}

function range(values, padded) {
  let low = Infinity,
    high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return [0, 1];
  if (low === high) return low === 0 ? [-1, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
  const pad = padded ? 0.06 * (high - low) : 0;
  return [low - pad, high + pad];
}

// The index of the value nearest to `x` in a sorted list.
function nearest(list, x) {
  let low = 0,
    high = list.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - list[low - 1] <= list[low] - x ? low - 1 : low;
}

// The frame that charts share: title, note, plot and legend, drawn anew when its width or the theme changes.
function frame(options, items, paint) {
  const at = el("span", { class: "at" });
  const values = items.map(() => el("span", { class: "value" }));
  const legend = el(
    "div",
    { class: "legend" },
    at,
    items.map((item, i) =>
      el(
        "span",
        { class: "item", title: item.key && plain(item.key) },
        el("span", { class: `swatch s${item.color} dash${item.dash || 0}` }),
        plain(item.name),
        values[i],
      ),
    ),
  );
  const plot = el("div", {
    class: "plot",
    tabindex: "0",
    role: "slider",
    "aria-label": options.title,
    "aria-orientation": "horizontal",
  });
  const node = el(
    "figure",
    { class: "chart card", "data-chart": options.title },
    el("figcaption", null, el("h4", null, options.title), options.note && el("p", { class: "note" }, options.note)),
    plot,
    legend,
  );
  let width = 0;
  const redraw = () => {
    if (width > 0) paint(plot, width, at, values);
  };
  new ResizeObserver((entries) => {
    const now = Math.floor(entries[0].contentRect.width);
    if (now !== width) {
      width = now;
      redraw();
    }
  }).observe(plot);
  redraws.add(redraw);
  return { node, plot };
}

function axes(svg, area, xs, ys, options) {
  for (const [value, y] of ys) {
    svg.append(
      draw("line", { class: "gridline", x1: area.left, x2: area.right, y1: y, y2: y }),
      draw("text", { x: area.left - 6, y: y + 4, "text-anchor": "end" }, tickText(value, options.kind)),
    );
  }
  svg.append(draw("line", { class: "axis", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }));
  xs.forEach(([value, x], i) => {
    const anchor = x > area.right - 14 ? "end" : i === 0 && x < area.left + 8 ? "start" : "middle";
    svg.append(draw("text", { x, y: area.bottom + 15, "text-anchor": anchor }, tickText(value)));
  });
}

// Plots pixels: both ranges, the ticks, and the room that the labels take.
function scales(width, [x0, x1], [y0, y1], kind) {
  const yTicks = ticks(y0, y1, 5);
  const left = 8 + 6.3 * Math.max(2, ...yTicks.map((t) => tickText(t, kind).length));
  const area = { left, right: width - MARGIN.right, top: MARGIN.top, bottom: CHART_HEIGHT - MARGIN.bottom };
  const x = (v) => area.left + (x1 === x0 ? 0.5 : (v - x0) / (x1 - x0)) * (area.right - area.left);
  const y = (v) => area.bottom - ((v - y0) / (y1 - y0)) * (area.bottom - area.top);
  const back = (pixel) => x0 + ((pixel - area.left) / (area.right - area.left)) * (x1 - x0);
  const xTicks = ticks(x0, x1, Math.max(2, Math.min(6, width / 80)));
  return { area, x, y, back, xTicks: xTicks.map((t) => [t, x(t)]), yTicks: yTicks.map((t) => [t, y(t)]) };
}

const path = (xs, ys, scale) =>
  xs.map((x, i) => (i ? "L" : "M") + scale.x(x).toFixed(1) + " " + scale.y(ys[i]).toFixed(1)).join("");

function surface(width, title) {
  return draw("svg", { width, height: CHART_HEIGHT, viewBox: `0 0 ${width} ${CHART_HEIGHT}`, "aria-hidden": "true" });
}

// Lines over steps. Each series: name, color, dash, x, y, odd (steps whose number is not finite).
function lineChart(options) {
  const list = options.series;
  const steps = [...new Set(list.flatMap((s) => [...s.x, ...s.odd.map((o) => o[0])]))].sort((a, b) => a - b);
  let chosen = null;
  let show = () => {};
  const { node, plot } = frame(options, list, (plot, width, at, values) => {
    const lines = list.map((s) => (settings.smooth && s.y.length > 30 && !options.exact ? smoothed(s.x, s.y) : null));
    let bounds = range(
      list.flatMap((s) => s.y),
      true,
    );
    if (options.floor !== undefined) bounds = [Math.min(options.floor, bounds[0]), bounds[1]];
    const scale = scales(width, range(steps), bounds, options.kind);
    const svg = surface(width, options.title);
    axes(svg, scale.area, scale.xTicks, scale.yTicks, options);
    for (const mark of options.marks || []) {
      const x = scale.x(mark.step),
        foot = scale.area.bottom;
      svg.append(
        draw("line", { class: "alarm-line", x1: x, x2: x, y1: scale.area.top, y2: foot }),
        draw(
          "path",
          { class: "alarm-mark", d: `M${x - 5} ${foot}L${x + 5} ${foot}L${x} ${foot - 9}Z` },
          draw("title", null, "alarm: " + mark.id),
        ),
      );
    }
    list.forEach((s, i) => {
      const kind = `s${s.color} dash${s.dash || 0}`;
      if (s.y.length === 1)
        svg.append(draw("circle", { class: `dot s${s.color}`, r: 3.5, cx: scale.x(s.x[0]), cy: scale.y(s.y[0]) }));
      if (lines[i]) svg.append(draw("path", { class: `raw s${s.color}`, d: path(s.x, s.y, scale) }));
      svg.append(draw("path", { class: `line ${kind}`, d: path(s.x, lines[i] || s.y, scale) }));
      for (const [step] of s.odd) {
        const x = scale.x(step),
          y = scale.area.top;
        svg.append(
          draw(
            "path",
            { class: "odd", d: `M${x - 3} ${y - 3}l6 6m-6 0l6 -6` },
            draw("title", null, "not a finite number"),
          ),
        );
      }
    });
    const cursor = draw("g", null);
    svg.append(cursor);
    plot.replaceChildren(svg);
    show = () => {
      const step = chosen === null ? steps[steps.length - 1] : steps[chosen];
      cursor.replaceChildren();
      if (chosen !== null)
        cursor.append(
          draw("line", {
            class: "rule",
            x1: scale.x(step),
            x2: scale.x(step),
            y1: scale.area.top,
            y2: scale.area.bottom,
          }),
        );
      const told = [];
      list.forEach((s, i) => {
        const odd = s.odd.find((o) => o[0] === step);
        const near = s.x.length ? nearest(s.x, step) : -1;
        let text = "–";
        if (odd) text = plain(odd[1]);
        else if (near >= 0) {
          text = number(s.y[near], options.kind);
          if (lines[i] && chosen !== null) text += ` (smoothed ${number(lines[i][near], options.kind)})`;
          if (s.x[near] !== step) text += ` (step ${number(s.x[near], "count")})`;
          if (chosen !== null)
            cursor.append(
              draw("circle", {
                class: `dot s${s.color}`,
                r: 4,
                cx: scale.x(s.x[near]),
                cy: scale.y((lines[i] || s.y)[near]),
              }),
            );
        }
        values[i].textContent = text;
        told.push(s.name + " " + text);
      });
      at.textContent = (chosen === null ? "last, step " : "step ") + number(step, "count");
      plot.setAttribute("aria-valuemin", steps[0]);
      plot.setAttribute("aria-valuemax", steps[steps.length - 1]);
      plot.setAttribute("aria-valuenow", step);
      plot.setAttribute("aria-valuetext", `step ${step}: ${told.join(", ")}`);
    };
    plot.pick = (pixel) => nearest(steps, scale.back(pixel));
    show();
  });
  follow(
    plot,
    () => steps.length,
    () => chosen,
    (next) => {
      chosen = next;
      show();
    },
  );
  return node;
}

// Lets pointer and keys choose one of the points; leaving the plot chooses none.
function follow(plot, count, get, set) {
  const hover = (event) =>
    set(plot.pick(event.clientX - plot.getBoundingClientRect().left, event.clientY - plot.getBoundingClientRect().top));
  plot.addEventListener("pointerdown", hover);
  plot.addEventListener("pointermove", hover);
  plot.addEventListener("pointerleave", () => set(null));
  plot.addEventListener("blur", () => set(null));
  plot.addEventListener("keydown", (event) => {
    const last = count() - 1,
      now = get() === null ? last : get();
    const far = Math.max(1, Math.round(last / 10));
    const moves = {
      ArrowLeft: now - 1,
      ArrowDown: now - 1,
      ArrowRight: now + 1,
      ArrowUp: now + 1,
      PageDown: now - far,
      PageUp: now + far,
      Home: 0,
      End: last,
    };
    if (event.key === "Escape") set(null);
    else if (event.key in moves) set(Math.max(0, Math.min(last, moves[event.key])));
    else return;
    event.preventDefault();
  });
}

// Points in a plane, joined in their order: each series has name, color, points {x, y, step}.
function pointChart(options) {
  const all = options.series.flatMap((s, i) => s.points.map((point) => ({ ...point, i })));
  let chosen = null;
  let show = () => {};
  const { node, plot } = frame(options, options.series, (plot, width, at, values) => {
    const scale = scales(
      width,
      range(
        all.map((p) => p.x),
        true,
      ),
      range(
        all.map((p) => p.y),
        true,
      ),
      options.kind,
    );
    const svg = surface(width, options.title);
    axes(svg, scale.area, scale.xTicks, scale.yTicks, options);
    for (const s of options.series) {
      svg.append(
        draw("path", {
          class: `raw s${s.color}`,
          d: path(
            s.points.map((p) => p.x),
            s.points.map((p) => p.y),
            scale,
          ),
        }),
      );
      s.points.forEach((p, i) =>
        svg.append(
          draw("circle", {
            class: `s${s.color}`,
            stroke: "none",
            r: 3.2,
            cx: scale.x(p.x),
            cy: scale.y(p.y),
            opacity: 0.3 + (0.7 * (i + 1)) / s.points.length,
          }),
        ),
      );
    }
    const cursor = draw("g", null);
    svg.append(cursor);
    plot.replaceChildren(svg);
    show = () => {
      cursor.replaceChildren();
      options.series.forEach((s, i) => {
        const p = chosen !== null && all[chosen].i === i ? all[chosen] : s.points[s.points.length - 1];
        values[i].textContent = number(p.y, options.kind);
      });
      const p = chosen === null ? all[all.length - 1] : all[chosen];
      const text = `step ${number(p.step, "count")}, ${options.xName} ${number(p.x)}`;
      at.textContent = (chosen === null ? "last, " : "") + text;
      if (chosen !== null)
        cursor.append(
          draw("circle", { class: `dot s${options.series[p.i].color}`, r: 5.5, cx: scale.x(p.x), cy: scale.y(p.y) }),
        );
      plot.setAttribute("aria-valuemin", 1);
      plot.setAttribute("aria-valuemax", all.length);
      plot.setAttribute("aria-valuenow", (chosen === null ? all.length - 1 : chosen) + 1);
      plot.setAttribute("aria-valuetext", `${text}: ${number(p.y, options.kind)}`);
    };
    plot.pick = (x, y) => {
      let best = 0,
        least = Infinity;
      all.forEach((p, i) => {
        const distance = (scale.x(p.x) - x) ** 2 + (scale.y(p.y) - y) ** 2;
        if (distance < least) {
          least = distance;
          best = i;
        }
      });
      return best;
    };
    show();
  });
  follow(
    plot,
    () => all.length,
    () => chosen,
    (next) => {
      chosen = next;
      show();
    },
  );
  return node;
}

// Horizontal bars: rows of [label, length from 0 to 1, text]; `half` draws the line of a coin.
function bars(rows, color, half) {
  return el(
    "div",
    { class: `bars s${color || 0}` },
    rows.map(([label, share, text]) => {
      const fill = el("div", { class: "fill" });
      fill.style.width = `${100 * Math.max(0, Math.min(1, share || 0))}%`;
      return [
        el("span", { class: "weak" }, label),
        el("div", { class: "track", "aria-hidden": "true" }, fill, half && el("span", { class: "half" })),
        el("span", { class: "number" }, text),
      ];
    }),
  );
}
