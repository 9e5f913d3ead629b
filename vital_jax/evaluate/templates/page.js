// Filters, search, pages and keys of the page of an evaluation. Nothing is ever set as markup.
"use strict";
const { cards, pictures } = JSON.parse(document.getElementById("data").textContent);
const SIZE = 60;
const place = document.getElementById("cards");
const filters = Array.from(document.querySelectorAll("select[data-filter]"));
const search = document.getElementById("search");
const shown = document.getElementById("shown");
const previous = document.getElementById("previous");
const next = document.getElementById("next");
const words = cards.map((card) => [
  card.id, card.question, card.gold, card.prediction, card.first, ...card.options, ...card.steps, ...card.modality, ...card.question_type,
].join("\n").toLowerCase());
let found = [];
let first = 0;
let current = -1;

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function part(article, title, text, kind) {
  article.append(element("h2", title), element("p", text, kind));
}

function list(article, title, texts, name) {
  if (!texts.length) return;
  const made = element(name);
  made.append(...texts.map((text) => element("li", text)));
  if (title) article.append(element("h2", title));
  article.append(made);
}

function draw(card) {
  const article = element("article");
  article.tabIndex = -1;
  article.setAttribute("aria-label", `question ${card.id}, ${card.correct ? "right" : "wrong"}`);
  article.dataset.correct = card.correct;
  for (const image of card.images) {
    if (image.picture < 0) {
      article.append(element("p", `${image.alt}: not on this page`, "notice"));
      continue;
    }
    const figure = element("figure");
    const made = element("img");
    const { src, width, height } = pictures[image.picture];
    Object.assign(made, { src, width, height, alt: image.alt });
    figure.append(made);
    article.append(figure);
  }
  article.append(element("p", card.id, "id"));
  article.append(element("p", card.correct ? "✓ right" : "✗ wrong", `verdict ${card.correct ? "right" : "wrong"}`));
  const kinds = [...card.modality, ...card.question_type].filter((value) => value !== "none");
  if (kinds.length) article.append(element("p", kinds.join(" · "), "notice"));
  part(article, "Question", card.question, "text");
  list(article, "", card.options, "ul");
  part(article, "Right answer", card.gold, "text");
  list(article, "Latent steps", card.steps, "ol");
  if (card.first) part(article, "First reply", card.first, "text");
  part(article, "Answer", card.prediction || "(empty)", "text answer");
  const table = element("table");
  for (const [name, value] of card.facts) {
    const row = element("tr");
    const head = element("th", name);
    head.scope = "row";
    row.append(head, element("td", value));
    table.append(row);
  }
  const details = element("details");
  details.append(element("summary", "how it was read and scored"), table);
  article.append(details);
  article.addEventListener("focusin", () => { current = Array.from(place.children).indexOf(article); });
  return article;
}

function render() {
  place.replaceChildren(...found.slice(first, first + SIZE).map((at) => draw(cards[at])));
  current = -1;
  const last = Math.min(first + SIZE, found.length);
  const right = found.filter((at) => cards[at].correct).length;
  shown.textContent = found.length ? `${first + 1} to ${last} of ${found.length}, ${right} right` : "none";
  previous.disabled = first === 0;
  next.disabled = last === found.length;
}

function filter() {
  const asked = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (card) => filters.every((each) => !each.value || [].concat(card[each.dataset.filter]).map(String).includes(each.value));
  found = cards.map((card, at) => at).filter((at) => fits(cards[at]) && asked.every((word) => words[at].includes(word)));
  first = 0;
  render();
}

function turn(by) {
  const at = first + by * SIZE;
  if (at < 0 || at >= found.length) return false;
  first = at;
  render();
  place.scrollIntoView({ block: "start" });
  return true;
}

function move(by) {
  const articles = Array.from(place.children);
  let at = current + by;
  if (at >= articles.length) at = turn(1) ? 0 : articles.length - 1;
  else if (at < 0) at = current >= 0 && turn(-1) ? place.children.length - 1 : 0;
  const target = place.children[at];
  if (!target) return;
  target.focus();
  target.scrollIntoView({ block: "start" });
}

filters.forEach((each) => each.addEventListener("change", filter));
search.addEventListener("input", filter);
previous.addEventListener("click", () => turn(-1));
next.addEventListener("click", () => turn(1));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { document.activeElement.blur(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName)) return;
  if (event.key === "j" || event.key === "ArrowRight") move(1);
  else if (event.key === "k" || event.key === "ArrowLeft") move(-1);
  else if (event.key === "n") turn(1);
  else if (event.key === "p") turn(-1);
  else if (event.key === "/") search.focus();
  else return;
  event.preventDefault();
});
filter();
