"use strict";
const all = JSON.parse(document.getElementById("results").textContent);
const byId = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Okabe and Ito: told apart by colour-blind readers. Shapes differ as well.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b"];
const percent = (share) => share === null ? "–" : (100 * share).toFixed(1) + " %";
const epsilon = (point) => point.epsilon === null ? "∞" : point.epsilon === 0 ? "0" : point.epsilon.toFixed(2);
const figure = (row) => `${row.figure} ${row.value.toFixed(3)} (${row.low.toFixed(3)} to ${row.high.toFixed(3)})`;
const strongest = (point) => point.strongest ? `${point.strongest.attack}: ${figure(point.strongest)}` : "not attacked";
const element = (tag, text, into) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (into) into.append(made);
  return made;
};
let shown = [], chosen = null, plots = [];

function choices(id, key) {
  const select = byId(id);
  const values = [...new Set(all.map((point) => point[key]))].sort();
  for (const value of ["all", ...values]) element("option", value, select).value = value;
  select.addEventListener("change", draw);
}

/* Points of different networks or data do not compare: first those of most modes, of attacked ones before others. */
function first(key, points) {
  const modes = (value, of) => new Set(points.filter((point) => point[key] === value && of(point)).map((point) => point.mode)).size;
  const worth = (value) => 100 * modes(value, (point) => point.strongest) + modes(value, () => true);
  return [...new Set(points.map((point) => point[key]))].sort((a, b) => worth(b) - worth(a))[0] ?? "all";
}

/* One colour and shape for a mode at all its settings. */
const names = [...new Set(all.map((point) => family(point)))].sort();
function family(point) { return point.mode.split(/[@ ]/)[0]; }

function wide() { return Math.max(280, byId("points").clientWidth); }

function axes(x, y) {
  const axis = (label) => ({ label, stroke: colour("--text"), grid: { stroke: colour("--line"), width: .5 }, ticks: { stroke: colour("--line") } });
  return [axis(x), axis(y)];
}

/* Labels beside points, moved down or up until none lies over another; one that finds no place is left to the table. */
function label(plot) {
  const { ctx } = plot, ratio = devicePixelRatio, taken = [];
  ctx.save();
  ctx.textAlign = "left";
  ctx.textBaseline = "alphabetic";
  ctx.font = `${12 * ratio}px system-ui, sans-serif`;
  ctx.fillStyle = colour("--text");
  const { left, top, width, height } = plot.bbox;
  const free = (box) => box.x >= left && box.y >= top && box.y + box.h <= top + height && box.x + box.w <= left + width
    && taken.every((t) => box.x + box.w < t.x || t.x + t.w < box.x || box.y + box.h < t.y || t.y + t.h < box.y);
  const at = shown.map((point) => ({ point, x: plot.valToPos(point.trusted_seconds, "x", true), y: plot.valToPos(100 * (point.accuracy ?? 0), "y", true) }));
  at.forEach(({ x, y }) => taken.push({ x: x - 5 * ratio, y: y - 5 * ratio, w: 10 * ratio, h: 10 * ratio }));
  plot.labels = [];
  const said = new Set();
  for (const { point, x, y } of at) {
    const text = `${point.mode} ε ${epsilon(point)}`, key = [text, point.network, point.data].join();
    // Of seeds, one is labelled.
    if (said.has(key)) continue;
    const w = ctx.measureText(text).width, h = 14 * ratio;
    const places = [];
    for (const step of [0, 1, -1, 2, -2, 3, -3]) for (const side of [8 * ratio, -w - 8 * ratio]) places.push({ x: x + side, y: y - h / 2 + step * h, w, h });
    const box = places.find(free);
    if (!box) continue;
    taken.push(box);
    said.add(key);
    plot.labels.push({ text, ...box });
    ctx.fillText(text, box.x, box.y + h - 3 * ratio);
  }
  ctx.restore();
}

