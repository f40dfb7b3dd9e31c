"use strict";
(() => {
  const { base, rows } = JSON.parse(document.getElementById("evaluation").textContent);
  const paths = [...new Set(rows.map(r => r.path))];
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = path => css("--p" + paths.indexOf(path) % 5);
  const plots = [];

  // Three digits and a unit, as in the tables.
  const digits = v => String(Number(v.toPrecision(3)));
  function scale(v, from, units) {
    if (v === 0) return "0";
    v *= from;
    let i = 0;
    while (v >= 1000 && i < units.length - 1) { v /= 1000; i++; }
    return digits(v) + " " + units[i];
  }
  const figure = (v, unit) => unit === "s" ? scale(v, 1e9, ["ns", "us", "ms", "sec"]) : scale(v, 1, ["bytes/sec", "KB/sec", "MB/sec", "GB/sec", "TB/sec"]);

  // One plot: a column for each path, its rounds spread over the column from left to right.
  function plot(box, cols, format, from, line) {
    const at = (i, k, n) => i + (n > 1 ? (k / (n - 1) - 0.5) * 0.62 : 0);
    const xs = [], owner = [];
    cols.forEach((c, i) => c.values.forEach((_, k) => { xs.push(at(i, k, c.values.length)); owner.push([i, k]); }));
    const data = [xs, ...cols.map((c, i) => owner.map(([j, k]) => j === i ? c.values[k] : null))];
    const all = cols.flatMap(c => [...c.values, c.low, c.high].filter(v => v > 0)).concat(line ? [line] : []);
    const top = Math.max(...all), bottom = from === 0 ? 0 : Math.min(...all), pad = (top - bottom) * 0.08 || top * 0.08;
    const readout = box.parentNode.querySelector(".readout");

    function bands(u) {
      const ctx = u.ctx, dpr = devicePixelRatio || 1;
      const y = v => u.valToPos(v, "y", true), x = v => u.valToPos(v, "x", true);
      ctx.save();
      if (line) {
        ctx.strokeStyle = css("--dim"); ctx.setLineDash([4 * dpr, 4 * dpr]); ctx.lineWidth = dpr;
        ctx.beginPath(); ctx.moveTo(u.bbox.left, y(line)); ctx.lineTo(u.bbox.left + u.bbox.width, y(line)); ctx.stroke();
        ctx.setLineDash([]);
      }
      cols.forEach((c, i) => {
        const left = x(i - 0.38), right = x(i + 0.38);
        ctx.fillStyle = ctx.strokeStyle = colour(c.path);
        if (c.low > 0) {
          ctx.globalAlpha = 0.18;
          ctx.fillRect(left, y(c.high), right - left, Math.max(y(c.low) - y(c.high), dpr));
          ctx.globalAlpha = 1;
        }
        ctx.lineWidth = 2 * dpr;
        ctx.beginPath(); ctx.moveTo(left, y(c.median)); ctx.lineTo(right, y(c.median)); ctx.stroke();
      });
      ctx.restore();
    }
    function tell(u) {
      const i = u.cursor.idx;
      if (i == null) { readout.textContent = "\u00a0"; return; }
      const [j, k] = owner[i];
      readout.textContent = cols[j].path + ", round " + (k + 1) + ": " + format(cols[j].values[k]);
    }
    const axis = { stroke: () => css("--dim"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const u = new uPlot({
      width: box.clientWidth, height: box.clientHeight, legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 10 } },
      scales: { x: { time: false, range: [-0.5, cols.length - 0.5] }, y: { range: [from === 0 ? 0 : bottom - pad, top + pad] } },
      axes: [
        { ...axis, size: 28, grid: { show: false }, splits: () => cols.map((_, i) => i), values: () => cols.map(c => c.path) },
        { ...axis, size: 76, space: 34, values: (_, vs) => vs.map(format) },
      ],
      series: [{}, ...cols.map(c => ({ stroke: () => colour(c.path), paths: () => null, points: { show: true, size: 7, fill: () => colour(c.path) } }))],
      hooks: { drawClear: [bands], setCursor: [tell] },
    }, data, box);
    plots.push([u, box]);
  }

  for (const section of document.querySelectorAll("section[data-test]")) {
    const mine = rows.filter(r => r.test === section.dataset.test);
    const values = section.querySelector("[data-kind=values]"), ratios = section.querySelector("[data-kind=ratios]");
    plot(values, mine.map(r => ({ path: r.path, values: r.rounds, median: r.median, low: r.q1, high: r.q3 })), v => figure(v, mine[0].unit), 0);
    const others = mine.filter(r => r.path !== base);
    if (others.length === 0) { ratios.parentNode.remove(); continue; }
    plot(ratios, others.map(r => ({ path: r.path, values: r.ratios, median: r.ratio_to_node, low: r.ratio_low, high: r.ratio_high })), digits, null, 1);
  }
  for (const key of document.querySelectorAll(".key")) key.style.background = `var(--p${paths.indexOf(key.dataset.path) % 5})`;

  new ResizeObserver(() => plots.forEach(([u, box]) => u.setSize({ width: box.clientWidth, height: box.clientHeight }))).observe(document.querySelector("main"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(([u]) => u.redraw()));
})();
