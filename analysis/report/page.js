"use strict";
// Sorts a table by the column whose header is pressed: up, then down. What is missing stays last, equals keep their order.
for (const table of document.querySelectorAll("table")) {
  const headers = [...table.querySelectorAll("thead th")];
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const falls = header.getAttribute("aria-sort") === "ascending";
      for (const each of headers) each.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", falls ? "descending" : "ascending");
      sortRows(table.tBodies[0], column, header.classList.contains("words"), falls ? -1 : 1);
    });
  });
}

function sortRows(body, column, isWords, direction) {
  const keyed = [...body.rows].map((row) => [key(row.cells[column], isWords), row]);
  keyed.sort(([one], [other]) => {
    if (one === null || other === null) return (one === null) - (other === null);
    const order = isWords ? one.localeCompare(other, "en", { numeric: true }) : one - other;
    return direction * order;
  });
  body.append(...keyed.map(([, row]) => row));
}

function key(cell, isWords) {
  if (isWords) return cell.textContent === "–" ? null : cell.textContent;
  return "value" in cell.dataset ? Number(cell.dataset.value) : null;
}

// A printed page has no hidden list.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
