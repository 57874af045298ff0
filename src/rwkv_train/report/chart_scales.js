"use strict";
// Arithmetic of charts, without a page: places, ticks, words for numbers, smoothing.

const Scales = (() => {
  /** Returns a place in [0, 1] of a value between two ends; log: by its logarithm. */
  function place(value, low, high, log) {
    const [v, a, b] = log ? [value, low, high].map(Math.log10) : [value, low, high];
    return b === a ? 0.5 : (v - a) / (b - a);
  }

  /** Returns the value at a place in [0, 1]. */
  function value(at, low, high, log) {
    if (!log) return low + at * (high - low);
    const [a, b] = [Math.log10(low), Math.log10(high)];
    return 10 ** (a + at * (b - a));
  }

  /** Returns round values between two ends, about `count` of them. */
  function ticks(low, high, count, log) {
    if (!(high > low)) return [low];
    if (log && high / low > 20) return decades(low, high, count);
    const rough = (high - low) / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.8);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i <= Math.floor(high / step + 1e-9); i++) {
      // Not i added up: 0.1 + 0.2 would be shown.
      found.push(Number((i * step).toPrecision(12)));
    }
    return found;
  }

  function decades(low, high, count) {
    const every = Math.max(1, Math.ceil(Math.log10(high / low) / Math.max(count, 1)));
    const found = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
      const shown = Math.log10(high / low) < 2.5 ? [1, 2, 5] : [1];
      if (p % every) continue;
      for (const n of shown) {
        const tick = Number((n * 10 ** p).toPrecision(6));
        if (tick >= low * 0.9999 && tick <= high * 1.0001) found.push(tick);
      }
    }
    return found;
  }

  /** Returns the lowest and highest of the finite values, widened a little; log: above 0 only. */
  function extent(values, log) {
    let [low, high] = [Infinity, -Infinity];
    for (const v of values) {
      if (v === null || !Number.isFinite(v) || (log && v <= 0)) continue;
      if (v < low) low = v;
      if (v > high) high = v;
    }
    if (low > high) return log ? [1, 10] : [0, 1];
    // The last digits of a constant are no curve.
    if (high - low <= 1e-4 * Math.abs(high)) {
      if (log) return [low / 2, high * 2];
      const room = Math.abs(low) * 0.1 || 1;
      return [low - room, high + room];
    }
    if (log) return [low, high];
    const room = (high - low) * 0.04;
    // A quantity that is never negative is not drawn as if it were.
    return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
  }

  /** Returns the mean over a part of the curve around each value; the first is left as it is. */
  function smooth(values, part) {
    const most = Math.round((values.length * part) / 2);
    if (most < 1) return values;
    const [sums, counts] = [[0], [0]];
    values.forEach((v, i) => {
      sums.push(sums[i] + (v ?? 0));
      counts.push(counts[i] + (v === null ? 0 : 1));
    });
    return values.map((v, i) => {
      if (v === null) return null;
      // No further ahead than back: a curve that falls steeply at first is not moved.
      const reach = Math.min(most, i);
      const [low, high] = [i - reach, Math.min(i + reach + 1, values.length)];
      return (sums[high] - sums[low]) / (counts[high] - counts[low]);
    });
  }

  /** Returns the smoothed logarithms' values: few large ones do not hide the many. */
  function smoothLogs(values, part) {
    const logs = values.map((v) => (v !== null && v > 0 ? Math.log10(v) : null));
    const found = smooth(logs, part);
    return found === logs ? values : found.map((v) => (v === null ? null : 10 ** v));
  }

  /** Returns the index of the place next to x; places: ascending. */
  function nearest(places, x) {
    let [low, high] = [0, places.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (places[middle] <= x) low = middle;
      else high = middle;
    }
    return Math.abs(places[high] - x) < Math.abs(places[low] - x) ? high : low;
  }

  /** Returns at most `most` of 0 ... count - 1 at equal distances, the ends always. */
  function spread(count, most) {
    const shown = Math.min(count, most);
    const gaps = Math.max(shown - 1, 1);
    return Array.from({ length: shown }, (_, i) => Math.floor((i * (count - 1)) / gaps));
  }

  /** Returns a number as people read it: 1.2345, 12,345, 3.2e-5. */
  function words(v) {
    if (v === null || v === undefined) return "–";
    const size = Math.abs(v);
    if (Number.isInteger(v) && size < 1e15) return v.toLocaleString("en-US");
    if (size >= 1e5 || size < 1e-3) return v.toExponential(3).replace(/\.?0+e/, "e");
    return String(Number(v.toPrecision(5)));
  }

  /** Returns a number for an axis: 250 k, 2 M, 1e-4. */
  function short(v) {
    const size = Math.abs(v);
    if (size === 0) return "0";
    for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (size >= unit) return `${Number((v / unit).toPrecision(4))} ${letter}`;
    }
    if (size < 1e-3) return v.toExponential(1).replace(".0e", "e");
    return String(Number(v.toPrecision(4)));
  }

  /** Returns the sums of series up to each of them, point by point; null counts as nothing. */
  function stack(lines) {
    const sums = lines.length ? lines[0].map(() => 0) : [];
    return lines.map((line) =>
      line.map((v, i) => {
        const low = sums[i];
        sums[i] += v ?? 0;
        return [low, sums[i]];
      })
    );
  }

  return { place, value, ticks, extent, smooth, smoothLogs, nearest, spread, words, short, stack };
})();

if (typeof module !== "undefined") module.exports = Scales;
