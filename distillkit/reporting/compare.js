"use strict";
// The comparison page: sorts and filters tables, draws plots from the page's embedded data, and selects samples.
// Without this script the tables and all samples are still shown.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const shown = new Set(data.shown);
const redrawCallbacks = [];
const MIN_ROWS_TO_FILTER = 9;

// Elements ------------------------------------------------------------------------------------------------

function createElement(name, attributes = {}, ...inner) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...inner);
  return element;
}

function createSvg(name, attributes = {}, ...inner) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...inner);
  return element;
}

function dropdown(label, options, selected, onChange) {
  const select = createElement("select", { onchange: () => onChange(select.value) });
  options.forEach(([value, text]) => select.append(createElement("option", { value, selected: value === selected }, text)));
  return createElement("label", {}, `${label} `, select);
}

function checkbox(label, checked, onChange) {
  const box = createElement("input", { type: "checkbox", checked, onchange: () => onChange(box.checked) });
  return createElement("label", {}, box, ` ${label}`);
}

// Sortable and filterable tables --------------------------------------------------------------------------

function cellValue(row, column) {
  const cell = row.cells[column];
  const known = cell.dataset.v;
  if (known === undefined) return cell.textContent.trim() === "–" ? null : cell.textContent.trim();
  return known === "" || Number.isNaN(Number(known)) ? known : Number(known);
}

function compareValues(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortTable(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const descending = heads[column].getAttribute("aria-sort") === "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [cellValue(row, column), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);  // missing values come last in both directions
    return descending ? compareValues(b, a) : compareValues(a, b);
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = createElement("button", { type: "button", onclick: () => sortTable(table, column) }, ...head.childNodes);
    head.append(button);
  });
}

function makeFilterable(tools) {
  const table = document.getElementById(tools.dataset.filter);
  if (!table) return;
  const rows = [...table.tBodies[0].rows];
  if (rows.length < MIN_ROWS_TO_FILTER) return;
  const words = rows.map((row) => row.textContent.toLowerCase().replace(/\s+/g, " "));
  const status = createElement("output", { "aria-live": "polite" });
  const field = createElement("input", { type: "search", placeholder: "Filter rows", "aria-label": "Filter rows", oninput: filter });
  function filter() {
    const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, i) => { row.hidden = !wanted.every((word) => words[i].includes(word)); });
    const left = rows.filter((row) => !row.hidden).length;
    status.textContent = wanted.length ? `${left} of ${rows.length} rows` : "";
  }
  tools.append(field, status);
  tools.hidden = false;
}

// Which runs are shown --------------------------------------------------------------------------------------

function legend() {
  const chips = data.order.map((index) => createElement("button", {
    type: "button", class: "chip", "data-run": index,
    onclick: () => toggle(index),
    onpointerenter: () => highlight(index), onpointerleave: () => highlight(null),
    onfocus: () => highlight(index), onblur: () => highlight(null),
  }, swatch(index), createElement("bdi", {}, runs[index].name)));
  const some = createElement("button", { type: "button", class: "plain", onclick: () => show(data.shown) }, "first few");
  const all = createElement("button", { type: "button", class: "plain", onclick: () => show(data.order) }, "all");
  const none = createElement("button", { type: "button", class: "plain", onclick: () => show([]) }, "none");
  const sets = data.shown.length < runs.length ? [some, all, none] : [all, none];
  const bar = createElement("div", { class: "legend", role: "group", "aria-label": "Runs shown" });
  bar.append(createElement("div", { class: "chips" }, ...chips), createElement("div", { class: "sets" }, "Show ", ...sets));
  redrawCallbacks.push(() => chips.forEach((chip) => chip.setAttribute("aria-pressed", shown.has(Number(chip.dataset.run)))));
  return bar;
}

function swatch(index) {
  return createElement("span", { class: `swatch ${runs[index].style}` });
}

