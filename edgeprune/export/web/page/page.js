// The page: starts the measurements in a worker and shows what comes of them. All text goes in as text, never as HTML.

import { answersShown } from "./answers.js";
import { axisEnd, comparisonChart, errorText, stairChart, stairsOf, timeParts, timeText } from "./charts.js";

const MOST_THREADS = 16;
const $ = (id) => document.getElementById(id);

let manifest = null;
let shown = null; // the comparison that the page shows
let running = null;

start().catch((error) => {
  $("status").hidden = true;
  fail("error", `The page could not start: ${error.message}`);
});

async function start() {
  say("progress", "Reading what there is", null);
  describeDevice();
  offerThreads();
  showSizes();
  if (typeof WebAssembly !== "object" || typeof Worker === "undefined") {
    throw new Error("this browser has no WebAssembly or no workers; take a newer one.");
  }
  const response = await fetch("manifest.json");
  if (!response.ok) throw new Error(`manifest.json could not be fetched: the server answered ${response.status}.`);
  manifest = await response.json();
  const n = new Set(manifest.probes.map((probe) => probe.layer)).size;
  $("n-layers").textContent = `${counted(n, "layer")} at ${counted(manifest.probes.length, "width")}`;
  $("again").addEventListener("click", compare);
  $("threads").addEventListener("change", compare);
  $("measure-staircase").addEventListener("click", measureStaircase);
  new ResizeObserver(drawChart).observe($("chart"));
  if (manifest.widths) offerWidths();
  await compare();
}

// --- tasks

/** Run one task in a worker of its own; `hear` gets its messages. Resolves with the last one, or rejects in words. */
function inWorker(task, hear, which = null) {
  return new Promise((resolve, reject) => {
    const worker = new Worker("worker.js", { type: "module" });
    let wasHidden = document.hidden;
    const watch = () => (wasHidden ||= document.hidden);
    const end = (settle, value) => {
      worker.terminate();
      document.removeEventListener("visibilitychange", watch);
      settle(value);
    };
    document.addEventListener("visibilitychange", watch);
    worker.onmessage = ({ data }) => {
      if (data.kind === "done") end(resolve, { ...data, wasHidden });
      else if (data.kind === "failed") end(reject, new Error(data.text));
      else hear(data);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      end(reject, new Error(event.message || "this browser could not start the page's worker; take a newer one."));
    };
    worker.postMessage({ task, manifest, threads: Number($("threads").value), which });
  });
}

/** One task at a time: two would slow each other. */
async function alone(errorId, progressId, work) {
  if (running) return;
  running = work;
  const controls = ["again", "threads", "measure-staircase", ...(manifest.widths ? ["width"] : [])];
  for (const id of controls) $(id).disabled = true;
  $(errorId).hidden = true;
  try {
    await work();
  } catch (error) {
    fail(errorId, error.message);
  } finally {
    running = null;
    $(progressId).hidden = true;
    for (const id of controls) $(id).disabled = false;
    $("threads").disabled = $("threads").options.length < 2;
  }
}

const compare = () =>
  alone("error", "status", async () => {
    $("result").dataset.state = "measuring";
    $("status").hidden = false;
    const result = await inWorker("compare", ({ text, share }) => say("progress", text, share));
    show(result);
    $("result").dataset.state = "done";
  });

const measureStaircase = () =>
  alone("staircase-error", "staircase-status", async () => {
    $("staircase").dataset.state = "measuring";
    $("staircase-status").hidden = false;
    $("stairs").replaceChildren();
    $("download").hidden = $("staircase-note").hidden = true;
    const result = await inWorker("staircase", (message) => {
      if (message.kind === "layer") showLayer(message);
      else say("staircase", message.text, message.share);
    });
    $("staircase").dataset.state = "done";
    showDevice(result);
  });

// --- several widths

function offerWidths() {
  const { networks } = manifest.widths;
  $("width-names").textContent = networks.map(({ name }) => name).join(", ");
  const named = () => ($("width-name").textContent = networks[Number($("width").value)].name);
  $("width").addEventListener("input", named);
  $("width").addEventListener("change", measureWidth);
  named();
}

