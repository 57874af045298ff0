"use strict";
// Draws the curves of one chart into an SVG: axes, areas, lines, points, marks.

const Drawing = (() => {
  const MARGIN = { left: 58, right: 12, top: 14, bottom: 40 };
  const MOST_DOTS = 120;
  const SVG = "http://www.w3.org/2000/svg";
  const COLOURS = 8;

  /** Returns an element of SVG. */
  function shape(tag, given = {}, text = null) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(given)) {
      if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    if (text !== null) element.textContent = text;
    return element;
  }

  /** Returns what is drawn: places, values as shown, ends; state: what the reader has chosen. */
  function prepare(chart, axes, state) {
    const shown = chart.series.filter((line) => !state.hidden.has(line.name));
    const smooth = state.logY ? Scales.smoothLogs : Scales.smooth;
    const curves = shown.map((line) => smooth(line.values, line.smooth ? state.smoothing : 0));
    const stacks = chart.stacked ? Scales.stack(curves) : null;
    const lines = shown.map((line, i) => ({
      ...line,
      places: chart.categories ? chart.categories.map((_, n) => n) : axes[line.axis][state.x],
      values: stacks ? stacks[i].map(([, high]) => high) : curves[i],
      raw: line.values,
      low: stacks ? stacks[i].map(([low]) => low) : line.low,
      high: stacks ? stacks[i].map(([, high]) => high) : line.high,
    }));
    const logX = state.logX && !chart.categories;
    const [x0, x1] = state.zoom ?? wholeRange(lines, logX, chart.categories);
    const seen = lines.flatMap((line) => within(line, x0, x1, state.smoothing));
    const from = chart.stacked || chart.from_zero ? [0] : [];
    const [y0, y1] = Scales.extent([...from, ...seen], state.logY);
    return { lines, x0, x1, y0, y1, logX, logY: state.logY, chart };
  }

  function wholeRange(lines, logX, categories) {
    if (categories) return [-0.5, categories.length - 0.5];
    // A band that reaches beyond the run would press its curve together.
    const own = lines.some((line) => line.shape !== "band")
      ? lines.filter((line) => line.shape !== "band")
      : lines;
    let [low, high] = [Infinity, -Infinity];
    for (const line of own) {
      if (!line.places.length) continue;
      low = Math.min(low, line.places[0]);
      high = Math.max(high, line.places.at(-1));
    }
    if (low > high) return [0, 1];
    // The first step stands at the left edge.
    if (!logX) low = Math.min(low, high * 0.05) === low ? 0 : low;
    return low === high ? [low * 0.9, low * 1.1 + 1] : [logX ? Math.max(low, 1) : low, high];
  }

  function within(line, x0, x1, smoothing) {
    const found = [];
    line.places.forEach((x, i) => {
      if (x < x0 || x > x1) return;
      found.push(line.values[i]);
      // Single steps far from the others would press a smoothed curve flat.
      if (line.high && !(line.smooth && smoothing)) found.push(line.low[i], line.high[i]);
      else if (line.smooth && !line.high) found.push(line.raw[i]);
    });
    return found;
  }

  /** Returns the places of values on the drawing; size: [width, height] in pixels. */
  function scalesOf(view, size) {
    const width = size[0] - MARGIN.left - MARGIN.right;
    const height = size[1] - MARGIN.top - MARGIN.bottom;
    return {
      x: (v) => MARGIN.left + width * Scales.place(v, view.x0, view.x1, view.logX),
      y: (v) => MARGIN.top + height * (1 - Scales.place(v, view.y0, view.y1, view.logY)),
      value: (px) => Scales.value((px - MARGIN.left) / width, view.x0, view.x1, view.logX),
      left: MARGIN.left,
      top: MARGIN.top,
      width,
      height,
    };
  }

  /** Draws all of a view into an emptied `svg`. */
  function draw(svg, view, scales, marks, names) {
    svg.replaceChildren();
    const clip = `clip-${view.chart.name}`;
    const { left, top, width, height } = scales;
    // A point on the frame is drawn whole.
    const box = { x: left - 4, y: top - 4, width: width + 8, height: height + 8 };
    const holder = shape("clipPath", { id: clip });
    holder.append(shape("rect", box));
    const inside = shape("g", { "clip-path": `url(#${clip})` });
    svg.append(holder, ...gridOf(view, scales, names), inside);
    for (const line of view.lines) {
      if (line.high) inside.append(area(line, view, scales));
    }
    for (const line of view.lines) inside.append(...curve(line, view, scales));
    for (const mark of marks) inside.append(...markOf(mark, view, scales, names.x));
  }

  function gridOf(view, scales, names) {
    const { left, top, width, height } = scales;
    const parts = [];
    for (const tick of Scales.ticks(view.y0, view.y1, height / 45, view.logY)) {
      const y = scales.y(tick);
      parts.push(shape("line", { x1: left, x2: left + width, y1: y, y2: y, class: "grid" }));
      const place = { x: left - 7, y: y + 4, class: "tick", "text-anchor": "end" };
      parts.push(shape("text", place, Scales.short(tick)));
    }
    const below = top + height;
    for (const [tick, word] of ticksBelow(view, width)) {
      const x = scales.x(tick);
      parts.push(shape("line", { x1: x, x2: x, y1: top, y2: below, class: "grid" }));
      const anchor = x > left + width - 20 ? "end" : "middle";
      parts.push(shape("text", { x, y: below + 16, class: "tick", "text-anchor": anchor }, word));
    }
    const middle = { x: left + width / 2, y: below + 34, class: "axis", "text-anchor": "middle" };
    parts.push(shape("text", middle, names.word));
    parts.push(shape("rect", { x: left, y: top, width, height, class: "frame" }));
    return parts;
  }

  function ticksBelow(view, width) {
    if (!view.chart.categories) {
      return Scales.ticks(view.x0, view.x1, width / 85, view.logX).map((v) => [v, Scales.short(v)]);
    }
    const most = Math.max(2, Math.floor(width / 68));
    return Scales.spread(view.chart.categories.length, most)
      .filter((i) => i >= view.x0 && i <= view.x1)
      .map((i) => [i, view.chart.categories[i]]);
  }

  function drawable(v, log) {
    return v !== null && v !== undefined && (!log || v > 0);
  }

  /** Returns the outline of the values that can be drawn, broken where one is missing. */
  function path(places, values, view, scales) {
    let [text, pen] = ["", "M"];
    places.forEach((x, i) => {
      if (!drawable(values[i], view.logY) || !drawable(x, view.logX)) {
        pen = "M";
        return;
      }
      text += `${pen}${scales.x(x).toFixed(1)} ${scales.y(values[i]).toFixed(1)}`;
      pen = "L";
    });
    return text;
  }

  function area(line, view, scales) {
    const known = line.places
      .map((_, i) => i)
      .filter((i) => drawable(line.high[i], view.logY) && drawable(line.places[i], view.logX));
    const floor = view.logY ? view.y0 : -Infinity;
    const point = (i, v) =>
      `${scales.x(line.places[i]).toFixed(1)} ${scales.y(Math.max(v ?? floor, floor)).toFixed(1)}`;
    const upper = known.map((i) => point(i, line.high[i]));
    const lower = known.map((i) => point(i, line.low[i])).reverse();
    const d = known.length ? `M${[...upper, ...lower].join("L")}Z` : "";
    const kind = view.chart.stacked ? "stacked" : `of-${line.shape}`;
    return shape("path", { d, class: `area ${colourOf(line)} ${kind}` });
  }

  function curve(line, view, scales) {
    const kind = view.chart.stacked ? "stacked" : `of-${line.shape}`;
    const classes = `curve ${colourOf(line)} ${kind}`;
    const style = line.fade ? `opacity:${0.25 + 0.75 * line.fade}` : null;
    const parts = [];
    if (line.values !== line.raw && !view.chart.stacked) {
      const d = path(line.places, line.raw, view, scales);
      parts.push(shape("path", { d, class: `${classes} raw` }));
    }
    const d = path(line.places, line.values, view, scales);
    parts.push(shape("path", { d, class: classes, style }));
    const seen = line.places.filter((x) => x >= view.x0 && x <= view.x1).length;
    if (line.shape === "points" && seen <= MOST_DOTS) {
      line.places.forEach((x, i) => {
        if (!drawable(line.values[i], view.logY)) return;
        const place = { cx: scales.x(x), cy: scales.y(line.values[i]), r: 3.2, style };
        parts.push(shape("circle", { ...place, class: `dot ${colourOf(line)}` }));
      });
    }
    return parts;
  }

  /** Returns the classes of a series' colour; beyond the eighth, lines are dashed. */
  function colourOf(line) {
    const number = line.colour ?? 0;
    return `c${number % COLOURS}${number >= COLOURS || line.dashed ? " dashed" : ""}`;
  }

  const SIGNS = {
    skipped: "M0 0l-5 -9h10z",
    rollback: "M0 0l-5 -5l5 -5l5 5z",
    start: "M0 0v-9l7 4.5z",
    fault: "M-4.5 0v-9h9v9z",
    slow: "M-4.5 0l4.5 -4.5l-4.5 -4.5h9l-4.5 4.5l4.5 4.5z",
  };

  function markOf(mark, view, scales, mode) {
    const at = mark[mode];
    if (at < view.x0 || at > view.x1 || (view.logX && at <= 0)) return [];
    const x = scales.x(at);
    const line = { x1: x, x2: x, y1: scales.top, y2: scales.top + scales.height };
    const sign = shape("path", {
      d: SIGNS[mark.kind],
      transform: `translate(${x} ${scales.top + 10})`,
      class: `sign ${mark.kind}`,
    });
    sign.append(shape("title", {}, mark.text));
    return [shape("line", { ...line, class: `mark ${mark.kind}` }), sign];
  }

  return { shape, prepare, scalesOf, draw, colourOf };
})();
