// One case at a time: heat maps drawn from their grids, filters, keys, downloads. Nothing is ever set as markup.
"use strict";
const { cases, pictures, thumbs, flat, measures, notice, summary } = JSON.parse(document.getElementById("data").textContent);
// Eighteen equally spaced colours of matplotlib's maps (CC0), which keep their order for every eye and in grey; linear between.
const MAPS = {
  cividis: "00224e 002d68 163770 2e416d 3f4c6c 4e566c 5c616e 696b71 767676 838179 928c78 a09875 afa471 bfb06b cfbd62 dfca57 f0d846 fee838",
  viridis: "440154 481769 472a7a 433d84 3d4e8a 355e8d 2e6d8e 297b8e 23898e 1f978b 21a585 2eb37c 46c06f 65cb5e 89d548 b0dd2f d8e219 fde725",
  magma: "000004 090720 1a1042 311165 4a1079 621980 792282 912b81 aa337d c23b75 d9466b ec5860 f7725c fc8e64 feaa74 fec68a fde2a3 fcfdbf",
};
const $ = (id) => document.getElementById(id);
const filters = Array.from(document.querySelectorAll("select[data-filter]"));
let found = [];
let at = 0; // place in found
let step = -1;
let drawn = []; // [canvas, its heat map] on the screen
let cells = []; // [cell, its cosine] of the matrix

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function words(value, digits = 3) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

// --- colours ---

function table(name) {
  const stops = MAPS[name].split(" ").map((hex) => [0, 2, 4].map((from) => parseInt(hex.slice(from, from + 2), 16)));
  return Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (stops.length - 1);
    const from = Math.min(Math.floor(place), stops.length - 2);
    return stops[from].map((low, channel) => Math.round(low + (stops[from + 1][channel] - low) * (place - from)));
  });
}