function toggle(index) {
  if (!shown.delete(index)) shown.add(index);
  redraw();
}

function show(indices) {
  shown.clear();
  indices.forEach((index) => shown.add(index));
  redraw();
}

function redraw() {
  redrawCallbacks.forEach((callback) => callback());
}

function highlight(index) {
  document.querySelectorAll("svg [data-run]").forEach((part) => {
    part.classList.toggle("dimmed", index !== null && Number(part.dataset.run) !== index);
  });
}

// Scales and axes -------------------------------------------------------------------------------------------

function linear([from, to], [start, end]) {
  const scale = (at) => start + ((at - from) / (to - from || 1)) * (end - start);
  return Object.assign(scale, { from, to, ticks: (count) => steps(from, to, count) });
}

function logarithmic([from, to], [start, end]) {
  const inner = linear([Math.log10(from), Math.log10(to)], [start, end]);
  return Object.assign((at) => inner(Math.log10(at)), { from, to, ticks: () => decades(from, to) });
}

function steps(from, to, count) {
  const rough = (to - from || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough);
  const found = [];
  for (let i = Math.ceil(from / step - 1e-9); i * step <= to + step * 1e-9; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function decades(from, to) {
  const found = [];
  for (let power = Math.floor(Math.log10(from)); 10 ** power <= to; power += 1) {
    [1, 2, 5].forEach((times) => found.push(times * 10 ** power));
  }
  const inside = found.filter((at) => at >= from && at <= to);
  return inside.length > 7 ? inside.filter((at) => Number.isInteger(Math.log10(at))) : inside;
}

function formatNumber(number) {
  const size = Math.abs(number);
  for (const [limit, letter] of [[1e9, "B"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= limit) return `${Number((number / (limit === 1e4 ? 1e3 : limit)).toPrecision(3))}${letter}`;
  }
  return String(Number(number.toPrecision(4)));
}

function padded(values, share = 0.06) {
  const low = Math.min(...values), high = Math.max(...values);
  const margin = (high - low || Math.abs(high) || 1) * share;
  return [low - margin, high + margin];
}

function axes(picture, x, y, box, names) {
  y.ticks(5).forEach((at) => picture.append(
    createSvg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(at), y2: y(at) }),
    createSvg("text", { x: box.left - 8, y: y(at) + 4, "text-anchor": "end" }, formatNumber(at)),
  ));
  x.ticks(Math.max(3, (box.right - box.left) / 110)).forEach((at) => picture.append(
    createSvg("line", { class: "tick", x1: x(at), x2: x(at), y1: box.bottom, y2: box.bottom + 5 }),
    createSvg("text", { x: x(at), y: box.bottom + 19, "text-anchor": "middle" }, formatNumber(at)),
  ));
  picture.append(
    createSvg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    createSvg("text", { class: "name", x: (box.left + box.right) / 2, y: box.bottom + 38, "text-anchor": "middle" }, names.x),
    createSvg("text", { class: "name", x: box.left - 46, y: box.top - 14 }, names.y),
  );
}

function canvas(holder, height, about) {
  const width = Math.max(300, Math.min(1120, holder.clientWidth || 640));
  const picture = createSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": about, class: "chart" });
  holder.replaceChildren(picture);
  return [picture, width];
}

function marker(index, x, y, size, filled = true) {
  const shapes = [
    `M${x - size},${y}a${size},${size} 0 1,0 ${2 * size},0a${size},${size} 0 1,0 ${-2 * size},0`,
    `M${x - size},${y - size}h${2 * size}v${2 * size}h${-2 * size}z`,
    `M${x},${y - 1.3 * size}l${1.3 * size},${2.3 * size}h${-2.6 * size}z`,
    `M${x},${y - 1.4 * size}l${1.4 * size},${1.4 * size}l${-1.4 * size},${1.4 * size}l${-1.4 * size},${-1.4 * size}z`,
  ];
  const shape = index === 0 ? shapes[3] : shapes[runs[index].shape];
  return createSvg("path", { class: `marker ${filled ? "" : "hollow"}`, d: shape });
}

function withTitle(text, element) {
  element.append(createSvg("title", {}, text));
  return element;
}

function truncate(text, letters) {
  return text.length > letters ? `${text.slice(0, letters - 1)}…` : text;
}

// A plot: its controls, its drawing, its caption -----------------------------------------------------------

function figure(id, { controls = [], note, paint, chips = false }) {
  const frame = document.getElementById(id);
  const holder = createElement("div", { class: "picture" });
  const caption = createElement("figcaption", { class: "note" });
  frame.replaceChildren(createElement("div", { class: "tools" }, ...controls), holder, ...(chips ? [legend()] : []), caption);
  const again = () => { paint(holder); caption.textContent = note(); };
  redrawCallbacks.push(again);
  new ResizeObserver(() => { if (holder.clientWidth !== holder.drawn) { holder.drawn = holder.clientWidth; again(); } }).observe(holder);
}

function showMessage(holder, text) {
  holder.replaceChildren(createElement("p", {}, text));
}

// Metrics with confidence intervals -------------------------------------------------------------------------

function metricPlots() {
  if (!data.metrics.length) return showMessage(document.getElementById("dots"), "None of the runs was judged.");
  const few = runs.length <= 10 && data.metrics.length > 1;
  const view = { metric: few ? "all" : String(data.ranking_metric) };
  const options = data.metrics.map((metric, i) => [String(i), metric.title]);
  if (data.metrics.length > 1) options.unshift(["all", "all metrics"]);
  figure("dots", {
    controls: options.length > 1 ? [dropdown("Metric", options, view.metric, (to) => { view.metric = to; redraw(); })] : [],
    paint: (holder) => {
      const chosen = view.metric === "all" ? data.metrics : [data.metrics[Number(view.metric)]];
      const panels = chosen.map((metric) => {
        const panel = createElement("div", { class: chosen.length > 1 ? "panel" : "" });
        return [metric, panel];
      });
      holder.replaceChildren(createElement("div", { class: chosen.length > 1 ? "panels" : "" }, ...panels.map(([, panel]) => panel)));
      panels.forEach(([metric, panel]) => dots(panel, metric));
    },
    note: () => "Values with 95% confidence intervals, in ranking order; the band is the baseline's interval. Filled: better or worse "
      + "than the baseline. Hollow: not distinguishable or not comparable. Faint: not among the selected runs.",
  });
}

function dots(holder, metric) {
  const rows = data.order.filter((index) => metric.values[index]);
  const step = rows.length > 24 ? 17 : 23;
  const wide = Math.min(1120, holder.clientWidth || 640);
  const longest = Math.max(...rows.map((index) => runs[index].name.length), 4);
  const box = { left: Math.min(wide * 0.38, 7 * Math.min(longest, 34) + 18), top: 34, bottom: 34 + rows.length * step };
  const [picture, width] = canvas(holder, box.bottom + 30, `${metric.title} of each run with its interval`);
  box.right = width - 14;
  const bounds = rows.flatMap((index) => metric.values[index].filter((at) => at !== null));
  const x = linear(padded(bounds), [box.left, box.right]);
  const [, low, high] = metric.values[0] || [];
  if (low != null) picture.append(createSvg("rect", { class: "band", x: x(low), width: Math.max(1, x(high) - x(low)), y: box.top - 6, height: box.bottom - box.top + 6 }));
  x.ticks(Math.max(2, (box.right - box.left) / 90)).forEach((at) => picture.append(
    createSvg("line", { class: "grid", x1: x(at), x2: x(at), y1: box.top - 6, y2: box.bottom }),
    createSvg("text", { x: x(at), y: box.bottom + 17, "text-anchor": "middle" }, formatNumber(at)),
  ));
  picture.append(createSvg("text", { class: "name", x: 0, y: 14 }, metric.title, createSvg("tspan", { class: "soft", dx: 8 }, metric.description)));
  rows.forEach((index, i) => picture.append(dot(metric, index, x, box.top + step * (i + 0.4), box.left)));
}

function dot(metric, index, x, y, left) {
  const [at, low, high] = metric.values[index];
  const group = createSvg("g", { class: `${runs[index].style}${shown.has(index) ? "" : " faint"}`, "data-run": index });
  group.append(createSvg("text", { class: "label", x: left - 12, y: y + 4, "text-anchor": "end" }, truncate(runs[index].name, Math.floor((left - 14) / 6.6))));
  if (low !== null) group.append(createSvg("line", { class: "interval", x1: x(low), x2: x(high), y1: y, y2: y }));
  const sure = index === 0 || metric.verdicts[index] === "better" || metric.verdicts[index] === "worse";
  group.append(marker(index, x(at), y, 4.2, sure));
  return withTitle(`${runs[index].name}: ${metric.title} ${metric.labels[index]}${metric.verdicts[index] ? `, ${metric.verdicts[index]}` : ""}`, group);
}

// Quality against cost --------------------------------------------------------------------------------------

function costPlot() {
  const frame = document.getElementById("costs");
  if (!data.costs.length || !data.metrics.length) return showMessage(frame, "The runs do not differ in any recorded cost.");
  const view = { cost: "0", metric: String(data.ranking_metric) };
  figure("costs", {
    controls: [
      dropdown("Quality", data.metrics.map((metric, i) => [String(i), metric.title]), view.metric, (to) => { view.metric = to; redraw(); }),
      dropdown("against", data.costs.map((cost, i) => [String(i), cost.title]), view.cost, (to) => { view.cost = to; redraw(); }),
    ],
    paint: (holder) => scatter(holder, data.metrics[Number(view.metric)], data.costs[Number(view.cost)]),
    note: () => `Vertical lines are 95% confidence intervals. The dashed line is the Pareto front: no run has a better value at ${
      isSpeed(data.costs[Number(view.cost)]) ? "the same or a higher speed" : "the same or a lower cost"}.`,
  });
}

function isSpeed(cost) {
  return cost.title.endsWith("/s");
}

function scatter(holder, metric, cost) {
  const known = data.order.filter((index) => metric.values[index] && cost.values[index] !== null);
  if (!known.length) return showMessage(holder, "No run has both values.");
  const [picture, width] = canvas(holder, 380, `${metric.title} against ${cost.title}`);
  const box = { left: 58, right: width - 20, top: 34, bottom: 330 };
  const costs = known.map((index) => cost.values[index]);
  const least = Math.min(...costs), most = Math.max(...costs);
  const x = least > 0 && most / least > 20
    ? logarithmic([least / 1.3, most * 1.3], [box.left, box.right])
    : linear(padded(costs, 0.08), [box.left, box.right]);
  const y = linear(padded(known.flatMap((index) => metric.values[index].filter((at) => at !== null))), [box.bottom, box.top]);
  axes(picture, x, y, box, { x: cost.title, y: `${metric.title} (${metric.better || "neither direction"} is better)` });
  if (metric.better) picture.append(createSvg("path", { class: "pareto", d: paretoFront(known, metric, cost).map((index, i) => `${i ? "L" : "M"}${x(cost.values[index])},${y(metric.values[index][0])}`).join("") }));
  const taken = [];
  known.forEach((index) => picture.append(costPoint(index, metric, cost, x, y, box, taken)));
}

function paretoFront(known, metric, cost) {
  const sign = metric.better === "lower" ? 1 : -1;
  const way = isSpeed(cost) ? -1 : 1;
  let best = Infinity;
  return [...known]
    .sort((a, b) => way * (cost.values[a] - cost.values[b]) || sign * (metric.values[a][0] - metric.values[b][0]))
    .filter((index) => {
      const better = sign * metric.values[index][0] < best;
      best = Math.min(best, sign * metric.values[index][0]);
      return better;
    });
}

function costPoint(index, metric, cost, x, y, box, taken) {
  const [at, low, high] = metric.values[index];
  const place = [x(cost.values[index]), y(at)];
  const group = createSvg("g", { class: `${runs[index].style}${shown.has(index) ? "" : " faint"}`, "data-run": index });
  if (low !== null) group.append(createSvg("line", { class: "interval", x1: place[0], x2: place[0], y1: y(low), y2: y(high) }));
  group.append(marker(index, ...place, 5));
  if (shown.has(index)) {
    const text = truncate(runs[index].name, 26);
    const left = place[0] + 10 + 6.6 * text.length > box.right;
    const label = [left ? place[0] - 10 - 6.6 * text.length : place[0] + 10, place[1] - 7, 6.6 * text.length];
    while (taken.some((other) => Math.abs(other[1] - label[1]) < 13 && label[0] < other[0] + other[2] && other[0] < label[0] + label[2])) label[1] -= 13;
    taken.push(label);
    if (label[1] > box.top - 8) group.append(createSvg("text", { class: "label", x: left ? place[0] - 10 : label[0], y: label[1] + 4, "text-anchor": left ? "end" : "start" }, text));
  }
  return withTitle(`${runs[index].name}: ${metric.title} ${metric.labels[index]}, ${cost.title} ${cost.labels[index]}`, group);
}

// Loss curves -----------------------------------------------------------------------------------------------

function lossCurves() {
  const drawn = runs.some((run) => run.training.length || run.validation.length);
  if (!drawn) return showMessage(document.getElementById("curves"), "No training steps were recorded.");
  const view = { by: "steps", training: true, validation: true, fromStart: false };
  const controls = [
    checkbox("validation", true, (on) => { view.validation = on; redraw(); }),
    checkbox("training", true, (on) => { view.training = on; redraw(); }),
    checkbox("from the first step", false, (on) => { view.fromStart = on; redraw(); }),
  ];
  if (runs.some((run) => run.tokens_per_step)) {
    controls.unshift(dropdown("Over", [["steps", "steps"], ["tokens", "training tokens"]], "steps", (to) => { view.by = to; redraw(); }));
  }
  figure("curves", {
    controls,
    chips: true,
    paint: (holder) => curves(holder, view),
    note: () => `Bold, with markers: validation. Faint: training${averagingNote()}; for mixed losses, only the cross-entropy with the `
      + `text. ${view.fromStart ? "" : "The vertical axis fits the curves after their first fifth. "}Losses are not comparable `
      + "between tokenizers; bits per byte are.",
  });
}

function averagingNote() {
  const each = Math.max(...runs.map((run) => run.rows_per_point));
  return each > 1 ? `, each point the mean of up to ${each} logged steps` : "";
}

function curves(holder, view) {
  const scaled = (run, points) => points.map(([step, loss]) => [view.by === "tokens" ? step * (run.tokens_per_step || NaN) : step, loss]).filter(([at]) => !Number.isNaN(at));
  const lines = data.order.filter((index) => shown.has(index)).flatMap((index) => [
    ...(view.training ? [{ index, kind: "training", points: scaled(runs[index], runs[index].training) }] : []),
    ...(view.validation ? [{ index, kind: "validation", points: scaled(runs[index], runs[index].validation) }] : []),
  ]).filter((line) => line.points.length);
  if (!lines.length) return showMessage(holder, "No curve is selected. Choose runs below.");
  const [picture, width] = canvas(holder, 420, "Loss over training");
  const hasLabels = width > 640 && shown.size <= 10;
  const box = { left: 52, right: width - (hasLabels ? 170 : 16), top: 34, bottom: 370 };
  const losses = lines.flatMap(({ points }) => visiblePart(points, view).map(([, loss]) => loss));
  const x = linear([0, Math.max(...lines.flatMap(({ points }) => points.map(([at]) => at)))], [box.left, box.right]);
  const y = linear(padded(losses, 0.04), [box.bottom, box.top]);
  axes(picture, x, y, box, { x: view.by === "tokens" ? "training tokens" : "step", y: "nats per token" });
  picture.append(createSvg("clipPath", { id: "inside" }, createSvg("rect", { x: box.left, y: box.top - 8, width: box.right - box.left + 8, height: box.bottom - box.top + 8 })));
  lines.forEach((line) => picture.append(curve(line, x, y)));
  if (hasLabels) endLabels(picture, lines, x, y, box);
}

function visiblePart(points, view) {
  const later = points.filter(([at]) => view.fromStart || at >= points[points.length - 1][0] / 5);
  return later.length ? later : points;
}

function curve({ index, kind, points }, x, y) {
  const group = createSvg("g", { class: `${runs[index].style} ${kind}`, "data-run": index, "clip-path": "url(#inside)" });
  group.append(createSvg("path", { class: "line", d: points.map(([at, loss], i) => `${i ? "L" : "M"}${x(at).toFixed(1)},${y(loss).toFixed(1)}`).join("") }));
  if (kind === "validation" && points.length <= 40) points.forEach(([at, loss]) => group.append(marker(index, x(at), y(loss), 3.4)));
  const [at, loss] = points[points.length - 1];
  return withTitle(`${runs[index].name}: ${kind} loss ${formatNumber(loss)} at ${formatNumber(at)}`, group);
}

function endLabels(picture, lines, x, y, box) {
  const last = new Map();
  lines.forEach(({ index, points }) => last.set(index, points[points.length - 1]));
  const labels = [...last].map(([index, [, loss]]) => ({ index, y: Math.min(y(loss), box.bottom) })).sort((a, b) => a.y - b.y);
  labels.forEach((label, i) => { if (i) label.y = Math.max(label.y, labels[i - 1].y + 15); });
  const over = labels.length ? labels[labels.length - 1].y - box.bottom : 0;
  labels.reverse().forEach((label, i) => { label.y = i ? Math.min(label.y, labels[i - 1].y - 15) : label.y - Math.max(0, over); });
  labels.forEach(({ index, y: at }) => picture.append(createSvg("g", { class: `${runs[index].style} end`, "data-run": index },
    createSvg("text", { class: "label", x: box.right + 12, y: at + 4 }, truncate(runs[index].name, 24)))));
}

// Samples ---------------------------------------------------------------------------------------------------

function sampleCards() {
  const sections = [...document.querySelectorAll("section.prompt")];
  if (!sections.length) return;
  const tools = document.getElementById("choose");
  const texts = sections.map((section) => section.querySelector("h3").textContent.replace(/\s+/g, " "));
  const select = createElement("select", { id: "prompt", onchange: () => choose(Number(select.value)) });
  select.append(...texts.map((text, i) => createElement("option", { value: i }, `${i + 1}. ${truncate(text, 70)}`)));
  const choose = (index) => {
    select.value = String((index + sections.length) % sections.length);
    sections.forEach((section, i) => { section.hidden = i !== Number(select.value); });
  };
  const by = (step, text, about) => createElement("button", { type: "button", class: "plain", "aria-label": about, onclick: () => choose(Number(select.value) + step) }, text);
  tools.append(createElement("label", { for: "prompt" }, "Prompt"), select, by(-1, "‹ previous", "previous prompt"), by(1, "next ›", "next prompt"));
  tools.after(legend());
  tools.hidden = false;
  redrawCallbacks.push(() => document.querySelectorAll(".card").forEach((card) => { card.hidden = !shown.has(Number(card.dataset.run)); }));
  choose(0);
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("[data-filter]").forEach(makeFilterable);
metricPlots();
costPlot();
lossCurves();
sampleCards();
redraw();
