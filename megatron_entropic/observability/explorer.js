// The chart of any metric in the report: choose, zoom, point. Data: explorer.py. No library, no requests.
"use strict";
(() => {
  const root = document.getElementById("explorer");
  const { runs, meanings } = JSON.parse(document.getElementById("explorer-data").textContent);
  const [svg, select, button, legend] = ["svg", "select", "button", "b"].map((name) => root.querySelector(name));
  const [readout, meaning] = ["output", "p"].map((name) => root.querySelector(name));
  const [width, height, left, right, top, bottom] = [1100, 380, 70, 24, 12, 30];
  const colours = ["blue", "orange", "green", "purple", "yellow", "sky"].map((name) => `var(--${name})`);
  const all = [Math.min(...runs.map((run) => run.steps[0])), Math.max(...runs.map((run) => run.steps[run.steps.length - 1]))];
  let [view, pressed] = [[...all], null];
  const shownAtFirst = 12;
  const hidden = new Set(runs.slice(shownAtFirst)); // a click on a name of the legend shows or hides its run

  // The chosen metric of a run: its steps and values. A constant column is one number; a thinned one says which steps it has.
  const seriesOf = (run) => {
    const column = run.columns[select.value];
    if (!Array.isArray(column) && column?.at) {
      let index = 0;
      return { run, steps: column.at.map((further) => run.steps[(index += further)]), values: column.values, thinned: true };
    }
    return { run, steps: run.steps, values: Array.isArray(column) ? column : run.steps.map(() => column ?? null) };
  };
  let series = [];
  const nearest = (steps, step) => {
    let [low, high] = [0, steps.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
  };
  const draw = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, content] of Object.entries(attributes)) element.setAttribute(key, content);
    if (text !== undefined) element.textContent = text;
    return svg.appendChild(element);
  };
  const shown = (number) => (Number.isInteger(number) ? `${number}` : Number(number.toPrecision(5)).toString());
  const ticks = ([low, high], count, whole) => {
    const rough = (high - low) / count || 1;
    const unit = 10 ** Math.floor(Math.log10(rough));
    let step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough * 0.999);
    if (whole) step = Math.max(1, Math.round(step));
    const found = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) found.push(tick);
    return found;
  };
  const valueRange = () => {
    let [low, high] = [Infinity, -Infinity];
    for (const { run, steps, values } of series) {
      if (hidden.has(run)) continue;
      steps.forEach((step, index) => {
        const number = values[index];
        if (number === null || step < view[0] || step > view[1]) return;
        [low, high] = [Math.min(low, number), Math.max(high, number)];
      });
    }
    if (low > high) return null;
    const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low - margin, high + margin];
  };
  const x = (step) => left + ((step - view[0]) / (view[1] - view[0] || 1)) * (width - left - right);
  const stepAt = (event) => {
    const box = svg.getBoundingClientRect();
    const place = (((event.clientX - box.left) / box.width) * width - left) / (width - left - right);
    return Math.round(view[0] + Math.min(1, Math.max(0, place)) * (view[1] - view[0]));
  };

  const render = () => {
    svg.replaceChildren();
    const range = valueRange();
    const thinned = series.some((one) => one.thinned) ? "The lowest and highest of each few steps are drawn, at their steps; metrics.jsonl has all." : "";
    meaning.textContent = [meanings[select.value] ?? "", thinned].filter(Boolean).join(" · ");
    if (range === null) return void draw("text", { x: width / 2, y: height / 2 }, "no values in these steps");
    const y = (number) => top + ((range[1] - number) / (range[1] - range[0])) * (height - top - bottom);
    for (const tick of ticks(range, 5)) {
      draw("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), stroke: "var(--grid)" });
      draw("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, shown(tick));
    }
    for (const tick of ticks(view, 8, true)) draw("text", { x: x(tick), y: height - 8, "text-anchor": "middle" }, shown(tick));
    series.forEach(({ run, steps, values }, number) => {
      if (hidden.has(run)) return;
      let [path, drawn] = ["", false];
      steps.forEach((step, index) => {
        const current = step < view[0] || step > view[1] ? null : values[index];
        if (current !== null) path += `${drawn ? "L" : "M"}${x(step).toFixed(1)} ${y(current).toFixed(1)}`;
        drawn = current !== null;
      });
      if (path && steps.length === 1) path += "h0.01"; // a path of one point shows nothing
      const dots = steps.length < 12 ? { "stroke-linecap": "round", "stroke-width": 4 } : { "stroke-width": 1.6 };
      draw("path", { d: path, fill: "none", stroke: colours[number % colours.length], "stroke-linejoin": "round", ...dots });
    });
    draw("line", { id: "explorer-pointer", y1: top, y2: height - bottom, stroke: "var(--muted)", "stroke-dasharray": "3 3", x1: -9, x2: -9 });
    draw("rect", { id: "explorer-zoom", y: top, height: height - top - bottom, fill: "var(--blue)", "fill-opacity": 0.12, width: 0, x: 0 });
  };
  const point = (event) => {
    const step = stepAt(event);
    const texts = series.filter(({ run }) => !hidden.has(run)).map(({ run, steps, values, thinned }) => {
      const index = nearest(steps, step);
      const number = thinned || steps[index] === step ? values[index] : null;
      const where = thinned && steps[index] !== step ? ` (at step ${steps[index]})` : "";
      return `${runs.length > 1 ? `${run.label}: ` : ""}${number === null ? "–" : shown(number)}${where}`;
    });
    readout.textContent = `step ${step}   ${texts.join("   ")}`;
    const pointer = svg.querySelector("#explorer-pointer");
    if (pointer) for (const end of ["x1", "x2"]) pointer.setAttribute(end, x(step));
    const zoom = svg.querySelector("#explorer-zoom");
    if (zoom && pressed !== null) {
      zoom.setAttribute("x", Math.min(x(pressed), x(step)));
      zoom.setAttribute("width", Math.abs(x(pressed) - x(step)));
    }
  };
  const zoomTo = (from, to) => {
    if (to > from) view = [from, to];
    render();
  };

  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", (event) => { pressed = stepAt(event); svg.setPointerCapture(event.pointerId); });
  svg.addEventListener("pointerup", (event) => {
    const from = pressed;
    pressed = null;
    if (from !== null && from !== stepAt(event)) zoomTo(Math.min(from, stepAt(event)), Math.max(from, stepAt(event)));
  });
  for (const [element, kind] of [[svg, "dblclick"], [button, "click"]]) element.addEventListener(kind, () => zoomTo(...all));
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.columns)))];
  for (const name of names) select.add(new Option(name, name));
  if (runs.length > 1) {
    runs.forEach((run, number) => {
      const label = legend.appendChild(document.createElement("span"));
      label.textContent = `${run.label} `;
      label.title = "show or hide";
      label.style.cursor = "pointer";
      const paint = () => { label.style.color = hidden.has(run) ? "var(--grey)" : colours[number % colours.length]; };
      label.addEventListener("click", () => {
        if (!hidden.delete(run)) hidden.add(run);
        paint();
        render();
      });
      paint();
    });
  }
  const choose = () => { series = runs.map(seriesOf); render(); };
  select.addEventListener("change", choose);
  choose();
})();
