// Line charts of series over steps or time: Chart.js, drawn at most every 100 ms and while they are seen, thinned where
// there are more points than pixels.
/* global Chart */
import {button, bytes, duration, fill, h, number, select, store} from "/static/dom.js";

const POINTS_MAX = 1500;    // of a line, drawn
const DRAW_MS = 100;
// A role's colour as a canvas takes it: of light-dark() the one that holds now.
const colours = () => {
  const probe = h("span", {hidden: true});
  document.body.append(probe);
  const get = name => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const found = {lines: [1, 2, 3, 4, 5, 6, 7, 8].map(i => get("--s" + i)), ink: get("--ink"), faint: get("--faint"), line: get("--line")};
  probe.remove();
  return found;
};
const DASHES = [[], [6, 4], [2, 3], [10, 4, 2, 4]];

// How all charts of a page are drawn; one object, shared.
export function settings() {
  const s = {smooth: 0, log: false, x: "step", listeners: new Set(), ...store.get("plot", {})};
  s.change = changes => {
    Object.assign(s, changes);
    store.set("plot", {smooth: s.smooth, log: s.log, x: s.x});
    for (const f of s.listeners) f();
  };
  return s;
}

export function controls(s) {
  const id = "smoothing";
  const shown = h("output", {for: id}, s.smooth.toFixed(2));
  const smooth = h("input", {type: "range", id, min: 0, max: 0.99, step: 0.01, value: s.smooth, oninput: () => {
    shown.textContent = (+smooth.value).toFixed(2);
    s.change({smooth: +smooth.value});
  }});
  const log = h("input", {type: "checkbox", checked: s.log, onchange: () => s.change({log: log.checked})});
  return h("div", {class: "filters plot-controls", role: "group", "aria-label": "How the charts are drawn"},
    h("label", {class: "check", for: id}, "Smoothing"), smooth, shown,
    h("label", {class: "check"}, log, " Log axis"),
    h("label", {class: "check"}, "By ", select([["step", "step"], ["time", "time since the start"], ["clock", "time of day"]], s.x, x => s.change({x}))));
}

// Exponential moving average with the bias of its beginning taken out.
export function smoothed(y, weight) {
  if (!weight) return y;
  let mean = 0, scale = 1;
  return y.map(v => {
    mean = mean * weight + v * (1 - weight);
    scale *= weight;
    return mean / (1 - scale);
  });
}

// Keeps the lowest and the highest of each bucket, so that spikes stay.
function thin(points) {
  if (points.length <= POINTS_MAX) return points;
  const out = [], per = points.length / (POINTS_MAX / 2);
  for (let i = 0; i < POINTS_MAX / 2; i++) {
    const from = Math.floor(i * per), to = Math.min(points.length, Math.floor((i + 1) * per));
    let low = from, high = from;
    for (let k = from + 1; k < to; k++) {
      if (points[k].y < points[low].y) low = k;
      if (points[k].y > points[high].y) high = k;
    }
    out.push(points[Math.min(low, high)]);
    if (low !== high) out.push(points[Math.max(low, high)]);
  }
  if (out[out.length - 1] !== points[points.length - 1]) out.push(points[points.length - 1]);
  return out;
}

function pointsOf(s, how) {
  const y = smoothed(s.y, how.smooth), first = s.start ?? s.t[0];
  const out = [];
  for (let i = 0; i < y.length; i++) {
    const x = how.x === "step" ? s.x[i] : how.x === "time" ? s.t[i] - first : s.t[i];
    if (x === null || how.log && !(y[i] > 0)) continue;
    out.push({x, y: y[i]});
  }
  return thin(out);
}

// lines(): [{label, x, t, y, start, colour, dash}] as they are now. The figure has a canvas, what it shows in words for
// those who do not see it, and the numbers as a table on demand.
export class Plot {
  constructor(name, how, lines) {
    this.how = how;
    this.lines = lines;
    this.canvas = h("canvas", {role: "img", "aria-label": name});
    this.words = h("p", {class: "sr"});
    this.numbers = h("div", {});
    this.figure = h("figure", {class: "plot", "data-plot": name},
      h("figcaption", {}, h("span", {}, name), button("Numbers", () => this.toggleNumbers(), {class: "quiet small", "aria-label": `Numbers of ${name}`})),
      h("div", {class: "canvas"}, this.canvas), this.words, this.numbers);
    this.name = name;
    this.format = /memory$/i.test(name) ? v => bytes(Math.round(v)) : number;
    this.again = () => this.draw();
    this.restyle = () => {
      if (this.chart) this.chart.destroy();
      this.chart = this.colours = null;
      this.draw();
    };
    this.seen = true;
    this.drawnAt = -DRAW_MS;
    this.watcher = new IntersectionObserver(entries => {
      this.seen = entries[entries.length - 1].isIntersecting;
      if (this.seen && this.stale) this.draw();
    }, {rootMargin: "200px"});
    this.watcher.observe(this.figure);
    how.listeners.add(this.restyle);
    addEventListener("themechange", this.restyle);
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.watcher.disconnect();
    removeEventListener("themechange", this.restyle);
    this.how.listeners.delete(this.restyle);
    if (this.chart) this.chart.destroy();
  }

  // At once, but not more often than people can see.
  draw() {
    if (this.timer || this.closed) return;
    this.timer = setTimeout(() => {
      this.timer = null;
      if (!this.closed) this.drawNow();
    }, Math.max(0, this.drawnAt + DRAW_MS - performance.now()));
  }

