"use strict";
// The comparison page: tables that sort and filter, pictures drawn from the page's own data, samples to choose from.
// Without it the tables and all samples stand in the page as they are.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const shown = new Set(data.shown);
const redraws = [];
const FEW = 8;  // rows that nobody needs to filter

// Elements ------------------------------------------------------------------------------------------------

function make(name, attributes = {}, ...inner) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...inner);
  return element;
}

function draw(name, attributes = {}, ...inner) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...inner);
  return element;
}

function choice(label, options, chosen, change) {
  const select = make("select", { onchange: () => change(select.value) });
  options.forEach(([value, text]) => select.append(make("option", { value, selected: value === chosen }, text)));
  return make("label", {}, `${label} `, select);
}

function tick(label, on, change) {
  const box = make("input", { type: "checkbox", checked: on, onchange: () => change(box.checked) });
  return make("label", {}, box, ` ${label}`);
}

// Tables: a head sorts, words filter ----------------------------------------------------------------------

function value(row, column) {
  const cell = row.cells[column];
  const known = cell.dataset.v;
  if (known === undefined) return cell.textContent.trim() === "–" ? null : cell.textContent.trim();
  return known === "" || Number.isNaN(Number(known)) ? known : Number(known);
}

function order(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const down = heads[column].getAttribute("aria-sort") === "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);  // what is missing comes last, either way
    return down ? order(b, a) : order(a, b);
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = make("button", { type: "button", onclick: () => sort(table, column) }, ...head.childNodes);
    head.append(button);
  });
}

function filterable(tools) {
  const table = document.getElementById(tools.dataset.filter);
  if (!table) return;
  const rows = [...table.tBodies[0].rows];
  if (rows.length <= FEW) return;
  const words = rows.map((row) => row.textContent.toLowerCase().replace(/\s+/g, " "));
  const told = make("output", { "aria-live": "polite" });
  const field = make("input", { type: "search", placeholder: "Filter rows", "aria-label": "Filter rows", oninput: filter });
  function filter() {
    const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, i) => { row.hidden = !wanted.every((word) => words[i].includes(word)); });
    const left = rows.filter((row) => !row.hidden).length;
    told.textContent = wanted.length ? `${left} of ${rows.length} rows` : "";
  }
  tools.append(field, told);
  tools.hidden = false;
}

// Which runs are shown --------------------------------------------------------------------------------------

function legend() {
  const chips = data.order.map((index) => make("button", {
    type: "button", class: "chip", "data-run": index,
    onclick: () => toggle(index),
    onpointerenter: () => warm(index), onpointerleave: () => warm(null),
    onfocus: () => warm(index), onblur: () => warm(null),
  }, swatch(index), make("bdi", {}, runs[index].name)));
  const some = make("button", { type: "button", class: "plain", onclick: () => show(data.shown) }, "the first few");
  const all = make("button", { type: "button", class: "plain", onclick: () => show(data.order) }, "all");
  const none = make("button", { type: "button", class: "plain", onclick: () => show([]) }, "none");
  const sets = data.shown.length < runs.length ? [some, all, none] : [all, none];
  const bar = make("div", { class: "legend", role: "group", "aria-label": "Runs shown" });
  bar.append(make("div", { class: "chips" }, ...chips), make("div", { class: "sets" }, "Show ", ...sets));
  redraws.push(() => chips.forEach((chip) => chip.setAttribute("aria-pressed", shown.has(Number(chip.dataset.run)))));
  return bar;
}

function swatch(index) {
  return make("span", { class: `swatch ${runs[index].style}` });
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
  redraws.forEach((one) => one());
}

