// A table of any length: only the rows in view are in the document. Sorted by its headers, filtered by
// text and by choice, walked with the arrow keys.

const ROW_HEIGHT = 27;

class OperatorTable {
  // columns: {title, value(row) to sort by, show(row) to see, figure, choice: whether it can be chosen from}
  constructor(rows, columns, onChoose) {
    this.rows = rows;
    this.columns = columns;
    this.onChoose = onChoose;
    this.shown = rows;
    this.sortedBy = columns.findIndex((column) => column.first);
    this.falling = true;
    this.chosen = null;
    this.element = this.build();
    this.update();
  }

  build() {
    this.search = element("input", { type: "search", placeholder: "words, all of which must occur", oninput: () => this.update() });
    const controls = element("div", { class: "controls" }, element("label", {}, "Filter", this.search));
    this.selects = this.columns.filter((column) => column.choice).map((column) => {
      const values = [...new Set(this.rows.map(column.value))].sort();
      const select = element(
        "select", { onchange: () => this.update() },
        element("option", { value: "" }, "all"),
        ...values.map((value) => element("option", { value }, value)),
      );
      controls.append(element("label", {}, column.title, select));
      return { column, select };
    });
    this.count = element("span", { class: "soft", role: "status" });
    controls.append(this.count);
    this.heads = this.columns.map((column, i) => element(
      "th", { class: column.figure ? "figure" : null, scope: "col" },
      element("button", { type: "button", onclick: () => this.sort(i) }, column.title),
    ));
    this.body = element("tbody");
    this.table = element("table", {}, element("thead", {}, element("tr", {}, ...this.heads)), this.body);
    this.scroller = element("div", { class: "scroller", tabindex: "-1" }, this.table);
    this.scroller.addEventListener("scroll", () => this.draw());
    this.scroller.addEventListener("keydown", (event) => this.key(event));
    // Paper has no scroll bar: print the head of the list in full.
    window.addEventListener("beforeprint", () => this.draw(200));
    window.addEventListener("afterprint", () => this.draw());
    return element("div", {}, controls, this.scroller);
  }

  sort(index) {
    this.falling = this.sortedBy === index ? !this.falling : Boolean(this.columns[index].figure);
    this.sortedBy = index;
    this.update();
  }

  update() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = this.selects.filter(({ select }) => select.value);
    this.shown = this.rows.filter((row) =>
      words.every((word) => row.text.includes(word)) && chosen.every(({ column, select }) => column.value(row) === select.value));
    const column = this.columns[this.sortedBy];
    const sign = this.falling ? -1 : 1;
    const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    this.shown.sort((a, b) => sign * order(column.value(a), column.value(b)) || a.index - b.index);
    this.heads.forEach((head, i) => {
      const sorted = i === this.sortedBy;
      head.setAttribute("aria-sort", sorted ? (this.falling ? "descending" : "ascending") : "none");
      head.firstChild.textContent = this.columns[i].title + (sorted ? (this.falling ? " ▾" : " ▴") : "");
    });
    this.count.textContent = `${this.shown.length} of ${this.rows.length} rows`;
    this.table.setAttribute("aria-rowcount", this.shown.length + 1);
    this.scroller.scrollTop = 0;
    this.draw();
  }

  draw(all = 0) {
    const room = Math.ceil(640 / ROW_HEIGHT) + 12;
    const start = all ? 0 : Math.max(0, Math.min(Math.floor(this.scroller.scrollTop / ROW_HEIGHT) - 6, this.shown.length - room));
    const stop = Math.min(this.shown.length, start + (all || room));
    const space = (rows) => element("tr", { "aria-hidden": "true", style: `height:${rows * ROW_HEIGHT}px` });
    const made = this.shown.slice(start, stop).map((row, i) => this.draw_row(row, start + i));
    this.body.replaceChildren(...(start ? [space(start)] : []), ...made, ...(stop < this.shown.length && !all ? [space(this.shown.length - stop)] : []));
  }

  draw_row(row, place) {
    const cells = this.columns.map((column) => {
      const shown = column.show(row);
      return element("td", { class: column.figure ? "figure" : null, title: typeof shown === "string" ? shown : null }, shown);
    });
    return element(
      "tr",
      { class: row === this.chosen ? "row chosen" : "row", tabindex: "0", "aria-rowindex": place + 2, "data-index": row.index,
        onclick: () => this.choose(row) },
      ...cells,
    );
  }

  key(event) {
    const row = event.target.closest("tr.row");
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 20, PageUp: -20 }[event.key];
    if (!row || !(step || event.key === "Enter")) return;
    event.preventDefault();
    const place = Number(row.getAttribute("aria-rowindex")) - 2;
    if (event.key === "Enter") this.choose(this.shown[place]);
    else this.focus(Math.max(0, Math.min(this.shown.length - 1, place + step)));
  }

  focus(place) {
    const top = place * ROW_HEIGHT;
    const { scrollTop, clientHeight } = this.scroller;
    if (top < scrollTop + ROW_HEIGHT || top > scrollTop + clientHeight - 3 * ROW_HEIGHT) {
      this.scroller.scrollTop = Math.max(0, top - clientHeight / 2);
    }
    this.draw();
    this.body.querySelector(`[aria-rowindex="${place + 2}"]`)?.focus({ preventScroll: true });
  }

  choose(row) {
    this.chosen = row;
    this.draw();
    this.onChoose?.(row);
  }

  // Finds a row, whatever filter hides it.
  reveal(index) {
    this.search.value = "";
    for (const { select } of this.selects) select.value = "";
    this.update();
    this.chosen = this.shown.find((row) => row.index === index);
    this.scroller.scrollIntoView({ block: "nearest" });
    this.focus(this.shown.indexOf(this.chosen));
  }
}