  drawNow() {
    const lines = this.lines();
    this.drawnAt = performance.now();
    this.words.textContent = lines.map(s => s.y.length ? `${s.label}: ${s.y.length} points, from ${this.format(s.y[0])} to ${this.format(s.y[s.y.length - 1])}, least ${this.format(least(s.y))}.` : "").join(" ");
    if (this.numbers.childElementCount) this.fillNumbers(lines);
    this.stale = !this.seen;
    if (this.stale) return;
    const c = this.colours ||= colours(), datasets = lines.map((s, i) => ({
      label: s.label, data: pointsOf(s, this.how), parsing: false, normalized: this.how.x === "step", borderWidth: 2,
      borderColor: c.lines[(s.colour ?? i) % c.lines.length], backgroundColor: c.lines[(s.colour ?? i) % c.lines.length],
      borderDash: DASHES[(s.dash ?? 0) % DASHES.length], pointRadius: s.y.length < 3 ? 3 : 0, pointHitRadius: 6, tension: 0, spanGaps: true,
    }));
    if (!this.chart) this.chart = this.make(c, datasets);
    const {x, y} = this.chart.options.scales, points = datasets.flatMap(d => d.data.length ? [d.data[0].x, d.data[d.data.length - 1].x] : []);
    // An axis begins at nought where nought is near.
    x.min = this.how.x !== "clock" && Math.min(...points) < 0.05 * Math.max(...points) ? 0 : undefined;
    y.min = !this.how.log && lines.every(s => least(s.y) >= 0) && lines.some(s => least(s.y) < 0.1 * most(s.y)) ? 0 : undefined;
    const old = this.chart.data.datasets;
    // Hidden lines stay hidden.
    if (old.length === datasets.length && old.every((d, i) => d.label === datasets[i].label)) datasets.forEach((d, i) => { old[i].data = d.data; });
    else this.chart.data.datasets = datasets;
    this.chart.options.plugins.legend.display = datasets.length > 1;
    this.chart.update("none");
    this.canvas.dataset.points = datasets.reduce((n, d) => n + d.data.length, 0);
  }

  make(c, datasets) {
    const how = this.how, grid = {color: c.line, drawBorder: false};
    const ticks = {color: c.faint, maxRotation: 0, autoSkipPadding: 16};
    const time = v => how.x === "clock" ? new Date(v).toLocaleTimeString(undefined, {timeStyle: "short"}) : duration(v);
    return new Chart(this.canvas, {
      type: "line", data: {datasets},
      options: {
        animation: false, responsive: true, maintainAspectRatio: false, interaction: {mode: "nearest", axis: "x", intersect: false},
        font: {family: getComputedStyle(document.body).fontFamily},
        plugins: {
          legend: {display: datasets.length > 1, labels: {color: c.ink, boxWidth: 18, boxHeight: 2}},
          tooltip: {callbacks: {title: items => items.length ? (how.x === "step" ? `step ${items[0].raw.x}` : time(items[0].raw.x)) : "",
                                label: item => `${item.dataset.label}: ${this.format(item.raw.y)}`}},
        },
        scales: {
          x: {type: "linear", bounds: "data", grid, ticks: {...ticks, ...(how.x === "step" ? {precision: 0} : {callback: time, maxTicksLimit: 6})}},
          y: {type: how.log ? "logarithmic" : "linear", grid, ticks: {...ticks, callback: this.format}, grace: how.log ? 0 : "4%"},
        },
      },
    });
  }

  toggleNumbers() {
    if (this.numbers.childElementCount) fill(this.numbers);
    else this.fillNumbers(this.lines());
  }

  fillNumbers(lines) {
    const rows = [];
    for (const s of lines)
      for (let i = Math.max(0, s.y.length - 20); i < s.y.length; i++)
        rows.push(h("tr", {}, h("td", {}, s.label), h("td", {class: "num"}, String(s.x[i] ?? "")), h("td", {class: "num"}, this.format(s.y[i]))));
    fill(this.numbers, h("div", {class: "scroll tall", tabindex: "0", role: "region", "aria-label": `the last numbers of ${this.name}`},
      h("table", {}, h("thead", {}, h("tr", {}, ["Line", "Step", "Value"].map(x => h("th", {scope: "col"}, x)))), h("tbody", {}, rows.reverse()))));
  }
}

const most = y => -least(y.map(v => -v));
function least(y) {
  let m = Infinity;
  for (const v of y) if (v < m) m = v;
  return m;
}

// Which series make charts, in the order people look at them: [chart's name, names of its series].
export function panels(names) {
  const have = new Set(names), out = [];
  const losses = ["loss", "val_loss"].filter(n => have.has(n));
  if (losses.length) out.push(["Loss", losses]);
  const training = {lr: "Learning rate", grad_norm: "Gradient norm", tokens_per_s: "Tokens per second"};
  for (const n of [...have].filter(n => !losses.includes(n) && !(n in training) && !n.startsWith("system/") && !n.startsWith("test/")).sort()) out.push([n, [n]]);
  for (const [n, title] of Object.entries(training)) if (have.has(n)) out.push([title, [n], n === "tokens_per_s"]);
  const machine = new Map(); // the GPUs of a run share a chart
  for (const n of [...have].filter(n => n.startsWith("system/")).sort()) {
    const kind = n.replace(/gpu\d+_/, "gpu_");
    machine.set(kind, [...(machine.get(kind) || []), n]);
  }
  for (const [kind, of] of machine) out.push([SYSTEM[kind] || kind.slice(7).replace(/_/g, " "), of, true]);
  return out;
}
const SYSTEM = {"system/cpu_percent": "CPU, %", "system/memory_bytes": "Memory", "system/gpu_percent": "GPU in use, %",
                "system/gpu_memory_bytes": "GPU memory", "system/steps_per_s": "Steps per second"};
