"use strict";

// Numbers come before words, what is empty comes last either way.
function key(cell) {
  const text = cell.textContent.trim();
  const number = parseFloat(text.replaceAll(",", ""));
  return [text === "" ? 2 : Number.isNaN(number) ? 1 : 0, number, text];
}

function compare(a, b, sign) {
  if (a[0] !== b[0]) return a[0] === 2 || b[0] === 2 ? a[0] - b[0] : sign * (a[0] - b[0]);
  return sign * (a[0] === 0 ? a[1] - b[1] : a[2].localeCompare(b[2]));
}

function sort(table, head) {
  const order = head.ariaSort === "ascending" ? "descending" : "ascending";
  for (const other of table.tHead.rows[0].cells) other.ariaSort = "none";
  head.ariaSort = order;
  const sign = order === "ascending" ? 1 : -1;
  const rows = Array.from(table.tBodies[0].rows, (row) => [key(row.cells[head.cellIndex]), row]);
  rows.sort((a, b) => compare(a[0], b[0], sign));
  table.tBodies[0].append(...rows.map((pair) => pair[1]));
}

// Rows that hold every word of the filter, on demand only those that are not set back.
function filter(table, input, only, output) {
  const words = input.value.toLowerCase().split(/\s+/);
  let count = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    const left = only?.checked && row.classList.contains("muted");
    row.hidden = left || !words.every((word) => text.includes(word));
    count += !row.hidden;
  }
  output.value = `${count} of ${table.tBodies[0].rows.length} rows`;
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    head.firstElementChild.addEventListener("click", () => sort(table, head));
  }
  const input = document.getElementById(`filter-${table.id}`);
  const output = document.getElementById(`rows-${table.id}`);
  const only = document.getElementById(`only-${table.id}`);
  const update = () => filter(table, input, only, output);
  input.addEventListener("input", update);
  only?.addEventListener("change", update);
  update();
}

// A link to a record leads to a row that no filter hides.
function follow() {
  const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!(row instanceof HTMLTableRowElement)) return;
  if (row.hidden) {
    const input = document.getElementById(`filter-${row.closest("table").id}`);
    input.value = "";
    input.dispatchEvent(new Event("input"));
  }
  row.scrollIntoView({ block: "center" });
}

addEventListener("hashchange", follow);
follow();
