// The rollout viewer: filters, results, the samples of a prompt with coloured tokens. Every text of a run becomes a text node.
"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const [form, results, samples, tip, field] = ["filters", "results", "samples", "tip", "field"].map(by);
  // name: [label, meaning, kind]. Kinds: one side from 0; signed around 0.
  const FIELDS = {
    entropy: ["entropy", "nats of the policy at this token, before the update", "one"],
    clamped_entropy: ["clamped entropy", "AEnt's, over the tokens that the clamp keeps, nats", "one"],
    gap: ["log-prob gap", "trainer's log-prob minus the sampler's, nats", "signed"],
    weight: ["weight in the loss", "above 0 the update makes the token likelier, below 0 less likely", "signed"],
    control: ["control's part of the weight", "what control added to the weight: alpha, or its choice of tokens", "signed"],
    actuator: ["actuator", "1: making the token likelier lowers the entropy; -1: it raises it; 0: left alone", "signed"],
    surprisal: ["surprisal", "minus the sampler's log-prob, nats", "one"],
  };
  const ROWS = ["entropy", "clamped_entropy", "log_prob", "sampler_log_prob", "gap", "weight", "plain_weight", "control", "actuator"];
  const LABELS = { log_prob: "log-prob, trainer", sampler_log_prob: "log-prob, sampler", plain_weight: "weight without control" };
  let [page, shown, asked, searching] = [0, null, 0, 0];

  const make = (name, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const short = (value) => {
    if (!Number.isFinite(value)) return `${value}`;
    const rounded = Number(value.toPrecision(4));
    return (rounded !== 0 && Math.abs(rounded) < 1e-3 ? value.toExponential(2) : `${rounded}`).replaceAll("-", "−");
  };
  const kindOfReward = (reward) => (reward >= 1 ? "full" : reward > 0 ? "part" : "zero");
  const query = (more) => {
    const pairs = [...new FormData(form)].filter(([, value]) => value.trim() !== "");
    return new URLSearchParams([...pairs, ...Object.entries(more)]).toString();
  };
  const ask = async (name, text = "") => {
    const response = await fetch(`api/${name}?${text}`);
    const answer = await response.json();
    if (answer.error !== undefined) throw new Error(answer.error);
    return answer;
  };
  const said = (error) => { by("trouble").textContent = error ? error.message || String(error) : ""; };

  // -- results -----------------------------------------------------------------------------------------------------

  const row = (result) => {
    const item = make("li");
    item.tabIndex = 0;
    item.dataset.place = `${result.step}/${result.prompt_index}`;
    item.append(make("p", result.prompt || "(empty prompt)"));
    const length = result.shortest === result.longest ? result.longest : `${result.shortest}–${result.longest}`;
    item.append(make("span", `step ${result.step + 1} · prompt ${result.prompt_index} · ${length} tokens`, "meta"));
    const dots = item.appendChild(make("span", undefined, "dots"));
    for (const reward of result.rewards) dots.append(make("i", undefined, kindOfReward(reward)));
    dots.append(make("span", `reward ${short(result.reward)}`, "meta"));
    const open = () => show(result.step, result.prompt_index);
    item.addEventListener("click", open);
    item.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
    return item;
  };
  const mark = () => {
    for (const item of results.children) item.classList.toggle("chosen", shown !== null && item.dataset.place === `${shown.step}/${shown.prompt_index}`);
  };
  const find = async () => {
    const mine = ++searching;
    try {
      const answer = await ask("search", query({ page }));
      if (mine !== searching) return;
      said();
      results.replaceChildren(...answer.results.map(row));
      results.scrollTop = 0;
      const count = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
      by("found").textContent = `${count(answer.rollouts, "sample")} of ${count(answer.groups, "prompt")}`;
      by("page").textContent = answer.pages > 1 ? `page ${page + 1} of ${answer.pages.toLocaleString("en")}` : "";
      by("back").disabled = page === 0;
      by("more").disabled = page + 1 >= answer.pages;
      results.dataset.answered = mine;
      mark();
    } catch (error) { if (mine === searching) said(error); }
  };
  let waiting = null;
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(() => { page = 0; find(); }, 200); };

  // -- samples -----------------------------------------------------------------------------------------------------

  const show = async (step, promptIndex) => {
    const mine = ++asked;
    try {
      const answer = await ask("prompt", query({ step, prompt_index: promptIndex }));
      if (mine !== asked) return;
      said();
      shown = answer;
      for (const sample of answer.samples) read(sample);
      by("hint").hidden = true;
      by("shown").hidden = false;
      by("prompt").textContent = answer.prompt;
      by("problem").textContent = Object.entries(answer.problem).map(([name, value]) => `${name}: ${value}`).join("\n");
      by("remarks").replaceChildren(...answer.remarks.map((text) => make("p", text)));
      place(answer);
      choices(answer);
      samples.replaceChildren(...answer.samples.map(card));
      paint();
      mark();
      by("detail").scrollTop = 0;
    } catch (error) { if (mine === asked) said(error); }
  };
  const read = (sample) => {
    for (const name of Object.keys(sample.values)) sample.values[name] = sample.values[name].map(Number);
    sample.values.surprisal = sample.values.sampler_log_prob.map((value) => -value);
  };
  const place = (answer) => {
    const [steps, update] = [answer.places.length, answer.samples[0].update]; // a prompt's samples share their update
    const about = [`${answer.samples.length} samples`];
    if (update) {
      about.push(`alpha ${short(Number(update.alpha))}`, `phase ${update.phase}`);
      for (const name of ["bonus", "entropy_bonus"]) if (Number(update[name])) about.push(`${name.replace("_", " ")} ${short(Number(update[name]))}`);
      if (Number(update.positive_weight) !== 1) about.push(`weight of positive samples ${short(Number(update.positive_weight))}`);
      if (!update.applied) about.push("update not applied");
    }
    by("place").replaceChildren(make("b", `step ${answer.step + 1}, prompt ${answer.prompt_index}`), make("span", about.join(" · "), "meta"));
    if (steps > 1) {
      const button = by("place").appendChild(make("button", `drawn ${steps} times: show all`));
      button.type = "button";
      button.addEventListener("click", () => { form.reset(); form.elements.same.value = answer.same; page = 0; find(); });
    }
  };
  const choices = (answer) => {
    const had = field.value;
    const there = Object.keys(FIELDS).filter((name) => answer.samples.some((sample) => name in sample.values));
    field.replaceChildren(new Option("nothing", ""), ...there.map((name) => new Option(FIELDS[name][0], name)));
    field.value = there.includes(had) || (had === "" && field.dataset.chosen) ? had : there[0];
  };
  const card = (sample) => {
    const element = make("article", undefined, shown.fitting.includes(sample.sample_index) ? "sample" : "sample apart");
    const head = element.appendChild(make("div", undefined, "head"));
    head.append(make("span", `reward ${short(Number(sample.reward))}`, `reward ${kindOfReward(Number(sample.reward))}`));
    const [first, last] = sample.versions;
    const about = [`sample ${sample.sample_index}`, `${sample.ids.length} tokens`, sample.finish_reason, `version ${first === last ? first : `${first}–${last}`}`];
    head.append(...about.map((text) => make("span", text)));
    const tokens = element.appendChild(make("div", undefined, "tokens"));
    sample.spans = sample.pieces.map((piece, index) => {
      const span = make("span", piece, piece === "" ? "torn" : /^\n+$/.test(piece) ? "spaced" : "");
      span.dataset.token = index;
      return span;
    });
    tokens.append(...sample.spans);
    if (sample.ids.length === 0) tokens.append(make("i", "(empty response)"));
    tokens.addEventListener("pointerover", (event) => point(sample, event));
    tokens.addEventListener("pointerleave", () => { tip.hidden = true; });
    return element;
  };

  // -- colours -----------------------------------------------------------------------------------------------------

  const span = (name) => {
    const sizes = shown.samples.flatMap((sample) => sample.values[name] ?? []).map(Math.abs).filter(Number.isFinite).sort((a, b) => a - b);
    return sizes[Math.floor(sizes.length * 0.98)] || sizes[sizes.length - 1] || 1; // few far out do not flatten the rest
  };
  const paint = () => {
    if (shown === null) return;
    const name = field.value;
    const known = FIELDS[name];
    const most = known ? span(name) : 1;
    by("scale").hidden = !known;
    by("meaning").textContent = known ? known[1] : "";
    if (known) {
      by("ramp").className = known[2];
      by("low").textContent = known[2] === "one" ? "0" : short(-most);
      by("high").textContent = `${short(most)}`;
    }
    for (const sample of shown.samples) {
      const values = known ? sample.values[name] : undefined;
      sample.spans.forEach((element, index) => {
        const value = values?.[index];
        const cold = known?.[2] === "signed" && value > 0;
        const depth = Math.min(1, Math.abs(value) / most) * 0.7;
        element.style.backgroundColor = value === undefined || !Number.isFinite(value) ? "" : `rgba(var(--${cold ? "cold" : "warm"}), ${depth.toFixed(3)})`;
        element.classList.toggle("odd", value !== undefined && !Number.isFinite(value));
      });
    }
  };
  const point = (sample, event) => {
    const index = event.target.dataset?.token;
    if (index === undefined) { tip.hidden = true; return; }
    const table = make("table");
    for (const name of ROWS.filter((other) => other in sample.values)) {
      const line = table.insertRow();
      line.className = name === field.value ? "now" : "";
      line.insertCell().textContent = LABELS[name] ?? FIELDS[name]?.[0] ?? name;
      line.insertCell().textContent = short(sample.values[name][index]);
    }
    const head = make("div");
    head.append(make("code", JSON.stringify(sample.pieces[index])), make("span", ` token ${Number(index) + 1}, id ${sample.ids[index]}`, "meta"));
    tip.replaceChildren(head, table);
    tip.hidden = false;
    const box = event.target.getBoundingClientRect();
    const below = box.bottom + tip.offsetHeight + 8 < window.innerHeight;
    tip.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - tip.offsetHeight - 6)}px`;
  };

  // -- the run -----------------------------------------------------------------------------------------------------

  let known = "";
  const follow = async () => {
    try {
      const run = await ask("run");
      document.title = `${run.name} – rollouts`;
      by("name").textContent = run.name;
      const errors = Object.entries(run.errors);
      const whole = run.indexed >= run.recorded ? "" : ` (of ${run.recorded.toLocaleString("en")}, still reading)`;
      by("progress").textContent = run.recorded === 0 ? "no rollouts recorded yet"
        : `${run.rollouts.toLocaleString("en")} rollouts of ${run.indexed.toLocaleString("en")} steps${whole}`;
      if (run.trouble) said(new Error(run.trouble));
      else if (errors.length) said(new Error(`${errors.length} step${errors.length > 1 ? "s" : ""} cannot be read: ${errors[0][1]}`));
      const now = `${run.indexed}/${run.rollouts}/${run.last}`;
      if (now !== known && page === 0 && results.scrollTop === 0) find();
      known = now;
      setTimeout(follow, run.indexed >= run.recorded ? 2000 : 1000);
    } catch (error) {
      said(new Error("the viewer has ended; start it again with megatron-entropic view"));
      setTimeout(follow, 5000);
    }
  };

  form.addEventListener("submit", (event) => { event.preventDefault(); page = 0; find(); });
  form.addEventListener("input", (event) => { if (event.target.name !== "same") form.elements.same.value = ""; soon(); });
  form.addEventListener("reset", () => { form.elements.same.value = ""; soon(); });
  by("back").addEventListener("click", () => { page -= 1; find(); });
  by("more").addEventListener("click", () => { page += 1; find(); });
  field.addEventListener("change", () => { field.dataset.chosen = "yes"; paint(); });
  follow();
})();
