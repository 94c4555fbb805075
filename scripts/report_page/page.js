"use strict";
// Shows the document of a report. It comes from a job, so all of it is written as text (textContent), never as markup.
(() => {
  const report = JSON.parse(document.getElementById("report").textContent) || { title: "This report is empty" };
  const page = document.getElementById("page");
  const list = (value) => (Array.isArray(value) ? value : []);
  const charts = [];

  function element(name, classes, ...children) {
    const node = document.createElement(name);
    if (classes) node.className = classes;
    for (const child of children) node.append(typeof child === "object" ? child : String(child ?? ""));
    return node;
  }

  function section(title, ...children) {
    const node = element("section", "", element("h2", "", title), ...children);
    page.append(node);
    return node;
  }

  function details(title, isOpen, ...children) {
    const node = element("details", "", element("summary", "", title), ...children);
    node.open = isOpen;
    return node;
  }

  function table(classes, head, rows) {
    const body = element("tbody", "");
    for (const cells of rows) {
      const row = element("tr", cells.classes || "");
      cells.forEach((cell, index) => {
        const node = element(index ? "td" : "th", "", cell);
        if (!index) node.scope = "row";
        if (index && head) node.className = "number";
        row.append(node);
      });
      body.append(row);
    }
    const node = element("table", "data " + classes);
    if (head) {
      const row = element("tr", "");
      head.forEach((text, index) => {
        const cell = element("th", index ? "number" : "", text);
        cell.scope = "col";
        row.append(cell);
      });
      node.append(element("thead", "", row));
    }
    node.append(body);
    return node;
  }

  // A region that scrolls is reached by the keyboard, too.
  function scrolled(node, label) {
    node.tabIndex = 0;
    node.setAttribute("role", "region");
    node.setAttribute("aria-label", label);
    return node;
  }

  function number(value) {
    if (typeof value !== "number") return "–";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e15) return value.toLocaleString("en");
    return size && (size < 1e-4 || size >= 1e7) ? value.toExponential(3) : String(Number(value.toPrecision(6)));
  }

  function time(seconds) {
    const date = new Date(seconds * 1000);
    return Number.isNaN(date.getTime()) ? "–" : date.toISOString().slice(0, 16).replace("T", " ") + " UTC";
  }

  function duration(seconds) {
    const rounded = Math.round(Math.abs(seconds));
    const sign = seconds < 0 && rounded ? "−" : "";
    if (rounded < 60) return sign + (Math.abs(seconds) < 10 ? Number(Math.abs(seconds).toFixed(1)) : rounded) + " s";
    const minutes = Math.floor(rounded / 60);
    if (minutes < 60) return sign + minutes + " min" + (rounded % 60 ? " " + (rounded % 60) + " s" : "");
    return sign + Math.floor(minutes / 60) + " h" + (minutes % 60 ? " " + (minutes % 60) + " min" : "");
  }

  function showHead() {
    document.title = report.title;
    page.append(element("h1", report.succeeded ? "good" : "", report.title));
    const words = [report.job, typeof report.started === "number" ? time(report.started) : ""].filter(Boolean);
    if (words.length) page.append(element("p", "about", words.join(" · ")));
    const failure = list(report.failure);
    if (failure.length) page.append(element("div", "card failure", ...failure.map((text) => element("p", "", explanation(text)))));
  }

  // The address of our own page on a failure is a link, and no other address.
  function explanation(text) {
    if (!/^https:\/\/incuvers\.github\.io\/train-classifier\/[a-z-]+\/#[a-z0-9-]+$/.test(text)) return text;
    const node = element("a", "", text);
    node.href = text;
    node.rel = "noreferrer";
    return node;
  }

  function pre(lines, label) {
    return scrolled(element("pre", "", list(lines).join("\n")), label);
  }

  function showLog(place) {
    const log = report.log;
    if (!log || !list(log.lines).length) return;
    const part = log.traceback;
    const show = details("End of the log", !report.succeeded && !part, pre(log.lines, "End of the log"));
    if (log.earlier) {
      const count = log.earlier > 0 ? log.earlier.toLocaleString("en") + " earlier lines are" : "Earlier lines are";
      show.append(element("p", "note", count + " in log.txt."));
    }
    const parts = [show];
    if (part) parts.unshift(details("Traceback", true, pre(log.lines.slice(part[0], part[1]), "Traceback")));
    place("Log", ...parts);
  }

  function showMetrics() {
    const rows = list(report.metrics);
    if (!rows.length) return;
    const node = element("dl", "metrics");
    for (const [name, value] of rows) node.append(element("div", "card", element("dt", "", name), element("dd", "", value)));
    section("Final metrics", node);
  }

  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  // The points of all lines over the same x: null where a line has none.
  function aligned(chart, isUsage) {
    const data = uPlot.join(list(chart.lines).map((line) => [line.x, line.y]));
    const phases = list(report.phases);
    if (!isUsage || !phases.length) return data;
    // The phases before and after the training are shown too, unless they would take most of the chart.
    const last = data[0][data[0].length - 1];
    const start = Math.max(phases[0][1], -0.25 * last);
    const end = Math.min(phases[phases.length - 1][2], 1.25 * last);
    if (start < data[0][0]) data.forEach((values, index) => values.unshift(index ? null : start));
    if (end > last) data.forEach((values, index) => values.push(index ? null : end));
    return data;
  }

  function bands(plot) {
    const context = plot.ctx;
    const [top, bottom] = [plot.bbox.top, plot.bbox.top + plot.bbox.height];
    context.save();
    context.beginPath();
    context.rect(plot.bbox.left, 0, plot.bbox.width, bottom);
    context.clip();
    context.font = 11 * devicePixelRatio + "px system-ui, sans-serif";
    context.textBaseline = "top";
    list(report.phases).forEach(([name, start, end]) => {
      const left = plot.valToPos(start, "x", true);
      const right = plot.valToPos(end, "x", true);
      if (name !== "training") {
        context.fillStyle = color("band");
        context.fillRect(left, top, Math.max(right - left, 1), bottom - top);
      }
      const visible = Math.min(right, plot.bbox.left + plot.bbox.width) - Math.max(left, plot.bbox.left);
      if (visible > context.measureText(name).width + 4) {
        context.fillStyle = color("soft");
        context.fillText(name, Math.max(left, plot.bbox.left) + 2, top - 15 * devicePixelRatio);
      }
    });
    context.restore();
  }

  // Where jobs are compared, each has its own colour in all charts.
  function place(line, index) {
    const job = list(report.jobs).indexOf(line.name);
    return job < 0 ? index : job;
  }

  function options(chart, width, isUsage) {
    const [low, high] = list(chart.ends);
    const axis = {
      stroke: color("soft"),
      font: "12px system-ui, sans-serif",
      grid: { stroke: color("rule"), width: 1 },
      ticks: { stroke: color("rule"), width: 1 },
    };
    const side = { ...axis, values: (plot, ticks) => ticks.map(number), size: sideSize, space: 36 };
    const isSpread = chart.isLogarithmic;
    return {
      width,
      height: 240,
      ms: 1,
      padding: [isUsage ? 20 : 10, 26, 0, 0],
      cursor: { sync: { key: isUsage ? "usage" : "curves " + chart.x }, drag: { x: true, y: false }, points: { size: 7 } },
      scales: {
        x: { time: false, range: (plot, from, to) => xRange(from, to) },
        y: isSpread ? { distr: 3 } : { range: (plot, from, to) => yRange(from, to, low, high) },
      },
      axes: [{ ...axis, values: (plot, ticks) => ticks.map(isUsage ? duration : number), space: 70, incrs: steps(chart) }, side],
      series: [
        { label: chart.x === "seconds" ? "time" : chart.x, value: (plot, value) => (value == null ? "–" : isUsage ? duration(value) : number(value)) },
        ...list(chart.lines).map((line, index) => ({
          // Many points make a line a band, through which others must be seen.
          label: line.name,
          stroke: color("c" + (place(line, index) % 8)) + (line.x.length > 300 ? "b0" : ""),
          width: line.x.length > 300 ? 1 : 1.75,
          spanGaps: true,
          points: { show: line.x.length < 40, size: 5 },
          value: (plot, value) => number(value),
        })),
      ],
      hooks: { drawClear: isUsage ? [bands] : [], ready: [showLast], setLegend: [showLast] },
    };
  }

  // On paper and on a phone, where nothing is pointed at, the legend has the last values.
  function showLast(plot) {
    if (plot.legend.idx == null) plot.setLegend({ idxs: plot.data.map((values) => values.findLastIndex((value) => value !== null)) }, false);
  }

  // Between epochs there is nothing to name; times are divided as on a clock.
  function steps(chart) {
    const powers = [0, 1, 2, 3, 4, 5, 6, 7, 8].map((power) => 10 ** power);
    if (chart.x === "seconds") return [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800, 2419200];
    const isWhole = list(chart.lines).every((line) => list(line.x).every(Number.isInteger));
    return isWhole ? powers.flatMap((power) => [power, 2 * power, 5 * power]) : undefined;
  }

  // As wide as the longest number of the axis.
  function sideSize(plot, values) {
    const longest = list(values).reduce((most, text) => Math.max(most, text.length), 0);
    return Math.min(22 + 7 * longest, 110);
  }

  function xRange(from, to) {
    if (typeof from !== "number" || typeof to !== "number") return [0, 1];
    return from < to ? [from, to] : [from - 0.5, to + 0.5];
  }

  function yRange(from, to, low, high) {
    if (typeof from !== "number" || typeof to !== "number") return [0, 1];
    const room = (to - from) * 0.06 || Math.abs(to) * 0.1 || 1;
    // Zero is shown where it is near, so that lines are compared fairly.
    const bottom = typeof low === "number" ? Math.min(low, from) : from >= 0 && from < to / 2 ? 0 : from - room;
    const top = typeof high === "number" && to <= high ? high : to + room;
    return [bottom, top];
  }

  function draw(entry) {
    if (entry.plot) entry.plot.destroy();
    const width = Math.max(entry.place.clientWidth, 160);
    entry.width = width;
    entry.plot = new uPlot(options(entry.chart, width, entry.isUsage), entry.data, entry.place);
  }

  function values(chart) {
    const rows = list(chart.lines).map((line) => {
      const [first, low, lowAt, high, highAt, last] = list(line.values);
      const at = (x) => (chart.x === "seconds" ? duration(x) : number(x));
      return [line.name, number(first), `${number(low)} (${at(lowAt)})`, `${number(high)} (${at(highAt)})`, number(last)];
    });
    const unit = chart.x === "seconds" ? "time" : chart.x;
    const shown = table("", ["line", "first", `lowest (${unit})`, `highest (${unit})`, "last"], rows);
    return details("Values", false, scrolled(element("div", "wide", shown), "Values of " + chart.title));
  }

  function canBeLogarithmic(chart) {
    const all = list(chart.lines).flatMap((line) => line.y);
    return all.length > 0 && all.every((y) => y > 0) && Math.max(...all.slice(0, 50000)) / Math.min(...all.slice(0, 50000)) > 20;
  }

  function showCharts(title, some, isUsage, ...before) {
    if (!list(some).length && !before.length) return;
    const grid = element("div", "grid");
    section(title, ...before, grid);
    const files = new Set(list(some).map((chart) => chart.file));
    for (const chart of list(some)) {
      const place = element("div", "plot");
      place.setAttribute("role", "img");
      place.setAttribute("aria-label", `${chart.title} by ${chart.x}: ` + list(chart.lines).map((line) => line.name).join(", "));
      const named = isUsage ? `${chart.title}, ${chart.y}` : chart.title;
      const card = element("div", "card", element("h3", "", named), place);
      const entry = { chart, place, isUsage, data: aligned(chart, isUsage) };
      const notes = [files.size > 1 ? chart.file : "", chart.note].filter(Boolean);
      if (notes.length) card.append(element("p", "note", notes.join(" · ")));
      if (!isUsage && canBeLogarithmic(chart)) {
        const box = element("input", "");
        box.type = "checkbox";
        box.addEventListener("change", () => {
          chart.isLogarithmic = box.checked;
          draw(entry);
        });
        card.append(element("label", "note screen", box, " logarithmic"));
      }
      card.append(values(chart));
      grid.append(card);
      charts.push(entry);
    }
  }

  function showUsage() {
    // What took no time to speak of would be a word among the others, and no piece of the bar.
    const phases = list(report.phases).filter(([, start, end]) => end - start >= 0.05);
    const parts = [];
    if (phases.length) {
      const bar = element("div", "bar");
      const keys = element("ul", "keys");
      phases.forEach(([name, start, end], index) => {
        const piece = element("span", "k" + (index % 8));
        piece.style.flexGrow = String(Math.max(end - start, 0));
        bar.append(piece);
        keys.append(element("li", "k" + (index % 8), `${name} ${duration(end - start)}`));
      });
      bar.setAttribute("aria-hidden", "true");
      parts.push(element("div", "card phases", element("h3", "", "Phases"), bar, keys));
    }
    showCharts("Time and use", report.usage, true, ...parts);
  }

  function showImages() {
    const grid = element("div", "grid");
    for (const image of list(report.images)) {
      if (!["png", "jpeg"].includes(image.kind) || !/^[A-Za-z0-9+/]+={0,2}$/.test(image.data)) continue;
      const picture = element("img", "");
      picture.src = `data:image/${image.kind};base64,${image.data}`;
      picture.alt = image.name;
      picture.width = image.width;
      picture.height = image.height;
      grid.append(element("figure", "card", picture, element("figcaption", "", image.name)));
    }
    if (grid.children.length) section("Images", grid);
  }

  function fact(value) {
    if (typeof value !== "object" || value === null) return String(value);
    if (typeof value.time === "number") return time(value.time);
    if (value.words) return element("code", "", list(value.words).join(" "));
    if (value.link && /^https:\/\/[A-Za-z0-9.-]+(:[0-9]{1,5})?\/[\w.~+/-]+$/.test(value.link)) {
      const node = element("a", "", value.text);
      node.href = value.link;
      node.rel = "noopener noreferrer";
      return node;
    }
    return String(value.text ?? "");
  }

  function showFacts() {
    const grid = element("div", "grid narrow");
    for (const group of list(report.facts)) {
      const rows = list(group.rows).map(([label, value]) => [label, fact(value)]);
      grid.append(element("div", "card", element("h3", "", group.title), table("facts", null, rows)));
    }
    if (grid.children.length) section("Facts", grid);
  }

  function showComparison() {
    const comparison = report.comparison;
    if (!comparison || !list(comparison.runs).length) return;
    const rows = list(comparison.runs).map((run) => {
      const cells = [run.job, run.outcome, ...list(run.values).map((value) => (typeof value === "number" ? number(value) : value || "–"))];
      cells.classes = run.job === report.job ? "self" : "";
      return cells;
    });
    const head = ["job", "outcome", ...list(comparison.columns)];
    section("Compared with earlier runs", scrolled(element("div", "card wide", table("", head, rows)), "Compared with earlier runs"));
  }

  function showDifferences() {
    const jobs = list(report.jobs);
    if (!jobs.length) return;
    const parts = [];
    const rows = list(report.different).map(list);
    if (rows.length) parts.push(scrolled(element("div", "card wide", table("texts", ["", ...jobs], rows)), "Differences"));
    const same = list(report.same).map(list);
    if (same.length) parts.push(details("The same in all jobs", false, table("facts", null, same)));
    section(rows.length ? "Differences" : "No differences", ...parts);
  }

  function showNotes() {
    const notes = list(report.notes);
    if (!notes.length) return;
    section("Not shown", element("ul", "", ...notes.map((note) => element("li", "", note))));
  }

  function redraw() {
    for (const entry of charts) draw(entry);
  }

  showHead();
  if (!report.succeeded) showLog(section);
  showMetrics();
  showComparison();
  showDifferences();
  showCharts("Learning curves", report.curves, false);
  showUsage();
  showImages();
  showFacts();
  if (report.succeeded) showLog(section);
  showNotes();
  const hint = charts.length ? " In a chart: drag to enlarge, double-click to go back, click on a name to hide its line." : "";
  page.append(element("footer", "", "Made by train-classifier." + hint));

  // Only now does each card have its width.
  redraw();

  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      for (const entry of charts) if (entry.place.clientWidth !== entry.width) draw(entry);
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  // On paper the page is narrower, and light.
  matchMedia("print").addEventListener("change", redraw);
})();