const measureWidth = () =>
  alone("width-error", "width-status", async () => {
    $("widths").dataset.state = "measuring";
    $("width-status").hidden = false;
    $("width-figures").hidden = true;
    const result = await inWorker("width", ({ text, share }) => say("width", text, share), Number($("width").value));
    $("width-p50").textContent = timeText(result.p50_ms);
    $("width-ratio").textContent = `${result.ratio.toFixed(2)} of its time`;
    $("width-parity").textContent = parityText(result.parity);
    $("width-picks").hidden = $("width-picks-title").hidden = result.picked === null;
    $("width-picks").textContent = (result.picked ?? []).map(({ name, count }) => `${name} for ${counted(count, "input")}`).join(", ");
    $("width-figures").hidden = false;
    $("widths").dataset.state = "done";
  });

function say(where, text, share) {
  $(`${where}-text`).textContent = text;
  if (share === null) $(where === "progress" ? "progress" : `${where}-progress`).removeAttribute("value");
  else $(where === "progress" ? "progress" : `${where}-progress`).value = share;
}

function fail(id, text) {
  $(id).closest("section").dataset.state = "failed";
  $(id).textContent = text;
  $(id).hidden = false;
}

// --- the comparison

function show(result) {
  shown = result;
  const { dense, slim, ratio, interval } = result;
  const gain = interval[1] < 1;
  $("figures").hidden = false;
  $("ratio").textContent = ratio.toFixed(2);
  $("ratio").closest(".ratio").classList.toggle("no-gain", !gain);
  $("interval").textContent = `95 % interval ${interval[0].toFixed(2)} to ${interval[1].toFixed(2)}`;
  for (const [name, { p50_ms, p95_ms }] of Object.entries({ dense, slim })) {
    const [value, unit] = timeParts(p50_ms);
    $(`${name}-p50`).replaceChildren(value, small(unit));
    $(`${name}-p95`).textContent = timeText(p95_ms);
    $(`${name}-parity`).textContent = parityText(result.parity[name]);
  }
  $("headline").textContent = headline(result);
  $("badges").replaceChildren(...badges(result));
  $("method").textContent = methodText(result);
  $("clock").textContent = `steps of ${timeText(result.clock_ms)}`;
  $("runtime").textContent = result.runtime;
  if ($("answers")) $("answers-shown").replaceChildren(...answersShown(manifest.task, result.answers));
  drawChart();
}

function drawChart() {
  const width = Math.floor($("chart").clientWidth);
  if (shown && width) $("chart").replaceChildren(comparisonChart(width, shown));
}

function headline({ ratio, interval }) {
  if (interval[1] < 1 && ratio > 0.9) return `On this device the slim network takes ${percent(1 - ratio)} less time than the dense one.`;
  if (interval[1] < 1) return `On this device the slim network is ${(1 / ratio).toFixed(1)} times as fast as the dense one.`;
  if (interval[0] > 1) return `On this device the slim network is slower: it takes ${percent(ratio - 1)} more time than the dense one.`;
  return "On this device there is no significant difference in time between the two.";
}

function badges({ parity, interval, busy, wasHidden }) {
  const list = Object.entries(parity).map(([name, { agrees }]) =>
    badge(agrees, agrees ? `${name} gives what it should` : `${name} gives other outputs`),
  );
  list.push(badge(interval[1] < 1, interval[1] < 1 ? "significantly faster" : "no significant gain"));
  if (busy) list.push(badge(false, "busy device: the times spread widely, so these figures are rough; close other tabs and measure again"));
  if (wasHidden) list.push(badge(false, "the page was in the background for a while: measure again"));
  return list;
}

function badge(good, text) {
  const item = document.createElement("li");
  item.className = good ? "good" : "bad";
  item.textContent = text;
  return item;
}

function parityText({ worst, allowed, runs, agrees, classes }) {
  const error = Number.isFinite(worst) ? errorText(worst) : "not even a number";
  const same = classes ? `; the best class is the same for ${classes.same} of ${classes.of}` : "";
  const verdict = agrees ? "agrees" : "DISAGREES";
  return `${verdict} on ${counted(runs, "input")}: largest error ${error}, ${errorText(allowed)} allowed${same}`;
}

