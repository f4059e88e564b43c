"use strict";
(() => {  // the library's script has names of its own
// What is on the page comes from the JSON in #data; charts are Vega-Lite specifications whose named data is filled in here.
const page = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const all = [page.source, ...page.points];
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const hidden = { way: new Set(), cache: new Set() };
const cacheOf = (point) => point.cache || "16 bit";
const visible = () => all.filter((point) => !hidden.way.has(point.way) && !hidden.cache.has(cacheOf(point)));
// A score as the measure writes it: with ".4f" four decimals, with ".1%" per cent, else four digits.
const readable = (measure, value) => value === null || value === undefined ? "–"
  : measure.form === ".4f" ? value.toFixed(4)
  : measure.form === ".1%" ? (100 * value).toFixed(1) + "%"
  : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(4)).toString();

function make(tag, text, parent, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  if (parent) parent.append(made);
  return made;
}

function options(select, names, labels) {
  names.forEach((name, i) => { const each = make("option", labels ? labels[i] : name, select); each.value = name; });
}

function table(id, header, rows) {
  const target = at(id);
  target.replaceChildren();
  if (header.length) {
    const line = make("tr", undefined, make("thead", undefined, target));
    header.forEach((name) => make("th", name, line));
  }
  const body = make("tbody", undefined, target);
  rows.forEach(({ cells, kind }) => {
    const line = make("tr", undefined, body, kind);
    cells.forEach((cell) => make("td", cell, line, cell === "does not run it" ? "no" : ""));
  });
}

function config() {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = [style.getPropertyValue("--ink").trim(), style.getPropertyValue("--line").trim()];
  const words = { labelColor: ink, titleColor: ink };
  return {
    background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
    axis: { ...words, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: "normal" },
    legend: { ...words, titleFontWeight: "normal" }, header: words, title: { color: ink }, text: { color: ink },
  };
}

function draw(id, spec, datasets) {
  const whole = { ...spec, datasets, config: config() };
  return vegaEmbed(at(id), whole, { actions: false, renderer: "svg", tooltip: { theme: dark.matches ? "dark" : "light" } });
}

// No point with as few bytes is better: walk from the smallest cache up, and keep what beats everything before it.
function frontier(measure) {
  const found = new Set();
  let best = null;
  const known = (point) => Number.isFinite(point.scores[measure.name]);
  const ordered = visible().filter(known).sort((a, b) => a.kv_bytes - b.kv_bytes
    || (measure.lower ? 1 : -1) * (a.scores[measure.name] - b.scores[measure.name]));
  for (const point of ordered) {
    const score = point.scores[measure.name];
    if (best === null || (measure.lower ? score < best : score > best)) { best = score; found.add(point.name); }
  }
  return found;
}

function measure() { return page.measures.find((each) => each.name === at("measure").value); }

function drawQuality() {
  const chosen = measure(), kept = frontier(chosen), spec = structuredClone(page.charts.quality);
  const log = at("log").checked;
  const points = visible().map((point) => ({
    name: point.name, way: point.way, cache: cacheOf(point), kib: point.kv_bytes / 1024, bytes: Math.round(point.kv_bytes),
    ratio: point.kv_ratio, score: point.scores[chosen.name], shown: readable(chosen, point.scores[chosen.name]),
    frontier: kept.has(point.name),
  })).filter((point) => Number.isFinite(point.score) && (!log || point.score > 0));
  spec.layer.forEach((layer) => {
    layer.encoding.y.title = chosen.label;
    layer.encoding.y.scale = log ? { type: "log", nice: false, padding: 20 } : { zero: false, nice: true };
  });
  draw("quality", spec, { points });
  const header = ["checkpoint", "KV bytes/token", "of the source", ...page.measures.map((each) => each.title)];
  table("table", header, visible().map((point) => ({
    kind: kept.has(point.name) ? "frontier" : "",
    cells: [point.name, Math.round(point.kv_bytes).toLocaleString("en"), (100 * point.kv_ratio).toFixed(1) + " %",
      ...page.measures.map((each) => readable(each, point.scores[each.name]))],
  })));
}

function drawFits() {
  const engine = page.engines.find((each) => each.name === at("engine").value);
  const [context, batch, memory] = ["context", "batch", "memory"].map((id) => Math.max(0, Number(at(id).value)));
  const rounded = Math.ceil(context / engine.rounds_to) * engine.rounds_to;
  const gib = 2 ** 30;
  const rows = visible().filter((point) => point.name in engine.elements).map((point) => {
    const bytes = engine.elements[point.name];
    if (bytes === null) return { cells: [point.name, "does not run it", "", "", ""] };
    const needed = bytes * rounded * batch / gib;
    const longest = batch ? Math.floor(memory * gib / bytes / batch / engine.rounds_to) * engine.rounds_to : 0;
    const sequences = rounded ? Math.floor(memory * gib / bytes / rounded) : 0;
    return { cells: [point.name, Math.round(bytes).toLocaleString("en"), needed.toFixed(2) + " GiB",
      longest.toLocaleString("en"), sequences.toLocaleString("en")] };
  });
  table("fits", ["checkpoint", "bytes/token", "cache at this context", "longest context that fits",
    "sequences of this context that fit"], rows);
}

function drawHeads() {
  const point = page.points.find((each) => each.name === at("shown").value);
  const heads = [], layers = [];
  point.layers.forEach((layer, order) => [["keys", layer.key, layer.key_error], ["values", layer.value, layer.value_error]]
    .forEach(([side, labels, error]) => {
      layers.push({ layer: layer.layer, order, side, kept: new Set(labels).size, error });
      labels.forEach((group, head) => heads.push({ layer: layer.layer, order, side, head, group, error }));
    }));
  draw("groups", page.charts.groups, { heads });
  draw("kept", page.charts.kept, { layers });
  draw("errors", page.charts.errors, { layers });
}

function drawAlike() {
  const found = page.similarities.find((each) => each.layer === at("layer").value && each.side === at("side").value);
  const order = found.leaves.length ? found.leaves : found.matrix.map((_, head) => head);
  const pairs = order.flatMap((a) => order.map((b) => ({ a, b, value: found.matrix[a][b] })));
  draw("alike", page.charts.alike, { pairs });
  const brackets = found.tree.flatMap(([x, y], bracket) => x.map((place, step) => ({
    bracket, at: place, step, distance: y[step] })));
  const leaves = order.map((head, place) => ({ head, at: 10 * place + 5 }));
  draw("tree", page.charts.tree, { brackets, leaves });
}

function drawAll() {
  drawQuality();
  if (page.points.some((point) => point.layers.length)) drawHeads();
  if (page.similarities.length) drawAlike();
}

// A box for each way, or for each type of cache: what is switched off leaves chart, tables and frontier.
function switches(id, kind, names) {
  names.forEach((name) => {
    const label = make("label", undefined, at(id)), box = make("input", undefined, label);
    Object.assign(box, { type: "checkbox", checked: true });
    label.append(" " + name);
    box.addEventListener("change", () => {
      box.checked ? hidden[kind].delete(name) : hidden[kind].add(name);
      drawQuality();
      if (page.engines.length) drawFits();
    });
  });
}

function fill() {
  at("title").textContent = page.title;
  at("about").textContent = page.about.join(" · ");
  at("note").textContent = page.note;
  options(at("measure"), page.measures.map((each) => each.name), page.measures.map((each) => each.title));
  at("log").checked = page.measures[0].log;
  switches("ways", "way", [...new Set(page.points.map((point) => point.way))]);
  const caches = [...new Set(all.map(cacheOf))];
  if (caches.length > 1) switches("caches", "cache", caches);
  at("measure").addEventListener("change", () => { at("log").checked = measure().log; drawQuality(); });
  at("log").addEventListener("change", drawQuality);
  if (page.engines.length) {
    options(at("engine"), page.engines.map((each) => each.name));
    ["engine", "context", "batch", "memory"].forEach((id) => at(id).addEventListener("input", drawFits));
    drawFits();
  } else at("calculator").remove();
  const converted = page.points.filter((point) => point.layers.length);
  if (converted.length) {
    options(at("shown"), converted.map((point) => point.name));
    at("shown").addEventListener("change", drawHeads);
  } else at("heads-section").remove();
  if (page.similarities.length) {
    options(at("layer"), [...new Set(page.similarities.map((each) => each.layer))]);
    ["layer", "side"].forEach((id) => at(id).addEventListener("change", drawAlike));
  } else at("alike-section").remove();
  if (page.prompt) {
    at("prompt").textContent = page.prompt;
    all.filter((point) => point.text).forEach((point) => {
      if (!point.cache) make("dt", point.name, at("texts"));
      const plain = all.find((each) => !each.cache && `${each.name}, ${point.cache}` === point.name);
      const text = plain?.text === point.text ? "the same" : point.text.trim().replace(/\s*\n\s*/g, " ⏎ ");
      const line = make("dd", undefined, at("texts"));  // blank lines say nothing
      if (point.cache) make("b", point.cache + " ", line);
      line.append(text);
    });
  } else at("texts-section").remove();
  table("settings", [], Object.entries(page.settings).map((cells) => ({ cells })));
  at("commands").textContent = page.points.map((point) => point.command).filter(Boolean).join("\n");
  if (!at("commands").textContent) at("again").remove();
}

fill();
drawAll();
dark.addEventListener("change", drawAll);
})();
