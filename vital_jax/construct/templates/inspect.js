// Filters, search and keys of the page of records. Nothing is ever set as markup.
"use strict";
const cards = Array.from(document.querySelectorAll("article"));
const words = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
const filters = Array.from(document.querySelectorAll("select[data-filter]"));
const search = document.getElementById("search");
const outlines = document.getElementById("outlines");
const shown = document.getElementById("shown");
let current = -1;

function filter() {
  const asked = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const card of cards) {
    const fits = filters.every((each) => !each.value || card.dataset[each.dataset.filter] === each.value);
    card.hidden = !(fits && asked.every((word) => words.get(card).includes(word)));
    count += card.hidden ? 0 : 1;
  }
  shown.textContent = `${count} shown`;
}

function move(by) {
  for (let at = current + by; at >= 0 && at < cards.length; at += by) {
    if (!cards[at].hidden) {
      current = at;
      cards[at].focus();
      cards[at].scrollIntoView({ block: "start" });
      return;
    }
  }
}

function toggle() {
  document.body.classList.toggle("outlines", outlines.checked);
}

filters.forEach((each) => each.addEventListener("change", filter));
search.addEventListener("input", filter);
outlines.addEventListener("change", toggle);
cards.forEach((card, at) => card.addEventListener("focusin", () => { current = at; }));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { document.activeElement.blur(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName)) return;
  if (event.key === "j" || event.key === "ArrowRight") move(1);
  else if (event.key === "k" || event.key === "ArrowLeft") move(-1);
  else if (event.key === "m") { outlines.checked = !outlines.checked; toggle(); }
  else if (event.key === "/") search.focus();
  else return;
  event.preventDefault();
});
toggle();
filter();