function methodText(result) {
  const { dense, slim, threads, repeats, attempt } = result;
  const batch = manifest.networks.dense.batch;
  const parts = [counted(dense.times_ms.length, "interleaved round"), counted(threads, "thread"), `batch ${batch}`];
  const strays = [...dense.times_ms, ...slim.times_ms].filter((ms) => ms > axisEnd(result)).length;
  if (Math.max(...repeats) > 1) parts.push(`each dot is the mean of ${repeats[0]} dense or ${repeats[1]} slim runs, because the clock is coarse`);
  else parts.push("each dot is one run");
  if (attempt > 1) parts.push(`attempt ${attempt}, because the times spread widely before`);
  const beyond = strays ? ` ${counted(strays, "dot")} ${strays === 1 ? "lies" : "lie"} beyond the picture.` : "";
  return `${parts.join(", ")}. Bars end at the median (p50), whiskers at the 95th percentile.${beyond}`;
}

// --- the staircase

function showLayer({ layer, points }) {
  const [kind] = layer.split(" ", 1);
  const settings = layer.slice(kind.length + 1).split(", ").filter((setting) => !/^(pads|dilation) /.test(setting));
  for (const { label, steps } of stairsOf(points)) {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.append(`${kind}, ${label}`, small(settings.join(", ")));
    figure.append(caption, stairChart(steps));
    $("stairs").append(figure);
  }
}

function showDevice({ runtime, threads, points, failures }) {
  const device = {
    format: "edgeprune-device/1",
    runtime,
    cpu: navigator.userAgent.slice(0, 400),
    threads,
    batch: manifest.probe_batch,
    points,
  };
  const link = $("download");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([`${JSON.stringify(device, null, 1)}\n`], { type: "application/json" }));
  link.hidden = $("staircase-note").hidden = false;
  if (failures.length) {
    const named = failures.map(({ layer, text }) => `${layer}: ${text}`).join(" ");
    fail("staircase-error", `Not in device.json, because it could not be measured: ${named}`);
  }
}

// --- the device

function describeDevice() {
  $("agent").textContent = navigator.userAgent;
  $("cores").textContent = navigator.hardwareConcurrency ? String(navigator.hardwareConcurrency) : "not told by this browser";
}

/** Threads need a page that is isolated from other origins; a page that is not runs on one, and says why. */
function offerThreads() {
  const cores = Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS);
  const isolated = globalThis.crossOriginIsolated === true;
  const most = isolated ? cores : 1;
  const usual = Math.min(4, Math.ceil(most / 2)); // onnxruntime-web's own choice
  for (let n = 1; n <= most; n = n < 4 ? n + 1 : Math.min(n * 2, Math.max(most, n + 1))) {
    $("threads").append(new Option(n, n, n === usual, n === usual));
  }
  $("isolation").textContent = isolated ? "" : `One thread, and a coarse clock: ${whyNotIsolated()}`;
}

function whyNotIsolated() {
  if (!isSecureContext) {
    return "browsers give threads only to pages from https or from localhost. Over a cable, “adb reverse tcp:8000 tcp:8000” makes this server the phone's own localhost.";
  }
  return "the server sends no Cross-Origin-Opener-Policy and Cross-Origin-Embedder-Policy headers; “edgeprune serve” sends them.";
}

// --- small things

function showSizes() {
  for (const cell of document.querySelectorAll("[data-bytes]")) cell.textContent = sizeText(Number(cell.dataset.bytes));
}

function sizeText(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  const [value, unit] = bytes < 1e6 ? [bytes / 1e3, "kB"] : [bytes / 1e6, "MB"];
  return `${value.toFixed(value < 10 ? 1 : 0)} ${unit}`;
}

const counted = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

const percent = (share) => `${(100 * share).toFixed(0)} %`;

function small(text) {
  const element = document.createElement("small");
  element.textContent = text;
  return element;
}
