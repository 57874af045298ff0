"use strict";
// A chart that can be read off: crosshair, zoom, keys, legend, its values as a table.

class Chart {
  /** page: axes, marks, and the state that all charts share (x, smoothing, logX). */
  constructor(block, page) {
    this.block = block;
    this.page = page;
    this.hidden = new Set();
    this.zoom = null;
    this.logY = Boolean(block.log);
    this.cursor = null;
    this.from = null;
    this.element = this.build();
    this.listen();
  }

  build() {
    const { make } = Elements;
    const heading = `heading-${this.block.name}`;
    this.svg = Drawing.shape("svg", { tabindex: 0, role: "img", "aria-labelledby": heading });
    this.readout = make("p", { class: "readout", "aria-live": "polite" });
    this.logButton = make("button", { type: "button", "aria-pressed": this.logY }, "log y");
    this.resetButton = make("button", { type: "button", hidden: "" }, "reset zoom");
    // Sums of shares have no logarithm to look at.
    this.logButton.hidden = Boolean(this.block.stacked);
    const tools = make("span", { class: "tools" }, this.resetButton, this.logButton);
    const title = make("h3", { id: heading }, this.block.title, make("small", {}, this.block.unit));
    return make(
      "figure",
      { class: this.block.wide ? "chart wide" : "chart", "data-chart": this.block.name },
      make("figcaption", {}, title, tools),
      this.svg,
      this.readout,
      this.legend(),
      this.block.note ? make("p", { class: "note" }, this.block.note) : null,
      Elements.chartTables(this.block, this.page.axes)
    );
  }

  legend() {
    const { make } = Elements;
    // The title names the only one.
    if (this.block.series.length === 1) return null;
    const entries = this.block.series.map((line) => {
      const sample = Drawing.shape("svg", { viewBox: "0 0 24 10", "aria-hidden": "true" });
      const classes = `curve ${Drawing.colourOf(line)} of-${line.shape}`;
      const style = line.fade ? `opacity:${0.25 + 0.75 * line.fade}` : null;
      sample.append(Drawing.shape("path", { d: "M1 5H23", class: classes, style }));
      const entry = make("button", { type: "button", "aria-pressed": "true" }, sample, line.name);
      entry.addEventListener("click", () => this.toggle(line.name, entry));
      return entry;
    });
    const given = { class: "legend", role: "group", "aria-label": "curves shown" };
    return make("div", given, ...entries);
  }

  toggle(name, entry) {
    const shows = this.hidden.has(name);
    if (shows) this.hidden.delete(name);
    else this.hidden.add(name);
    entry.setAttribute("aria-pressed", String(shows));
    this.draw();
  }

