"use strict";
(() => {
  const { base, rows, steps, costs, times } = JSON.parse(document.getElementById("evaluation").textContent);
  const paths = [...new Set(rows.map(r => r.path))];
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = path => css("--p" + paths.indexOf(path) % 7);
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
  const figure = (v, unit) => v < 0 ? "-" + figure(-v, unit) :
    unit === "s" ? scale(v, 1e9, ["ns", "us", "ms", "sec"]) :
    unit === "bytes/s" ? scale(v, 1, ["bytes/sec", "KB/sec", "MB/sec", "GB/sec", "TB/sec"]) : scale(v, 1, ["/sec", "K/sec", "M/sec", "G/sec"]);

  // A path's name on as many lines as it needs in its column.
  const half = word => word.length < 9 || word.includes("\n") ? word : word.slice(0, word.length >> 1) + "-\n" + word.slice(word.length >> 1);
  const wrap = name => name.replace("/", "\n").replaceAll("+", "\n+").replace("-service-", "-\nservice-\n").replace(/^(pod|node)-(pod|node)/, "$1-\n$2").split("\n").map(half).join("\n");
  const axis = { stroke: () => css("--dim"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const names = list => ({ ...axis, size: 14 + 15 * Math.max(...list.map(n => wrap(n).split("\n").length)), grid: { show: false }, splits: () => list.map((_, i) => i), values: () => list.map(wrap) });

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
    const u = new uPlot({
      width: box.clientWidth, height: box.clientHeight, legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 10 } },
      scales: { x: { time: false, range: [-0.5, cols.length - 0.5] }, y: { range: [from === 0 ? 0 : bottom - pad, top + pad] } },
      axes: [
        names(cols.map(c => c.path)),
        { ...axis, size: 76, space: 34, values: (_, vs) => vs.map(format) },
      ],
      series: [{}, ...cols.map(c => ({ stroke: () => colour(c.path), paths: () => null, points: { show: true, size: 7, fill: () => colour(c.path) } }))],
      hooks: { drawClear: [bands], setCursor: [tell] },
    }, data, box);
    plots.push([u, box]);
  }

  // Boxes drawn into a plot of columns: [column, from, to, colour], whiskers [column, low, high], a text for each column.
  function boxes(box, labels, list, whiskers, texts, format) {
    const all = list.flatMap(b => [b[1], b[2]]).concat(whiskers.flatMap(w => [w[1], w[2]]), [0]);
    const top = Math.max(...all), bottom = Math.min(...all), pad = (top - bottom) * 0.06 || 1;
    const readout = box.parentNode.querySelector(".readout");
    function draw(u) {
      const ctx = u.ctx, dpr = devicePixelRatio || 1, y = v => u.valToPos(v, "y", true), x = v => u.valToPos(v, "x", true);
      ctx.save();
      for (const [i, from, to, paint] of list) {
        ctx.fillStyle = css(paint);
        ctx.fillRect(x(i - 0.34), Math.min(y(from), y(to)), x(i + 0.34) - x(i - 0.34), Math.max(Math.abs(y(from) - y(to)), dpr));
      }
      ctx.strokeStyle = css("--fg"); ctx.lineWidth = dpr;
      for (const [i, low, high] of whiskers) {
        ctx.beginPath(); ctx.moveTo(x(i), y(low)); ctx.lineTo(x(i), y(high)); ctx.stroke();
      }
      ctx.restore();
    }
    const u = new uPlot({
      width: box.clientWidth, height: box.clientHeight, legend: { show: false }, cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
      scales: { x: { time: false, range: [-0.5, labels.length - 0.5] }, y: { range: [bottom < 0 ? bottom - pad : 0, top + pad] } },
      axes: [names(labels), { ...axis, size: 76, space: 34, values: (_, vs) => vs.map(format) }],
      series: [{}, { paths: () => null, points: { show: false } }],
      hooks: { draw: [draw], setCursor: [u => { readout.textContent = u.cursor.idx == null ? "\u00a0" : texts[u.cursor.idx]; }] },
    }, [labels.map((_, i) => i), labels.map(() => null)], box);
    plots.push([u, box]);
  }

  const kinds = ["user", "system", "softirq", "irq", "steal"];
  function cpu(box, mine) {
    const labels = [], list = [], texts = [];
    let unit = "";
    for (const r of mine) {
      const cost = costs[r.test + " " + r.path];
      if (!cost) continue;
      unit = cost.unit;
      for (const bar of cost.bars) {
        let at = 0;
        for (const piece of bar.kinds) {
          const v = Math.max(piece.value, 0);
          if (piece.name === "steal") continue; // not used: taken away
          list.push([labels.length, at, at + v, "--k" + kinds.indexOf(piece.name)]);
          at += v;
        }
        texts.push(r.path + ", " + bar.end + ": " + bar.kinds.map(k => k.name + " " + digits(k.value)).join(", ") + " " + unit);
        labels.push(cost.bars.length > 1 ? r.path + "/" + bar.end : r.path);
      }
    }
    boxes(box, labels, list, [], texts, v => v === 0 ? "0" : digits(v) + " " + unit.split("/")[0]);
    box.parentNode.querySelector(".kinds").innerHTML = kinds.slice(0, 4).map((k, i) => `<span><i style="background:var(--k${i})"></i>${k}</span>`).join("");
  }

  // The waterfall: where the way begins, what each part adds, and where it ends. A part that does not go on
  // where the last one ended begins a way of its own beside it.
  function waterfall(box, mine) {
    const labels = [], list = [], whiskers = [], texts = [], unit = mine[0].unit;
    let at = 0, end = null;
    const whole = path => {
      list.push([labels.length, 0, at, "--p0"]);
      texts.push(path + ": " + figure(at, unit));
      labels.push(path);
    };
    for (const s of mine) {
      if (s.from !== end) {
        if (end) whole(end);
        at = s.before;
        whole(s.from);
      }
      const i = labels.length, worse = (unit === "s") === (s.adds > 0);
      list.push([i, at, at + s.adds, worse ? "--p1" : "--p2"]);
      if (s.low !== 0 || s.high !== 0) whiskers.push([i, at + s.low, at + s.high]);
      texts.push(s.part + ": " + (s.adds < 0 ? "" : "+") + figure(s.adds, unit) + " (" + figure(s.low, unit) + " .. " + figure(s.high, unit) + ")");
      labels.push(s.part.split(" ").map(half).join("\n"));
      at += s.adds;
      end = s.to;
    }
    whole(end);
    boxes(box, labels, list, whiskers, texts, v => figure(v, unit));
  }

  // Latency to the tail: x is how rare, -log10(1 - part), so that each step is ten times as rare.
  function tail(box, mine) {
    const all = mine.filter(r => r.distribution && r.distribution.curve);
    const parts = [...new Set(all.flatMap(r => r.distribution.curve.map(c => c[0])))].sort((a, b) => a - b);
    const at = q => -Math.log10(1 - q);
    const readout = box.parentNode.querySelector(".readout");
    const data = [parts.map(at), ...all.map(r => { const m = new Map(r.distribution.curve); return parts.map(q => m.has(q) ? m.get(q) : null); })];
    const marks = [0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999].filter(q => q <= parts[parts.length - 1]);
    const percent = q => String(+(100 * q).toPrecision(7)) + " %";
    const u = new uPlot({
      width: box.clientWidth, height: box.clientHeight, legend: { show: false }, cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { time: false }, y: { distr: 3 } },
      axes: [{ ...axis, size: 28, splits: () => marks.map(at), values: () => marks.map(percent) }, { ...axis, size: 76, space: 34, values: (_, vs) => vs.map(v => v == null ? "" : figure(v, "s")) }],
      series: [{}, ...all.map(r => ({ stroke: () => colour(r.path), width: 2, points: { show: true, size: 5, fill: () => colour(r.path) } }))],
      hooks: { setCursor: [u => {
        const i = u.cursor.idx;
        readout.textContent = i == null ? "\u00a0" : percent(parts[i]) + ": " + all.map((r, k) => data[k + 1][i] == null ? "" : r.path + " " + figure(data[k + 1][i], "s")).filter(t => t).join(", ");
      }] },
    }, data, box);
    plots.push([u, box]);
  }

  // All parts of all measurements, in the order of time.
  function course(box, mine) {
    const dots = mine.flatMap((r, i) => ((times[r.test] || {})[r.path] || []).map(([x, y]) => [x, y, i])).sort((a, b) => a[0] - b[0]);
    const data = [dots.map(d => d[0]), ...mine.map((_, i) => dots.map(d => d[2] === i ? d[1] : null))];
    const top = Math.max(...dots.map(d => d[1])), unit = mine[0].unit, readout = box.parentNode.querySelector(".readout");
    const u = new uPlot({
      width: box.clientWidth, height: box.clientHeight, legend: { show: false }, cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { time: false }, y: { range: [0, top * 1.08 || 1] } },
      axes: [{ ...axis, size: 28, values: (_, vs) => vs.map(v => digits(v) + " s") }, { ...axis, size: 76, space: 34, values: (_, vs) => vs.map(v => figure(v, unit)) }],
      series: [{}, ...mine.map(r => ({ stroke: () => colour(r.path), paths: () => null, points: { show: true, size: 4, fill: () => colour(r.path) } }))],
      hooks: { setCursor: [u => {
        const d = u.cursor.idx == null ? null : dots[u.cursor.idx];
        readout.textContent = d ? mine[d[2]].path + ", after " + digits(d[0]) + " s: " + figure(d[1], unit) : "\u00a0";
      }] },
    }, data, box);
    plots.push([u, box]);
  }

  for (const section of document.querySelectorAll("section[data-test]")) {
    const mine = rows.filter(r => r.test === section.dataset.test);
    const values = section.querySelector("[data-kind=values]"), ratios = section.querySelector("[data-kind=ratios]");
    plot(values, mine.map(r => ({ path: r.path, values: r.rounds, median: r.median, low: r.q1, high: r.q3 })), v => figure(v, mine[0].unit), 0);
    const drawn = (kind, draw, list) => { const box = section.querySelector("[data-kind=" + kind + "]"); if (box && list.length) draw(box, list); };
    drawn("steps", waterfall, (steps || []).filter(s => s.test === section.dataset.test));
    drawn("cpu", cpu, mine);
    drawn("times", course, mine);
    drawn("tail", tail, mine);
    const others = mine.filter(r => r.path !== base);
    if (others.length === 0) { ratios.parentNode.remove(); continue; }
    plot(ratios, others.map(r => ({ path: r.path, values: r.ratios, median: r.ratio_to_node, low: r.ratio_low, high: r.ratio_high })), digits, null, 1);
  }
  for (const key of document.querySelectorAll(".key")) key.style.background = `var(--p${paths.indexOf(key.dataset.path) % 7})`;

  new ResizeObserver(() => plots.forEach(([u, box]) => u.setSize({ width: box.clientWidth, height: box.clientHeight }))).observe(document.querySelector("main"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(([u]) => u.redraw()));
})();