// Relative luminance as WCAG 2 has it; above EVEN black reads better than white.
const EVEN = 0.179;
function luminance(channels) {
  const [r, g, b] = channels.map((channel) => (channel <= 10 ? channel / 255 / 12.92 : ((channel / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function colour(colours, value, [low, high]) {
  const share = high > low ? (value - low) / (high - low) : 0.5;
  return colours[Math.round(255 * Math.min(1, Math.max(0, share)))];
}

function values(heat) {
  const levels = Uint8Array.from(atob(heat.levels), (letter) => letter.charCodeAt(0));
  return Array.from(levels, (level) => heat.low + ((heat.high - heat.low) * level) / 255);
}

function ends(some) {
  const maps = some.flatMap((one) => one.steps.flatMap((each) => each.heat)).filter(Boolean);
  return maps.length ? [Math.min(...maps.map((heat) => heat.low)), Math.max(...maps.map((heat) => heat.high))] : null;
}

const whole = ends(cases);

function scale() {
  if ($("scale").value === "full") return [-1, 1];
  return $("scale").value === "page" ? whole : ends([cases[found[at]]]);
}

function paint() {
  document.body.style.setProperty("--heat", String($("opacity").value / 100));
  $("percent").textContent = `${$("opacity").value} %`;
  document.body.classList.toggle("outlines", $("outlines").checked);
  if (!found.length) return;
  const colours = table($("map").value);
  const own = ends([cases[found[at]]]);
  $("looks").hidden = !own;
  for (const [cell, value] of cells) {
    const [r, g, b] = colour(colours, value, [-1, 1]);
    cell.style.background = `rgb(${r} ${g} ${b})`;
    cell.style.color = luminance([r, g, b]) > EVEN ? "#000" : "#fff";
  }
  if (!own) return;
  const range = scale();
  for (const [canvas, heat] of drawn) {
    const image = new ImageData(heat.columns, heat.rows);
    values(heat).forEach((value, place) => image.data.set([...colour(colours, value, range), 255], 4 * place));
    canvas.getContext("2d").putImageData(image, 0, 0);
  }
  const bar = new ImageData(256, 1);
  colours.forEach((one, place) => bar.data.set([...one, 255], 4 * place));
  $("legend").getContext("2d").putImageData(bar, 0, 0);
  $("low").textContent = words(range[0]);
  $("high").textContent = words(range[1]);
  $("legend").setAttribute("aria-label", `colours from cosine ${words(range[0])} to ${words(range[1])}`);
  const narrow = own[1] - own[0] < flat ? " All maps of this case are flat: they hardly differ, whatever their colours." : "";
  $("range").textContent = `Cosine of each patch with the projected latent. This case: ${words(own[0])} to ${words(own[1])}.${narrow}`;
}

// --- a case ---

function figure(image, caption, withOutline) {
  const made = element("figure");
  const { src, width, height } = pictures[image.picture];
  made.append(Object.assign(element("img"), { src, width, height, alt: image.alt }));
  if (image.outline && withOutline) {
    made.append(Object.assign(element("img", undefined, "outline"), { src: image.outline, alt: "outline of the marked region" }));
  }
  made.append(element("figcaption", caption));
  return made;
}

function peak(heat) {
  const place = atob(heat.levels).split("").findIndex((letter) => letter.charCodeAt(0) === 255);
  return place < 0 ? "" : `, highest in row ${Math.floor(place / heat.columns) + 1}, column ${(place % heat.columns) + 1} of ${heat.rows} × ${heat.columns}`;
}

function map(one, each, number, place) {
  const heat = each.heat[place];
  const image = one.images[place];
  const of = one.images.length > 1 ? `, image ${place + 1}` : "";
  if (!heat) return [element("p", `Not drawn${of}: this map holds values that are no numbers.`, "flat")];
  const made = figure({ ...image, outline: (place === 0 && each.outline) || image.outline }, `z${number}${of}`, true);
  const canvas = Object.assign(element("canvas"), { width: heat.columns, height: heat.rows });
  const range = `cosine ${words(heat.low)} to ${words(heat.high)}`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `heat map of step ${number} over the ${image.alt}: ${range}${peak(heat)}`);
  made.firstChild.after(canvas);
  drawn.push([canvas, heat]);
  const parts = [made, element("p", `${range}${of}`, "notice")];
  if (heat.high - heat.low < flat) {
    parts.push(element("p", `Flat: all patches lie within ${words(heat.high - heat.low)}, so where it is brightest means little.`, "flat"));
  }
  return parts;
}

function rows(pairs) {
  return pairs.map(([name, value]) => {
    const row = element("tr");
    row.append(Object.assign(element("th", name), { scope: "row" }), element("td", value));
    return row;
  });
}

function facts(each, number) {
  const said = (value) => (typeof value === "boolean" ? (value ? "hit" : "miss") : words(value));
  const scores = measures.filter(([name]) => name in each.scores).map(([name, label]) => [label, said(each.scores[name])]);
  const made = element("table", undefined, "facts");
  made.append(...rows([...scores, [`length of z${number}`, words(each.norm, 2)]]));
  return made;
}

function similar(near) {
  const item = element("li");
  const name = `${near.id}, step ${near.step}`;
  const source = thumbs[near.thumb];
  if (source) item.append(Object.assign(element("img"), { src: source, alt: `similar case ${name}` }));
  else item.append(element("span", "no picture here", "blank"));
  const said = element("div");
  said.append(element("b", `${near.label || near.id}, cosine ${words(near.cosine, 2)}`));
  if (near.text) said.append(element("p", near.text));
  item.append(said);
  item.title = name;
  return item;
}

function card(one, each, number) {
  const article = element("article");
  article.tabIndex = -1;
  article.setAttribute("aria-label", `step ${number} of ${one.steps.length}`);
  article.append(element("h2", `Step ${number}`));
  const maps = element("div", undefined, "maps");
  maps.append(...each.heat.flatMap((_, place) => map(one, each, number, place)));
  if (!each.heat.length) maps.append(element("p", "No heat map: this model has no visual projector. Do not rely on the text alone.", "flat"));
  article.append(maps, element("h2", "Reads"), element("p", each.text || "(no text decoder)", "text"));
  if (each.gold) article.append(element("h2", "Gold sentence"), element("p", each.gold, "text"));
  article.append(element("h2", "Numbers"), facts(each, number));
  if (each.similar.length) {
    const near = element("ul", undefined, "similar");
    near.append(...each.similar.map(similar));
    article.append(element("h2", "Similar cases"), near);
  }
  article.addEventListener("focusin", () => { step = number - 1; });
  return article;
}

function part(title, lines) {
  const made = element("div");
  made.append(element("h2", title), ...lines);
  return made;
}

function likely(one) {
  if (one.log_prob === null) return "log-probability: not a finite number";
  const each = Math.exp(one.log_prob / Math.max(1, one.tokens));
  const plural = one.tokens === 1 ? "token" : "tokens";
  return `log-probability ${words(one.log_prob, 2)} nats over ${one.tokens} ${plural} (${words(each, 2)} per token, geometric mean)`;
}

function matrix(one) {
  cells = [];
  const head = element("tr");
  head.append(element("td"), ...one.steps.map((_, place) => Object.assign(element("th", `z${place + 1}`), { scope: "col" })));
  const rows = one.similarity.map((line, place) => {
    const row = element("tr");
    row.append(Object.assign(element("th", `z${place + 1}`), { scope: "row" }), ...line.map((value) => {
      const cell = element("td", words(value, 2));
      if (value !== null) cells.push([cell, value]);
      return cell;
    }));
    return row;
  });
  const last = element("tr");
  last.append(Object.assign(element("th", "length"), { scope: "row" }), ...one.steps.map((each) => element("td", words(each.norm, 2))));
  $("matrix").replaceChildren(head, ...rows, last);
}

function render() {
  $("case").hidden = !found.length;
  $("none").hidden = found.length > 0;
  $("previous").disabled = at === 0;
  $("next").disabled = at >= found.length - 1;
  const right = found.filter((place) => cases[place].verdict === "right").length;
  const judged = found.filter((place) => cases[place].verdict !== "not judged").length;
  $("shown").textContent = found.length ? `${at + 1} of ${found.length}${judged ? `, ${right} of ${judged} right` : ""}` : "none";
  drawn = [];
  step = -1;
  if (!found.length) { paint(); return; }
  const one = cases[found[at]];
  $("which").value = String(found[at]);
  const kinds = [one.modality, one.question_type].filter((value) => value !== "none");
  $("title").textContent = [one.id, ...kinds, `${one.steps.length} latent step${one.steps.length === 1 ? "" : "s"}`].join(" · ");
  const mark = { right: "✓ right", wrong: "✗ wrong" }[one.verdict] || "not judged";
  $("asked").replaceChildren(
    part("Question", [element("p", one.question, "text")]),
    part("Answer", [
      element("p", one.answer || "(empty)", "text answer"),
      element("p", mark, `verdict ${one.verdict}`),
      element("p", likely(one), "notice"),
      ...(one.complete ? [] : [element("p", "Cut: the answer did not end.", "flat")]),
    ]),
    part("Gold answer", [element("p", one.gold || "unknown", "text")]),
  );
  // The original stays bare, so that it can be looked at beside the marks, unless there is no map to mark.
  const bare = one.steps.some((each) => each.heat.length);
  $("originals").replaceChildren(...one.images.map((image) => figure(image, bare ? "original" : "image", !bare)));
  $("steps").replaceChildren(...one.steps.map((each, place) => card(one, each, place + 1)));
  if (!one.steps.length) $("steps").append(element("p", "No latent steps: the model answered at once, so there is nothing to read."));
  matrix(one);
  $("against").hidden = !one.steps.length;
  $("outlines").disabled = ![...one.images, ...one.steps].some((part) => part.outline);
  $("metadata").replaceChildren(...rows(one.metadata));
  paint();
}

// --- moving ---

function filter() {
  const before = cases[found[at]];
  found = cases.map((_, place) => place).filter((place) => filters.every((each) => !each.value || cases[place][each.dataset.filter] === each.value));
  at = Math.max(0, found.findIndex((place) => cases[place] === before));
  $("which").replaceChildren(...found.map((place) => {
    const option = element("option", `${place + 1}. ${cases[place].id}`);
    option.value = String(place);
    return option;
  }));
  $("which").disabled = !found.length;
  render();
}

function go(to) {
  if (to < 0 || to >= found.length || to === at) return;
  at = to;
  render();
}

function turn(by) {
  go(at + by);
  $("title").focus({ preventScroll: true });
  $("title").scrollIntoView({ block: "start" });
}

function walk(by) {
  const cards = $("steps").querySelectorAll("article");
  const target = cards[Math.min(Math.max(step + by, 0), cards.length - 1)];
  if (!target) return;
  target.focus({ preventScroll: true });
  target.scrollIntoView({ block: "nearest" });
}

// --- downloads ---

function save(text, kind, name) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function asJson() {
  const kept = found.map((place) => {
    const { images, metadata, steps, ...one } = cases[place];
    return {
      ...one,
      metadata: Object.fromEntries(metadata),
      steps: steps.map((each) => ({
        ...each,
        heat: each.heat.map((heat) => heat && { rows: heat.rows, columns: heat.columns, values: values(heat).map((value) => Number(value.toFixed(4))) }),
        similar: each.similar.map(({ thumb, ...near }) => near),
      })),
    };
  });
  save(JSON.stringify({ notice, summary, cases: kept }, null, 1), "application/json", "explanations.json");
}

function field(value) {
  if (value === null || value === undefined) return "";
  // A text that starts like a formula would run as one in a spreadsheet.
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function asCsv() {
  const names = measures.map(([name]) => name);
  const head = ["id", "modality", "question_type", "question", "answer", "gold_answer", "verdict", "log_prob", "tokens", "complete",
    "step", "text", "gold_text", "norm", ...names, "image", "cosine_low", "cosine_high", "nearest", "nearest_cosine"];
  const lines = found.flatMap((place) => {
    const one = cases[place];
    const start = [one.id, one.modality, one.question_type, one.question, one.answer, one.gold, one.verdict, one.log_prob, one.tokens, one.complete];
    if (!one.steps.length) return [start];
    return one.steps.flatMap((each, number) => {
      const maps = each.heat.length ? each.heat : [null];
      const near = each.similar[0] || {};
      return maps.map((heat, image) => [...start, number + 1, each.text, each.gold, each.norm, ...names.map((name) => each.scores[name]),
        each.heat.length ? image + 1 : null, heat && heat.low, heat && heat.high, near.id, near.cosine]);
    });
  });
  // The mark at the start tells spreadsheets that this is UTF-8.
  save("\ufeff" + [head, ...lines].map((line) => head.map((_, place) => field(line[place])).join(",")).join("\r\n") + "\r\n", "text/csv", "explanations.csv");
}

$("map").append(...Object.keys(MAPS).map((name) => element("option", name)));
for (const name of ["opacity", "map", "scale", "outlines"]) $(name).addEventListener("input", paint);
filters.forEach((each) => each.addEventListener("change", filter));
$("which").addEventListener("change", () => go(found.indexOf(Number($("which").value))));
$("previous").addEventListener("click", () => go(at - 1));
$("next").addEventListener("click", () => go(at + 1));
$("json").addEventListener("click", asJson);
$("csv").addEventListener("click", asCsv);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { document.activeElement.blur(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || (/INPUT|SELECT/.test(event.target.tagName) && event.target.type !== "checkbox")) return;
  if (event.key === "j" || event.key === "ArrowRight") turn(1);
  else if (event.key === "k" || event.key === "ArrowLeft") turn(-1);
  else if (event.key === "n") walk(1);
  else if (event.key === "p") walk(-1);
  else if (event.key === "m" && !$("outlines").disabled) { $("outlines").checked = !$("outlines").checked; paint(); }
  else return;
  event.preventDefault();
});
// What sticks below the header must know its height, which wraps with the window.
new ResizeObserver(() => {
  const header = document.querySelector("header");
  const stuck = getComputedStyle(header).position === "sticky" ? header.offsetHeight : 0;
  document.body.style.setProperty("--top", `${stuck}px`);
}).observe(document.querySelector("header"));
filter();