  listen() {
    const { svg } = this;
    svg.addEventListener("pointermove", (event) => this.move(event));
    svg.addEventListener("pointerdown", (event) => this.begin(event));
    svg.addEventListener("pointerup", (event) => this.end(event));
    svg.addEventListener("pointercancel", () => this.abandon());
    svg.addEventListener("pointerleave", () => this.from === null && this.point(null));
    svg.addEventListener("dblclick", () => this.reset());
    svg.addEventListener("keydown", (event) => this.press(event));
    svg.addEventListener("blur", () => this.point(null));
    this.resetButton.addEventListener("click", () => this.reset());
    this.logButton.addEventListener("click", () => {
      this.logY = !this.logY;
      this.logButton.setAttribute("aria-pressed", String(this.logY));
      this.draw();
    });
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  draw() {
    const size = [this.svg.clientWidth || 600, this.svg.clientHeight || 260];
    const { x, smoothing, logX } = this.page.state;
    const state = { x, smoothing, logX, logY: this.logY, zoom: this.zoom, hidden: this.hidden };
    this.view = Drawing.prepare(this.block, this.page.axes, state);
    this.scales = Drawing.scalesOf(this.view, size);
    this.svg.setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
    const words = { step: "optimizer step", tokens: "tokens" };
    const names = { x, word: this.block.x_name ?? words[x] };
    Drawing.draw(this.svg, this.view, this.scales, this.block.marks ? this.page.marks : [], names);
    this.overlay = Drawing.shape("g", { class: "overlay" });
    this.svg.append(this.overlay);
    this.resetButton.hidden = this.zoom === null;
    this.point(this.cursor);
  }

  /** Forgets what belongs to another axis. */
  refit() {
    this.zoom = null;
    this.cursor = null;
    this.draw();
  }

  valueAt(event) {
    const box = this.svg.getBoundingClientRect();
    const at = this.scales.value(event.clientX - box.left);
    return Math.min(Math.max(at, this.view.x0), this.view.x1);
  }

  begin(event) {
    if (event.button !== 0) return;
    this.from = this.valueAt(event);
    this.svg.setPointerCapture(event.pointerId);
  }

  move(event) {
    const at = this.valueAt(event);
    this.point(at);
    if (this.from === null) return;
    const [a, b] = [this.from, at].map(this.scales.x).sort((p, q) => p - q);
    const { top, height } = this.scales;
    const chosen = { x: a, y: top, width: b - a, height, class: "chosen" };
    this.overlay.append(Drawing.shape("rect", chosen));
  }

  end(event) {
    if (this.from === null) return;
    const ends = [this.from, this.valueAt(event)].sort((p, q) => p - q);
    this.from = null;
    const [a, b] = ends.map(this.scales.x);
    // A click is no choice.
    if (b - a > 6) this.zoomTo(ends);
  }

  abandon() {
    this.from = null;
    this.point(null);
  }

  zoomTo(ends) {
    this.zoom = ends;
    this.draw();
  }

  reset() {
    this.zoom = null;
    this.draw();
  }

  press(event) {
    const { x0, x1, logX } = this.view;
    const places = this.readable();
    if (!places.length) return;
    const now = this.cursor === null ? -1 : Scales.nearest(places, this.cursor);
    const far = event.shiftKey ? 10 : 1;
    const moves = { ArrowLeft: now - far, ArrowRight: now + far, Home: 0, End: places.length - 1 };
    const centre = Scales.place(this.cursor ?? Scales.value(0.5, x0, x1, logX), x0, x1, logX);
    const around = (part) =>
      [centre - centre * part, centre + (1 - centre) * part].map((p) =>
        Scales.value(p, x0, x1, logX)
      );
    if (event.key in moves) {
      this.point(places[Math.min(Math.max(moves[event.key], 0), places.length - 1)]);
    } else if (event.key === "+" || event.key === "=") this.zoomTo(around(0.5));
    else if (event.key === "-" && this.zoom) this.zoomOut(around(2));
    else if (event.key === "0" || event.key === "Escape") this.reset();
    else return;
    event.preventDefault();
  }

  zoomOut([low, high]) {
    this.zoom = null;
    this.draw();
    const { x0, x1 } = this.view;
    if (low > x0 || high < x1) this.zoomTo([Math.max(low, x0), Math.min(high, x1)]);
  }

  /** Returns the places of the longest visible curve within the view. */
  readable() {
    const { lines, x0, x1 } = this.view;
    const longest = lines.reduce((a, b) => (a && a.places.length >= b.places.length ? a : b), null);
    return longest ? longest.places.filter((x) => x >= x0 && x <= x1) : [];
  }

  /** Shows the crosshair at the value next to x, and what all curves are there; null: nothing. */
  point(x) {
    this.overlay.replaceChildren();
    const places = x === null ? [] : this.readable();
    this.cursor = places.length ? places[Scales.nearest(places, x)] : null;
    if (this.cursor === null) {
      this.readout.textContent = "";
      return;
    }
    const { top, height } = this.scales;
    const px = this.scales.x(this.cursor);
    const line = { x1: px, x2: px, y1: top, y2: top + height, class: "crosshair" };
    this.overlay.append(Drawing.shape("line", line));
    this.readout.textContent = [this.placeWords(), ...this.valueWords(), ...this.markWords()].join(
      " · "
    );
  }

  placeWords() {
    const { categories, x_name: name } = this.block;
    if (categories) return `${name} ${categories[this.cursor]}`;
    const { x } = this.page.state;
    const other = x === "step" ? "tokens" : "step";
    const axis = this.page.axes[this.view.lines[0].axis];
    const i = Scales.nearest(axis[x], this.cursor);
    const also = axis[x][i] === this.cursor ? ` (${other} ${Scales.words(axis[other][i])})` : "";
    return `${x} ${Scales.words(this.cursor)}${also}`;
  }

  valueWords() {
    const { logY, y0, y1 } = this.view;
    return this.view.lines.flatMap((line) => {
      if (!line.places.length) return [];
      const i = Scales.nearest(line.places, this.cursor);
      const gap = Math.abs(this.scales.x(line.places[i]) - this.scales.x(this.cursor));
      const value = this.block.stacked ? line.raw[i] : line.values[i];
      // Validations are far apart: the next one may not be near.
      if (value === null || gap > 30) return [];
      const at = line.values[i];
      if (at >= y0 && at <= y1 && (!logY || at > 0)) {
        const place = { cx: this.scales.x(line.places[i]), cy: this.scales.y(at), r: 4 };
        const colour = Drawing.colourOf(line);
        this.overlay.append(Drawing.shape("circle", { ...place, class: `dot ${colour}` }));
      }
      const ends = line.shape === "band" ? [line.low[i], line.high[i]].map(Scales.words) : null;
      const spread = ends ? ` (${ends.join(" to ")})` : "";
      return [`${line.name} ${Scales.words(value)}${spread}`];
    });
  }

  markWords() {
    if (!this.block.marks) return [];
    const px = this.scales.x(this.cursor);
    const { x } = this.page.state;
    return this.page.marks
      .filter((mark) => Math.abs(this.scales.x(mark[x]) - px) < 4)
      .slice(0, 3)
      .map((mark) => mark.text);
  }
}
