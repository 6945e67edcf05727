"use strict";
// Sort a table by the column of a button; numbers by data-value, unknown values always last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const column = head.cellIndex, rising = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const value = (row) => {
      const cell = row.cells[column], text = cell.dataset.value;
      if (text === undefined) return cell.textContent.trim();
      return text === "" ? null : Number(text);
    };
    const rows = [...body.rows].map((row, place) => ({ row, place, value: value(row) }));
    rows.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.place - b.place;
      const order = typeof a.value === "number" ? a.value - b.value : a.value.localeCompare(b.value);
      return (rising ? order : -order) || a.place - b.place;
    });
    body.append(...rows.map((entry) => entry.row));
    const status = table.closest("section").querySelector("[aria-live]");
    if (status) status.textContent = `Sorted by ${button.textContent.trim()}, ${rising ? "ascending" : "descending"}.`;
  });
}
// Details cannot be opened on paper.
addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("details:not([open])")) closed.open = true;
});