function warm(index) {
  document.querySelectorAll("svg [data-run]").forEach((part) => {
    part.classList.toggle("cold", index !== null && Number(part.dataset.run) !== index);
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

function said(number) {
  const size = Math.abs(number);
  for (const [limit, letter] of [[1e9, "B"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= limit) return `${Number((number / (limit === 1e4 ? 1e3 : limit)).toPrecision(3))}${letter}`;
  }
  return String(Number(number.toPrecision(4)));
}

function padded(values, share = 0.06) {
  const low = Math.min(...values), high = Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * share;
  return [low - room, high + room];
}

function axes(picture, x, y, box, names) {
  y.ticks(5).forEach((at) => picture.append(
    draw("line", { class: "grid", x1: box.left, x2: box.right, y1: y(at), y2: y(at) }),
    draw("text", { x: box.left - 8, y: y(at) + 4, "text-anchor": "end" }, said(at)),
  ));
  x.ticks(Math.max(3, (box.right - box.left) / 110)).forEach((at) => picture.append(
    draw("line", { class: "tick", x1: x(at), x2: x(at), y1: box.bottom, y2: box.bottom + 5 }),
    draw("text", { x: x(at), y: box.bottom + 19, "text-anchor": "middle" }, said(at)),
  ));
  picture.append(
    draw("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    draw("text", { class: "name", x: (box.left + box.right) / 2, y: box.bottom + 38, "text-anchor": "middle" }, names.x),
    draw("text", { class: "name", x: box.left - 46, y: box.top - 14 }, names.y),
  );
}

function canvas(holder, height, about) {
  const width = Math.max(300, Math.min(1120, holder.clientWidth || 640));
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": about, class: "chart" });
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
  return draw("path", { class: `marker ${filled ? "" : "hollow"}`, d: shape });
}

function titled(text, element) {
  element.append(draw("title", {}, text));
  return element;
}

function cut(text, letters) {
  return text.length > letters ? `${text.slice(0, letters - 1)}…` : text;
}

// A picture: its controls, its drawing, its words -----------------------------------------------------------

function figure(id, { controls = [], note, paint, chips = false }) {
  const frame = document.getElementById(id);
  const holder = make("div", { class: "picture" });
  const caption = make("figcaption", { class: "note" });
  frame.replaceChildren(make("div", { class: "tools" }, ...controls), holder, ...(chips ? [legend()] : []), caption);
  const again = () => { paint(holder); caption.textContent = note(); };
  redraws.push(again);
  new ResizeObserver(() => { if (holder.clientWidth !== holder.drawn) { holder.drawn = holder.clientWidth; again(); } }).observe(holder);
}

function nothing(holder, text) {
  holder.replaceChildren(make("p", {}, text));
}

// Grades with their intervals -------------------------------------------------------------------------------

function grades() {
  if (!data.metrics.length) return nothing(document.getElementById("dots"), "None of the runs was judged.");
  const few = runs.length <= 10 && data.metrics.length > 1;
  const view = { metric: few ? "all" : String(data.ranked) };
  const options = data.metrics.map((metric, i) => [String(i), metric.title]);
  if (data.metrics.length > 1) options.unshift(["all", "all metrics"]);
  figure("dots", {
    controls: options.length > 1 ? [choice("Metric", options, view.metric, (to) => { view.metric = to; redraw(); })] : [],
    paint: (holder) => {
      const chosen = view.metric === "all" ? data.metrics : [data.metrics[Number(view.metric)]];
      const panels = chosen.map((metric) => {
        const panel = make("div", { class: chosen.length > 1 ? "panel" : "" });
        return [metric, panel];
      });
      holder.replaceChildren(make("div", { class: chosen.length > 1 ? "panels" : "" }, ...panels.map(([, panel]) => panel)));
      panels.forEach(([metric, panel]) => dots(panel, metric));
    },
    note: () => "Dots with 95% intervals, in the order of the ranking; the band is the baseline's interval. Full: distinguishable "
      + "from the baseline. Hollow: not distinguishable, or not comparable. Faint: not among the runs shown.",
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
  if (low != null) picture.append(draw("rect", { class: "band", x: x(low), width: Math.max(1, x(high) - x(low)), y: box.top - 6, height: box.bottom - box.top + 6 }));
  x.ticks(Math.max(2, (box.right - box.left) / 90)).forEach((at) => picture.append(
    draw("line", { class: "grid", x1: x(at), x2: x(at), y1: box.top - 6, y2: box.bottom }),
    draw("text", { x: x(at), y: box.bottom + 17, "text-anchor": "middle" }, said(at)),
  ));
  picture.append(draw("text", { class: "name", x: 0, y: 14 }, metric.title, draw("tspan", { class: "soft", dx: 8 }, metric.reads)));
  rows.forEach((index, i) => picture.append(dot(metric, index, x, box.top + step * (i + 0.4), box.left)));
}

function dot(metric, index, x, y, left) {
  const [at, low, high] = metric.values[index];
  const group = draw("g", { class: `${runs[index].style}${shown.has(index) ? "" : " faint"}`, "data-run": index });
  group.append(draw("text", { class: "label", x: left - 12, y: y + 4, "text-anchor": "end" }, cut(runs[index].name, Math.floor((left - 14) / 6.6))));
  if (low !== null) group.append(draw("line", { class: "reach", x1: x(low), x2: x(high), y1: y, y2: y }));
  const sure = index === 0 || metric.verdicts[index] === "better" || metric.verdicts[index] === "worse";
  group.append(marker(index, x(at), y, 4.2, sure));
  return titled(`${runs[index].name}: ${metric.title} ${metric.said[index]}${metric.verdicts[index] ? `, ${metric.verdicts[index]}` : ""}`, group);
}

// Quality against cost --------------------------------------------------------------------------------------

function worth() {
  const frame = document.getElementById("costs");
  if (!data.costs.length || !data.metrics.length) return nothing(frame, "The runs do not differ in any cost that was recorded.");
  const view = { cost: "0", metric: String(data.ranked) };
  figure("costs", {
    controls: [
      choice("Quality", data.metrics.map((metric, i) => [String(i), metric.title]), view.metric, (to) => { view.metric = to; redraw(); }),
      choice("against", data.costs.map((cost, i) => [String(i), cost.title]), view.cost, (to) => { view.cost = to; redraw(); }),
    ],
    paint: (holder) => scatter(holder, data.metrics[Number(view.metric)], data.costs[Number(view.cost)]),
    note: () => `Vertical lines are 95% intervals. The dashed line joins the runs that none beats at the same ${
      speedy(data.costs[Number(view.cost)]) ? "speed or a higher one" : "cost or a lower one"}.`,
  });
}

function speedy(cost) {
  return cost.title.endsWith("/s");
}

function scatter(holder, metric, cost) {
  const known = data.order.filter((index) => metric.values[index] && cost.values[index] !== null);
  if (!known.length) return nothing(holder, "No run has both figures.");
  const [picture, width] = canvas(holder, 380, `${metric.title} against ${cost.title}`);
  const box = { left: 58, right: width - 20, top: 34, bottom: 330 };
  const costs = known.map((index) => cost.values[index]);
  const least = Math.min(...costs), most = Math.max(...costs);
  const x = least > 0 && most / least > 20
    ? logarithmic([least / 1.3, most * 1.3], [box.left, box.right])
    : linear(padded(costs, 0.08), [box.left, box.right]);
  const y = linear(padded(known.flatMap((index) => metric.values[index].filter((at) => at !== null))), [box.bottom, box.top]);
  axes(picture, x, y, box, { x: cost.title, y: `${metric.title} (${metric.better || "neither way"} is better)` });
  if (metric.better) picture.append(draw("path", { class: "front", d: front(known, metric, cost).map((index, i) => `${i ? "L" : "M"}${x(cost.values[index])},${y(metric.values[index][0])}`).join("") }));
  const taken = [];
  known.forEach((index) => picture.append(spot(index, metric, cost, x, y, box, taken)));
}

function front(known, metric, cost) {
  const sign = metric.better === "lower" ? 1 : -1;
  const way = speedy(cost) ? -1 : 1;
  let best = Infinity;
  return [...known]
    .sort((a, b) => way * (cost.values[a] - cost.values[b]) || sign * (metric.values[a][0] - metric.values[b][0]))
    .filter((index) => {
      const better = sign * metric.values[index][0] < best;
      best = Math.min(best, sign * metric.values[index][0]);
      return better;
    });
}

function spot(index, metric, cost, x, y, box, taken) {
  const [at, low, high] = metric.values[index];
  const place = [x(cost.values[index]), y(at)];
  const group = draw("g", { class: `${runs[index].style}${shown.has(index) ? "" : " faint"}`, "data-run": index });
  if (low !== null) group.append(draw("line", { class: "reach", x1: place[0], x2: place[0], y1: y(low), y2: y(high) }));
  group.append(marker(index, ...place, 5));
  if (shown.has(index)) {
    const text = cut(runs[index].name, 26);
    const left = place[0] + 10 + 6.6 * text.length > box.right;
    const label = [left ? place[0] - 10 - 6.6 * text.length : place[0] + 10, place[1] - 7, 6.6 * text.length];
    while (taken.some((other) => Math.abs(other[1] - label[1]) < 13 && label[0] < other[0] + other[2] && other[0] < label[0] + label[2])) label[1] -= 13;
    taken.push(label);
    if (label[1] > box.top - 8) group.append(draw("text", { class: "label", x: left ? place[0] - 10 : label[0], y: label[1] + 4, "text-anchor": left ? "end" : "start" }, text));
  }
  return titled(`${runs[index].name}: ${metric.title} ${metric.said[index]}, ${cost.title} ${cost.said[index]}`, group);
}

// Loss curves -----------------------------------------------------------------------------------------------

function learning() {
  const drawn = runs.some((run) => run.training.length || run.validation.length);
  if (!drawn) return nothing(document.getElementById("curves"), "No training step was recorded.");
  const view = { by: "steps", training: true, validation: true, whole: false };
  const controls = [
    tick("validation", true, (on) => { view.validation = on; redraw(); }),
    tick("training", true, (on) => { view.training = on; redraw(); }),
    tick("from the first step", false, (on) => { view.whole = on; redraw(); }),
  ];
  if (runs.some((run) => run.tokens_a_step)) {
    controls.unshift(choice("Over", [["steps", "steps"], ["tokens", "training tokens"]], "steps", (to) => { view.by = to; redraw(); }));
  }
  figure("curves", {
    controls,
    chips: true,
    paint: (holder) => curves(holder, view),
    note: () => `Strong, with markers: validation. Faint: training${thinned()}; where a mixer was used, the part of its loss that is the `
      + `cross-entropy with the text. ${view.whole ? "" : "The picture is as high as the curves after their first fifth. "}Losses over `
      + "different tokenizers do not compare; bits per byte do.",
  });
}

function thinned() {
  const each = Math.max(...runs.map((run) => run.each));
  return each > 1 ? `, each point the mean of up to ${each} logged steps` : "";
}

function curves(holder, view) {
  const scaled = (run, points) => points.map(([step, loss]) => [view.by === "tokens" ? step * (run.tokens_a_step || NaN) : step, loss]).filter(([at]) => !Number.isNaN(at));
  const lines = data.order.filter((index) => shown.has(index)).flatMap((index) => [
    ...(view.training ? [{ index, kind: "training", points: scaled(runs[index], runs[index].training) }] : []),
    ...(view.validation ? [{ index, kind: "validation", points: scaled(runs[index], runs[index].validation) }] : []),
  ]).filter((line) => line.points.length);
  if (!lines.length) return nothing(holder, "No curve is chosen. Choose runs below.");
  const [picture, width] = canvas(holder, 420, "Loss over training");
  const roomy = width > 640 && shown.size <= 10;
  const box = { left: 52, right: width - (roomy ? 170 : 16), top: 34, bottom: 370 };
  const losses = lines.flatMap(({ points }) => settled(points, view).map(([, loss]) => loss));
  const x = linear([0, Math.max(...lines.flatMap(({ points }) => points.map(([at]) => at)))], [box.left, box.right]);
  const y = linear(padded(losses, 0.04), [box.bottom, box.top]);
  axes(picture, x, y, box, { x: view.by === "tokens" ? "training tokens" : "step", y: "nats a token" });
  picture.append(draw("clipPath", { id: "inside" }, draw("rect", { x: box.left, y: box.top - 8, width: box.right - box.left + 8, height: box.bottom - box.top + 8 })));
  lines.forEach((line) => picture.append(curve(line, x, y)));
  if (roomy) ends(picture, lines, x, y, box);
}

function settled(points, view) {
  const later = points.filter(([at]) => view.whole || at >= points[points.length - 1][0] / 5);
  return later.length ? later : points;
}

function curve({ index, kind, points }, x, y) {
  const group = draw("g", { class: `${runs[index].style} ${kind}`, "data-run": index, "clip-path": "url(#inside)" });
  group.append(draw("path", { class: "line", d: points.map(([at, loss], i) => `${i ? "L" : "M"}${x(at).toFixed(1)},${y(loss).toFixed(1)}`).join("") }));
  if (kind === "validation" && points.length <= 40) points.forEach(([at, loss]) => group.append(marker(index, x(at), y(loss), 3.4)));
  const [at, loss] = points[points.length - 1];
  return titled(`${runs[index].name}: ${kind} loss ${said(loss)} at ${said(at)}`, group);
}

function ends(picture, lines, x, y, box) {
  const last = new Map();
  lines.forEach(({ index, points }) => last.set(index, points[points.length - 1]));
  const labels = [...last].map(([index, [, loss]]) => ({ index, y: Math.min(y(loss), box.bottom) })).sort((a, b) => a.y - b.y);
  labels.forEach((label, i) => { if (i) label.y = Math.max(label.y, labels[i - 1].y + 15); });
  const over = labels.length ? labels[labels.length - 1].y - box.bottom : 0;
  labels.reverse().forEach((label, i) => { label.y = i ? Math.min(label.y, labels[i - 1].y - 15) : label.y - Math.max(0, over); });
  labels.forEach(({ index, y: at }) => picture.append(draw("g", { class: `${runs[index].style} end`, "data-run": index },
    draw("text", { class: "label", x: box.right + 12, y: at + 4 }, cut(runs[index].name, 24)))));
}

// Samples side by side --------------------------------------------------------------------------------------

function samples() {
  const sections = [...document.querySelectorAll("section.prompt")];
  if (!sections.length) return;
  const tools = document.getElementById("choose");
  const texts = sections.map((section) => section.querySelector("h3").textContent.replace(/\s+/g, " "));
  const select = make("select", { id: "prompt", onchange: () => choose(Number(select.value)) });
  select.append(...texts.map((text, i) => make("option", { value: i }, `${i + 1}. ${cut(text, 70)}`)));
  const choose = (index) => {
    select.value = String((index + sections.length) % sections.length);
    sections.forEach((section, i) => { section.hidden = i !== Number(select.value); });
  };
  const by = (step, text, about) => make("button", { type: "button", class: "plain", "aria-label": about, onclick: () => choose(Number(select.value) + step) }, text);
  tools.append(make("label", { for: "prompt" }, "Prompt"), select, by(-1, "‹ previous", "previous prompt"), by(1, "next ›", "next prompt"));
  tools.after(legend());
  tools.hidden = false;
  redraws.push(() => document.querySelectorAll(".card").forEach((card) => { card.hidden = !shown.has(Number(card.dataset.run)); }));
  choose(0);
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("[data-filter]").forEach(filterable);
grades();
worth();
learning();
samples();
redraw();