function marks(plot) {
  const { ctx } = plot, ratio = devicePixelRatio;
  for (const point of shown) {
    const i = names.indexOf(family(point));
    const x = plot.valToPos(point.trusted_seconds, "x", true), y = plot.valToPos(100 * (point.accuracy ?? 0), "y", true), r = 5 * ratio;
    ctx.fillStyle = COLOURS[i % COLOURS.length];
    ctx.beginPath();
    if (i % 3 === 0) ctx.arc(x, y, r, 0, 2 * Math.PI);
    else if (i % 3 === 1) ctx.rect(x - r, y - r, 2 * r, 2 * r);
    else { ctx.moveTo(x, y - r); ctx.lineTo(x + r, y + r); ctx.lineTo(x - r, y + r); ctx.closePath(); }
    ctx.fill();
  }
}

function hover(plot) {
  const tip = byId("tip");
  const near = (event) => {
    const box = plot.over.getBoundingClientRect();
    const away = (point) => Math.hypot(plot.valToPos(point.trusted_seconds, "x") - event.clientX + box.left, plot.valToPos(100 * (point.accuracy ?? 0), "y") - event.clientY + box.top);
    const nearest = shown.map((point) => [away(point), point]).sort((a, b) => a[0] - b[0])[0];
    return nearest && nearest[0] < 20 ? nearest[1] : null;
  };
  plot.over.addEventListener("mousemove", (event) => {
    const point = near(event);
    tip.hidden = !point;
    if (!point) return;
    tip.textContent = `${point.mode}, ${point.network}: ${percent(point.accuracy)}, ${point.trusted_seconds.toFixed(1)} s trusted, ε ${epsilon(point)}. Strongest attack: ${strongest(point)}`;
    tip.style.left = Math.min(event.pageX + 14, document.documentElement.clientWidth - 300) + "px";
    tip.style.top = event.pageY + 14 + "px";
  });
  plot.over.addEventListener("mouseleave", () => { tip.hidden = true; });
  plot.over.addEventListener("click", (event) => { const point = near(event); if (point) choose(point); });
}

function range(values, least) {
  const low = Math.min(...values, least), high = Math.max(...values, least + 1);
  const room = (high - low) * .08;
  return [low - room, high + room];
}

function drawPoints() {
  const order = [...shown].sort((a, b) => a.trusted_seconds - b.trusted_seconds);
  shown = order;
  byId("points").replaceChildren();
  if (!order.length) return;
  const xs = order.map((point) => point.trusted_seconds), ys = order.map((point) => 100 * (point.accuracy ?? 0));
  const options = {
    width: wide(), height: 420, legend: { show: false }, cursor: { drag: { x: false, y: false }, points: { show: false } },
    scales: { x: { time: false, range: range(xs, 0) }, y: { range: range(ys, Math.min(...ys)) } },
    axes: axes("seconds of the trusted part in training", "test accuracy %"),
    series: [{}, { paths: () => null, points: { show: false } }],
    hooks: { draw: [marks, label], ready: [hover] },
  };
  const plot = new uPlot(options, [xs, ys], byId("points"));
  plots.push(plot);
  window.tradeOff = plot;
}

function drawTable() {
  const head = byId("table").tHead, body = byId("table").tBodies[0];
  head.replaceChildren();
  body.replaceChildren();
  const row = element("tr", undefined, head);
  for (const name of ["mode", "network", "data", "seed", "accuracy", "trusted s", "ε", "strongest attack"]) element("th", name, row).scope = "col";
  for (const point of shown) {
    const row = element("tr", undefined, body);
    row.setAttribute("aria-selected", String(point === chosen));
    const name = element("button", point.mode, element("td", undefined, row));
    name.type = "button";
    name.addEventListener("click", () => choose(point));
    for (const text of [point.network, point.data]) element("td", text, row);
    for (const text of [String(point.seed), percent(point.accuracy), point.trusted_seconds.toFixed(1), epsilon(point)]) element("td", text, row).className = "number";
    element("td", strongest(point), row);
  }
  byId("count").textContent = `${shown.length} of ${all.length} modes`;
}

