"use strict";
// Puts the page together from its data, and holds what all charts share.

(() => {
  const { make } = Elements;
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const page = {
    axes: data.axes,
    marks: data.marks,
    state: { x: "step", smoothing: 1 / 40, logX: false },
  };
  const HINT =
    "Point at a curve to read it, drag to zoom, double-click to see all of it again; or, with the " +
    "chart in focus, ← and → (with shift: ten at a time), + and −, and 0.";
  const charts = [];

  const BLOCKS = {
    chart: (block) => {
      if (!block.series.length) {
        return make("p", { class: "note" }, `${block.title}: no values yet.`);
      }
      const made = new Chart(block, page);
      charts.push(made);
      return made.element;
    },
    table: (block) => Elements.tableBlock(block),
    texts: (block) => Elements.textsBlock(block),
  };

  function sectionElement(section) {
    const heading = `section-${section.name}`;
    return make(
      "section",
      { id: section.name, "aria-labelledby": heading },
      make("h2", { id: heading }, section.title),
      ...section.words.map((text) => make("p", {}, text)),
      make("div", { class: "blocks" }, ...section.blocks.map((block) => BLOCKS[block.kind](block)))
    );
  }

  function tiles() {
    const shown = data.tiles.map((tile) =>
      make(
        "div",
        { class: "tile" },
        make("dt", {}, tile.label),
        make("dd", {}, tile.value, tile.note ? make("small", {}, tile.note) : null)
      )
    );
    return make("dl", { class: "tiles" }, ...shown);
  }

  function choice(label, options, value, chosen) {
    const select = make("select", {});
    for (const [key, word] of Object.entries(options)) {
      const selected = key === value ? "" : null;
      select.append(make("option", { value: key, selected }, word));
    }
    select.addEventListener("change", () => chosen(select.value));
    return make("label", {}, label, select);
  }

  function toolbar() {
    const axes = { step: "steps", tokens: "tokens" };
    const smoothings = { 0: "off", 0.0125: "light", 0.025: "medium", 0.08: "strong" };
    const logX = make("button", { type: "button", "aria-pressed": "false" }, "log x");
    logX.addEventListener("click", () => {
      page.state.logX = !page.state.logX;
      logX.setAttribute("aria-pressed", String(page.state.logX));
      charts.forEach((chart) => chart.refit());
    });
    return make(
      "div",
      { class: "toolbar", role: "toolbar", "aria-label": "all charts" },
      choice("over ", axes, "step", (value) => {
        page.state.x = value;
        charts.forEach((chart) => chart.refit());
      }),
      logX,
      choice("smoothing ", smoothings, "0.025", (value) => {
        page.state.smoothing = Number(value);
        charts.forEach((chart) => chart.draw());
      }),
      choice("colours ", { auto: "as the system", light: "light", dark: "dark" }, "auto", dress)
    );
  }

  function dress(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }

  const links = data.sections.map((section) =>
    make("li", {}, make("a", { href: `#${section.name}` }, section.title))
  );
  document.getElementById("report").replaceChildren(
    make("header", {}, make("h1", {}, data.heading), make("p", {}, data.subtitle)),
    make("nav", { "aria-label": "sections" }, make("ul", {}, ...links)),
    tiles(),
    toolbar(),
    make("p", { class: "hint" }, HINT),
    make("main", {}, ...data.sections.map(sectionElement)),
    make("footer", {}, `Written ${data.written} by rwkv-report from the files of the run's folder.`)
  );
  charts.forEach((chart) => chart.draw());
})();
