"use strict";
// Elements of the page that hold no curves. Texts become text nodes: nothing is read as markup.

const Elements = (() => {
  const MOST_ROWS = 50;

  /** Returns an element; given: attributes; inside: elements and texts. */
  function make(tag, given = {}, ...inside) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
      if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...inside.filter((part) => part !== null));
    return element;
  }

  /** Returns a table that scrolls in its own box, its first column naming the rows. */
  function table(caption, columns, rows) {
    const head = make("tr", {}, ...columns.map((name) => make("th", { scope: "col" }, name)));
    const body = rows.map((row) =>
      make(
        "tr",
        {},
        ...row.map((cell, i) => {
          const text = cell === null ? "–" : String(cell);
          return i ? make("td", {}, text) : make("th", { scope: "row" }, text);
        })
      )
    );
    const inner = make(
      "table",
      {},
      make("caption", {}, caption),
      make("thead", {}, head),
      make("tbody", {}, ...body)
    );
    // What scrolls must be reached by keys too.
    const given = { class: "scrolls", tabindex: 0, role: "region", "aria-label": caption };
    return make("div", given, inner);
  }

  /** Returns a table block of the page; one without rows says why in its note. */
  function tableBlock(block) {
    const parts = [];
    if (block.rows.length) parts.push(table(block.title, block.columns, block.rows));
    else parts.push(make("h3", {}, block.title));
    if (block.note) parts.push(make("p", { class: "note" }, block.note));
    if (!block.closed) return make("div", { class: "block" }, ...parts);
    return make("details", { class: "block" }, make("summary", {}, block.title), ...parts);
  }

  /** Returns texts that a model has written. */
  function textsBlock(block) {
    const texts = block.items.map((item) =>
      make(
        "blockquote",
        {},
        item.prompt ? make("span", { class: "prompt" }, item.prompt) : null,
        make("span", {}, item.text)
      )
    );
    const inside = [make("summary", {}, block.title), ...texts];
    const given = { class: "block texts", open: block.closed ? null : "" };
    return make("details", given, ...inside);
  }

  /** Returns the tables behind a chart: one for each axis that its series have. */
  function chartTables(chart, axes) {
    const groups = new Map();
    for (const line of chart.series) {
      groups.set(line.axis, [...(groups.get(line.axis) ?? []), line]);
    }
    const tables = [...groups].map(([name, lines]) => {
      const axis = chart.categories ? { [chart.x_name]: chart.categories } : axes[name];
      const columns = [...Object.keys(axis)];
      const values = Object.values(axis);
      for (const line of lines) {
        columns.push(line.name);
        values.push(line.values);
        if (line.low) {
          columns.push(`${line.name}, lowest`, `${line.name}, highest`);
          values.push(line.low, line.high);
        }
      }
      const places = Scales.spread(values[0].length, MOST_ROWS);
      const cell = (v) => (typeof v === "string" ? v : Scales.words(v));
      const rows = places.map((i) => values.map((column) => cell(column[i])));
      const part = rows.length < values[0].length ? ", evenly spread" : "";
      const count = `${rows.length} of ${values[0].length.toLocaleString("en-US")} values${part}`;
      return table(`${chart.title} (${chart.unit}): ${count}`, columns, rows);
    });
    const summary = make("summary", {}, "Values as a table");
    return make("details", { class: "values" }, summary, ...tables);
  }

  return { make, table, tableBlock, textsBlock, chartTables };
})();
