// Hides groups whose answers all earned the same.
"use strict";
const only = document.getElementById("spread");
only.addEventListener("change", () => {
  for (const article of document.querySelectorAll("article")) article.hidden = only.checked && article.dataset.spread !== "true";
});