function lines(into, title, xs, series, x, y) {
  element("h3", title, into);
  const box = element("div", undefined, into);
  box.className = "plot";
  const options = {
    width: Math.min(wide(), 700), height: 260, legend: { show: series.length > 1 }, scales: { x: { time: false } }, axes: axes(x, y),
    series: [{ label: x }, ...series.map((one, i) => ({ label: one.name, stroke: COLOURS[i % COLOURS.length], width: 2, dash: i ? [4 * i, 3] : [] }))],
  };
  plots.push(new uPlot(options, [xs, ...series.map((one) => one.values)], box));
}

function grid(into, title, head, rows) {
  element("h3", title, into);
  const box = element("div", undefined, into);
  box.className = "scroll";
  const table = element("table", undefined, box), top = element("tr", undefined, element("thead", undefined, table)), body = element("tbody", undefined, table);
  for (const name of head) element("th", name, top).scope = "col";
  for (const cells of rows) {
    const row = element("tr", undefined, body);
    for (const cell of cells) element("td", cell, row);
  }
}

function picture(into, size, digits, caption) {
  const bytes = digits.match(/../g).map((pair) => parseInt(pair, 16));
  const box = element("figure", undefined, into), canvas = element("canvas", undefined, box), [height, width] = size, pixels = height * width;
  Object.assign(canvas, { width, height, className: "picture" });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", caption);
  const image = new ImageData(width, height), channels = bytes.length / pixels;
  for (let i = 0; i < pixels; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = bytes[Math.min(c, channels - 1) * pixels + i];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  element("figcaption", caption, box);
}

function choose(point) {
  chosen = point;
  drawTable();
  details();
  byId("details").focus({ preventScroll: true });
}

function details() {
  const into = byId("details"), point = chosen;
  into.replaceChildren();
  if (!point) return;
  element("h2", `${point.mode} on ${point.network}`, into);
  element("p", `Accuracy ${percent(point.accuracy)}, ε ${epsilon(point)}, insecure settings: ${point.insecure.join(", ") || "none"}.`, into);
  if (point.curve.length) lines(into, "Test accuracy by epoch", point.curve.map((at) => at[0]), [{ name: "accuracy %", values: point.curve.map((at) => 100 * at[1]) }], "epoch", "test accuracy %");
  if (point.layers.length) grid(into, "Seconds by layer", ["layer", "trusted", "worker", "waiting"], point.layers.map((layer) => [layer.layer, layer.trusted.toFixed(2), layer.worker.toFixed(2), layer.wait.toFixed(2)]));
  if (point.attacks.length) grid(into, "Attacks", ["attack", "figure", "value and interval of 95 %", "control"], point.attacks.map((row) => [row.attack, row.figure, `${row.value.toFixed(3)} (${row.low.toFixed(3)} to ${row.high.toFixed(3)})`, row.control === "attack" ? "" : row.control]));
  if (point.pictures.length) element("h3", "What an inversion rebuilt", into);
  point.pictures.forEach((one, i) => {
    picture(into, one.size, one.original, `test image ${i + 1}`);
    picture(into, one.size, one.rebuilt, `rebuilt ${i + 1}`);
  });
  element("h3", "Where it comes from", into);
  element("p", point.provenance, into);
  element("code", point.command, into);
}

function draw() {
  plots.forEach((plot) => plot.destroy());
  plots = [];
  const is = (id, value) => byId(id).value === "all" || byId(id).value === value;
  shown = all.filter((point) => is("network", point.network) && is("data", point.data));
  if (!shown.includes(chosen)) chosen = null;
  drawPoints();
  drawTable();
  details();
}

choices("network", "network");
choices("data", "data");
byId("network").value = first("network", all);
byId("data").value = first("data", all.filter((point) => point.network === byId("network").value));
draw();
let waiting = 0;
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(draw, 100); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
