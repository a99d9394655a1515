// Line charts of series over steps or time: Chart.js, drawn in the page's passes (draw.js) when they have something new and
// are seen, thinned where there are more points than pixels.
/* global Chart */
import {button, bytes, duration, fill, h, number, say, select, store} from "/static/dom.js";
import {soon} from "/static/draw.js";

const POINTS_MAX = 1500;    // of a line, drawn
const TELL_MS = 1000;       // words and numbers are for reading
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

// At most POINTS_MAX of a line's points, the last one among them. Keeps the lowest and the highest of each bucket, so that
// spikes stay. Buckets keep their places until there are twice as many points, so that a line that grows does not flicker.
function pointsOf(s, how) {
  const y = smoothed(s.y, how.smooth), first = s.start ?? s.t[0], out = [];
  const per = y.length <= POINTS_MAX ? 1 : 2 ** Math.ceil(Math.log2(y.length / (POINTS_MAX / 2 - 1)));
  const xs = how.x === "step" ? s.x : s.t, from = how.x === "time" ? first : 0;
  const put = i => out.push({x: xs[i] - from, y: y[i]});
  for (let begin = 0; begin < y.length; begin += per) {
    let low = -1, high = -1, last = -1;
    for (let i = begin; i < begin + per && i < y.length; i++) {
      if (xs[i] === null || how.log && !(y[i] > 0)) continue;
      if (low < 0 || y[i] < y[low]) low = i;
      if (high < 0 || y[i] > y[high]) high = i;
      last = i;
    }
    if (low < 0) continue;
    put(Math.min(low, high));
    if (low !== high) put(Math.max(low, high));
    if (begin + per >= y.length && last > Math.max(low, high)) put(last);
  }
  return out;
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
    this.drawNow = this.drawNow.bind(this);
    this.tell = this.tell.bind(this);
    this.restyle = () => {
      this.drawn = this.colours = null;
      this.draw();
    };
    this.seen = true;
    this.toldAt = -TELL_MS;
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

  draw() {
    soon(this.drawNow);
  }

  // What the chart shows, in words and, when asked for, in numbers.
  tell() {
    this.timer = null;
    this.toldAt = performance.now();
    if (this.closed) return;
    const lines = this.lines();
    say(this.words, lines.map(s => s.y.length ? `${s.label}: ${s.y.length} points, from ${this.format(s.y[0])} to ${this.format(s.y[s.y.length - 1])}, least ${this.format(least(s.y))}.` : "").join(" "));
    if (this.numbers.childElementCount) this.fillNumbers(lines);
  }

  drawNow() {
    if (this.closed) return;
    const lines = this.lines(), end = a => a[a.length - 1];
    const holds = JSON.stringify(lines.map(s => [s.label, s.colour, s.dash, s.y.length, end(s.x), end(s.t), end(s.y)]));
    if (holds !== this.holds) {
      this.holds = holds;
      this.timer ||= setTimeout(() => soon(this.tell), Math.max(0, this.toldAt + TELL_MS - performance.now()));
    }
    this.stale = !this.seen;
    if (this.stale || holds === this.drawn) return;
    if (this.drawn === null && this.chart) { // other colours, or other axes
      this.chart.destroy();
      this.chart = null;
    }
    this.drawn = holds;
    const c = this.colours ||= colours(), datasets = lines.map((s, i) => ({
      label: s.label, data: pointsOf(s, this.how), parsing: false, normalized: this.how.x === "step", borderWidth: 2,
      borderColor: c.lines[(s.colour ?? i) % c.lines.length], backgroundColor: c.lines[(s.colour ?? i) % c.lines.length],
      borderDash: DASHES[(s.dash ?? 0) % DASHES.length], pointRadius: s.y.length < 3 ? 3 : 0, pointHitRadius: 6, tension: 0, spanGaps: true,
    }));
    if (!this.chart) this.chart = this.make(c, datasets);
    const {x, y} = this.chart.options.scales, points = datasets.flatMap(d => d.data.length ? [d.data[0].x, d.data[d.data.length - 1].x] : []);
    // An axis begins at nought where nought is near.
    x.min = this.how.x !== "clock" && Math.min(...points) < 0.05 * Math.max(...points) ? 0 : undefined;
    const ranges = lines.map(s => [least(s.y), most(s.y)]);
    y.min = !this.how.log && ranges.every(([low]) => low >= 0) && ranges.some(([low, high]) => low < 0.1 * high) ? 0 : undefined;
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

function least(y) {
  let m = Infinity;
  for (const v of y) if (v < m) m = v;
  return m;
}
function most(y) {
  let m = -Infinity;
  for (const v of y) if (v > m) m = v;
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
