// One record at a time, judged with keys. Verdicts live in this browser until they are downloaded. Nothing is ever set as markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const cards = data.cards;
const key = `vital-audit ${data.fingerprint} ${data.share} ${data.seed} ${data.limit}`;
const $ = (id) => document.getElementById(id);
let verdicts = Object.create(null);
let at = 0;
let saved = true; // whether everything is in a file

function warn(text) {
  $("warning").textContent = text;
  $("warning").hidden = !text;
}

function take(found) {
  for (const card of cards) {
    const given = found && Object.prototype.hasOwnProperty.call(found, card.id) ? found[card.id] : null;
    if (given === "accept" || data.reasons.includes(given)) verdicts[card.id] = given;
  }
}

function keep() {
  saved = false;
  try {
    localStorage.setItem(key, JSON.stringify(verdicts));
  } catch (error) {
    warn("This browser keeps nothing for this page: download the verdicts before you close it.");
  }
}

function fill(list, texts) {
  list.replaceChildren(...texts.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
}

function image(source, alt, size) {
  const made = document.createElement("img");
  made.src = source;
  made.alt = alt;
  made.width = size.width;
  made.height = size.height;
  return made;
}

function show() {
  const card = cards[at];
  $("images").replaceChildren(...card.images.map((part) => {
    const figure = document.createElement("figure");
    const picture = data.pictures[part.picture];
    figure.append(image(picture.src, part.alt, picture));
    if (part.outline) {
      figure.append(image(part.outline, "outline of the mask", picture));
      figure.lastChild.className = "outline";
    }
    return figure;
  }));
  $("where").textContent = `${at + 1} of ${cards.length} · ${card.modality} · ${card.type} · K = ${card.steps} · ${card.split} · ${card.source}`;
  $("id").textContent = card.id;
  $("question").textContent = card.question;
  fill($("options"), card.options);
  fill($("chain"), card.chain);
  $("answer").textContent = (card.gold ? `${card.gold}. ` : "") + card.answer;
  $("metadata").replaceChildren(...card.metadata.map(([name, value]) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.textContent = name;
    const cell = document.createElement("td");
    cell.textContent = value;
    row.append(head, cell);
    return row;
  }));
  asking(false);
  const given = verdicts[card.id];
  $("verdict").textContent = !given ? "no verdict" : given === "accept" ? "accepted" : `rejected: ${given}`;
  $("verdict").className = !given ? "" : given === "accept" ? "accept" : "reject";
  const judged = cards.filter((each) => verdicts[each.id]);
  const accepted = judged.filter((each) => verdicts[each.id] === "accept").length;
  $("progress").value = judged.length;
  const done = judged.length === cards.length ? " All judged: download the verdicts." : "";
  $("tally").textContent = `${judged.length} of ${cards.length} judged, ${accepted} accepted, ${judged.length - accepted} rejected.${done}`;
}

function asking(open) {
  $("reasons").hidden = !open;
  $("reject").setAttribute("aria-expanded", String(open));
}

function go(to) {
  at = Math.min(Math.max(to, 0), cards.length - 1);
  show();
}

function unjudged() {
  for (let step = 1; step <= cards.length; step += 1) {
    const to = (at + step) % cards.length;
    if (!verdicts[cards[to].id]) { go(to); return; }
  }
  show();
}

function judge(verdict) {
  verdicts[cards[at].id] = verdict;
  keep();
  unjudged();
}

function clear() {
  delete verdicts[cards[at].id];
  keep();
  show();
}

function toggle() {
  document.body.classList.toggle("outlines", $("outlines").checked);
}

function download() {
  const about = { format: data.format, format_version: data.format_version, fingerprint: data.fingerprint, share: data.share, seed: data.seed, limit: data.limit };
  const file = new Blob([JSON.stringify({ ...about, verdicts: verdicts }, null, 1)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = `verdicts-${data.fingerprint.slice(0, 8)}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
  saved = true;
}

$("accept").addEventListener("click", () => judge("accept"));
$("reject").addEventListener("click", () => asking($("reasons").hidden));
document.querySelectorAll("[data-reason]").forEach((each) => each.addEventListener("click", () => judge(each.dataset.reason)));
$("clear").addEventListener("click", clear);
$("previous").addEventListener("click", () => go(at - 1));
$("next").addEventListener("click", () => go(at + 1));
$("open").addEventListener("click", unjudged);
$("outlines").addEventListener("change", toggle);
$("download").addEventListener("click", download);
$("load").addEventListener("change", async () => {
  const [file] = $("load").files;
  if (!file) return;
  try {
    const found = JSON.parse(await file.text());
    if (found.fingerprint !== data.fingerprint) { warn(`${file.name} holds verdicts on another set.`); return; }
    take(found.verdicts);
    keep();
    warn("");
    show();
  } catch (error) {
    warn(`${file.name} is not a file of verdicts.`);
  }
});
window.addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.type === "file") return;
  const reason = $("reasons").hidden ? undefined : data.reasons[Number(event.key) - 1];
  if (reason) judge(reason);
  else if (event.key === "a") judge("accept");
  else if (event.key === "r") asking(true);
  else if (event.key === "Escape") asking(false);
  else if (event.key === "c") clear();
  else if (event.key === "u") unjudged();
  else if (event.key === "m") { $("outlines").checked = !$("outlines").checked; toggle(); }
  else if (event.key === "ArrowRight") go(at + 1);
  else if (event.key === "ArrowLeft") go(at - 1);
  else return;
  event.preventDefault();
});
try {
  take(JSON.parse(localStorage.getItem(key) || "null"));
} catch (error) {
  warn("This browser keeps nothing for this page: download the verdicts before you close it.");
}
toggle();
at = cards.length - 1;
unjudged(); // starts at the first without a verdict
